/* SPDX-License-Identifier: MIT
 *
 * Opens an artifact for export: which tensors are projections, the cache's calibration, or
 * anything else. */
#include "convert/checkpoint/hf.h"
#include "convert/export/export.h"
#include "convert/format/bitpack.h"
#include "convert/format/tensor_names.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum err read_json(struct export_source *s)
{
    char *path = NULL;
    const char *text = artifact_manifest(s->artifact);
    TRY(file_join(&path, s->dir, "config.json"));
    enum err err =
        json_load_file_lenient(&s->config, path, JSON_CONFIG_MAX, JSON_REPEATS_LAST);
    mem_free(path);
    if (err)
        return err;
    json_object_del(s->config, "quantization_config");
    return json_parse(&s->manifest, text, strlen(text), s->dir);
}

/* Writes the module of a layer's projection l, which is that of all experts together. */
static void module_of(char out[96], const struct arch *a, int64_t layer, int l)
{
    layer_tensor_name(out, 96, layer, arch_lin_module(a, l), "");
}

/* A projection of a layer. */
static void add_linear(struct export_source *s, int64_t layer, int lin)
{
    char weight[128];
    struct export_linear *l = &s->linear[s->n_linears++];
    l->layer = layer;
    l->lin = lin;
    l->packed = &artifact_block(s->artifact, layer)->lin[lin];
    module_of(l->name, s->arch, layer, lin);
    snprintf(weight, sizeof(weight), "%s.weight", l->name);
    l->weight = l->packed->bits == 16 ? artifact_find(s->artifact, weight) : NULL;
}

/* Makes l, a projection of all experts of a layer, that of one. */
static void narrow_to_expert(struct export_linear *l, const struct arch *a, int64_t e)
{
    const int64_t n = l->packed->out / a->n_experts;
    l->rows = packed_linear_rows(l->packed, e * n, n);
    l->packed = &l->rows;
    hf_expert_module(l->name, sizeof(l->name), a, l->layer, l->lin, e);
    if (!l->weight)
        return;
    snprintf(l->part_name, sizeof(l->part_name), "%s.weight", l->name);
    l->part = *l->weight;
    l->part.name = l->part_name;
    l->part.dim[0] = n;
    l->part.bytes /= (size_t)a->n_experts;
    l->part.data += (size_t)e * l->part.bytes;
    l->weight = &l->part;
}

int64_t export_linear_at(const struct export_source *s, int64_t layer, int lin)
{
    int64_t before = 0, all = 0; /* in a layer */
    for (int l = 0; l < N_LIN; l++) {
        before += l < lin ? arch_stacked(s->arch, l) : 0;
        all += arch_stacked(s->arch, l);
    }
    return layer * all + before;
}

static enum err list_linears(struct export_source *s)
{
    const struct arch *a = s->arch;
    const int64_t n = export_linear_at(s, a->n_layers, 0);
    TRY(mem_calloc(&s->linear, (size_t)n, sizeof(*s->linear)));
    for (int64_t i = 0; i < a->n_layers * N_LIN; i++) {
        const int lin = (int)(i % N_LIN);
        for (int64_t e = 0; e < arch_stacked(a, lin); e++) {
            add_linear(s, i / N_LIN, lin);
            if (arch_of_experts(a, lin))
                narrow_to_expert(&s->linear[s->n_linears - 1], a, e);
        }
    }
    return OK;
}

static void list_ends(struct export_source *s)
{
    const struct packed_linear *from[] = {artifact_embed(s->artifact),
                                          artifact_head(s->artifact)};
    static const char *const name[] = {"model.embed_tokens", "lm_head"};
    if (!weight_quantizes_head(s->weights))
        return;
    for (; s->n_ends < (s->arch->tied ? 1 : 2); s->n_ends++) {
        struct export_linear *l = &s->end[s->n_ends];
        *l = (struct export_linear){.layer = -1, .lin = N_LIN, .packed = from[s->n_ends]};
        snprintf(l->name, sizeof(l->name), "%s", name[s->n_ends]);
    }
}

static bool is_cache(const char *tail)
{
    static const char *const name[] = {"self_attn.k_scale", "self_attn.k_shift",
                                       "self_attn.v_scale", "self_attn.v_shift"};
    for (size_t i = 0; i < ARRAY_LEN(name); i++)
        if (!strcmp(tail, name[i]))
            return true;
    return false;
}

/* Returns true if name is a tensor of the weight of this module. */
static bool is_weight_of(const char *name, const char *module)
{
    static const char *const end[] = {".weight", ".qweight", ".scales", ".zeros"};
    const size_t n = strlen(module);
    for (size_t i = 0; i < ARRAY_LEN(end); i++)
        if (!strncmp(name, module, n) && !strcmp(name + n, end[i]))
            return true;
    return false;
}

static bool is_weight(const struct arch *a, const char *tail)
{
    for (int lin = 0; lin < N_LIN; lin++)
        if (is_weight_of(tail, arch_lin_module(a, lin)))
            return true;
    return false;
}

/* Returns true for a tensor of a projection's weight, of the cache's calibration, or of the
 * quantized embedding or head. */
static bool is_known(const struct export_source *s, const char *name)
{
    const char *rest = "";
    for (int i = 0; i < s->n_ends; i++)
        if (is_weight_of(name, s->end[i].name))
            return true;
    const int64_t layer = layer_of_tensor(name, &rest);
    if (layer < 0 || layer >= s->arch->n_layers)
        return false;
    return is_cache(rest) || is_weight(s->arch, rest);
}

static enum err list_rest(struct export_source *s)
{
    const int64_t n = artifact_tensor_count(s->artifact);
    TRY(mem_calloc(&s->rest, (size_t)n, sizeof(const struct st_tensor *)));
    for (int64_t i = 0; i < n; i++) {
        const struct st_tensor *t = artifact_tensor_at(s->artifact, i);
        if (!is_known(s, t->name))
            s->rest[s->n_rest++] = t;
    }
    return OK;
}

static bool differs(const float *x, int64_t n, float from)
{
    for (int64_t i = 0; i < n; i++)
        if (x[i] != from)
            return true;
    return false;
}

static struct export_calibrated find_calibrated(const struct export_source *s)
{
    struct export_calibrated c = {0};
    const int64_t n = s->arch->n_kv * s->arch->head_dim;
    for (int64_t i = 0; i < s->arch->n_layers; i++) {
        const struct packed_block *b = artifact_block(s->artifact, i);
        c.k_scale = c.k_scale || differs(b->k_scale, n, 1);
        c.k_shift = c.k_shift || differs(b->k_shift, n, 0);
        c.v_scale = c.v_scale || differs(b->v_scale, n, 1);
        c.v_shift = c.v_shift || differs(b->v_shift, n, 0);
    }
    return c;
}

enum err export_open(struct export_source **out, const char *dir)
{
    enum err err = OK;
    struct export_source *s = NULL;
    TRY(mem_calloc(&s, 1, sizeof(*s)));
    s->dir = dir;
    TRY_OUT(artifact_open(&s->artifact, dir, ARTIFACT_CHECK));
    s->arch = artifact_arch(s->artifact);
    s->weights = artifact_weight_spec(s->artifact);
    s->kv = artifact_kv_spec(s->artifact);
    TRY_OUT(read_json(s));
    TRY_OUT(list_linears(s));
    list_ends(s);
    TRY_OUT(list_rest(s));
    s->calibrated = find_calibrated(s);
    *out = s;
    s = NULL;
out:
    export_close(&s);
    return err;
}

void export_close(struct export_source **ps)
{
    struct export_source *s = *ps;
    if (!s)
        return;
    json_decref(s->config);
    json_decref(s->manifest);
    mem_free(s->linear);
    mem_free(s->rest);
    artifact_close(&s->artifact);
    mem_free(s);
    *ps = NULL;
}

void export_row_codes(uint8_t *codes, const struct packed_linear *p, int64_t row)
{
    bitpack_unpack_row(codes, p->qweight + row * bitpack_bytes(p->in, p->bits), p->in,
                       p->bits);
}

void export_row_zeros(uint8_t *zeros, const struct packed_linear *p, int64_t row)
{
    bitpack_unpack_row(zeros, p->zeros + row * bitpack_bytes(p->groups, p->bits), p->groups,
                       p->bits);
}

uint16_t export_scale(const struct packed_linear *p, int64_t row, int64_t group)
{
    const uint8_t *at = p->scales + 2 * (row * p->groups + group);
    return (uint16_t)(at[0] | at[1] << 8);
}

void export_row_scales(uint16_t *scales, const struct packed_linear *p, int64_t row)
{
    for (int64_t g = 0; g < p->groups; g++)
        scales[g] = export_scale(p, row, g);
}

void export_release(const struct export_source *s, const struct export_linear *l)
{
    static const char *const tail[] = {".qweight", ".scales", ".zeros", ".weight"};
    const bool of_layer = l->layer >= 0;
    char name[128], module[96];
    if (of_layer && l + 1 < s->linear + s->n_linears && l[1].layer == l->layer &&
        l[1].lin == l->lin)
        return;
    if (of_layer)
        module_of(module, s->arch, l->layer, l->lin);
    for (size_t i = 0; i < ARRAY_LEN(tail); i++) {
        snprintf(name, sizeof(name), "%s%s", of_layer ? module : l->name, tail[i]);
        artifact_release(s->artifact, name);
    }
}

/* Returns the significant bits of a positive fp16 number. */
static int significant(uint16_t h)
{
    const unsigned fraction = h & 0x3ffu, whole = h >> 10 ? fraction | 0x400u : fraction;
    return 32 - __builtin_clz(whole) - __builtin_ctz(whole);
}

static int more_scale_bits(int most, const struct packed_linear *p)
{
    for (int64_t k = 0; p->bits < 16 && k < p->out * p->groups && most < 11; k++) {
        const int n = significant((uint16_t)(p->scales[2 * k] | p->scales[2 * k + 1] << 8));
        most = n > most ? n : most;
    }
    return most;
}

int export_scale_bits(const struct export_source *s)
{
    int most = 0;
    for (int64_t i = 0; i < s->n_linears; i++)
        most = more_scale_bits(most, s->linear[i].packed);
    for (int i = 0; i < s->n_ends; i++)
        most = more_scale_bits(most, s->end[i].packed);
    return most;
}

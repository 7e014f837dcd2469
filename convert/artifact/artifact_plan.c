/* SPDX-License-Identifier: MIT */
#include "convert/artifact/artifact_plan.h"

#include "convert/format/artifact_names.h"
#include "convert/format/bitpack.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARD_BYTES 5000000000u
#define LAYER_PREFIX "model.layers."

/* Returns the layer in a tensor's name, or -1; *rest is what follows "model.layers.N.". */
static int64_t layer_of(const char *name, const char **rest)
{
    const size_t n = strlen(LAYER_PREFIX);
    char *end;
    if (strncmp(name, LAYER_PREFIX, n) || name[n] < '0' || name[n] > '9')
        return -1;
    const long long layer = strtoll(name + n, &end, 10);
    *rest = end + 1;
    return *end == '.' ? (int64_t)layer : -1;
}

/* Returns true if name is "MODULE.weight". */
static bool is_weight_of(const char *name, const char *module)
{
    const size_t n = strlen(module);
    return !strncmp(name, module, n) && !strcmp(name + n, ".weight");
}

/* Returns the projection whose weight is named, or -1. */
static int linear_of(const struct arch *a, const char *rest)
{
    for (int i = 0; i < N_LIN; i++)
        if (is_weight_of(rest, arch_lin_module(a, i)))
            return i;
    return -1;
}

/* Returns the norm whose gain is named, or -1. rest: as layer_of() gives it, or the whole name
 * of a tensor outside the layers. */
static int gain_of(const struct arch *a, const char *rest)
{
    for (int g = 0; g < N_GAINS; g++)
        if (arch_gain(a, a->n_layers - 1, (enum norm_gain)g) &&
            is_weight_of(rest, arch_norm_module(a, (enum norm_gain)g)))
            return g;
    return -1;
}

enum err out_plan_add(struct out_plan *p, const struct out_tensor *t)
{
    if (p->n == p->room) {
        const size_t room = p->room ? p->room * 2 : 256;
        TRY(mem_resize(&p->tensor, p->n, room, sizeof(*t)));
        p->room = room;
    }
    struct out_tensor *to = &p->tensor[p->n];
    *to = *t;
    enum err err = size_product(&to->bytes, t->dim, t->n_dims, dtype_bytes(t->dtype));
    if (err)
        return err_add(err, "tensor %s: ", t->name);
    p->n++;
    return OK;
}

static enum err set_name(struct out_tensor *t, const char *head, const char *tail)
{
    const int n = snprintf(t->name, sizeof(t->name), "%s%s", head, tail);
    FAIL_IF(n < 0 || (size_t)n >= sizeof(t->name), ERR_SUPPORT,
            "tensor %.60s...: its name is longer than %zu characters", head,
            sizeof(t->name) - 1);
    return OK;
}

static enum err add_carried(struct out_plan *p, const struct st_tensor *src, int64_t layer)
{
    struct out_tensor t = {
        .kind = OUT_CARRY, .layer = layer, .src = src, .dtype = src->dtype};
    FAIL_IF(src->dtype == DT_OTHER, ERR_SUPPORT,
            "tensor %s: dtype %s cannot be carried over", src->name, src->dtype_name);
    FAIL_IF(src->n_dims > TENSOR_MAX_DIMS, ERR_SUPPORT,
            "tensor %s: %d dimensions, at most %d can be carried over", src->name,
            src->n_dims, TENSOR_MAX_DIMS);
    TRY(set_name(&t, src->name, ""));
    t.n_dims = src->n_dims;
    memcpy(t.dim, src->dim, sizeof(t.dim));
    return out_plan_add(p, &t);
}

static enum err add_gain(struct out_plan *p, const struct st_tensor *src, int64_t layer,
                         enum norm_gain gain)
{
    struct out_tensor t = {.kind = OUT_GAIN,
                           .layer = layer,
                           .gain = gain,
                           .src = src,
                           .dtype = DT_F32,
                           .n_dims = src->n_dims};
    memcpy(t.dim, src->dim, sizeof(t.dim));
    TRY(set_name(&t, src->name, ""));
    return out_plan_add(p, &t);
}

static enum err add_packed(struct out_plan *p, enum out_kind kind, const char *base,
                           int64_t layer, int lin, int64_t rows, int64_t cols)
{
    static const char *const tail[] = {
        [OUT_QWEIGHT] = ".qweight", [OUT_SCALES] = ".scales", [OUT_ZEROS] = ".zeros"};
    struct out_tensor t = {.kind = kind, .layer = layer, .lin = lin, .n_dims = 2};
    t.dtype = kind == OUT_SCALES ? DT_F16 : DT_U8;
    t.dim[0] = rows;
    t.dim[1] = cols;
    TRY(set_name(&t, base, tail[kind]));
    return out_plan_add(p, &t);
}

/* Adds codes, scales and zeros in place of a weight NAME.weight. */
static enum err add_linear(struct out_plan *p, const struct st_tensor *src, int64_t layer,
                           int lin, struct lin_format f)
{
    char base[192];
    const int64_t groups = weight_groups(src->dim[1], f.group_size);
    const size_t name = strlen(src->name) - strlen(".weight");
    snprintf(base, sizeof(base), "%.*s", (int)name, src->name);
    TRY(add_packed(p, OUT_QWEIGHT, base, layer, lin, src->dim[0],
                   bitpack_bytes(src->dim[1], f.bits)));
    TRY(add_packed(p, OUT_SCALES, base, layer, lin, src->dim[0], groups));
    return add_packed(p, OUT_ZEROS, base, layer, lin, src->dim[0],
                      bitpack_bytes(groups, f.bits));
}

static enum err add_cache(struct out_plan *p, int64_t layer, int64_t channels)
{
    static const char *const name[] = {[OUT_K_SCALE] = "k_scale",
                                       [OUT_K_SHIFT] = "k_shift",
                                       [OUT_V_SCALE] = "v_scale",
                                       [OUT_V_SHIFT] = "v_shift"};
    for (int kind = OUT_K_SCALE; kind <= OUT_V_SHIFT; kind++) {
        struct out_tensor t = {.kind = (enum out_kind)kind,
                               .layer = layer,
                               .dtype = DT_F32,
                               .n_dims = 1,
                               .dim = {channels}};
        snprintf(t.name, sizeof(t.name), LAYER_PREFIX "%" PRId64 ".self_attn.%s", layer,
                 name[kind]);
        TRY(out_plan_add(p, &t));
    }
    return OK;
}

static enum err add_source_tensor(struct out_plan *p, const struct arch *a,
                                  const struct st_tensor *src, const struct weight_spec *w)
{
    const char *rest = "";
    const int64_t layer = layer_of(src->name, &rest);
    const int lin = layer >= 0 && layer < a->n_layers ? linear_of(a, rest) : -1;
    if (a->tied && !strcmp(src->name, "lm_head.weight"))
        return OK;
    const int gain =
        w->refined && layer < a->n_layers ? gain_of(a, layer < 0 ? src->name : rest) : -1;
    if (gain >= 0)
        return add_gain(p, src, layer < 0 ? a->n_layers : layer, (enum norm_gain)gain);
    if (lin >= 0 && weight_format(w, layer, lin).bits < 16)
        return add_linear(p, src, layer, lin, weight_format(w, layer, lin));
    if (layer >= 0)
        return add_carried(p, src, layer < a->n_layers ? layer : a->n_layers);
    const bool front = !strcmp(src->name, "model.embed_tokens.weight");
    const bool end = front || !strcmp(src->name, "lm_head.weight");
    const int64_t place = front ? -1 : a->n_layers;
    if (end && weight_quantizes_head(w))
        return add_linear(p, src, place, front ? OUT_EMBED : OUT_HEAD, head_format(w));
    return add_carried(p, src, place);
}

static int compare(const void *pa, const void *pb)
{
    const struct out_tensor *a = pa, *b = pb;
    if (a->layer != b->layer)
        return a->layer < b->layer ? -1 : 1;
    const size_t wa = dtype_bytes(a->dtype), wb = dtype_bytes(b->dtype);
    if (wa != wb)
        return wa > wb ? -1 : 1;
    return strcmp(a->name, b->name);
}

void out_plan_cut(struct out_plan *p, uint64_t limit)
{
    if (!limit)
        limit = SHARD_BYTES;
    uint64_t used = 0;
    int shard = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (used && used + p->tensor[i].bytes > limit) {
            shard++;
            used = 0;
        }
        used += p->tensor[i].bytes;
        p->tensor[i].shard = shard;
    }
    p->n_shards = shard + 1;
}

size_t out_plan_shard_end(const struct out_plan *p, size_t first)
{
    size_t end = first;
    while (end < p->n && p->tensor[end].shard == p->tensor[first].shard)
        end++;
    return end;
}

enum err out_plan_make(struct out_plan *out, const struct hf_model *m,
                       const struct artifact_settings *s)
{
    enum err err = OK;
    struct out_plan p = {0};
    const struct arch *a = hf_arch(m);
    for (int64_t i = 0; i < hf_tensor_count(m); i++)
        TRY_OUT(add_source_tensor(&p, a, hf_tensor_at(m, i), &s->weights));
    for (int64_t i = 0; i < a->n_layers; i++)
        TRY_OUT(add_cache(&p, i, a->n_kv * a->head_dim));
    qsort(p.tensor, p.n, sizeof(*p.tensor), compare);
    for (size_t i = 1; i < p.n; i++)
        if (!strcmp(p.tensor[i].name, p.tensor[i - 1].name))
            FAIL_OUT(ERR_FORMAT,
                     "tensor %s: the checkpoint has a tensor with a name that the artifact "
                     "uses for another",
                     p.tensor[i].name);
    out_plan_cut(&p, s->shard_bytes);
    *out = p;
    return OK;
out:
    out_plan_free(&p);
    return err;
}

void out_plan_free(struct out_plan *p)
{
    mem_free(p->tensor);
    *p = (struct out_plan){0};
}

enum err out_shard_open(struct st_writer **out, const char *dir, const struct out_plan *p,
                        const struct out_tensor *t, size_t n)
{
    enum err err = OK;
    struct st_entry *e = NULL;
    char *path = NULL, name[64];
    artifact_shard_name(name, t->shard, p->n_shards);
    TRY_OUT(mem_calloc(&e, n, sizeof(*e)));
    for (size_t i = 0; i < n; i++) {
        e[i] = (struct st_entry){t[i].name, t[i].dtype, t[i].n_dims, {0}};
        memcpy(e[i].dim, t[i].dim, sizeof(e[i].dim));
    }
    if (dir)
        TRY_OUT(file_join(&path, dir, name));
    TRY_OUT(st_writer_open(out, path, e, (int64_t)n, NULL, 0));
out:
    mem_free(path);
    mem_free(e);
    return err;
}

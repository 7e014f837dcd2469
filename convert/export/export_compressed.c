/* SPDX-License-Identifier: MIT
 *
 * compressed-tensors, pack-quantized, asymmetric, 4 and 8 bits: transformers, vLLM, SGLang.
 *
 *   NAME.weight_packed      I32 [out][ceil(in b / 32)]  codes along in, lowest bits first
 *   NAME.weight_scale       F16 [out][groups]
 *   NAME.weight_zero_point  I32 [ceil(out b / 32)][groups]  zero points along out
 *   NAME.weight_shape       I64 [2]  out, in
 *
 * Codes and zero points are unsigned, as in the artifact; the library subtracts 2^(b-1) from
 * both. At 4 and 8 bits a packed row is the artifact's row and its padding. A cache in FP8
 * (kv.target) has kv_cache_scheme and, per layer,
 *
 *   self_attn.k_scale, self_attn.v_scale  F32 [1] */
#include "convert/checkpoint/pack_layout.h"
#include "convert/export/export_formats.h"
#include "convert/export/hub.h"
#include "convert/format/bitpack.h"
#include "convert/format/tensor_names.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <string.h>

#define WORD 4 /* bytes of a packed word */

/* --- tensors ------------------------------------------------------------------------ */

static enum err fill_packed(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                            int64_t n, void *scratch)
{
    const struct packed_linear *p = t->linear->packed;
    const size_t have = (size_t)bitpack_bytes(p->in, t->bits);
    for (int64_t r = first; r < first + n; r++, dst += t->row_bytes) {
        if (p->bits == t->bits) {
            memcpy(dst, p->qweight + (size_t)r * have, have);
        } else {
            export_row_codes(scratch, p, r);
            bitpack_row(dst, scratch, p->in, t->bits);
        }
        memset(dst + have, 0, t->row_bytes - have);
    }
    return OK;
}

static enum err fill_scales(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                            int64_t n, void *scratch)
{
    const struct packed_linear *p = t->linear->packed;
    const int64_t groups = scheme_groups(p, t->group);
    for (int64_t r = first; r < first + n; r++)
        for (int64_t g = 0; g < groups; g++, dst += 2)
            memcpy(dst,
                   p->scales + 2 * (r * p->groups + scheme_source_group(p, t->group, g)),
                   2);
    return OK;
}

/* One row holds the zero points of 32 / bits rows of the weight; those beyond it are 0. */
static enum err fill_zeros(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                           int64_t n, void *scratch)
{
    const struct packed_linear *p = t->linear->packed;
    const int64_t groups = scheme_groups(p, t->group), per_word = PACK_WORD_BITS / t->bits;
    uint8_t *zeros = scratch;
    memset(dst, 0, (size_t)n * t->row_bytes);
    for (int64_t j = first; j < first + n; j++, dst += t->row_bytes)
        for (int64_t i = 0; i < per_word && j * per_word + i < p->out; i++) {
            export_row_zeros(zeros, p, j * per_word + i);
            for (int64_t g = 0; g < groups; g++) {
                const int64_t bit = i * t->bits;
                const unsigned z = zeros[scheme_source_group(p, t->group, g)];
                dst[WORD * g + bit / 8] |= (uint8_t)(z << bit % 8);
            }
        }
    return OK;
}

static enum err fill_shape(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                           int64_t n, void *scratch)
{
    int64_t shape[] = {0, t->linear->packed->in};
    for (int k = 0; k < t->n_linears; k++)
        shape[0] += t->linear[k].packed->out;
    memcpy(dst, shape, sizeof(shape)); /* all formats are little-endian */
    return OK;
}

static int64_t words(int64_t n, int bits)
{
    return (bitpack_bytes(n, bits) + WORD - 1) / WORD;
}

static enum err add_module(struct hub_plan *p, const struct hub_module *m,
                           const struct scheme *s)
{
    const int64_t groups = scheme_groups(m->part[0].packed, s->group);
    const int64_t packed[] = {m->out, words(m->in, s->bits)}, scales[] = {m->out, groups};
    const int64_t zeros[] = {words(m->out, s->bits), groups}, shape[] = {2};
    struct hub_tensor how = {.linear = m->part,
                             .n_linears = m->n,
                             .bits = s->bits,
                             .group = s->group,
                             .unit = 1,
                             .dtype = DT_I32};
    if ((size_t)m->in > p->scratch)
        p->scratch = (size_t)m->in;
    how.fill = fill_packed;
    TRY(hub_add(p, &how, m->name, PACK_COMPRESSED_CODES, 2, packed));
    how.unit = PACK_WORD_BITS / s->bits;
    TRY(hub_module_check_words(m, how.unit, PACK_COMPRESSED));
    how.fill = fill_zeros;
    TRY(hub_add(p, &how, m->name, PACK_COMPRESSED_ZEROS, 2, zeros));
    how.unit = 1;
    how.dtype = DT_F16;
    how.fill = fill_scales;
    TRY(hub_add(p, &how, m->name, PACK_COMPRESSED_SCALES, 2, scales));
    how.unit = 0;
    how.dtype = DT_I64;
    how.fill = fill_shape;
    return hub_add(p, &how, m->name, PACK_COMPRESSED_SHAPE, 1, shape);
}

/* The first channel's smoothing, which is that of all. */
static enum err fill_cache_scale(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                                 int64_t n, void *scratch)
{
    memcpy(dst, t->src->data, sizeof(float));
    return OK;
}

static enum err add_cache(struct hub_plan *p, const struct export_job *j)
{
    static const char *const name[] = {".k_scale", ".v_scale"};
    const int64_t one = 1, n = j->source->arch->n_layers;
    for (int64_t layer = 0; kv_target_has_scales(j->source->kv->target) && layer < n;
         layer++)
        for (size_t i = 0; i < ARRAY_LEN(name); i++) {
            struct hub_tensor how = {.dtype = DT_F32, .fill = fill_cache_scale};
            char full[96];
            layer_tensor_name(full, sizeof(full), layer, "self_attn", name[i]);
            how.src = artifact_find(j->source->artifact, full);
            TRY(hub_add(p, &how, full, "", 1, &one));
        }
    return OK;
}

/* --- config.json -------------------------------------------------------------------- */

/* Writes the last part of the name of the module that begins with projection lin, as a pattern.
 * transformers knows the experts' config group by this word. */
static void name_pattern(char out[96], const struct export_source *src, int lin)
{
    const struct hub_module m = hub_module_at(src, export_linear_at(src, 0, lin));
    const bool experts = arch_of_experts(src->arch, lin);
    snprintf(out, 96, "%s", experts ? "experts\\..*" : strrchr(m.name, '.') + 1);
}

/* *out = the pattern of the names of the module that begins with projection lin, in the layers
 * where its scheme is s; NULL if there is none. The caller frees it with mem_free(). */
static enum err pattern(char **out, const struct export_source *src,
                        const struct scheme *scheme, struct scheme s, int lin)
{
    const int64_t layers = src->arch->n_layers;
    const size_t room = 64 + 96 + 8 * (size_t)layers;
    char name[96]; /* "q_proj" */
    int64_t n = 0;
    size_t used = 0;
    name_pattern(name, src, lin);
    *out = NULL;
    for (int64_t i = 0; i < layers; i++)
        n += scheme_same(scheme[i * N_LIN + lin], s);
    if (!n)
        return OK;
    TRY(mem_alloc(out, room, 1));
    if (n == layers) {
        snprintf(*out, room, "re:.*%s$", name);
        return OK;
    }
    used += (size_t)snprintf(*out, room, "re:.*layers\\.(");
    for (int64_t i = 0; i < layers; i++)
        if (scheme_same(scheme[i * N_LIN + lin], s))
            used += (size_t)snprintf(*out + used, room - used, "%lld|", (long long)i);
    snprintf(*out + used - 1, room - used + 1, ")\\..*%s$", name);
    return OK;
}

/* Returns the projections that one pattern names, from lin on. */
static int count_named(const struct export_source *src, int lin)
{
    return arch_of_experts(src->arch, lin)
               ? N_LIN - LIN_GATE
               : hub_module_at(src, export_linear_at(src, 0, lin)).n;
}

static enum err targets(json_t **out, const struct export_source *src,
                        const struct scheme *scheme, struct scheme s, bool all)
{
    *out = all ? json_pack("[s]", "Linear") : json_array();
    for (int lin = 0; lin < N_LIN && !all; lin += count_named(src, lin)) {
        char *text = NULL;
        TRY(pattern(&text, src, scheme, s, lin));
        if (text)
            json_array_append_new(*out, json_string(text));
        mem_free(text);
    }
    return OK;
}

static int64_t count_schemes(const struct export_source *src, const struct scheme *scheme)
{
    int64_t n = 0;
    for (int64_t i = 0; i < src->arch->n_layers * N_LIN; i++)
        n += scheme_is_new(scheme, i);
    return n;
}

static json_t *weights_json(struct scheme s)
{
    json_t *o = json_pack("{s:i, s:s, s:b, s:s}", "num_bits", s.bits, "type", "int",
                          "symmetric", 0, "strategy", s.group ? "group" : "channel");
    json_object_set_new(o, "group_size", s.group ? json_integer(s.group) : json_null());
    json_object_set_new(o, "dynamic", json_false());
    return o;
}

/* Adds a config group for the modules in list, whose reference is consumed. */
static void add_group(json_t *groups, json_t *list, struct scheme s)
{
    char name[32];
    snprintf(name, sizeof(name), "group_%zu", json_object_size(groups));
    json_object_set_new(groups, name,
                        json_pack("{s:o, s:o, s:n, s:n}", "targets", list, "weights",
                                  weights_json(s), "input_activations",
                                  "output_activations"));
}

/* Adds a config group for each different scheme, in the order in which they first occur,
 * and one for a packed head. Engines look for its name: the class Linear is not enough. */
static enum err add_groups(json_t *groups, const struct export_source *src,
                           const struct scheme *scheme, struct scheme head)
{
    const bool all = count_schemes(src, scheme) == 1 && head.bits == 16;
    for (int64_t i = 0; i < src->arch->n_layers * N_LIN; i++) {
        json_t *list;
        if (!scheme_is_new(scheme, i))
            continue;
        TRY(targets(&list, src, scheme, scheme[i], all));
        add_group(groups, list, scheme[i]);
    }
    if (head.bits < 16)
        add_group(groups, json_pack("[s]", "re:.*lm_head$"), head);
    return OK;
}

/* The scheme of an FP8 cache, or null. */
static json_t *cache_json(const struct export_job *j)
{
    return j->carries_target && kv_target_has_scales(j->source->kv->target)
               ? json_pack("{s:i, s:s, s:s, s:b, s:b}", "num_bits", 8, "type", "float",
                           "strategy", "tensor", "symmetric", 1, "dynamic", 0)
               : json_null();
}

static enum err config(json_t **out, const struct export_job *j,
                       const struct scheme *scheme, struct scheme head)
{
    json_t *groups = json_object(), *ignore = json_array();
    TRY(add_groups(groups, j->source, scheme, head));
    if (head.bits == 16)
        json_array_append_new(ignore, json_string("lm_head"));
    if (j->source->arch->n_experts) /* the router */
        json_array_append_new(ignore, json_string("re:.*\\.gate$"));
    hub_add_plain_names(ignore, j->source, true);
    *out = json_pack("{s:s, s:s, s:s, s:o, s:o, s:o}", "quant_method", PACK_COMPRESSED,
                     "format", PACK_COMPRESSED_FORMAT, "quantization_status", "compressed",
                     "config_groups", groups, "ignore", ignore, "kv_cache_scheme",
                     cache_json(j));
    FAIL_IF(!*out || json_out_of_memory(), ERR_MEMORY, "config.json: out of memory");
    return OK;
}

/* --- the format --------------------------------------------------------------------- */

static enum err note_head(struct export_job *j, struct scheme head)
{
    char group[32] = "whole rows";
    if (head.group)
        snprintf(group, sizeof(group), "groups of %lld", (long long)head.group);
    return export_note(
        j, EXPORT_CARRIED,
        "The head, with %d bits in %s, as a config group of its own: versions "
        "of vLLM before March 2026 and of SGLang before August 2026 do not "
        "read it",
        head.bits, group);
}

/* What versions of engines lack: of transformers by a run, of vLLM by its source. Nothing to say
 * where no expert is packed. */
static enum err note_experts(struct export_job *j, const struct scheme *scheme)
{
    bool packed = false, wide = false;
    for (int64_t i = 0; i < j->source->arch->n_layers; i++) {
        const int bits = scheme[i * N_LIN + LIN_GATE].bits; /* those of up and down too */
        packed = packed || bits < 16;
        wide = wide || bits == 8;
    }
    if (!packed)
        return OK;
    return export_note(
        j, EXPORT_CARRIED,
        "Experts, each with its zero points: vLLM 0.32 has kernels for them on GPUs%s; "
        "transformers 4.57 reads them, and 5.24 refuses them (\"Asymmetric quant requires "
        "zero-point values\")",
        wide ? ", but none for 8 bits" : "");
}

static enum err note_weights(struct export_job *j, const struct scheme *scheme,
                             struct scheme head)
{
    const bool packs_head = head.bits < 16;
    const int64_t n = count_schemes(j->source, scheme) + packs_head;
    bool wide = false;
    for (int64_t i = 0; i < j->source->arch->n_layers * N_LIN; i++)
        wide = wide || scheme[i].bits == 8;
    if (wide)
        TRY(export_note(
            j, EXPORT_CARRIED,
            "8-bit projections: vLLM needs a Machete or Humming kernel for them "
            "and has none on CPUs"));
    if (j->source->arch->n_experts)
        TRY(note_experts(j, scheme));
    if (packs_head)
        TRY(note_head(j, head));
    return n < 2
               ? OK
               : export_note(j, EXPORT_CARRIED,
                             "%lld formats, as config groups; llama.cpp's converter reads "
                             "only one",
                             (long long)n);
}

static enum err check(struct export_job *j)
{
    static const struct hub_packing packing = {.most = 8,
                                               .packs_head = true,
                                               .add = add_module,
                                               .config = config,
                                               .cache = add_cache,
                                               .note = note_weights};
    return hub_check_packed(j, &packing);
}

const struct export_format export_compressed = {
    .name = PACK_COMPRESSED,
    .engines = "transformers, vLLM, SGLang",
    .holds = "2 to 8 bits, as 4 or 8; groups of 32, 64, 128 or whole rows; mixed formats; "
             "mixtures of experts; the scales of an FP8 cache",
    .cache = EXPORT_FP8_SCALES | EXPORT_VLLM | EXPORT_TRANSFORMERS,
    .check = check,
    .write = hub_write,
    .release = hub_release,
};

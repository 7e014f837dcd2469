/* SPDX-License-Identifier: MIT
 *
 * What formats of packed codes share. */
#include "convert/export/hub.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <math.h>

#define HEAD_BITS 4 /* up to which a head is packed: engines have kernels for 4 bits */

/* Returns how many of embedding and head, from the first on, are stored as values. */
static int count_values(const struct export_source *s, const struct hub_packing *how)
{
    const bool packs = how->packs_head && s->weights->head_bits <= HEAD_BITS;
    return s->n_ends == 2 && packs ? 1 : s->n_ends;
}

/* Returns torch_dtype. Engines convert scales and values to it. n_values: as from
 * count_values(). */
static enum dtype compute_type(const struct export_source *s, int n_values)
{
    const int bits = export_scale_bits(s);
    const bool fits = hub_is_exact(DT_BF16, 0, bits) &&
                      (!n_values || hub_is_exact(DT_BF16, s->weights->head_bits, bits));
    return s->arch->dtype == DT_BF16 && fits ? DT_BF16 : DT_F16;
}

/* vLLM 0.32 refuses Gemma 3 in float16 as numerically unstable, and `--dtype auto` then takes
 * bfloat16 without an error. */
static enum err note_gemma(struct export_job *j)
{
    return hub_is_exact(DT_BF16, 0, export_scale_bits(j->source))
               ? export_note(j, EXPORT_CARRIED,
                             "The scales, also in bfloat16, in which vLLM computes Gemma 3")
               : export_note(j, EXPORT_CHANGED,
                             "vLLM computes Gemma 3 in bfloat16 alone, which rounds the "
                             "scales: calibrate with weights.scale_bits 7 for it");
}

static enum err note_type(struct export_job *j, enum dtype type)
{
    if (type == DT_BF16)
        return OK;
    if (j->source->arch->dtype == DT_BF16)
        TRY(export_note(
            j, EXPORT_CHANGED,
            "torch_dtype is float16, not the checkpoint's bfloat16, which would "
            "round the scales"));
    if (j->source->arch->dtype == DT_F32)
        TRY(export_note(
            j, EXPORT_CHANGED,
            "torch_dtype is float16, not the checkpoint's float32: engines round "
            "what is not packed to it"));
    return j->source->arch->family == ARCH_GEMMA3 ? note_gemma(j) : OK;
}

/* Returns true if gguf has blocks for embedding and head: 32 columns of one group. */
static bool gguf_packs(const struct export_source *s)
{
    const struct packed_linear *p = s->end[0].packed;
    return p->bits <= 7 && p->in % 32 == 0 && p->group_size % 32 == 0;
}

static enum err note_values(struct export_job *j, enum dtype type, int n)
{
    const struct export_source *s = j->source;
    const bool exact = hub_is_exact(type, s->weights->head_bits, export_scale_bits(s));
    const char *what = s->arch->tied ? "embedding, which is also the head,"
                       : n == 1      ? "embedding"
                                     : "embedding and head";
    return n ? export_note(j, exact ? EXPORT_CARRIED : EXPORT_CHANGED,
                           "The %s of head.bits %d as values in %s, %s%s", what,
                           s->weights->head_bits, dtype_name(type),
                           exact ? "exactly" : "rounded",
                           gguf_packs(s) ? "; --format gguf packs them" : "")
             : OK;
}

/* Adds the quantized embedding and head: n as values, and the rest packed. */
static enum err add_ends(struct hub_plan *p, const struct export_source *s,
                         const struct hub_packing *how, enum dtype type, int n,
                         struct scheme head)
{
    for (int i = 0; i < s->n_ends; i++) {
        const struct hub_module m = hub_module_of(&s->end[i]);
        TRY(i < n ? hub_add_values(p, &m, type) : how->add(p, &m, &head));
    }
    return OK;
}

static enum err add_modules(struct hub_plan *p, const struct export_source *s,
                            const struct hub_packing *how, const struct scheme *scheme)
{
    for (int64_t i = 0; i < s->n_linears;) {
        const struct hub_module m = hub_module_at(s, i);
        const struct scheme to = scheme_of(scheme, m.part);
        if (to.bits < 16)
            TRY(how->add(p, &m, &to));
        i += m.n;
    }
    return OK;
}

/* Refuses a code whose value float16, in which engines compute it, cannot hold. */
static enum err check_row(const struct export_linear *l, int64_t row, uint8_t *codes)
{
    const struct packed_linear *p = l->packed;
    uint8_t *zeros = codes + p->in;
    export_row_codes(codes, p, row);
    export_row_zeros(zeros, p, row);
    for (int64_t c = 0; c < p->in; c++) {
        const int64_t g = p->group_size ? c / p->group_size : 0;
        const float h = f16_to_f32(export_scale(p, row, g));
        const float x = quant_weight_value(codes[c], zeros[g], h);
        FAIL_IF(
            fabsf(x) > F16_MAX, ERR_SUPPORT,
            "tensor %s.weight holds %g, beyond float16's 65504; --format dense with --dtype "
            "bf16 or f32 holds it",
            l->name, (double)x);
    }
    return OK;
}

/* The same for a matrix. Only rows with a scale that some code could carry beyond are read. */
static enum err check_codes(const struct export_linear *l)
{
    enum err err = OK;
    uint8_t *codes = NULL;
    const struct packed_linear *p = l->packed;
    const float most = F16_MAX / (float)((1 << p->bits) - 1);
    if (p->bits >= 16)
        return OK;
    TRY(mem_alloc(&codes, (size_t)(p->in + p->groups), 1));
    for (int64_t r = 0; r < p->out; r++) {
        bool wide = false;
        for (int64_t g = 0; g < p->groups; g++)
            wide = wide || f16_to_f32(export_scale(p, r, g)) > most;
        if (wide)
            TRY_OUT(check_row(l, r, codes));
    }
out:
    mem_free(codes);
    return err;
}

static enum err check_range(const struct export_source *s, enum dtype type)
{
    for (int64_t i = 0; type == DT_F16 && i < s->n_linears; i++)
        TRY(check_codes(&s->linear[i]));
    for (int i = 0; type == DT_F16 && i < s->n_ends; i++)
        TRY(check_codes(&s->end[i]));
    return OK;
}

static enum err plan(struct export_job *j, const struct hub_packing *how,
                     struct scheme *scheme)
{
    const struct export_source *s = j->source;
    const int n_values = count_values(s, how);
    const enum dtype type = compute_type(s, n_values);
    struct scheme head = {16, 0};
    struct hub_plan *p;
    json_t *q;
    TRY(hub_plan_new(&p, j));
    TRY(check_range(s, type));
    TRY(export_note(j, EXPORT_CARRIED, "Codes, scales and zero points, exactly"));
    TRY(schemes_find(scheme, j, how->most, how->one_group));
    if (n_values < s->n_ends)
        TRY(scheme_of_head(&head, j));
    if (how->note)
        TRY(how->note(j, scheme, head));
    TRY(note_values(j, type, n_values));
    TRY(note_type(j, type));
    TRY(hub_add_rest(p, s, DT_OTHER));
    TRY(add_modules(p, s, how, scheme));
    TRY(add_ends(p, s, how, type, n_values, head));
    if (how->cache && j->carries_target)
        TRY(how->cache(p, j));
    TRY(how->config(&q, j, scheme, head));
    return hub_finish(j, q, type == DT_BF16 ? "bfloat16" : "float16");
}

enum err hub_check_packed(struct export_job *j, const struct hub_packing *how)
{
    struct scheme *scheme;
    FAIL_IF(!weight_quantizes(j->source->weights), ERR_SUPPORT,
            "weights.bits is 16: there is nothing to pack; use --format dense");
    const size_t n = (size_t)j->source->arch->n_layers * N_LIN;
    TRY(mem_calloc(&scheme, n, sizeof(*scheme)));
    const enum err err = plan(j, how, scheme);
    mem_free(scheme);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * AWQ, gemm version, 4 bits: MLX, vLLM, SGLang, OpenVINO.
 *
 *   NAME.qweight  I32 [in][out / 8]      nibble i of a word: row 8 j + pack_awq_order[i]
 *   NAME.qzeros   I32 [groups][out / 8]  zero points in the same order
 *   NAME.scales   F16 [groups][out] */
#include "convert/checkpoint/pack_layout.h"
#include "convert/export/export_formats.h"
#include "convert/export/hub.h"
#include "convert/format/bitpack.h"
#include "convert/format/tensor_names.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PER_WORD PACK_AWQ_ROWS
#define STRIPE 128 /* columns that are transposed at a time; a multiple of 8 */

/* dst [n][words of t], word j of each row = nibbles from rows 8 j .. 8 j + 7 of
 * codes [8][n]. */
static void put_word(const struct hub_tensor *t, uint8_t *dst, int64_t j,
                     const uint8_t *codes, int64_t n)
{
    for (int64_t c = 0; c < n; c++) {
        uint32_t word = 0;
        for (int i = 0; i < PER_WORD; i++)
            word |= (uint32_t)codes[pack_awq_order[i] * n + c] << 4 * i;
        memcpy(dst + (size_t)c * t->row_bytes + (size_t)j * sizeof(word), &word,
               sizeof(word));
    }
}

/* Columns [first, first + n) of the rows of one part, which begins at word `at`; first is a
 * multiple of STRIPE. */
static void put_codes(const struct hub_tensor *t, uint8_t *dst, int64_t at,
                      const struct packed_linear *p, int64_t first, int64_t n,
                      uint8_t *codes)
{
    const int64_t row_bytes = bitpack_bytes(p->in, p->bits);
    for (int64_t j = 0; j < p->out / PER_WORD; j++) {
        for (int64_t i = 0; i < PER_WORD; i++)
            bitpack_unpack_row(codes + i * n,
                               p->qweight + (j * PER_WORD + i) * row_bytes +
                                   first / 8 * p->bits,
                               n, p->bits);
        put_word(t, dst, at + j, codes, n);
    }
}

static enum err fill_codes(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                           int64_t n, void *scratch)
{
    int64_t at = 0;
    for (int k = 0; k < t->n_linears; k++) {
        put_codes(t, dst, at, t->linear[k].packed, first, n, scratch);
        at += t->linear[k].packed->out / PER_WORD;
    }
    return OK;
}

/* All groups of one part. codes [8][n] */
static void put_zeros(const struct hub_tensor *t, uint8_t *dst, int64_t at,
                      const struct packed_linear *p, int64_t n, uint8_t *scratch)
{
    uint8_t *zeros = scratch, *codes = zeros + p->groups;
    for (int64_t j = 0; j < p->out / PER_WORD; j++) {
        for (int64_t i = 0; i < PER_WORD; i++) {
            export_row_zeros(zeros, p, j * PER_WORD + i);
            for (int64_t g = 0; g < n; g++)
                codes[i * n + g] = zeros[scheme_source_group(p, t->group, g)];
        }
        put_word(t, dst, at + j, codes, n);
    }
}

/* All groups at once. */
static enum err fill_zeros(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                           int64_t n, void *scratch)
{
    int64_t at = 0;
    for (int k = 0; k < t->n_linears; k++) {
        put_zeros(t, dst, at, t->linear[k].packed, n, scratch);
        at += t->linear[k].packed->out / PER_WORD;
    }
    return OK;
}

static enum err fill_scales(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                            int64_t n, void *scratch)
{
    for (int64_t g = first; g < first + n; g++)
        for (int k = 0; k < t->n_linears; k++) {
            const struct packed_linear *p = t->linear[k].packed;
            const int64_t from = scheme_source_group(p, t->group, g);
            for (int64_t r = 0; r < p->out; r++, dst += 2)
                memcpy(dst, p->scales + 2 * (r * p->groups + from), 2);
        }
    return OK;
}

/* Returns the most groups that a row of a part has. */
static int64_t most_groups(const struct hub_module *m)
{
    int64_t most = 0;
    for (int k = 0; k < m->n; k++)
        most = m->part[k].packed->groups > most ? m->part[k].packed->groups : most;
    return most;
}

static enum err add_module(struct hub_plan *p, const struct hub_module *m,
                           const struct scheme *s)
{
    const int64_t groups = scheme_groups(m->part[0].packed, s->group);
    const int64_t codes[] = {m->in, m->out / PER_WORD};
    const int64_t zeros[] = {groups, m->out / PER_WORD}, scales[] = {groups, m->out};
    struct hub_tensor how = {
        .linear = m->part, .n_linears = m->n, .group = s->group, .dtype = DT_I32};
    const int64_t need = PER_WORD * (groups > STRIPE ? groups : STRIPE) + most_groups(m);
    if ((size_t)need > p->scratch)
        p->scratch = (size_t)need;
    TRY(hub_module_check_words(m, PER_WORD, PACK_AWQ));
    FAIL_IF(m->out % PER_WORD, ERR_SUPPORT,
            "%s has %" PRId64 " rows, and --format awq packs 8 of them in a word; use "
            "--format compressed-tensors",
            m->name, m->out);
    how.fill = fill_codes;
    how.step = STRIPE;
    TRY(hub_add(p, &how, m->name, PACK_QWEIGHT, 2, codes));
    how.fill = fill_zeros;
    how.step = groups;
    TRY(hub_add(p, &how, m->name, PACK_QZEROS, 2, zeros));
    how.fill = fill_scales;
    how.step = 0;
    how.dtype = DT_F16;
    return hub_add(p, &how, m->name, PACK_SCALES, 2, scales);
}

/* The routers of a mixture. Engines look for a name inside that of a module, so "gate" alone would
 * also keep gate_up_proj as it is. */
static void add_routers(json_t *keep, const struct arch *a)
{
    char name[64];
    for (int64_t i = 0; i < (a->n_experts ? a->n_layers : 0); i++) {
        layer_tensor_name(name, sizeof(name), i, arch_router_module(a), "");
        json_array_append_new(keep, json_string(name));
    }
}

/* The group size of all quantized projections; -1 for whole rows. */
static int64_t group_size(const struct export_source *s, const struct scheme *scheme)
{
    for (int64_t i = 0; i < s->arch->n_layers * N_LIN; i++)
        if (scheme[i].bits < 16 && scheme[i].group)
            return scheme[i].group;
    return -1;
}

static enum err config(json_t **out, const struct export_job *j,
                       const struct scheme *scheme, struct scheme head)
{
    const struct export_source *s = j->source;
    json_t *keep = json_pack("[s]", "lm_head");
    add_routers(keep, s->arch);
    hub_add_plain_names(keep, s, false);
    *out = json_pack("{s:s, s:i, s:I, s:b, s:s, s:o}", "quant_method", PACK_AWQ, "bits", 4,
                     "group_size", (json_int_t)group_size(s, scheme), "zero_point", 1,
                     "version", PACK_AWQ_VERSION, "modules_to_not_convert", keep);
    FAIL_IF(!*out || json_out_of_memory(), ERR_MEMORY, "config.json: out of memory");
    return OK;
}

/* What engines do with experts, by their sources. Nothing to say where no expert is packed. */
static enum err note_experts(struct export_job *j, const struct scheme *scheme)
{
    bool packed = false, rows = false;
    for (int64_t i = 0; j->source->arch->n_experts && i < j->source->arch->n_layers; i++) {
        const struct scheme s = scheme[i * N_LIN + LIN_GATE]; /* that of up and down too */
        packed = packed || s.bits < 16;
        rows = rows || (s.bits < 16 && !s.group);
    }
    if (!packed)
        return OK;
    return export_note(
        j, EXPORT_CARRIED,
        rows ? "Experts in whole rows: no engine is known to read them in this "
               "format; vLLM and SGLang want groups of 32, 64 or 128 columns"
             : "Experts, each by itself: vLLM and SGLang read them on GPUs; "
               "transformers and MLX were not tried");
}

static enum err note(struct export_job *j, const struct scheme *scheme, struct scheme head)
{
    if (!j->source->arch->n_experts && group_size(j->source, scheme) < 0)
        TRY(export_note(j, EXPORT_CARRIED,
                        "Groups of whole rows: not for MLX, which has groups of 32, 64 and "
                        "128 columns only"));
    return note_experts(j, scheme);
}

static enum err check(struct export_job *j)
{
    static const struct hub_packing packing = {
        .most = 4, .one_group = true, .add = add_module, .config = config, .note = note};
    return hub_check_packed(j, &packing);
}

const struct export_format export_awq = {
    .name = PACK_AWQ,
    .engines = "MLX (not whole rows), vLLM, SGLang, OpenVINO",
    .holds = "2 to 4 bits, as 4; one group size of 32, 64, 128 or whole rows; mixtures of "
             "experts",
    .cache = EXPORT_VLLM,
    .check = check,
    .write = hub_write,
    .release = hub_release,
};

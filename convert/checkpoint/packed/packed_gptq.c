/* SPDX-License-Identifier: MIT
 *
 * GPTQ, versions 1 and 2: AutoGPTQ, GPTQModel, and AutoRound's own format.
 *
 *   NAME.qweight  I32 [words of in][out]      codes along in
 *   NAME.qzeros   I32 [groups][words of out]  along out; version 1 stores z - 1
 *   NAME.scales   F16, BF16, F32 [groups][out]
 *   NAME.g_idx    I32 [in]; AutoRound has none
 *
 * AutoGPTQ takes 1 from each zero point and GPTQModel from the whole word, which differ where z is
 * 0. A stored 2^bits - 1 is therefore read from files of GPTQModel alone. */
#include "convert/checkpoint/pack_layout.h"
#include "convert/checkpoint/packed/packed.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- config.json -------------------------------------------------------------------- */

/* AutoRound's format in this layout: zero points minus 1, or as they are. Others are refused
 * by name. */
static bool is_auto_round(const json_t *o)
{
    static const char *const packing[] = {"auto_round:auto_gptq", "auto_round",
                                          "auto_round:gptqmodel", "auto_round:exllamav2",
                                          "auto_round:tritonv2"};
    const char *text = json_member_text(o, "packing_format");
    for (size_t i = 0; i < ARRAY_LEN(packing); i++)
        if (!strcmp(text, packing[i]))
            return true;
    return false;
}

static bool describes(const json_t *o)
{
    const char *method = json_member_text(o, "quant_method");
    return !strcmp(method, PACK_GPTQ) ||
           (!strcmp(method, PACK_AUTO_ROUND) && is_auto_round(o));
}

/* Returns whether meta.quantizer, a text or a list of them, names GPTQModel. */
static bool made_by_gptqmodel(const json_t *o)
{
    const json_t *q = json_object_get(json_object_get(o, "meta"), "quantizer");
    const json_t *first = json_is_array(q) ? json_array_get(q, 0) : q;
    const char *text = json_string_value(first);
    return text && !strncmp(text, "gptqmodel", strlen("gptqmodel"));
}

/* Finds how zero points are stored. */
static enum err read_version(struct packed_config *c, const json_t *o, const char *where)
{
    const char *format = PACK_GPTQ_V1;
    if (!strcmp(json_member_text(o, "quant_method"), PACK_AUTO_ROUND)) {
        c->minus_one = strstr(json_member_text(o, "packing_format"), "auto_gptq") != NULL;
        return OK;
    }
    TRY(json_get_string(&format, o, "format", where));
    TRY(json_get_string(&format, o, "checkpoint_format", where));
    c->minus_one = !strcmp(format, PACK_GPTQ_V1);
    c->whole_words = c->minus_one && made_by_gptqmodel(o);
    FAIL_IF(!c->minus_one && strcmp(format, PACK_GPTQ_V2), ERR_SUPPORT,
            "%s: checkpoint_format is \"%.40s\"; \"" PACK_GPTQ_V1 "\" and \"" PACK_GPTQ_V2
            "\" are read",
            where, format);
    return OK;
}

static enum err read_config(struct packed_config *c, const json_t *o, const char *where)
{
    int64_t bits = 0, group;
    bool order = false;
    TRY(json_need_int(&bits, o, "bits", 1, 64, where));
    FAIL_IF(bits != 2 && bits != 4 && bits != 8, ERR_SUPPORT,
            "%s: bits is %" PRId64 "; 2, 4 and 8 are read", where, bits);
    TRY(packed_read_group_size(&group, o, where));
    TRY(json_get_bool(&order, o, "desc_act", where));
    c->needs_g_idx = order;
    c->scheme[c->n_schemes++] = (struct packed_scheme){(int)bits, group, 0};
    return read_version(c, o, where);
}

/* --- one projection ----------------------------------------------------------------- */

/* Sets in and bits. A projection may have other bits than config.json says, which g_idx
 * tells. */
static enum err find_width(struct packed_lin *l, int64_t words)
{
    const struct packed_scheme *s = &l->config->scheme[0];
    const struct st_tensor *order = &l->part[PART_G_IDX];
    l->format.bits = s->bits;
    l->in = words * PACK_WORD_BITS / s->bits;
    if (!order->data) {
        FAIL_IF(l->config->needs_g_idx, ERR_NOT_FOUND,
                "tensor %s needs a g_idx, because desc_act is true in config.json",
                l->part[PART_CODES].name);
        return OK;
    }
    FAIL_IF(order->n_dims != 1 || order->dim[0] < 1, ERR_FORMAT,
            "tensor %s has %d dimensions, want the group of each column", order->name,
            order->n_dims);
    l->in = order->dim[0];
    for (int bits = 2; bits <= 8; bits *= 2)
        if (words * PACK_WORD_BITS == l->in * bits)
            l->format.bits = bits;
    return OK;
}

static enum err measure(struct packed_lin *l)
{
    const struct st_tensor *codes = &l->part[PART_CODES];
    TRY(packed_check_codes(l, "[words of the columns, rows]"));
    l->out = codes->dim[1];
    TRY(find_width(l, codes->dim[0]));
    const int bits = l->format.bits, per = PACK_WORD_BITS / bits;
    return packed_check_by_group(l, (l->in * bits + 31) / 32, l->out,
                                 (l->out + per - 1) / per);
}

static int zero(const struct packed_lin *l, int64_t r, int64_t g)
{
    const struct packed_config *c = l->config;
    const int bits = l->format.bits, per = PACK_WORD_BITS / bits;
    const uint32_t mask = (1u << bits) - 1;
    uint32_t word = packed_word(l, PART_ZEROS, g * l->part[PART_ZEROS].dim[1] + r / per);
    if (c->whole_words)
        word += 0xffffffffu / mask; /* 1 in each of its zero points */
    return (int)(word >> r % per * bits & mask) + (c->minus_one && !c->whole_words);
}

static void rows(const struct packed_lin *l, uint8_t *codes, int64_t first, int64_t n)
{
    const int bits = l->format.bits, per = PACK_WORD_BITS / bits;
    const uint32_t mask = (1u << bits) - 1;
    for (int64_t j = 0; j < l->part[PART_CODES].dim[0]; j++) {
        const int64_t left = l->in - j * per, have = left < per ? left : per;
        for (int64_t r = 0; r < n; r++) {
            const uint32_t word = packed_word(l, PART_CODES, j * l->out + first + r);
            for (int64_t i = 0; i < have; i++)
                codes[r * l->in + j * per + i] = (uint8_t)(word >> i * bits & mask);
        }
    }
}

const struct packed_layout packed_gptq = {
    .about = PACK_GPTQ,
    .tail = {[PART_CODES] = PACK_QWEIGHT,
             [PART_SCALES] = PACK_SCALES,
             [PART_ZEROS] = PACK_QZEROS,
             [PART_G_IDX] = PACK_G_IDX},
    .describes = describes,
    .read_config = read_config,
    .measure = measure,
    .scale_at = packed_scale_by_group,
    .zero = zero,
    .rows = rows,
};

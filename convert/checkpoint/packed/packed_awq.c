/* SPDX-License-Identifier: MIT
 *
 * AWQ, gemm version, 4 bits: AutoAWQ, GPTQModel, AutoRound, and our own export.
 *
 *   NAME.qweight  I32 [in][out / 8]      nibble i of a word: row 8 j + pack_awq_order[i]
 *   NAME.qzeros   I32 [groups][out / 8]  zero points in the same order
 *   NAME.scales   F16, BF16, F32 [groups][out] */
#include "convert/checkpoint/pack_layout.h"
#include "convert/checkpoint/packed/packed.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

#define BITS 4

const int pack_awq_order[PACK_AWQ_ROWS] = {0, 2, 4, 6, 1, 3, 5, 7};

static bool describes(const json_t *o)
{
    const char *method = json_member_text(o, "quant_method");
    return !strcmp(method, PACK_AWQ) ||
           (!strcmp(method, PACK_AUTO_ROUND) &&
            !strcmp(json_member_text(o, "packing_format"), "auto_round:auto_awq"));
}

static enum err read_config(struct packed_config *c, const json_t *o, const char *where)
{
    int64_t bits = BITS, group;
    const char *version = PACK_AWQ_VERSION;
    TRY(json_need_int(&bits, o, "bits", 1, 64, where));
    FAIL_IF(bits != BITS, ERR_SUPPORT, "%s: bits is %" PRId64 "; 4 is read", where, bits);
    TRY(json_get_string(&version, o, "version", where));
    FAIL_IF(strcasecmp(version, PACK_AWQ_VERSION), ERR_SUPPORT,
            "%s: version is \"%.40s\"; \"" PACK_AWQ_VERSION "\" is read", where, version);
    TRY(packed_read_group_size(&group, o, where));
    c->scheme[c->n_schemes++] = (struct packed_scheme){BITS, group, 0};
    return OK;
}

static enum err measure(struct packed_lin *l)
{
    const struct st_tensor *codes = &l->part[PART_CODES];
    TRY(packed_check_codes(l, "[columns, words of the rows]"));
    l->in = codes->dim[0];
    l->out = codes->dim[1] * PACK_AWQ_ROWS;
    l->format.bits = BITS;
    return packed_check_by_group(l, l->in, codes->dim[1], codes->dim[1]);
}

/* Returns the code of row `row`, 0 to 7, of a word. */
static uint8_t of_word(uint32_t word, int64_t row)
{
    int i = 0;
    while (pack_awq_order[i] != row)
        i++;
    return (uint8_t)(word >> BITS * i & 15);
}

static int zero(const struct packed_lin *l, int64_t r, int64_t g)
{
    const int64_t words = l->part[PART_ZEROS].dim[1];
    return of_word(packed_word(l, PART_ZEROS, g * words + r / PACK_AWQ_ROWS),
                   r % PACK_AWQ_ROWS);
}

/* first is a multiple of 8, and so is the number of rows. */
static void rows(const struct packed_lin *l, uint8_t *codes, int64_t first, int64_t n)
{
    const int64_t words = l->part[PART_CODES].dim[1];
    for (int64_t c = 0; c < l->in; c++)
        for (int64_t r = 0; r < n; r += PACK_AWQ_ROWS) {
            const uint32_t word =
                packed_word(l, PART_CODES, c * words + (first + r) / PACK_AWQ_ROWS);
            for (int i = 0; i < PACK_AWQ_ROWS; i++)
                codes[(r + pack_awq_order[i]) * l->in + c] =
                    (uint8_t)(word >> BITS * i & 15);
        }
}

const struct packed_layout packed_awq = {
    .about = PACK_AWQ,
    .tail = {[PART_CODES] = PACK_QWEIGHT,
             [PART_SCALES] = PACK_SCALES,
             [PART_ZEROS] = PACK_QZEROS},
    .describes = describes,
    .read_config = read_config,
    .measure = measure,
    .scale_at = packed_scale_by_group,
    .zero = zero,
    .rows = rows,
};

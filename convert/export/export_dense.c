/* SPDX-License-Identifier: MIT
 *
 * A dequantized checkpoint: every weight is the value of its code. */
#include "convert/export/export_formats.h"

#include "convert/export/hub.h"
#include "kernels/tensor/quant.h"

#include <stdio.h>
#include <string.h>

#define TABLE_BITS 5 /* up to which a group's values are fewer than its columns */

/* Sets value [2^bits] of unit bytes: what the codes of one group stand for. */
static enum err group_table(uint8_t *table, const struct hub_tensor *t, int bits,
                            uint8_t zero, uint16_t scale)
{
    float value[1 << TABLE_BITS];
    for (int q = 0; q < 1 << bits; q++)
        value[q] = quant_weight_value((uint8_t)q, zero, f16_to_f32(scale));
    return hub_narrow(table, value, 1 << bits, t->dtype, t->linear->name);
}

/* dst [n] = the values of the codes. */
static void look_up(uint8_t *dst, const uint8_t *table, const uint8_t *codes, int64_t n,
                    size_t unit)
{
    for (int64_t i = 0; i < n && unit == sizeof(uint16_t); i++)
        memcpy(dst + 2 * i, table + 2 * codes[i], 2);
    for (int64_t i = 0; i < n && unit == sizeof(float); i++)
        memcpy(dst + 4 * i, table + 4 * codes[i], 4);
}

/* The same values as packed_linear_unpack_row(), with one conversion per code of a group. A
 * code that no column has may be beyond the type's range: then the long way decides. */
static bool fill_row_fast(const struct hub_tensor *t, uint8_t *dst, int64_t row,
                          uint8_t *codes)
{
    const struct packed_linear *p = t->linear->packed;
    const size_t unit = dtype_bytes(t->dtype);
    uint8_t *zeros = codes + p->in, table[(1 << TABLE_BITS) * sizeof(float)];
    export_row_codes(codes, p, row);
    export_row_zeros(zeros, p, row);
    for (int64_t g = 0, c = 0; g < p->groups; g++) {
        const int64_t end = g + 1 < p->groups ? c + p->group_size : p->in;
        if (group_table(table, t, p->bits, zeros[g], export_scale(p, row, g))) {
            err_clear();
            return false;
        }
        look_up(dst + (size_t)c * unit, table, codes + c, end - c, unit);
        c = end;
    }
    return true;
}

static enum err fill_values(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                            int64_t n, void *scratch)
{
    const struct packed_linear *p = t->linear->packed;
    for (int64_t r = first; r < first + n; r++, dst += t->row_bytes) {
        if (p->bits <= TABLE_BITS && fill_row_fast(t, dst, r, scratch))
            continue;
        packed_linear_unpack_row(scratch, p, r);
        TRY(hub_narrow(dst, scratch, p->in, t->dtype, t->linear->name));
    }
    return OK;
}

static enum err add_linears(struct hub_plan *p, const struct export_job *j)
{
    const struct export_source *s = j->source;
    for (int64_t i = 0; i < s->n_linears; i++) {
        const struct packed_linear *l = s->linear[i].packed;
        const struct hub_tensor how = {
            .linear = &s->linear[i], .dtype = j->options.dtype, .fill = fill_values};
        const int64_t dim[] = {l->out, l->in};
        if (l->bits == 16)
            continue;
        if ((size_t)l->in * sizeof(float) > p->scratch)
            p->scratch = (size_t)l->in * sizeof(float);
        TRY(hub_add(p, &how, s->linear[i].name, ".weight", 2, dim));
    }
    return OK;
}

static int most_bits(const struct export_source *s)
{
    int most = 0;
    for (int64_t i = 0; i < s->n_linears; i++) {
        const int bits = s->linear[i].packed->bits;
        most = bits < 16 && bits > most ? bits : most;
    }
    return most;
}

/* Returns true if every value fits the type: code - zero has as many bits as a code, and
 * the product as many as both factors together. */
static bool is_exact(const struct export_job *j)
{
    static const int fraction[] = {[DT_F32] = 24, [DT_F16] = 11, [DT_BF16] = 8};
    const int bits = most_bits(j->source) + export_scale_bits(j->source);
    return bits <= fraction[j->options.dtype];
}

static enum err note_weights(struct export_job *j)
{
    if (is_exact(j))
        return export_note(j, EXPORT_CARRIED, "The value of every code, exactly");
    return export_note(
        j, EXPORT_CHANGED,
        "The value of every code is rounded to %s, because code and scale have "
        "up to %d and %d significant bits; --dtype f32 holds it exactly",
        dtype_name(j->options.dtype), most_bits(j->source), export_scale_bits(j->source));
}

static enum err check(struct export_job *j)
{
    static const char *const name[] = {
        [DT_F32] = "float32", [DT_F16] = "float16", [DT_BF16] = "bfloat16"};
    struct hub_plan *p;
    TRY(hub_plan_new(&p, j));
    TRY(note_weights(j));
    TRY(hub_add_rest(p, j->source, j->options.dtype));
    TRY(add_linears(p, j));
    return hub_finish(j, NULL, name[j->options.dtype]);
}

const struct export_format export_dense = {
    .name = "dense",
    .engines = "every engine of Hugging Face checkpoints",
    .holds = "values as F16, BF16 or F32 (--dtype), all bits and groups; no smaller than "
             "the checkpoint",
    .check = check,
    .write = hub_write,
    .release = hub_release,
};

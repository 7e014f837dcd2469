/* SPDX-License-Identifier: MIT
 *
 * Products of packed rows with several vectors in 16-bit integers: the panels of
 * rt_kernels_panel.c with half as many bytes. Compiled once per instruction set, like
 * rt_kernels.c.
 *
 *             row 0       row 1     ...  row 31          X_0[c, c+1]  X_1[c, c+1]  ...
 *   columns  [ w0 w1 ]   [ w0 w1 ]       [ w0 w1 ]            |            |
 *   0 and 1    16 bits each, w = code - z                     v            v
 *   2 and 3  [ w2 w3 ]   ...                        sums [rows] of 32 bits for each vector
 *
 * A lane is a row, and one instruction (VPDPWSSD where there is AVX512-VNNI) adds two
 * columns to its sum. Sums are exact, and end with the segment. */
#include "convert/runtime/rt_kernels.h"
#include "convert/runtime/rt_transpose.h"
#include "convert/runtime/rt_unit.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/rounder.h"

#include <string.h>

typedef int16_t v16 __attribute__((vector_size(2 * VL)));
typedef int16_t vpair __attribute__((vector_size(4 * VL)));

/* --- x ------------------------------------------------------------------------------ */

static inline float round_block(int16_t *fixed, const float *x)
{
    const float unit = block_unit(x, 15);
    const vf by = vf_set1(1 / unit), top = vf_set1(32767);
    const vf round = vf_set1(ROUNDER);
    for (int i = 0; i < RT_PAD_COLUMNS; i += VL) {
        const vf v = vf_min(vf_mul(vf_load(x + i), by), top);
        const vi whole = (vi)vf_add(v, round) - ROUNDER_BITS;
        const v16 short_ = __builtin_convertvector(whole, v16);
        memcpy(fixed + i, &short_, sizeof(short_));
    }
    return unit;
}

static void round_x(int16_t *fixed, float *unit, int64_t step, const float *x, int64_t n)
{
    for (; n >= RT_PAD_COLUMNS; n -= RT_PAD_COLUMNS, x += RT_PAD_COLUMNS) {
        *unit = round_block(fixed, x);
        fixed += step * RT_PAD_COLUMNS;
        unit += step;
    }
    float last[RT_PAD_COLUMNS] = {0};
    if (n == 0)
        return;
    memcpy(last, x, (size_t)n * sizeof(*x));
    *unit = round_block(fixed, last);
}

/* --- filling ------------------------------------------------------------------------ */

/* Loads z of group g into both halves of a lane per row. Rows from n on repeat row n - 1. */
static inline vi gather_zeros(const struct rt_rows *r, int64_t row, int64_t n, int64_t g)
{
    vi z;
    for (int i = 0; i < VL; i++)
        z[i] = r->z[(row + (i < n ? i : n - 1)) * r->pair_stride + g] * 0x10001;
    return z;
}

/* Writes `pairs` <= 4 pairs of columns of VL rows from one word of each. */
static inline void unpack_pairs(int16_t *panel, vi words, vi z, int64_t pairs)
{
    for (int64_t k = 0; k < pairs; k++, words >>= 8) {
        const vi codes = (words & 15) | (words << 12 & 15 << 16);
        const vpair w = (vpair)codes - (vpair)z;
        memcpy(panel + k * 2 * RT_PANEL, &w, sizeof(w));
    }
}

/* Fills columns [from, to) of VL lanes from rows [row, row + n). */
static void fill_lanes(int16_t *panel, const struct rt_rows *r, int64_t row, int64_t n,
                       int64_t from, int64_t to)
{
    const uint8_t *p = r->codes + row * r->code_stride;
    int64_t group_end = from;
    vi z = {0};
    for (int64_t b = from; b < to; b += RT_VECTOR_COLUMNS) {
        vi words[VL];
        load_transposed(words, p + b / 2, r->code_stride, n, (r->in - b + 1) / 2);
        for (int64_t c = b; c < b + RT_VECTOR_COLUMNS && c < to; c += 8) {
            if (c >= group_end) {
                z = gather_zeros(r, row, n, c / r->group);
                group_end = (c / r->group + 1) * r->group;
            }
            unpack_pairs(panel + (c - from) * RT_PANEL, words[(c - b) / 8], z,
                         to - c < 8 ? (to - c + 1) / 2 : 4);
        }
    }
}

static void fill_nibbles(int16_t *panel, const struct rt_rows *r, int64_t row, int64_t n,
                         int64_t from, int64_t to)
{
    for (int64_t i = 0; i < RT_PANEL; i += VL)
        fill_lanes(panel + 2 * i, r, i < n ? row + i : row + n - 1, i < n ? n - i : 1, from,
                   to);
}

static void fill_row(int16_t *panel, int64_t i, const uint8_t *codes, const uint8_t *z,
                     int64_t in, int64_t group)
{
    int16_t *out = panel + 2 * i;
    for (int64_t g = 0, c = 0; c < in; g++)
        for (const int64_t end = in - c < group ? in : c + group; c < end; c++)
            out[c / 2 * 2 * RT_PANEL + c % 2] = (int16_t)(codes[c] - z[g]);
    if (in % 2)
        out[in / 2 * 2 * RT_PANEL + 1] = 0;
}

/* --- multiplying -------------------------------------------------------------------- */

#define PANEL_VECTORS (RT_PANEL / VL)
/* As in rt_kernels_panel.c. */
#define PANEL_TOKENS (VL == 16 ? 12 : VL == 8 || VREGS == 32 ? 2 : 1)
#define MAX_TOKENS 12

static inline vi load_vi(const int16_t *p)
{
    vi v;
    memcpy(&v, p, sizeof(v));
    return v;
}

/* X of columns c, c + 1 in every lane. */
static inline vi pair_of(const int16_t *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof(pair));
    return (vi){0} + pair;
}

/* y [VL] = or += h unit sum. */
INLINE void put_sum(float *y, vi sum, vf h, float unit, const bool add)
{
    const vf v = vf_mul(__builtin_convertvector(sum, vf), vf_mul(h, vf_set1(unit)));
    vf_store(y, add ? vf_add(vf_load(y), v) : v);
}

/* y [m][RT_PANEL] = or += m vectors of x from vector t on. */
INLINE void multiply_few(const struct rt_int16_panel *p, int64_t t, const int m,
                         const bool add)
{
    vi s[MAX_TOKENS][PANEL_VECTORS] = {{{0}}};
    const int64_t pairs = p->pairs;
    const int16_t *panel = p->panel, *x = p->x + t * RT_PAD_COLUMNS;
    for (int64_t c = 0; c < pairs; c++) {
        vi w[PANEL_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECTORS; v++)
            w[v] = load_vi(panel + c * 2 * RT_PANEL + v * 2 * VL);
#pragma GCC unroll 12
        for (int i = 0; i < m; i++) {
            const vi xi = pair_of(x + i * RT_PAD_COLUMNS + 2 * c);
#pragma GCC unroll 8
            for (int v = 0; v < PANEL_VECTORS; v++)
                s[i][v] = vi_dot_int16(s[i][v], w[v], xi);
        }
    }
    float *const y = p->y + t * RT_PANEL;
    const float *const h = p->h, *const unit = p->unit + t;
#pragma GCC unroll 12
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECTORS; v++)
            put_sum(y + i * RT_PANEL + v * VL, s[i][v], vf_load(h + v * VL), unit[i], add);
}

INLINE void multiply_all(const struct rt_int16_panel *p, const bool add)
{
    int64_t t = 0;
    for (; t + PANEL_TOKENS <= p->n; t += PANEL_TOKENS)
        multiply_few(p, t, PANEL_TOKENS, add);
    for (; VL == 16 && t + 4 <= p->n; t += 4)
        multiply_few(p, t, 4, add);
    for (; t < p->n; t++)
        multiply_few(p, t, 1, add);
}

static void multiply(const struct rt_int16_panel *p)
{
    if (p->add)
        multiply_all(p, true);
    else
        multiply_all(p, false);
}

const struct rt_int16_kernels ISA_NAME(rt_int16_kernels) = {
#if defined(__AVX512VNNI__)
    .faster = true,
#endif
    .round = round_x,
    .fill_nibbles = fill_nibbles,
    .fill_row = fill_row,
    .multiply = multiply,
};

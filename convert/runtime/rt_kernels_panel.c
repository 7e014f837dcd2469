/* SPDX-License-Identifier: MIT
 *
 * Products of packed rows with several vectors. Compiled once per instruction set, like
 * rt_kernels.c.
 *
 * RT_PANEL rows are unpacked to F32 once, column by column, and then multiplied with every
 * vector:
 *
 *             row 0  row 1  ...  row 31                  x_0[c]  x_1[c]  ...
 *   column 0 [ w^00   w^10  ...   ]  one or more           |       |
 *   column 1 [ w^01   w^11  ...   ]  vectors a column      v       v
 *   ...                                             sums [rows] of y_0, y_1, ...
 *
 * A lane is therefore a row, and a product needs no horizontal sum. The inner loop loads a
 * column of the panel, broadcasts one value of each of PANEL_TOKENS vectors, and keeps
 * PANEL_TOKENS x RT_PANEL sums in registers. */
#include "convert/runtime/rt_kernels.h"
#include "convert/runtime/rt_transpose.h"
#include "kernels/simd/simd.h"

#include <string.h>

/* --- filling ------------------------------------------------------------------------ */

/* Loads h and z of group g, a row per lane. Rows from n on repeat row n - 1. */
static inline void gather_group(vf *h, vf *z, const struct rt_rows *r, int64_t row,
                                int64_t n, int64_t g)
{
    for (int i = 0; i < VL; i++) {
        const int64_t at = row + (i < n ? i : n - 1);
        (*h)[i] = r->h[at * r->pair_stride + g];
        (*z)[i] = (float)r->z[at * r->pair_stride + g];
    }
}

/* Writes n <= 8 columns of VL rows from one word of each. */
static inline void unpack_word(float *panel, vi words, vf z, vf h, int64_t n)
{
    for (int64_t k = 0; k < n; k++, words >>= 4)
        vf_store(panel + k * RT_PANEL, (__builtin_convertvector(words & 15, vf) - z) * h);
}

/* Fills columns [from, to) of VL lanes from rows [row, row + n). */
static void fill_lanes(float *panel, const struct rt_rows *r, int64_t row, int64_t n,
                       int64_t from, int64_t to)
{
    const uint8_t *p = r->codes + row * r->code_stride;
    int64_t group_end = from;
    vf h = {0}, z = {0};
    for (int64_t b = from; b < to; b += RT_VECTOR_COLUMNS) {
        vi words[VL];
        load_transposed(words, p + b / 2, r->code_stride, n, (r->in - b + 1) / 2);
        for (int64_t c = b; c < b + RT_VECTOR_COLUMNS && c < to; c += 8) {
            if (c >= group_end) {
                gather_group(&h, &z, r, row, n, c / r->group);
                group_end = (c / r->group + 1) * r->group;
            }
            unpack_word(panel + (c - from) * RT_PANEL, words[(c - b) / 8], z, h,
                        to - c < 8 ? to - c : 8);
        }
    }
}

static void fill_nibbles(float *panel, const struct rt_rows *r, int64_t row, int64_t n,
                         int64_t from, int64_t to)
{
    for (int64_t i = 0; i < RT_PANEL; i += VL)
        fill_lanes(panel + i, r, i < n ? row + i : row + n - 1, i < n ? n - i : 1, from,
                   to);
}

static void fill_rows(float *panel, const float *w, int64_t in, int64_t n)
{
    for (int64_t c = 0; c < in; c++)
        for (int64_t i = 0; i < n; i++)
            panel[c * RT_PANEL + i] = w[i * in + c];
}

/* --- multiplying -------------------------------------------------------------------- */

#define PANEL_VECTORS (RT_PANEL / VL)
/* Vectors of x per step: their sums, one column of the panel and one value of x fill the
 * registers. */
#define PANEL_TOKENS (VL == 16 ? 12 : VL == 8 ? 3 : VREGS == 32 ? 2 : 1)
#define MAX_TOKENS 12

/* y [m][RT_PANEL] = or += m vectors of x from vector t on. Each pointer serves three
 * vectors of x, since an address can scale ldx by 0, 1 and 2 only. */
INLINE void multiply_few(const struct rt_panel *p, int64_t t, const int m)
{
    vf s[MAX_TOKENS][PANEL_VECTORS] = {{{0}}};
    const float *panel = p->panel, *x = p->x + t * p->ldx;
    const int64_t in = p->in, ldx = p->ldx;
    const float *at[4] = {x, x + 3 * ldx, x + 6 * ldx, x + 9 * ldx};
    for (int64_t c = 0; c < in; c++) {
        vf w[PANEL_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECTORS; v++)
            w[v] = vf_load(panel + c * RT_PANEL + v * VL);
#pragma GCC unroll 12
        for (int i = 0; i < m; i++) {
            const vf xi = vf_set1(at[i / 3][i % 3 * ldx + c]);
#pragma GCC unroll 8
            for (int v = 0; v < PANEL_VECTORS; v++)
                s[i][v] = vf_fma(w[v], xi, s[i][v]);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < m; i++)
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECTORS; v++) {
            float *y = p->y + (t + i) * p->ldy + v * VL;
            vf_store(y, p->add ? vf_add(vf_load(y), s[i][v]) : s[i][v]);
        }
}

/* All RT_PANEL rows of the panel. */
static void multiply_full(const struct rt_panel *p)
{
    int64_t t = 0;
    for (; t + PANEL_TOKENS <= p->n; t += PANEL_TOKENS)
        multiply_few(p, t, PANEL_TOKENS);
    for (; VL == 16 && t + 4 <= p->n; t += 4)
        multiply_few(p, t, 4);
    for (; t < p->n; t++)
        multiply_few(p, t, 1);
}

/* Fewer rows: whole panels go to a buffer, and the rows in use from there to y. */
static void multiply_partial(const struct rt_panel *p)
{
    float buffer[MAX_TOKENS * RT_PANEL];
    struct rt_panel q = *p;
    q.y = buffer;
    q.ldy = RT_PANEL;
    q.add = false;
    for (int64_t t = 0; t < p->n; t += MAX_TOKENS) {
        q.n = p->n - t < MAX_TOKENS ? p->n - t : MAX_TOKENS;
        q.x = p->x + t * p->ldx;
        multiply_full(&q);
        for (int64_t i = 0; i < q.n; i++)
            for (int64_t k = 0; k < p->rows; k++) {
                float *y = p->y + (t + i) * p->ldy + k;
                *y = (p->add ? *y : 0) + buffer[i * RT_PANEL + k];
            }
    }
}

static void multiply(const struct rt_panel *p)
{
    if (p->rows == RT_PANEL)
        multiply_full(p);
    else
        multiply_partial(p);
}

const struct rt_panel_kernels ISA_NAME(rt_panel_kernels) = {
    .fill_nibbles = fill_nibbles,
    .fill_rows = fill_rows,
    .multiply = multiply,
};

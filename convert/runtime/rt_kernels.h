/* SPDX-License-Identifier: MIT
 *
 * The runtime's inner loops, compiled once for every instruction set. Private to
 * convert/runtime. */
#ifndef WKVQ_RT_KERNELS_H
#define WKVQ_RT_KERNELS_H

#include "kernels/tensor/tensor.h"

#include <stdbool.h>

/* One row of a packed projection. */
struct rt_row {
    const uint8_t *codes; /* packed */
    const float *h;       /* [groups] */
    const uint8_t *z;     /* [groups], one a byte */
    int64_t in, group;    /* group >= 1: columns of a group, the last may be shorter */
    int bits;
};

/* Rows of one packed projection, their scales in F32. */
struct rt_rows {
    const uint8_t *codes; /* of the first */
    const uint8_t *z;     /* one a byte */
    const float *h;
    int64_t code_stride, pair_stride; /* from row to row; of z and h */
    int64_t in, group, groups;
};

struct rt_kernels {
    const char *name;
    float (*dot)(const float *a, const float *b, int64_t n);
    /* y += a x */
    void (*axpy)(float *y, float a, const float *x, int64_t n);
    /* y [rows] = w x of rows of a plain weight, F32, F16 or BF16 at any alignment. */
    void (*rows_plain)(float *y, const void *w, enum dtype t, int64_t rows, const float *x,
                       int64_t in);
    void (*to_f32)(float *out, const void *w, enum dtype t, int64_t n);
    /* x [n] in the order in side nibbles meet it: for dot_nibbles, rt_padded(n) floats,
     * and for rows_nibbles, at most rt_interleaved_floats(n). */
    void (*interleave)(float *interleaved, const float *x, int64_t n);
    void (*interleave_rows)(float *interleaved, const float *x, int64_t n);
    /* y [n] of 4-bit rows; group is a multiple of RT_PAD_COLUMNS, or groups is 1. */
    void (*rows_nibbles)(float *y, const struct rt_rows *r, int64_t n,
                         const float *interleaved);
    /* sum_c w^_c x_c from 4-bit codes; group is a multiple of 8, or one is the whole row.
     * lanes [2 * rt_padded(in) / 8] is scratch. */
    float (*dot_nibbles)(const struct rt_row *r, const float *interleaved, float *lanes);
    /* The same from codes of any width; bytes [in] is scratch. */
    float (*dot_codes)(const struct rt_row *r, const float *x, uint8_t *bytes);
    /* w^ of the row. */
    void (*unpack)(float *w, const struct rt_row *r, uint8_t *bytes);
    /* A panel holds RT_PANEL rows column by column: panel[c * RT_PANEL + i] = w^_i[c], for
     * n rows; what the others hold is any value. Columns [from, to) of 4-bit rows, from a
     * multiple of RT_PAD_COLUMNS; group is a multiple of 8, or groups is 1: */
    void (*panel_nibbles)(float *panel, const struct rt_rows *r, int64_t row, int64_t n,
                          int64_t from, int64_t to);
    /* From n unpacked rows w [n][in]. */
    void (*panel_rows)(float *panel, const float *w, int64_t in, int64_t n);
    /* y[t * ldy + i] = w_i . x_t (add: +=) of the panel's first `rows` and n vectors x_t
     * of `in` columns, ldx apart. */
    void (*panel_tile)(float *y, int64_t ldy, const float *panel, int64_t rows,
                       const float *x, int64_t ldx, int64_t n, int64_t in, bool add);
    /* One group of a cached key or value: x^ of n channels. */
    void (*kv_dequantize)(float *x, const uint8_t *codes, float h, float m, const float *s,
                          const float *delta, int64_t n);
    const struct rt_kv_kernels *kv;
};

/* Rows of a panel: whole vectors of any width. */
#define RT_PANEL 32

/* Columns of the widest vector of 4-bit codes: what rows are padded to. */
#define RT_PAD_COLUMNS 128
static inline int64_t rt_padded(int64_t n)
{
    return (n + RT_PAD_COLUMNS - 1) / RT_PAD_COLUMNS * RT_PAD_COLUMNS;
}
/* Floats of a block of x as rows_nibbles takes it. */
#define RT_FIXED_FLOATS (RT_PAD_COLUMNS + 16)
static inline int64_t rt_interleaved_floats(int64_t n)
{
    return rt_padded(n) / RT_PAD_COLUMNS * RT_FIXED_FLOATS;
}

/* Attention over packed 4-bit keys and values: tokens of a tile, and of a vector of keys.
 */
#define RT_TILE 64
#define RT_KEYS 16

/* Queries of one kv head, the keys' s and delta folded in: rows of `stride` floats,
 * [d] s q / sqrt d, then its sum over each group, then sum delta q / sqrt d. */
struct rt_folded {
    const float *q;
    int64_t rows, stride, d, group;
};

struct rt_kv_kernels {
    /* A group of a query: out [n] = by q s, *sum = sum of out; returns sum by q delta. */
    float (*fold)(float *out, float *sum, const float *q, const float *s,
                  const float *delta, float by, int64_t n);
    /* score [rows][RT_TILE] of RT_KEYS tokens that lie `width` words apart; h, m
     * [groups][RT_TILE]. */
    void (*score_keys)(float *score, const struct rt_folded *f, const uint8_t *codes,
                       int64_t width, const float *h, const float *m);
    /* p = exp(score - top), 0 for -INFINITY; their sum. n is a multiple of RT_KEYS. */
    float (*exponentials)(float *p, const float *score, float top, int64_t n);
    float (*maximum)(const float *score, int64_t n);
    /* x *= by; y = a b. n is a multiple of RT_KEYS. */
    void (*scale)(float *x, float by, int64_t n);
    void (*multiply)(float *y, const float *a, const float *b, int64_t n);
    /* acc += w_t codes of n tokens of `words` words, for rows w RT_TILE floats apart (0
     * behind n) and acc [rt_acc_floats(words)] `apart`. */
    void (*add_values)(float *acc, int64_t apart, const float *w, int64_t rows,
                       const uint8_t *codes, int64_t n, int64_t words);
    /* out [8 words] = the sums that acc holds. */
    void (*collect)(float *out, const float *acc, int64_t words);
    /* g = silu(g) u */
    void (*silu_gate)(float *g, const float *u, int64_t n);
    /* A group of a key or value, x, s, delta [n], n >= 1: its codes [n] of 2 to 8 bits, one
     * a byte, and its h and m, one F16 each. Values as in kernels/tensor/quant.h. */
    void (*quantize)(uint8_t *codes, uint16_t *h, uint16_t *m, const float *x,
                     const float *s, const float *delta, int64_t n, int bits);
};

/* Floats of the sums of a group of `words` words, for any vector. */
static inline int64_t rt_acc_floats(int64_t words)
{
    return 8 * ((words + RT_KEYS - 1) / RT_KEYS * RT_KEYS);
}

/* The best for this machine. */
const struct rt_kernels *rt_kernels_best(void);
/* "plain", "avx2", "avx512" or "avx512vnni"; NULL where this build or machine lacks it. For
 * tests. */
const struct rt_kernels *rt_kernels_named(const char *name);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The table of the runtime's inner loops. The files rt_kernels*.c are compiled once per
 * instruction set; each build exports one table. Private to convert/runtime.
 *
 * Shared laws: arguments are valid (callers check them), nothing allocates, output does not
 * overlap input unless the comment says so, and a table may be used by any number of
 * threads. Two tables may differ in the last bits of a sum, but every row or query has the
 * same bits whatever is computed beside it. */
#ifndef WKVQ_RT_KERNELS_H
#define WKVQ_RT_KERNELS_H

#include "kernels/simd/isa.h"
#include "kernels/tensor/gate.h"
#include "kernels/tensor/tensor.h"

#include <stdbool.h>

/* --- packed weights ----------------------------------------------------------------- */

/* One row of a packed projection: w^_c = h_g (code_c - z_g), g = c / group. */
struct rt_row {
    const uint8_t *codes; /* packed, `bits` per code (bitpack.h) */
    const float *h;       /* [groups] */
    const uint8_t *z;     /* [groups], one per byte */
    int64_t in;           /* columns */
    int64_t group;        /* columns per group, >= 1; the last group may be shorter */
    int bits;
};

/* Consecutive rows of one projection, of 4-bit codes or of codes in bytes. */
struct rt_rows {
    const uint8_t *codes; /* of the first row */
    const uint8_t *z;     /* [rows][pair_stride], one per byte */
    const float *h;       /* [rows][pair_stride] */
    int64_t code_stride;  /* bytes from row to row */
    int64_t pair_stride;  /* elements of z and of h from row to row */
    int64_t in, group, groups;
};

/* Rows of a panel: a whole number of vectors in every build. */
#define RT_PANEL 32

/* Columns whose 4-bit codes fill the widest vector (512 bits): rows are padded to it. */
#define RT_PAD_COLUMNS 128
static inline int64_t rt_padded(int64_t n)
{
    return (n + RT_PAD_COLUMNS - 1) / RT_PAD_COLUMNS * RT_PAD_COLUMNS;
}

/* Columns whose codes fill a vector of the build, in files compiled per instruction set. */
#define RT_VECTOR_COLUMNS (8 * VL)

/* Floats that RT_PAD_COLUMNS columns of x take in fixed point: see rt_fixed.h. */
#define RT_FIXED_FLOATS (RT_PAD_COLUMNS + 16)
static inline int64_t rt_interleaved_floats(int64_t n)
{
    return rt_padded(n) / RT_PAD_COLUMNS * RT_FIXED_FLOATS;
}

/* Arguments of a panel's product, y[t * ldy + i] = w_i . x_t, or += if add. */
struct rt_panel {
    float *y;
    int64_t ldy;
    const float *panel; /* [in][RT_PANEL], the weights column by column */
    int64_t rows;       /* of the panel that are used, <= RT_PANEL */
    const float *x;     /* n vectors of `in` columns, ldx floats apart */
    int64_t ldx, n, in;
    bool add;
};

struct rt_panel_kernels {
    /* Fills columns [from, to) of a panel from rows [row, row + n) of 4-bit codes:
     * panel[(c - from) * RT_PANEL + i] = w^ of row i, column c; entries of the other
     * RT_PANEL - n rows are arbitrary. from is a multiple of RT_PAD_COLUMNS; group is a
     * multiple of 8, or groups is 1. */
    void (*fill_nibbles)(float *panel, const struct rt_rows *r, int64_t row, int64_t n,
                         int64_t from, int64_t to);
    /* Fills n rows of a panel from unpacked rows w [n][in]. */
    void (*fill_rows)(float *panel, const float *w, int64_t in, int64_t n);
    void (*multiply)(const struct rt_panel *p);
};

/* --- a prompt's products in 16-bit integers ------------------------------------------ */

/* RT_PAD_COLUMNS columns of x share one power of two, the unit, and x = unit X with X a
 * signed 16-bit integer: |X| <= 2^15, and the largest of a block is at least 2^14. x is off
 * by at most half a unit, which is 2^-15 of the block's largest |x|; by a whole one where X
 * would be 2^15. In a block that is not finite the unit is NaN. Sums of products with
 * (code - z) are exact,
 *
 *   |sum over RT_PAD_COLUMNS of (code - z) X| <= 128 255 2^15 < 2^30
 *
 * and y = sum over segments of h unit sum, a segment being columns of one block and one
 * group. Only this sum is rounded. */
struct rt_int16_panel {
    float *y;             /* [n][RT_PANEL] */
    const int16_t *panel; /* [pairs][RT_PANEL][2]: code - z of two columns of each row */
    const float *h;       /* [RT_PANEL], of the segment's group */
    const int16_t *x;     /* [n][RT_PAD_COLUMNS], from the segment's first column on */
    const float *unit;    /* [n], of the segment's block */
    int64_t n, pairs;     /* of columns, <= RT_PAD_COLUMNS / 2; an odd end has X = 0 */
    bool add;             /* to y, instead of writing it */
};

struct rt_int16_kernels {
    bool faster; /* than the same products in F32 */
    /* Rounds x [n]: X [RT_PAD_COLUMNS] of a block, 0 from n on, and its unit; those of the
     * next block follow `step` places of that size further. */
    void (*round)(int16_t *fixed, float *unit, int64_t step, const float *x, int64_t n);
    /* Fills columns [from, to) of a panel from rows [row, row + n) of 4-bit codes, from
     * panel on. Arguments are as for fill_nibbles; rows from n on repeat row n - 1. */
    void (*fill_nibbles)(int16_t *panel, const struct rt_rows *r, int64_t row, int64_t n,
                         int64_t from, int64_t to);
    /* Writes row i of a panel from its codes [in], one per byte, and their zeros. group is
     * even, or the whole row. */
    void (*fill_row)(int16_t *panel, int64_t i, const uint8_t *codes, const uint8_t *z,
                     int64_t in, int64_t group);
    void (*multiply)(const struct rt_int16_panel *p);
};

/* --- attention over the packed cache ------------------------------------------------- */

#define RT_TILE 64 /* tokens that attention processes at a time */
#define RT_KEYS 16 /* tokens whose key codes are interleaved: one vector of any build */

/* Static parameters of channels: x~ = (x - delta) / s is what the cache quantizes. */
struct rt_channels {
    const float *s, *delta;
};

/* Queries of one kv head with the keys' s and delta folded in: `rows` rows of `stride`
 * floats, laid out
 *   [d] s q / sqrt d | [groups] sum of these over each group | [1] sum delta q / sqrt d */
struct rt_folded {
    const float *q;
    int64_t rows, stride, d, group;
};

struct rt_kv_kernels {
    /* Folds one group of a query: out [n] = by q s, *sum = sum of out. Returns the sum of
     * by q delta. */
    float (*fold)(float *out, float *sum, const float *q, struct rt_channels c, float by,
                  int64_t n);
    /* score [rows][RT_TILE]: RT_KEYS scores of each query. Word i of token t is at
     * codes + 4 (i width + t), where width <= RT_KEYS is the number of tokens in the codes;
     * scores of missing tokens are arbitrary. h, m [groups][RT_TILE]. */
    void (*score_keys)(float *score, const struct rt_folded *f, const uint8_t *codes,
                       int64_t width, const float *h, const float *m);
    /* RT_KEYS columns of a panel: x^ of the d channels of the keys that score_keys reads, up
     * to rounding; those of missing tokens are arbitrary. */
    void (*unpack_keys)(float *panel, const uint8_t *codes, int64_t width, const float *h,
                        const float *m, struct rt_channels c, int64_t group, int64_t d);
    /* x [n] = x^ of one group of a value, from its packed codes; n is a multiple of 8. */
    void (*unpack_values)(float *x, const uint8_t *codes, float h, float m,
                          struct rt_channels c, int64_t n);
    /* p = exp(score - top), 0 for -INFINITY; returns their sum. p may be score. n is a
     * multiple of RT_KEYS. */
    float (*exponentials)(float *p, const float *score, float top, int64_t n);
    /* Returns the maximum of n scores, a multiple of RT_KEYS. */
    float (*maximum)(const float *score, int64_t n);
    /* x *= by. n is a multiple of RT_KEYS. */
    void (*scale)(float *x, float by, int64_t n);
    /* y = a b, element by element. n is a multiple of RT_KEYS. */
    void (*multiply)(float *y, const float *a, const float *b, int64_t n);
    /* acc += w_t code_t over n tokens of `words` 32-bit words each. Row r has its weights
     * at w + r RT_TILE (0 from token n on) and its accumulators, rt_acc_floats(words) of
     * them, at acc + r apart. */
    void (*add_values)(float *acc, int64_t apart, const float *w, int64_t rows,
                       const uint8_t *codes, int64_t n, int64_t words);
    /* out [8 words] = the channel sums that acc holds in the order of its vectors. */
    void (*collect)(float *out, const float *acc, int64_t words);
    /* g = act(g) u */
    void (*gate)(enum gate_act act, float *g, const float *u, int64_t n);
    /* Quantizes one group of a key or value, x and c [n], n >= 1: codes [n] of `bits` (2 to
     * 8) bits, one per byte, and h and m as F16. Bit for bit the values that
     * kernels/tensor/quant.h defines. */
    void (*quantize)(uint8_t *codes, uint16_t *h, uint16_t *m, const float *x,
                     struct rt_channels c, int64_t n, int bits);
};

/* Accumulators for a group of `words` words, enough for any vector width. */
static inline int64_t rt_acc_floats(int64_t words)
{
    return 8 * ((words + RT_KEYS - 1) / RT_KEYS * RT_KEYS);
}

/* --- the table ---------------------------------------------------------------------- */

struct rt_kernels {
    const char *name; /* of the instruction set */
    float (*dot)(const float *a, const float *b, int64_t n);
    /* y += a x */
    void (*axpy)(float *y, float a, const float *x, int64_t n);
    /* y [rows] = w x for rows [in] of an unquantized weight: F32, F16 or BF16 at any
     * alignment. */
    void (*rows_plain)(float *y, const void *w, enum dtype t, int64_t rows, const float *x,
                       int64_t in);
    /* out [n] = w as F32; w at any alignment. */
    void (*to_f32)(float *out, const void *w, enum dtype t, int64_t n);
    /* Reorders x [n] into the order in which kernels read 4-bit codes (rt_kernels.c draws
     * it). interleave writes rt_padded(n) floats for dot_nibbles; interleave_rows writes up
     * to rt_interleaved_floats(n) for rows_nibbles. */
    void (*interleave)(float *interleaved, const float *x, int64_t n);
    void (*interleave_rows)(float *interleaved, const float *x, int64_t n);
    /* y [n] = n 4-bit rows times x. group is a multiple of RT_PAD_COLUMNS, or groups is
     * 1. */
    void (*rows_nibbles)(float *y, const struct rt_rows *r, int64_t n,
                         const float *interleaved);
    /* Returns one 4-bit row times x. group is a multiple of 8, or the whole row.
     * lanes [2 * rt_padded(in) / 8] is scratch. */
    float (*dot_nibbles)(const struct rt_row *r, const float *interleaved, float *lanes);
    /* y [n] = n rows of one code per byte times x, of any group. */
    void (*rows_bytes)(float *y, const struct rt_rows *r, int64_t n, const float *x);
    /* w [in] = w^ of the row. bytes [in] is scratch. */
    void (*unpack)(float *w, const struct rt_row *r, uint8_t *bytes);
    /* x [n] = x^ of one group of a cached key or value, codes one per byte. */
    void (*kv_dequantize)(float *x, const uint8_t *codes, float h, float m,
                          struct rt_channels c, int64_t n);
    const struct rt_panel_kernels *panel;
    const struct rt_int16_kernels *int16;
    const struct rt_kv_kernels *kv;
};

#ifdef ISA
extern const struct rt_kernels ISA_NAME(rt_kernels);
extern const struct rt_panel_kernels ISA_NAME(rt_panel_kernels);
extern const struct rt_int16_kernels ISA_NAME(rt_int16_kernels);
extern const struct rt_kv_kernels ISA_NAME(rt_kv_kernels);
#endif

/* Returns the fastest table that this machine runs. */
const struct rt_kernels *rt_kernels_best(void);
/* Returns the table of an instruction set; NULL if this build or this machine lacks it. For
 * tests. */
const struct rt_kernels *rt_kernels_of(enum isa isa);

#endif

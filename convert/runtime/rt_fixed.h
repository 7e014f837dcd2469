/* SPDX-License-Identifier: MIT
 *
 * Rows of 4-bit codes by a vector in fixed point, for AVX512-VNNI. 128 columns of x have
 * one power of two, sigma, and x = sigma X with |X| <= 2^30 in whole numbers: an element is
 * off by 2^-31 of the largest of its 128 at most, and exact where it is above 1/64 of that.
 * X = 65536 high + low, 16 bits each, so that one instruction adds two products of codes
 * and halves, without rounding. What remains is rounded once a block, where F32 rounds
 * every sum. Included by rt_kernels.c in the place of its rows in F32. */
#ifndef WKVQ_RT_FIXED_H
#define WKVQ_RT_FIXED_H

#include "convert/runtime/rt_kernels.h"
#include "convert/runtime/rt_vec.h"

#define FIXED_BITS 30 /* |X| <= 2^FIXED_BITS */

/* RT_PAD_COLUMNS columns of x. */
struct fixed_columns {
    int16_t low[4][32], high[4][32]; /* [k][w]: of column 4 w + k */
    float unit, high_unit;           /* sigma, 65536 sigma */
    float pad[RT_FIXED_FLOATS - RT_PAD_COLUMNS - 2];
};

/* sigma: 2^-30 of the power of two above all |x|; NaN where one of them is not finite. */
static inline float fixed_unit(const float *x)
{
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < RT_PAD_COLUMNS; i += VL) {
        const __m512i bits = _mm512_loadu_si512(x + i);
        most =
            _mm512_max_epi32(most, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    int32_t exponent = _mm512_reduce_max_epi32(most) >> 23;
    float unit;
    if (exponent == 255)
        return NAN;
    /* sigma is normal; smaller vectors have fewer bits */
    exponent = exponent < FIXED_BITS ? FIXED_BITS : exponent;
    const int32_t bits = (exponent + 1 - FIXED_BITS) << 23;
    memcpy(&unit, &bits, sizeof(unit));
    return unit;
}

static inline void store_halves(int16_t *out, __m512i first, __m512i second)
{
    _mm256_storeu_si256((void *)out, _mm512_cvtepi32_epi16(first));
    _mm256_storeu_si256((void *)(out + VL), _mm512_cvtepi32_epi16(second));
}

static inline void fix_columns(struct fixed_columns *out, const float *x)
{
    const float unit = fixed_unit(x), by = 1 / unit;
    const __m512i half = _mm512_set1_epi32(1 << 15);
    __m512 v[8];
    for (int i = 0; i < 8; i++)
        v[i] = (__m512)(load(x + i * VL) * splat(by));
    even_before_odd(v);
    even_before_odd(v); /* two vectors for each k: columns k, k + 4, ... */
    for (int k = 0; k < 4; k++) {
        const __m512i a = _mm512_cvtps_epi32(v[2 * k]);
        const __m512i b = _mm512_cvtps_epi32(v[2 * k + 1]);
        store_halves(out->low[k], a, b); /* the lower halves, as signed numbers */
        store_halves(out->high[k], _mm512_srai_epi32(_mm512_add_epi32(a, half), 16),
                     _mm512_srai_epi32(_mm512_add_epi32(b, half), 16));
    }
    out->unit = unit;
    out->high_unit = 65536 * unit;
}

static void interleave_rows(float *interleaved, const float *x, int64_t n)
{
    struct fixed_columns *out = (struct fixed_columns *)interleaved;
    for (; n > 0; n -= RT_PAD_COLUMNS, x += RT_PAD_COLUMNS) {
        float block[RT_PAD_COLUMNS] = {0};
        memcpy(block, x, (size_t)(n < RT_PAD_COLUMNS ? n : RT_PAD_COLUMNS) * sizeof(*x));
        fix_columns(out++, block);
    }
}

/* Code - zero of a lane's lowest four bits; the fifth belongs to the next code. */
#define HALVES(z) CODES(z), CODES(z)
static const int16_t half_tables[16][32] __attribute__((aligned(64))) = {
    {HALVES(0)},  {HALVES(1)},  {HALVES(2)},  {HALVES(3)}, {HALVES(4)},  {HALVES(5)},
    {HALVES(6)},  {HALVES(7)},  {HALVES(8)},  {HALVES(9)}, {HALVES(10)}, {HALVES(11)},
    {HALVES(12)}, {HALVES(13)}, {HALVES(14)}, {HALVES(15)}};

/* Four rows' numbers by name, not in an array: they have to stay in registers. */
struct fixed_four {
    __m512i a, b, c, d;
};

/* v in a register from here on: gcc would read it again from memory for each use, and codes
 * lie across cache lines. */
static inline __m512i kept(vi v)
{
    __asm__("" : "+v"(v));
    return (__m512i)v;
}

static inline struct fixed_four fixed_codes(const uint8_t *p, int64_t stride, int64_t bytes)
{
    return (struct fixed_four){
        kept(load_codes(p, bytes)), kept(load_codes(p + stride, bytes)),
        kept(load_codes(p + 2 * stride, bytes)), kept(load_codes(p + 3 * stride, bytes))};
}

static inline struct fixed_four fixed_tables(const uint8_t *z, int64_t stride)
{
    return (struct fixed_four){_mm512_load_si512(half_tables[z[0]]),
                               _mm512_load_si512(half_tables[z[stride]]),
                               _mm512_load_si512(half_tables[z[2 * stride]]),
                               _mm512_load_si512(half_tables[z[3 * stride]])};
}

#define FIXED_STEP(row)                                                                    \
    do {                                                                                   \
        const __m512i code = _mm512_permutexvar_epi16(                                     \
            _mm512_srli_epi16(codes.row, 4 * (unsigned)k), tables.row);                    \
        low->row = k ? _mm512_dpwssd_epi32(low->row, code, x_low)                          \
                     : _mm512_madd_epi16(code, x_low);                                     \
        high->row = k ? _mm512_dpwssd_epi32(high->row, code, x_high)                       \
                      : _mm512_madd_epi16(code, x_high);                                   \
    } while (0)

/* low, high += codes . x, every fourth column. */
INLINED void fixed_step(struct fixed_four *low, struct fixed_four *high,
                        struct fixed_four codes, struct fixed_four tables,
                        const struct fixed_columns *x, const int k)
{
    const __m512i x_low = _mm512_loadu_si512(x->low[k]);
    const __m512i x_high = _mm512_loadu_si512(x->high[k]);
    FIXED_STEP(a);
    FIXED_STEP(b);
    FIXED_STEP(c);
    FIXED_STEP(d);
}

/* total += h sigma (65536 high + low): both are whole numbers below 2^24. */
static inline vf fixed_add(vf total, __m512i low, __m512i high, float h,
                           const struct fixed_columns *x)
{
    const vf above = (vf)_mm512_cvtepi32_ps(high) * splat(x->high_unit);
    return madd(madd((vf)_mm512_cvtepi32_ps(low), splat(x->unit), above), splat(h), total);
}

/* total += one block of four rows. */
INLINED void fixed_rows_step(struct sums *total, const uint8_t *p, int64_t stride,
                             const uint8_t *z, const float *h, int64_t pair_stride,
                             const struct fixed_columns *x, int64_t bytes)
{
    const struct fixed_four codes = fixed_codes(p, stride, bytes);
    const struct fixed_four tables = fixed_tables(z, pair_stride);
    struct fixed_four low, high;
    fixed_step(&low, &high, codes, tables, x, 0);
    fixed_step(&low, &high, codes, tables, x, 1);
    fixed_step(&low, &high, codes, tables, x, 2);
    fixed_step(&low, &high, codes, tables, x, 3);
    total->a = fixed_add(total->a, low.a, high.a, h[0], x);
    total->b = fixed_add(total->b, low.b, high.b, h[pair_stride], x);
    total->c = fixed_add(total->c, low.c, high.c, h[2 * pair_stride], x);
    total->d = fixed_add(total->d, low.d, high.d, h[3 * pair_stride], x);
}

/* y[0..4) of rows from `row` on; each: every block is a group of its own. */
INLINED void fixed_rows(float *y, const struct rt_rows *r, int64_t row,
                        const float *interleaved, const bool each)
{
    const int64_t stride = r->code_stride, pair = r->pair_stride;
    const uint8_t *p = r->codes + row * stride, *z = r->z + row * pair;
    const float *h = r->h + row * pair;
    const struct fixed_columns *x = (const struct fixed_columns *)interleaved;
    const int64_t bytes = r->in / RT_PAD_COLUMNS * (RT_PAD_COLUMNS / 2),
                  of_group = r->group / 2;
    int64_t left = of_group;
    struct sums total = {0};
    for (int64_t at = 0; at < bytes; at += RT_PAD_COLUMNS / 2, x++) {
        (void)prefetch_lines(p + ROWS_AT_ONCE * at, ROWS_AT_ONCE);
        fixed_rows_step(&total, p + at, stride, z, h, pair, x, RT_PAD_COLUMNS / 2);
        left -= RT_PAD_COLUMNS / 2;
        if (each || left == 0) {
            left = of_group;
            z++;
            h++;
        }
    }
    if (r->in % RT_PAD_COLUMNS)
        fixed_rows_step(&total, p + bytes, stride, z, h, pair, x,
                        (r->in % RT_PAD_COLUMNS + 1) / 2);
    sum_of_four(y + row, total.a, total.b, total.c, total.d);
}

static inline void add_rows(float *y, const struct rt_rows *r, int64_t row,
                            const float *interleaved)
{
    if (r->group == RT_PAD_COLUMNS)
        fixed_rows(y, r, row, interleaved, true);
    else
        fixed_rows(y, r, row, interleaved, false);
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * The products of rt_fixed.h by AVX512-VNNI. Only rt_fixed.h includes this file.
 *
 * X is stored as two halves. One VPDPWSSD adds two products of a code (code - z, 5 bits
 * signed) and a half of X to a 32-bit sum, without rounding:
 *
 *   |sum of 8 products| <= 8 * 15 * 2^15 < 2^22, so low and high sums are exact in F32
 *
 * Layout of one struct fixed_columns, k = 0..3 and w = 0..31 (column 4 w + k):
 *
 *   low[k][w]  | low half of X[4 w + k]    16-bit lane w of the codes, shifted right by
 *   high[k][w] | high half                 4 k, has the code of column 4 w + k lowest */
#ifndef WKVQ_RT_FIXED_VNNI_H
#define WKVQ_RT_FIXED_VNNI_H

/* RT_PAD_COLUMNS columns of x, in as many floats as RT_FIXED_FLOATS says. */
struct fixed_columns {
    int16_t low[4][32], high[4][32];
    float unit, high_unit; /* sigma, 65536 sigma */
    float pad[RT_FIXED_FLOATS - RT_PAD_COLUMNS - 2];
};

/* out [32] = the low 16 bits of two vectors of 32-bit integers. */
static inline void store_halves(int16_t *out, __m512i first, __m512i second)
{
    _mm256_storeu_si256((void *)out, _mm512_cvtepi32_epi16(first));
    _mm256_storeu_si256((void *)(out + VL), _mm512_cvtepi32_epi16(second));
}

/* Adding half before the shift makes high the rounded quotient, to match a signed low. */
static inline void fix_columns(struct fixed_columns *out, const float *x)
{
    const float unit = block_unit(x, FIXED_BITS), by = 1 / unit;
    const __m512i half = _mm512_set1_epi32(1 << 15);
    __m512 v[8];
    for (int i = 0; i < 8; i++)
        v[i] = (__m512)(vf_load(x + i * VL) * vf_set1(by));
    vf_even_before_odd(v);
    vf_even_before_odd(v); /* now v[2 k], v[2 k + 1] hold columns k, k + 4, k + 8, ... */
    for (int k = 0; k < 4; k++) {
        const __m512i a = _mm512_cvtps_epi32(v[2 * k]);
        const __m512i b = _mm512_cvtps_epi32(v[2 * k + 1]);
        store_halves(out->low[k], a, b); /* truncated to 16 bits, read as signed */
        store_halves(out->high[k], _mm512_srai_epi32(_mm512_add_epi32(a, half), 16),
                     _mm512_srai_epi32(_mm512_add_epi32(b, half), 16));
    }
    out->unit = unit;
    out->high_unit = 65536 * unit;
}

/* code - z for the lowest four bits of a 16-bit lane. VPERMW also looks at the fifth bit,
 * which belongs to the next code, so each table is stored twice. */
#define CODES(z)                                                                           \
    0 - z, 1 - z, 2 - z, 3 - z, 4 - z, 5 - z, 6 - z, 7 - z, 8 - z, 9 - z, 10 - z, 11 - z,  \
        12 - z, 13 - z, 14 - z, 15 - z
#define HALVES(z) CODES(z), CODES(z)
static const int16_t half_tables[16][32] __attribute__((aligned(64))) = {
    {HALVES(0)},  {HALVES(1)},  {HALVES(2)},  {HALVES(3)}, {HALVES(4)},  {HALVES(5)},
    {HALVES(6)},  {HALVES(7)},  {HALVES(8)},  {HALVES(9)}, {HALVES(10)}, {HALVES(11)},
    {HALVES(12)}, {HALVES(13)}, {HALVES(14)}, {HALVES(15)}};

/* One vector of each of four rows. Named members, since gcc may keep an array in memory. */
struct fixed_four {
    __m512i a, b, c, d;
};

/* Returns v, which gcc must then keep in a register. Otherwise it reloads v from memory for
 * each use, and codes often straddle cache lines. */
static inline __m512i in_register(vi v)
{
    __asm__("" : "+v"(v));
    return (__m512i)v;
}

static inline struct fixed_four fixed_codes(const uint8_t *p, int64_t stride, int64_t bytes)
{
    return (struct fixed_four){in_register(vi_load_bytes_n(p, bytes)),
                               in_register(vi_load_bytes_n(p + stride, bytes)),
                               in_register(vi_load_bytes_n(p + 2 * stride, bytes)),
                               in_register(vi_load_bytes_n(p + 3 * stride, bytes))};
}

static inline struct fixed_four fixed_tables(const uint8_t *z, int64_t stride)
{
    return (struct fixed_four){_mm512_load_si512(half_tables[z[0]]),
                               _mm512_load_si512(half_tables[z[stride]]),
                               _mm512_load_si512(half_tables[z[2 * stride]]),
                               _mm512_load_si512(half_tables[z[3 * stride]])};
}

/* Adds the products of one row; the first step multiplies without adding. */
#define FIXED_STEP(row)                                                                    \
    do {                                                                                   \
        const __m512i code = _mm512_permutexvar_epi16(                                     \
            _mm512_srli_epi16(codes.row, 4 * (unsigned)k), tables.row);                    \
        low->row = k ? _mm512_dpwssd_epi32(low->row, code, x_low)                          \
                     : _mm512_madd_epi16(code, x_low);                                     \
        high->row = k ? _mm512_dpwssd_epi32(high->row, code, x_high)                       \
                      : _mm512_madd_epi16(code, x_high);                                   \
    } while (0)

/* low, high += (code - z) x over columns 4 w + k. */
INLINE void fixed_step(struct fixed_four *low, struct fixed_four *high,
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

/* total += h sigma (65536 high + low); both sums are integers below 2^24, exact in F32. */
static inline vf fixed_add(vf total, __m512i low, __m512i high, float h,
                           const struct fixed_columns *x)
{
    const vf above = (vf)_mm512_cvtepi32_ps(high) * vf_set1(x->high_unit);
    return vf_fma(vf_fma((vf)_mm512_cvtepi32_ps(low), vf_set1(x->unit), above), vf_set1(h),
                  total);
}

/* total += RT_PAD_COLUMNS columns of four rows, or the first 2 `bytes` of them. */
INLINE void fixed_rows_step(struct sums *total, struct fixed_rows r,
                            const struct fixed_columns *x, int64_t bytes)
{
    const struct fixed_four codes = fixed_codes(r.p, r.stride, bytes);
    const struct fixed_four tables = fixed_tables(r.z, r.pair_stride);
    struct fixed_four low, high;
    fixed_step(&low, &high, codes, tables, x, 0);
    fixed_step(&low, &high, codes, tables, x, 1);
    fixed_step(&low, &high, codes, tables, x, 2);
    fixed_step(&low, &high, codes, tables, x, 3);
    total->a = fixed_add(total->a, low.a, high.a, r.h[0], x);
    total->b = fixed_add(total->b, low.b, high.b, r.h[r.pair_stride], x);
    total->c = fixed_add(total->c, low.c, high.c, r.h[2 * r.pair_stride], x);
    total->d = fixed_add(total->d, low.d, high.d, r.h[3 * r.pair_stride], x);
}

INLINE void fixed_store(float *y, const struct sums *total)
{
    vf_sum4(y, total->a, total->b, total->c, total->d);
}

#endif

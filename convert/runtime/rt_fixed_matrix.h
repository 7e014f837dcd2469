/* SPDX-License-Identifier: MIT
 *
 * The products of rt_fixed.h by SMMLA, which multiplies two rows of 8 codes with two digits
 * of 8 columns. Only rt_fixed.h includes this file.
 *
 *   a: 8 codes of row 0 | of row 1     b: 8 digits X_i | X_(i+1)
 *   sums: row 0 X_i | row 0 X_(i+1) | row 1 X_i | row 1 X_(i+1)
 *
 * The sums of 128 columns are integers below 2^26. They convert to F32 with an error of at
 * most 2^-24 of themselves, where those of SDOT have none. In a total of four rows a lane is
 * a row. */
#ifndef WKVQ_RT_FIXED_MATRIX_H
#define WKVQ_RT_FIXED_MATRIX_H

/* The lower or the upper halves of two vectors. */
INLINE int8x16_t lower_halves(int8x16_t a, int8x16_t b)
{
    return vreinterpretq_s8_s64(
        vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

INLINE int8x16_t upper_halves(int8x16_t a, int8x16_t b)
{
    return vreinterpretq_s8_s64(
        vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* [2 i + h] is X_(2 i) and X_(2 i + 1) of the bytes 8 h to 8 h + 7. */
static inline void put_digits(int8_t (*out)[16], const struct digits *x)
{
    vst1q_s8(out[0], lower_halves(x->x0, x->x1));
    vst1q_s8(out[1], upper_halves(x->x0, x->x1));
    vst1q_s8(out[2], lower_halves(x->x2, x->x3));
    vst1q_s8(out[3], upper_halves(x->x2, x->x3));
}

/* Of all columns. */
static inline int32x4_t sum_of_x(int32x4_t lanes)
{
    return vdupq_n_s32(vaddvq_s32(lanes));
}

/* Sums of two rows; low: X_0 and X_1, high: X_2 and X_3. Those of the upper halves are
 * apart, so that an addition seldom waits for the one before. */
struct pair_sums {
    int32x4_t low, high, upper_low, upper_high;
};

INLINE void add_pair(struct pair_sums *s, int8x16_t a, int8x16_t b, const int8_t (*x)[16])
{
    const int8x16_t lower = lower_halves(a, b), upper = upper_halves(a, b);
    s->low = vmmlaq_s32(s->low, lower, vld1q_s8(x[0]));
    s->high = vmmlaq_s32(s->high, lower, vld1q_s8(x[2]));
    s->upper_low = vmmlaq_s32(s->upper_low, upper, vld1q_s8(x[1]));
    s->upper_high = vmmlaq_s32(s->upper_high, upper, vld1q_s8(x[3]));
}

/* Joins the digits' sums of rows a, b and of rows c, d: a row per lane, less z times x. */
INLINE vf join_rows(int32x4_t ab, int32x4_t cd, int32x4_t z, const int32_t *x)
{
    const int32x4_t sum = join_digits(vuzp1q_s32(ab, cd), vuzp2q_s32(ab, cd));
    return vcvtq_f32_s32(vmlsq_s32(sum, z, vld1q_s32(x)));
}

/* total->a += RT_PAD_COLUMNS columns of four rows, or the first 2 `bytes` of them. */
INLINE void fixed_rows_step(struct sums *total, struct fixed_rows r,
                            const struct fixed_columns *x, int64_t bytes)
{
    const int64_t next = r.pair_stride;
    const int32x4_t z = {r.z[0], r.z[next], r.z[2 * next], r.z[3 * next]};
    const vf h = {r.h[0], r.h[next], r.h[2 * next], r.h[3 * next]};
    struct pair_sums ab = {0}, cd = {0};
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const struct row_codes a = codes_of_row(r.p, v, bytes);
        const struct row_codes b = codes_of_row(r.p + r.stride, v, bytes);
        const struct row_codes c = codes_of_row(r.p + 2 * r.stride, v, bytes);
        const struct row_codes d = codes_of_row(r.p + 3 * r.stride, v, bytes);
        add_pair(&ab, a.even, b.even, x->digit[2 * v]);
        add_pair(&cd, c.even, d.even, x->digit[2 * v]);
        add_pair(&ab, a.odd, b.odd, x->digit[2 * v + 1]);
        add_pair(&cd, c.odd, d.odd, x->digit[2 * v + 1]);
    }
    const vf low = join_rows(vaddq_s32(ab.low, ab.upper_low),
                             vaddq_s32(cd.low, cd.upper_low), z, x->low_sum);
    const vf high = join_rows(vaddq_s32(ab.high, ab.upper_high),
                              vaddq_s32(cd.high, cd.upper_high), z, x->high_sum);
    const vf sum = vf_fma(low, vf_set1(x->unit), high * vf_set1(x->high_unit));
    total->a = vf_fma(sum, h, total->a);
}

INLINE void fixed_store(float *y, const struct sums *total)
{
    vf_store(y, total->a);
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * The products of rt_fixed.h by SDOT: it adds four products of a code and a digit to each
 * of four sums. Only rt_fixed.h includes this file.
 *
 *   |sum of (code - z) low, over the 32 columns of a lane| <= 32 * 15 * (128 * 257) < 2^24
 *
 * so low and high sums are exact in F32. */
#ifndef WKVQ_RT_FIXED_DOT_H
#define WKVQ_RT_FIXED_DOT_H

/* [i] is X_i. */
static inline void put_digits(int8_t (*out)[16], const struct digits *x)
{
    vst1q_s8(out[0], x->x0);
    vst1q_s8(out[1], x->x1);
    vst1q_s8(out[2], x->x2);
    vst1q_s8(out[3], x->x3);
}

/* Of each lane's columns. */
static inline int32x4_t sum_of_x(int32x4_t lanes)
{
    return lanes;
}

INLINE struct digits get_digits(const int8_t (*x)[16])
{
    return (struct digits){vld1q_s8(x[0]), vld1q_s8(x[1]), vld1q_s8(x[2]), vld1q_s8(x[3])};
}

/* total += h sigma (65536 high + low); both are integers below 2^24, exact in F32. */
INLINE vf add_block(vf total, const struct digit_sums *s, uint8_t z, float h,
                    const struct fixed_columns *x)
{
    const int32x4_t low = vmlsq_n_s32(join_digits(s->s0, s->s1), vld1q_s32(x->low_sum), z);
    const int32x4_t high =
        vmlsq_n_s32(join_digits(s->s2, s->s3), vld1q_s32(x->high_sum), z);
    const vf above = vcvtq_f32_s32(high) * vf_set1(x->high_unit);
    return vf_fma(vf_fma(vcvtq_f32_s32(low), vf_set1(x->unit), above), vf_set1(h), total);
}

/* total += RT_PAD_COLUMNS columns of four rows, or the first 2 `bytes` of them. */
INLINE void fixed_rows_step(struct sums *total, struct fixed_rows r,
                            const struct fixed_columns *x, int64_t bytes)
{
    struct digit_sums a = {0}, b = {0}, c = {0}, d = {0};
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        const struct row_codes ca = codes_of_row(r.p, v, bytes);
        const struct row_codes cb = codes_of_row(r.p + r.stride, v, bytes);
        const struct row_codes cc = codes_of_row(r.p + 2 * r.stride, v, bytes);
        const struct row_codes cd = codes_of_row(r.p + 3 * r.stride, v, bytes);
        const struct digits even = get_digits(x->digit[2 * v]);
        add_digits(&a, ca.even, &even);
        add_digits(&b, cb.even, &even);
        add_digits(&c, cc.even, &even);
        add_digits(&d, cd.even, &even);
        const struct digits odd = get_digits(x->digit[2 * v + 1]);
        add_digits(&a, ca.odd, &odd);
        add_digits(&b, cb.odd, &odd);
        add_digits(&c, cc.odd, &odd);
        add_digits(&d, cd.odd, &odd);
    }
    total->a = add_block(total->a, &a, r.z[0], r.h[0], x);
    total->b = add_block(total->b, &b, r.z[r.pair_stride], r.h[r.pair_stride], x);
    total->c = add_block(total->c, &c, r.z[2 * r.pair_stride], r.h[2 * r.pair_stride], x);
    total->d = add_block(total->d, &d, r.z[3 * r.pair_stride], r.h[3 * r.pair_stride], x);
}

/* y [4] = the totals of four rows. */
INLINE void fixed_store(float *y, const struct sums *total)
{
    vf_sum4(y, total->a, total->b, total->c, total->d);
}

#endif

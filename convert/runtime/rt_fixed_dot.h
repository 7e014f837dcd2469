/* SPDX-License-Identifier: MIT
 *
 * The products of rt_fixed.h by the dot products of aarch64. Only rt_fixed.h includes this
 * file.
 *
 * X is stored as four digits of 8 bits, and its halves are
 *
 *   low = 256 X_1 + X_0,  high = 256 X_3 + X_2,  -128 <= X_i <= 127
 *
 * One SDOT adds four products of a code and a digit to a 32-bit sum. The zero point follows
 * at the end of the block, from the sum of its x:
 *
 *   sum of (code - z) low = 256 sum of code X_1 + sum of code X_0 - z sum of low
 *   |that, over the 32 columns of a lane| <= 32 * 15 * (128 * 257) < 2^24
 *
 * so low and high sums are exact in F32.
 *
 * Layout of one struct fixed_columns. Four vectors hold the codes of 128 columns, v = 0..3;
 * byte j of vector v has columns 32 v + 2 j (even: its low half) and 32 v + 2 j + 1 (odd):
 *
 *   digit[i][2 v][j]     = X_i of the even column
 *   digit[i][2 v + 1][j] = X_i of the odd column */
#ifndef WKVQ_RT_FIXED_DOT_H
#define WKVQ_RT_FIXED_DOT_H

/* RT_PAD_COLUMNS columns of x, in as many floats as RT_FIXED_FLOATS says. */
struct fixed_columns {
    int8_t digit[4][8][16];
    int32_t low_sum[4], high_sum[4]; /* of each lane's columns */
    float unit, high_unit;           /* sigma, 65536 sigma */
    float pad[RT_FIXED_FLOATS - RT_PAD_COLUMNS - 10];
};

/* Adding 128 to each digit but the last makes it a plain byte, and the bit that is flipped
 * afterwards makes it signed again. */
static inline void fix_vector(struct fixed_columns *out, int v, const float *x, float by)
{
    const int32x4_t carry = vdupq_n_s32(0x808080);
    int32_t word[32];
    for (int i = 0; i < 32; i += VL) {
        const int32x4_t X = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), by));
        vst1q_s32(word + i, veorq_s32(vaddq_s32(X, carry), carry));
    }
    const int8x16x4_t first = vld4q_s8((const int8_t *)word);
    const int8x16x4_t second = vld4q_s8((const int8_t *)(word + 16));
    for (int i = 0; i < 4; i++) {
        vst1q_s8(out->digit[i][2 * v], vuzp1q_s8(first.val[i], second.val[i]));
        vst1q_s8(out->digit[i][2 * v + 1], vuzp2q_s8(first.val[i], second.val[i]));
    }
}

/* Four sums of products with digits, one of each digit. */
struct digit_sums {
    int32x4_t s0, s1, s2, s3;
};

INLINE void add_digits(struct digit_sums *s, int8x16_t codes, int8x16_t x0, int8x16_t x1,
                       int8x16_t x2, int8x16_t x3)
{
    s->s0 = vdotq_s32(s->s0, codes, x0);
    s->s1 = vdotq_s32(s->s1, codes, x1);
    s->s2 = vdotq_s32(s->s2, codes, x2);
    s->s3 = vdotq_s32(s->s3, codes, x3);
}

/* Returns 256 upper + lower. */
INLINE int32x4_t join_digits(int32x4_t lower, int32x4_t upper)
{
    return vaddq_s32(lower, vshlq_n_s32(upper, 8));
}

static inline void fix_columns(struct fixed_columns *out, const float *x)
{
    const float unit = block_unit(x, FIXED_BITS);
    struct digit_sums s = {0};
    for (int v = 0; v < 4; v++)
        fix_vector(out, v, x + 32 * v, 1 / unit);
    for (int w = 0; w < 8; w++)
        add_digits(&s, vdupq_n_s8(1), vld1q_s8(out->digit[0][w]),
                   vld1q_s8(out->digit[1][w]), vld1q_s8(out->digit[2][w]),
                   vld1q_s8(out->digit[3][w]));
    vst1q_s32(out->low_sum, join_digits(s.s0, s.s1));
    vst1q_s32(out->high_sum, join_digits(s.s2, s.s3));
    out->unit = unit;
    out->high_unit = 65536 * unit;
}

/* One row's codes of vector v, both halves; 0 beyond `bytes`. */
struct row_codes {
    int8x16_t even, odd;
};

INLINE struct row_codes codes_of_row(const uint8_t *p, int v, int64_t bytes)
{
    const int64_t left = bytes > 16 * v ? bytes - 16 * v : 0;
    const uint8x16_t c = vreinterpretq_u8_s32(vi_load_bytes_n(p + 16 * v, left));
    return (struct row_codes){vreinterpretq_s8_u8(vandq_u8(c, vdupq_n_u8(15))),
                              vreinterpretq_s8_u8(vshrq_n_u8(c, 4))};
}

/* Adds the products of vector w of the digits. The members' names, since gcc may keep an
 * array in memory. */
#define DIGITS_STEP(w, half)                                                               \
    do {                                                                                   \
        const int8x16_t x0 = vld1q_s8(x->digit[0][w]), x1 = vld1q_s8(x->digit[1][w]);      \
        const int8x16_t x2 = vld1q_s8(x->digit[2][w]), x3 = vld1q_s8(x->digit[3][w]);      \
        add_digits(&a, ca.half, x0, x1, x2, x3);                                           \
        add_digits(&b, cb.half, x0, x1, x2, x3);                                           \
        add_digits(&c, cc.half, x0, x1, x2, x3);                                           \
        add_digits(&d, cd.half, x0, x1, x2, x3);                                           \
    } while (0)

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
        DIGITS_STEP(2 * v, even);
        DIGITS_STEP(2 * v + 1, odd);
    }
    total->a = add_block(total->a, &a, r.z[0], r.h[0], x);
    total->b = add_block(total->b, &b, r.z[r.pair_stride], r.h[r.pair_stride], x);
    total->c = add_block(total->c, &c, r.z[2 * r.pair_stride], r.h[2 * r.pair_stride], x);
    total->d = add_block(total->d, &d, r.z[3 * r.pair_stride], r.h[3 * r.pair_stride], x);
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * What the two kinds of byte products of aarch64 share: x in digits, and codes as bytes.
 * Only rt_fixed.h includes this file.
 *
 * X is four digits of 8 bits, and its halves are
 *
 *   low = 256 X_1 + X_0,  high = 256 X_3 + X_2,  -128 <= X_i <= 127
 *
 * The zero point follows at the end of the block, from the sum of its x:
 *
 *   sum of (code - z) low = 256 sum of code X_1 + sum of code X_0 - z sum of low
 *
 * Four vectors hold the codes of 128 columns, v = 0..3. Byte j of vector v has columns
 * 32 v + 2 j (even: its low half) and 32 v + 2 j + 1 (odd). */
#ifndef WKVQ_RT_FIXED_DIGITS_H
#define WKVQ_RT_FIXED_DIGITS_H

/* X_0 to X_3 of 16 columns. */
struct digits {
    int8x16_t x0, x1, x2, x3;
};

/* The digits of 32 columns. Adding 128 to each digit but the last makes it a plain byte, and
 * the bit that is flipped afterwards makes it signed again. */
static inline void digits_of(struct digits *even, struct digits *odd, const float *x,
                             float by)
{
    const int32x4_t carry = vdupq_n_s32(0x808080);
    int32_t word[32];
    for (int i = 0; i < 32; i += VL) {
        const int32x4_t X = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), by));
        vst1q_s32(word + i, veorq_s32(vaddq_s32(X, carry), carry));
    }
    const int8x16x4_t a = vld4q_s8((const int8_t *)word);
    const int8x16x4_t b = vld4q_s8((const int8_t *)(word + 16));
    *even = (struct digits){vuzp1q_s8(a.val[0], b.val[0]), vuzp1q_s8(a.val[1], b.val[1]),
                            vuzp1q_s8(a.val[2], b.val[2]), vuzp1q_s8(a.val[3], b.val[3])};
    *odd = (struct digits){vuzp2q_s8(a.val[0], b.val[0]), vuzp2q_s8(a.val[1], b.val[1]),
                           vuzp2q_s8(a.val[2], b.val[2]), vuzp2q_s8(a.val[3], b.val[3])};
}

/* Four sums of products with digits, one of each digit. */
struct digit_sums {
    int32x4_t s0, s1, s2, s3;
};

INLINE void add_digits(struct digit_sums *s, int8x16_t codes, const struct digits *x)
{
    s->s0 = vdotq_s32(s->s0, codes, x->x0);
    s->s1 = vdotq_s32(s->s1, codes, x->x1);
    s->s2 = vdotq_s32(s->s2, codes, x->x2);
    s->s3 = vdotq_s32(s->s3, codes, x->x3);
}

/* Returns 256 upper + lower. */
INLINE int32x4_t join_digits(int32x4_t lower, int32x4_t upper)
{
    return vaddq_s32(lower, vshlq_n_s32(upper, 8));
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

/* RT_PAD_COLUMNS columns of x, in as many floats as RT_FIXED_FLOATS says. */
struct fixed_columns {
    int8_t digit[8][4][16]; /* [2 v]: the even columns of v, [2 v + 1]: the odd ones */
    int32_t low_sum[4], high_sum[4];
    float unit, high_unit; /* sigma, 65536 sigma */
    float pad[RT_FIXED_FLOATS - RT_PAD_COLUMNS - 10];
};

/* Defined with the products: the digits' order in memory, and the sums by which z is
 * multiplied, from those of each lane. */
static inline void put_digits(int8_t (*out)[16], const struct digits *x);
static inline int32x4_t sum_of_x(int32x4_t lanes);

static inline void fix_columns(struct fixed_columns *out, const float *x)
{
    const float unit = block_unit(x, FIXED_BITS);
    struct digit_sums s = {0};
    for (int v = 0; v < 4; v++) {
        struct digits even, odd;
        digits_of(&even, &odd, x + 32 * v, 1 / unit);
        put_digits(out->digit[2 * v], &even);
        put_digits(out->digit[2 * v + 1], &odd);
        add_digits(&s, vdupq_n_s8(1), &even);
        add_digits(&s, vdupq_n_s8(1), &odd);
    }
    vst1q_s32(out->low_sum, sum_of_x(join_digits(s.s0, s.s1)));
    vst1q_s32(out->high_sum, sum_of_x(join_digits(s.s2, s.s3)));
    out->unit = unit;
    out->high_unit = 65536 * unit;
}

#endif

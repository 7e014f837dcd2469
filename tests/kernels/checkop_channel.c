/* SPDX-License-Identifier: MIT
 *
 * checkop: fake quantization of keys per channel. Forward results are compared bit for bit.
 */
#include "tests/kernels/checkop.h"

#include "kernels/base/half.h"
#include "kernels/tensor/quant.h"

#include <math.h>

struct channel_case {
    int64_t T, K, d, tokens;
    int bits;
    bool accumulate, in_place;
    enum dtype x, xq;
    enum ck_pattern pattern;
};

static bool begin_channel(struct ck *c, const struct channel_case *k)
{
    return ck_begin(c, "[%ld,%ld,%ld], blocks of %ld, %d bits%s%s, %s to %s, %s",
                    (long)k->T, (long)k->K, (long)k->d, (long)k->tokens, k->bits,
                    k->accumulate ? ", +=" : "", k->in_place ? ", in place" : "",
                    dtype_name(k->x), dtype_name(k->xq), ck_pattern_name[k->pattern]);
}

static void one_channel(struct ck *c, const struct channel_case *k)
{
    if (!begin_channel(c, k))
        return;
    const struct tensor x = ck_in(c, ck_3d(k->x, k->T, k->K, k->d, 3), k->pattern);
    const struct ck_out xq = k->in_place
                                 ? ck_copies(c, &x, 3)
                                 : ck_poisoned(c, ck_3d(k->xq, k->T, k->K, k->d, 1));
    CK_EACH(c, s)
    ck_ok(c, dev_fake_quant_kv_channel(c->dev[s], &xq.side[s],
                                       k->in_place ? &xq.side[s] : &x, k->bits, k->tokens));
    ck_bits(c, "xq", &xq);
    ck_end(c);
}

/* Magnitude that the rounding of dx is proportional to, for tokens [t0, t1) of channel ch.
 * The path through h counts for every token that equals an extreme. */
static void channel_magnitude(double *mag, const struct channel_case *k,
                              const struct tensor *x, const struct tensor *dxq, int64_t ch,
                              int64_t t0, int64_t t1)
{
    const double Q = (1 << k->bits) - 1;
    const int64_t C = k->K * k->d;
    float mn = INFINITY, mx = -INFINITY;
    double path = 0;
    for (int64_t t = t0; t < t1; t++) {
        mn = fminf(mn, (float)ck_get(x, t, ch));
        mx = fmaxf(mx, (float)ck_get(x, t, ch));
    }
    const float h = f16_to_f32(quant_kv_scale(mn, mx, k->bits)),
                m = f16_to_f32(quant_kv_min(mn));
    for (int64_t t = t0; t < t1 && h > 0; t++)
        path += fabs(ck_get(dxq, t, ch)) *
                (Q + fabs(ck_get(x, t, ch) - (double)m) / (double)h) / Q;
    for (int64_t t = t0; t < t1; t++) {
        const double v = ck_get(x, t, ch);
        mag[t * C + ch] +=
            fabs(ck_get(dxq, t, ch)) + (v == (double)mn || v == (double)mx ? path : 0);
    }
}

static void one_channel_bwd(struct ck *c, const struct channel_case *k)
{
    if (!begin_channel(c, k))
        return;
    const struct tensor x = ck_in(c, ck_3d(k->x, k->T, k->K, k->d, 3), k->pattern);
    const struct ck_shape shape = ck_3d(k->xq, k->T, k->K, k->d, 2);
    const struct tensor dxq = ck_in(c, shape, PAT_RANDOM);
    const struct ck_out dx = k->in_place     ? ck_copies(c, &dxq, 2)
                             : k->accumulate ? ck_twins(c, shape, PAT_RANDOM)
                                             : ck_poisoned(c, shape);
    const int64_t C = k->K * k->d;
    double *mag = ck_doubles(c, k->T * C);
    for (int64_t i = 0; i < k->T * C; i++)
        mag[i] = k->accumulate ? fabs(ck_get(&dx.side[0], i / C, i % C)) : 0;
    for (int64_t t = 0; t < k->T; t += k->tokens)
        for (int64_t ch = 0; ch < C; ch++)
            channel_magnitude(mag, k, &x, &dxq, ch, t,
                              t + k->tokens < k->T ? t + k->tokens : k->T);
    CK_EACH(c, s)
    ck_ok(c, dev_fake_quant_kv_channel_bwd(c->dev[s], &dx.side[s],
                                           k->in_place ? &dx.side[s] : &dxq, &x, k->bits,
                                           k->tokens, k->accumulate));
    ck_close(c, "dx", &dx, mag, k->tokens);
    ck_end(c);
}

/* T, K, d, tokens: one block, many, a remainder, no whole block; odd and even widths. */
static const int64_t channel_shapes[][4] = {
    {1, 1, 8, 1},    {8, 2, 16, 8},   {21, 1, 80, 4},   {7, 3, 64, 32},
    {70, 2, 18, 16}, {33, 1, 40, 33}, {130, 1, 16, 128}};

static void each_channel(struct ck *c,
                         void (*one)(struct ck *c, const struct channel_case *k),
                         bool backward)
{
    struct channel_case k = {2048,     8,     64,      128,     4,
                             backward, false, DT_BF16, DT_BF16, PAT_RANDOM};
    if (c->bench) {
        one(c, &k);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(channel_shapes); i++)
        for (int bits = 2; bits <= 8; bits += 2)
            for (int p = 0; p < N_PATTERNS; p++)
                for (int v = 0; v < 4; v++) {
                    k = (struct channel_case){channel_shapes[i][0],
                                              channel_shapes[i][1],
                                              channel_shapes[i][2],
                                              channel_shapes[i][3],
                                              bits,
                                              backward && (p + v) % 3 == 1,
                                              (backward || v == 0 || v == 3) &&
                                                  (p + v) % 3 == 2,
                                              v & 1 ? DT_BF16 : DT_F32,
                                              v & 2 ? DT_BF16 : DT_F32,
                                              (enum ck_pattern)p};
                    one(c, &k);
                }
}

static void test_channel(struct ck *c)
{
    each_channel(c, one_channel, false);
}

static void test_channel_bwd(struct ck *c)
{
    each_channel(c, one_channel_bwd, true);
}

const struct ck_test ck_channel_tests[] = {{"fake_quant_kv_channel", test_channel},
                                           {"fake_quant_kv_channel_bwd", test_channel_bwd},
                                           {NULL, NULL}};

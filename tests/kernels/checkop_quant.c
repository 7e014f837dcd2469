/* SPDX-License-Identifier: MIT
 *
 * checkop: KV quantization. Forward results are compared bit for bit. */
#include "tests/kernels/checkop.h"

#include "kernels/base/half.h"
#include "kernels/tensor/quant.h"

#include <math.h>

struct kv_case {
    int64_t T, K, d, G;
    int bits;
    bool smoothed, learn, accumulate, in_place;
    enum dtype x, xq;
    enum ck_pattern pattern;
};

struct kv_in {
    struct tensor x, s, shift;
};

static bool begin_kv(struct ck *c, const struct kv_case *k)
{
    return ck_begin(c, "[%ld,%ld,%ld], groups of %ld, %d bits%s%s%s%s, %s to %s, %s",
                    (long)k->T, (long)k->K, (long)k->d, (long)k->G, k->bits,
                    k->smoothed ? ", smoothed" : "", k->learn ? ", learning" : "",
                    k->accumulate ? ", +=" : "", k->in_place ? ", in place" : "",
                    dtype_name(k->x), dtype_name(k->xq), ck_pattern_name[k->pattern]);
}

static struct kv_in kv_inputs(struct ck *c, const struct kv_case *k)
{
    return (struct kv_in){ck_in(c, ck_3d(k->x, k->T, k->K, k->d, 3), k->pattern),
                          ck_in_range(c, ck_1d(k->K * k->d), 0.25, 4),
                          ck_in(c, ck_1d(k->K * k->d), PAT_RANDOM)};
}

static void one_fake_quant_kv(struct ck *c, const struct kv_case *k)
{
    if (!begin_kv(c, k))
        return;
    const struct kv_in in = kv_inputs(c, k);
    const struct ck_out xq = k->in_place
                                 ? ck_copies(c, &in.x, 3)
                                 : ck_poisoned(c, ck_3d(k->xq, k->T, k->K, k->d, 1));
    CK_EACH(c, s)
    ck_ok(c, dev_fake_quant_kv(c->dev[s], &xq.side[s],
                               &(struct kv_quant){.x = k->in_place ? &xq.side[s] : &in.x,
                                                  .s = k->smoothed ? &in.s : NULL,
                                                  .shift = k->smoothed ? &in.shift : NULL,
                                                  .bits = k->bits,
                                                  .group_size = k->G}));
    ck_bits(c, "xq", &xq);
    ck_end(c);
}

struct kv_mag {
    double *dx, *dls, *dshift;
};

/* Magnitudes of one group of one token, channels [begin, end). The path through h counts
 * for every channel that equals an extreme. */
static void kv_magnitude(const struct kv_case *k, const struct kv_in *in,
                         const struct tensor *dxq, int64_t t, int64_t begin, int64_t end,
                         const struct kv_mag *m)
{
    const double Q = (1 << k->bits) - 1;
    float mn = INFINITY, mx = -INFINITY, xt[256], s[256];
    for (int64_t c = begin; c < end; c++) {
        s[c - begin] = k->smoothed ? (float)ck_get(&in->s, 0, c) : 1;
        xt[c - begin] = quant_kv_in((float)ck_get(&in->x, t, c), s[c - begin],
                                    k->smoothed ? (float)ck_get(&in->shift, 0, c) : 0);
        mn = fminf(mn, xt[c - begin]);
        mx = fmaxf(mx, xt[c - begin]);
    }
    const float h = f16_to_f32(quant_kv_scale(mn, mx, k->bits)),
                f = f16_to_f32(quant_kv_min(mn));
    double path = 0;
    for (int64_t c = begin; c < end && h > 0; c++)
        path += fabs((double)s[c - begin] * ck_get(dxq, t, c)) *
                (Q + fabs((double)(xt[c - begin] - f)) / (double)h) / Q;
    for (int64_t c = begin; c < end; c++) {
        const double x = (double)xt[c - begin], sc = (double)s[c - begin];
        const double g = fabs(ck_get(dxq, t, c));
        const bool extreme = xt[c - begin] == mn || xt[c - begin] == mx;
        const double gt = sc * g + (extreme ? path : 0);
        m->dx[t * k->K * k->d + c] += gt / sc;
        m->dls[c] += sc * g * (fabs((double)f) + (double)h * Q) + gt * fabs(x);
        m->dshift[c] += g + gt / sc;
    }
}

static struct kv_mag kv_magnitudes(struct ck *c, const struct kv_case *k,
                                   const struct kv_in *in, const struct tensor *dxq,
                                   const struct ck_out *dx, const struct ck_out *dls,
                                   const struct ck_out *dshift)
{
    const int64_t C = k->K * k->d, G = kv_group(k->d, k->G);
    const struct kv_mag m = {ck_doubles(c, k->T * C), ck_doubles(c, C), ck_doubles(c, C)};
    for (int64_t i = 0; i < k->T * C; i++)
        m.dx[i] = k->accumulate ? fabs(ck_get(&dx->side[0], i / C, i % C)) : 0;
    for (int64_t i = 0; i < C; i++) {
        m.dls[i] = fabs(ck_get(&dls->side[0], 0, i));
        m.dshift[i] = fabs(ck_get(&dshift->side[0], 0, i));
    }
    for (int64_t t = 0; t < k->T; t++)
        for (int64_t head = 0; head < k->K; head++)
            for (int64_t at = 0; at < k->d; at += G)
                kv_magnitude(k, in, dxq, t, head * k->d + at,
                             head * k->d + (at + G < k->d ? at + G : k->d), &m);
    return m;
}

static void one_fake_quant_kv_bwd(struct ck *c, const struct kv_case *k)
{
    if (!begin_kv(c, k))
        return;
    const struct kv_in in = kv_inputs(c, k);
    const struct ck_shape shape = ck_3d(k->xq, k->T, k->K, k->d, 2);
    const struct tensor dxq = ck_in(c, shape, PAT_RANDOM);
    const struct ck_out dx = k->in_place     ? ck_copies(c, &dxq, 2)
                             : k->accumulate ? ck_twins(c, shape, PAT_RANDOM)
                                             : ck_poisoned(c, shape);
    const struct ck_out dls = ck_twins(c, ck_1d(k->K * k->d), PAT_RANDOM);
    const struct ck_out dshift = ck_twins(c, ck_1d(k->K * k->d), PAT_RANDOM);
    const struct kv_mag m = kv_magnitudes(c, k, &in, &dxq, &dx, &dls, &dshift);
    CK_EACH(c, s)
    ck_ok(c, dev_fake_quant_kv_bwd(
                 c->dev[s],
                 &(struct kv_grads){.dx = &dx.side[s],
                                    .dls = k->learn ? &dls.side[s] : NULL,
                                    .dshift = k->learn ? &dshift.side[s] : NULL,
                                    .accumulate = k->accumulate},
                 k->in_place ? &dx.side[s] : &dxq,
                 &(struct kv_quant){.x = &in.x,
                                    .s = k->smoothed ? &in.s : NULL,
                                    .shift = k->smoothed ? &in.shift : NULL,
                                    .bits = k->bits,
                                    .group_size = k->G}));
    ck_close(c, "dx", &dx, m.dx, k->d);
    ck_close(c, "dls", &dls, m.dls, k->T + k->d);
    ck_close(c, "dshift", &dshift, m.dshift, k->T + k->d);
    ck_end(c);
}

/* The last cases have the groups of activations, which have no gradient. */
#define WIDE_SHAPES 2
static const int64_t kv_shapes[][4] = {{1, 1, 8, 0},     {3, 2, 16, 8},   {5, 1, 80, 128},
                                       {2, 3, 64, 20},   {70, 2, 16, 16}, {2, 2, 96, 64},
                                       {2, 1, 128, 128}, {5, 1, 1030, 0}, {2, 2, 700, 300}};

static void each_kv(struct ck *c, void (*one)(struct ck *c, const struct kv_case *k),
                    bool backward)
{
    struct kv_case k = {256,      8,     64,    64,      4,       true,
                        backward, false, false, DT_BF16, DT_BF16, PAT_RANDOM};
    if (c->bench) {
        one(c, &k);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(kv_shapes) - (backward ? WIDE_SHAPES : 0); i++)
        for (int bits = 2; bits <= 8; bits++)
            for (int p = 0; p < N_PATTERNS; p++)
                for (int v = 0; v < 4; v++) {
                    k = (struct kv_case){kv_shapes[i][0],
                                         kv_shapes[i][1],
                                         kv_shapes[i][2],
                                         kv_shapes[i][3],
                                         bits,
                                         (bits + v) % 3 != 0,
                                         backward && v != 3,
                                         backward && (p + v) % 3 == 1,
                                         (backward || v == 0 || v == 3) && (p + v) % 3 == 2,
                                         v & 1 ? DT_BF16 : DT_F32,
                                         v & 2 ? DT_BF16 : DT_F32,
                                         (enum ck_pattern)p};
                    one(c, &k);
                }
}

static void test_fake_quant_kv(struct ck *c)
{
    each_kv(c, one_fake_quant_kv, false);
}

static void test_fake_quant_kv_bwd(struct ck *c)
{
    each_kv(c, one_fake_quant_kv_bwd, true);
}

/* ------------------------------------------------------------------------------------- */

static void one_minmax(struct ck *c, struct ck_shape shape, enum ck_pattern p)
{
    if (!ck_begin(c, "%ldx%ld %s, %s", (long)shape.dim[0], (long)shape.dim[1],
                  dtype_name(shape.dtype), ck_pattern_name[p]))
        return;
    const struct tensor x = ck_in(c, shape, p);
    const struct ck_out mn = ck_twins(c, ck_1d(ck_cols(&x)), PAT_RANDOM);
    const struct ck_out mx = ck_twins(c, ck_1d(ck_cols(&x)), PAT_RANDOM);
    CK_EACH(c, s) ck_ok(c, dev_col_minmax(c->dev[s], &mn.side[s], &mx.side[s], &x));
    ck_close(c, "mn", &mn, NULL, 1);
    ck_close(c, "mx", &mx, NULL, 1);
    ck_end(c);
}

static void test_minmax(struct ck *c)
{
    if (c->bench) {
        one_minmax(c, ck_2d(DT_BF16, 256, 512, 0), PAT_RANDOM);
        return;
    }
    for (int t = 0; t < 2; t++)
        for (int p = 0; p < N_PATTERNS; p++) {
            const enum dtype type = t ? DT_BF16 : DT_F32;
            one_minmax(c, ck_2d(type, 1, 1, 0), (enum ck_pattern)p);
            one_minmax(c, ck_2d(type, 5, 37, 3), (enum ck_pattern)p);
            one_minmax(c, ck_3d(type, 9, 2, 16, 3), (enum ck_pattern)p);
        }
}

static void test_exp(struct ck *c)
{
    static const int64_t n[] = {1, 16, 37, 4096};
    for (size_t i = 0; i < ARRAY_LEN(n); i++) {
        if (c->bench && i != 3)
            continue;
        if (!ck_begin(c, "%ld values", (long)n[i]))
            return;
        const struct tensor ls = ck_in_range(c, ck_1d(n[i]), -80, 80);
        const struct ck_out y = ck_poisoned(c, ck_1d(n[i]));
        CK_EACH(c, s) ck_ok(c, dev_exp(c->dev[s], &y.side[s], &ls));
        ck_close(c, "s", &y, NULL, 1);
        ck_end(c);
    }
}

const struct ck_test ck_quant_tests[] = {{"fake_quant_kv", test_fake_quant_kv},
                                         {"fake_quant_kv_bwd", test_fake_quant_kv_bwd},
                                         {"col_minmax", test_minmax},
                                         {"exp", test_exp},
                                         {NULL, NULL}};

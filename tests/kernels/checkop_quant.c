/* SPDX-License-Identifier: MIT
 *
 * checkop: weight clipping and KV quantization. Forward results are compared bit for bit.
 */
#include "tests/kernels/checkop.h"

#include "kernels/base/half.h"
#include "kernels/tensor/quant.h"

#include <math.h>

struct weight_case {
    int64_t rows, cols, G;
    int bits;
    bool learned; /* a and b are given */
    enum dtype wq;
    enum ck_pattern pattern;
    bool offset; /* v is given */
    int scale_bits;
    bool whole; /* rows lie at multiples of four elements */
    enum { WEIGHT_ANY, WEIGHT_TIES, WEIGHT_HUGE } values;
};

struct weight_in {
    struct tensor w, a, b, v;
};

static int64_t groups_of(const struct weight_case *k)
{
    return weight_groups(k->cols, k->G);
}

static bool begin_weight(struct ck *c, const struct weight_case *k)
{
    static const char *const values[] = {"", ", ties", ", huge"};
    return ck_begin(c, "%ldx%ld, groups of %ld, %d bits, scales of %d, %s%s%s%s%s, %s",
                    (long)k->rows, (long)k->cols, (long)k->G, k->bits, k->scale_bits,
                    k->learned ? "clipped" : "nearest", k->offset ? ", offsets" : "",
                    k->wq == DT_OTHER  ? ", no values"
                    : k->wq == DT_BF16 ? ", BF16"
                                       : "",
                    k->whole ? ", whole quads" : "", values[k->values],
                    ck_pattern_name[k->pattern]);
}

/* Rows and columns of the weights. */
static struct ck_shape shape_of(const struct weight_case *k, enum dtype t, int64_t pad)
{
    return ck_2d(t, k->rows, k->cols, k->whole ? 4 : pad);
}

/* Ties: every weight lies between two codes, at (n + 1/2) h, with another h in each row; 1 / h
 * is inexact for most. Huge: w / h overflows, with the clipping that weight_inputs() gives. */
static struct tensor weight_values(struct ck *c, const struct weight_case *k)
{
    if (k->values == WEIGHT_ANY)
        return ck_in(c, shape_of(k, DT_F32, 3), k->pattern);
    const struct tensor w = ck_in_empty(c, shape_of(k, DT_F32, 3));
    const double last = (1 << k->bits) - 1;
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t i = 0; i < k->cols; i++) {
            const double h = (double)f16_to_f32((uint16_t)(0x2001 + 13 * r));
            const double tie = (fmod((double)i, last + 1) - last / 2) * h;
            ck_set(&w, r, i, k->values == WEIGHT_TIES ? tie : i % 2 ? 3e38 : -2e38);
        }
    return w;
}

static struct weight_in weight_inputs(struct ck *c, const struct weight_case *k)
{
    const struct ck_shape g = ck_2d(DT_F32, k->rows, groups_of(k), 2);
    const double least = k->values == WEIGHT_HUGE ? -100 : -2,
                 most = k->values == WEIGHT_HUGE ? -99 : 6;
    return (struct weight_in){weight_values(c, k), ck_in_range(c, g, least, most),
                              ck_in_range(c, g, least, most),
                              ck_in_range(c, shape_of(k, DT_F32, 2), -0.5, 0.5)};
}

/* The inputs as the operation takes them: with clipping parameters, and with offsets in
 * cases that have them. */
static struct weight_quant quant_of(const struct weight_case *k, const struct weight_in *in)
{
    return (struct weight_quant){.w = &in->w,
                                 .a = &in->a,
                                 .b = &in->b,
                                 .v = k->offset ? &in->v : NULL,
                                 .bits = k->bits,
                                 .group_size = k->G,
                                 .scale_bits = k->scale_bits};
}

static void one_fake_quant_weights(struct ck *c, const struct weight_case *k)
{
    if (!begin_weight(c, k))
        return;
    const struct weight_in in = weight_inputs(c, k);
    struct weight_quant p = quant_of(k, &in);
    if (!k->learned)
        p.a = p.b = NULL;
    const bool values = k->wq != DT_OTHER;
    const struct ck_out wq = ck_poisoned(c, shape_of(k, values ? k->wq : DT_F32, 5));
    const struct ck_out sc = ck_poisoned(c, ck_2d(DT_F16, k->rows, groups_of(k), 1));
    const struct ck_out z = ck_poisoned(c, ck_2d(DT_U8, k->rows, groups_of(k), 1));
    CK_EACH(c, s)
    ck_ok(c, dev_fake_quant_weights(c->dev[s], values ? &wq.side[s] : NULL, &sc.side[s],
                                    &z.side[s], &p));
    ck_bits(c, "scales", &sc);
    ck_bits(c, "zeros", &z);
    if (values)
        ck_bits(c, "wq", &wq);
    ck_end(c);
}

/* Stored scales and zeros give what dev_fake_quant_weights gave. */
static void one_apply(struct ck *c, const struct weight_case *k)
{
    if (!begin_weight(c, k))
        return;
    const struct weight_in in = weight_inputs(c, k);
    const struct weight_quant p = quant_of(k, &in);
    const struct tensor sc = ck_in_empty(c, ck_2d(DT_F16, k->rows, groups_of(k), 1));
    const struct tensor z = ck_in_empty(c, ck_2d(DT_U8, k->rows, groups_of(k), 1));
    const struct ck_shape shape = shape_of(k, k->wq, 5);
    const struct ck_out wq = ck_poisoned(c, shape);
    struct ck_out clipped = ck_poisoned(c, shape);
    ck_ok(c,
          dev_fake_quant_weights(c->dev[SIDE_REF], &clipped.side[SIDE_REF], &sc, &z, &p));
    CK_EACH(c, s)
    ck_ok(c, dev_fake_quant_stored(c->dev[s], &wq.side[s], &sc, &z, &p));
    ck_bits(c, "wq", &wq);
    clipped.side[SIDE_CPU] = wq.side[SIDE_REF];
    ck_bits(c, "ref wq against fake_quant_weights", &clipped);
    ck_end(c);
}

/* Magnitudes that the roundings of da and db of one group are proportional to: the formulas
 * of docs/method.md with every term positive. */
static void clip_magnitude(const struct weight_case *k, const struct weight_in *in,
                           const struct tensor *dwq, int64_t r, int64_t g, double *da,
                           double *db)
{
    const int64_t G = k->G ? k->G : k->cols,
                  end = (g + 1) * G < k->cols ? (g + 1) * G : k->cols;
    double mn = 0, mx = 0, M = 0, Z = 0;
    for (int64_t c = g * G; c < end; c++) {
        mn = fmin(mn, ck_get(&in->w, r, c));
        mx = fmax(mx, ck_get(&in->w, r, c));
    }
    const double Q = (1 << k->bits) - 1;
    const double gamma = 1 / (1 + exp(-ck_get(&in->a, r, g)));
    const double beta = 1 / (1 + exp(-ck_get(&in->b, r, g)));
    const float lo = (float)(beta * mn), hi = (float)(gamma * mx);
    const double h = (double)f16_to_f32(quant_weight_scale(lo, hi, k->bits, k->scale_bits));
    const double z = quant_weight_zero(lo, (float)h, k->bits);
    for (int64_t c = g * G; c < end; c++) {
        const double v = k->offset ? ck_get(&in->v, r, c) : 0;
        const double d = fabs(ck_get(dwq, r, c)),
                     q = rint(ck_get(&in->w, r, c) / h + v) + z;
        /* An element on the border may count as outside or inside, because its terms are
         * equal there. */
        M += d * (q >= Q ? Q - z + 1 : q <= 0 ? z + 1 : k->offset ? 1 : 0.5);
        Z += q >= Q || q <= 0 ? d * h : 0;
    }
    const double dh = M + Z * fabs((double)lo) / (h * h);
    *da = dh / Q * mx * gamma * (1 - gamma);
    *db = (Z / h + dh / Q) * -mn * beta * (1 - beta);
}

static void one_fake_quant_weights_bwd(struct ck *c, const struct weight_case *k)
{
    if (!begin_weight(c, k))
        return;
    const struct weight_in in = weight_inputs(c, k);
    const struct weight_quant p = quant_of(k, &in);
    const struct tensor dwq = ck_in(c, shape_of(k, DT_F32, 1), PAT_RANDOM);
    const struct ck_shape shape = ck_2d(DT_F32, k->rows, groups_of(k), 4);
    const struct ck_out da = ck_poisoned(c, shape), db = ck_poisoned(c, shape);
    const int64_t n = k->rows * groups_of(k);
    double *da_mag = ck_doubles(c, n), *db_mag = ck_doubles(c, n);
    for (int64_t i = 0; i < n; i++)
        clip_magnitude(k, &in, &dwq, i / groups_of(k), i % groups_of(k), &da_mag[i],
                       &db_mag[i]);
    CK_EACH(c, s)
    ck_ok(c, dev_fake_quant_weights_bwd(c->dev[s], &da.side[s], &db.side[s], &dwq, &p));
    ck_close(c, "da", &da, da_mag, k->G ? k->G : k->cols);
    ck_close(c, "db", &db, db_mag, k->G ? k->G : k->cols);
    ck_end(c);
}

/* Rows, columns, group: ragged ends, one group, the whole row, a group of one. */
static const int64_t weight_shapes[][3] = {{1, 1, 0},     {1, 37, 16}, {5, 64, 32},
                                           {3, 130, 128}, {4, 50, 0},  {2, 9, 1},
                                           {3, 24, 100}};

/* Short groups in whole quads, which a kernel may take another way: several of a warp, ragged
 * ones, the longest, the shortest; and groups that end within quads. */
static const int64_t whole_shapes[][3] = {
    {3, 384, 128}, {2, 260, 64}, {1, 1024, 512}, {17, 4, 4}, {2, 36, 6}};

static void each_whole(struct ck *c, void (*one)(struct ck *c, const struct weight_case *k),
                       bool bf16)
{
    for (size_t i = 0; i < ARRAY_LEN(whole_shapes); i++)
        for (int p = 0; p < N_PATTERNS; p++) {
            struct weight_case k = {.rows = whole_shapes[i][0],
                                    .cols = whole_shapes[i][1],
                                    .G = whole_shapes[i][2],
                                    .bits = 2 + (int)(p + i) % 7,
                                    .learned = true,
                                    .wq = DT_F32,
                                    .pattern = (enum ck_pattern)p,
                                    .whole = true};
            one(c, &k);
            k.offset = true;
            k.wq = bf16 ? DT_BF16 : DT_F32;
            one(c, &k);
        }
}

/* Forward with values where a quotient must be exact, or could overflow. */
static void each_edge(struct ck *c, void (*one)(struct ck *c, const struct weight_case *k))
{
    for (int whole = 0; whole < 2 && !c->bench; whole++) {
        struct weight_case k = {.rows = 64,
                                .cols = 16,
                                .bits = 4,
                                .wq = DT_F32,
                                .whole = whole,
                                .values = WEIGHT_TIES};
        one(c, &k);
        k.learned = true;
        k.rows = 2;
        k.values = WEIGHT_HUGE;
        one(c, &k);
    }
}

static void each_weight(struct ck *c,
                        void (*one)(struct ck *c, const struct weight_case *k), bool plain,
                        bool no_values, bool bf16)
{
    if (c->bench) {
        one(c, &(struct weight_case){512, 2048, 128, 4, true, DT_F32, PAT_RANDOM});
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(weight_shapes); i++)
        for (int bits = 2; bits <= 8; bits++)
            for (int p = 0; p < N_PATTERNS; p++) {
                struct weight_case k = {weight_shapes[i][0],
                                        weight_shapes[i][1],
                                        weight_shapes[i][2],
                                        bits,
                                        true,
                                        DT_F32,
                                        (enum ck_pattern)p};
                one(c, &k);
                k.offset = true;
                one(c, &k);
                k.offset = false;
                k.scale_bits = 1 + (bits + p) % 11;
                one(c, &k);
                k.scale_bits = 7;
                one(c, &k);
                if (bf16) {
                    k.wq = DT_BF16;
                    one(c, &k);
                }
                k.learned = false;
                if (plain)
                    one(c, &k);
                k.wq = DT_OTHER;
                if (no_values)
                    one(c, &k);
            }
    each_whole(c, one, bf16);
}

static void test_fake_quant_weights(struct ck *c)
{
    each_weight(c, one_fake_quant_weights, true, true, true);
    each_edge(c, one_fake_quant_weights);
}

static void test_apply(struct ck *c)
{
    each_weight(c, one_apply, false, false, true);
    each_edge(c, one_apply);
}

/* v is read and written: each side has a copy of its own with the same start values. */
static void one_round_step(struct ck *c, const struct weight_case *k)
{
    if (!begin_weight(c, k))
        return;
    const struct weight_in in = weight_inputs(c, k);
    struct weight_quant p = quant_of(k, &in);
    p.v = NULL;
    const struct tensor dwq = ck_in(c, shape_of(k, DT_F32, 1), PAT_RANDOM);
    const struct tensor sc = ck_in_empty(c, ck_2d(DT_F16, k->rows, groups_of(k), 1));
    const struct tensor z = ck_in_empty(c, ck_2d(DT_U8, k->rows, groups_of(k), 1));
    const struct ck_out v = ck_poisoned(c, shape_of(k, DT_F32, 5));
    ck_ok(c, dev_fake_quant_weights(c->dev[SIDE_REF], NULL, &sc, &z, &p));
    CK_EACH(c, s)
    {
        p.v = &v.side[s];
        ck_ok(c, dev_copy(c->dev[s], &v.side[s], &in.v));
        ck_ok(c, dev_round_step(c->dev[s], &dwq, &sc, &z, &p, 0.125f));
    }
    ck_bits(c, "v", &v);
    ck_end(c);
}

static void test_round_step(struct ck *c)
{
    each_weight(c, one_round_step, false, false, false);
}

static void test_fake_quant_weights_bwd(struct ck *c)
{
    each_weight(c, one_fake_quant_weights_bwd, false, false, false);
}

/* --- KV ------------------------------------------------------------------------------ */

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

const struct ck_test ck_quant_tests[] = {
    {"fake_quant_weights", test_fake_quant_weights},
    {"fake_quant_stored", test_apply},
    {"round_step", test_round_step},
    {"fake_quant_weights_bwd", test_fake_quant_weights_bwd},
    {"fake_quant_kv", test_fake_quant_kv},
    {"fake_quant_kv_bwd", test_fake_quant_kv_bwd},
    {"col_minmax", test_minmax},
    {"exp", test_exp},
    {NULL, NULL}};

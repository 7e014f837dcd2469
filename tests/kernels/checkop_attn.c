/* SPDX-License-Identifier: MIT
 *
 * checkop: rotary embedding, Hadamard rotation, attention and its backward. */
#include "tests/kernels/checkop.h"

#include <math.h>
#include <string.h>

struct rope_case {
    int64_t T, H, d, pad;
    enum dtype t;
    bool inverse;
    enum ck_pattern pattern;
    int64_t r; /* channels of a head that are rotated */
};

static void one_rope(struct ck *c, const struct rope_case *k)
{
    if (!ck_begin(c, "[%ld,%ld,%ld] %s, pad %ld, %ld rotated%s, %s", (long)k->T, (long)k->H,
                  (long)k->d, dtype_name(k->t), (long)k->pad, (long)k->r,
                  k->inverse ? ", inverse" : "", ck_pattern_name[k->pattern]))
        return;
    const int64_t half = k->r / 2;
    const struct tensor cs = ck_in_empty(c, ck_2d(DT_F32, k->T + 1, half, 0));
    const struct tensor sn = ck_in_empty(c, ck_2d(DT_F32, k->T + 1, half, 0));
    for (int64_t i = 0; i < (k->T + 1) * half; i++) {
        const double angle = 6.3 * rng_uniform(&c->rng);
        ck_set(&cs, i / half, i % half, cos(angle));
        ck_set(&sn, i / half, i % half, sin(angle));
    }
    const struct ck_out x = ck_twins(c, ck_3d(k->t, k->T, k->H, k->d, k->pad), k->pattern);
    double *mag = ck_doubles(c, k->T * k->H * k->d); /* 0 where nothing may change */
    for (int64_t i = 0; i < k->T * k->H * half; i++) {
        const int64_t head = i / half, at = head % k->H * k->d + i % half;
        mag[head * k->d + i % half] = mag[head * k->d + half + i % half] =
            fabs(ck_get(&x.side[0], head / k->H, at)) +
            fabs(ck_get(&x.side[0], head / k->H, at + half));
    }
    CK_EACH(c, s) ck_ok(c, dev_rope(c->dev[s], &x.side[s], &cs, &sn, k->inverse));
    ck_close(c, "x", &x, mag, 1);
    ck_end(c);
}

static void test_rope(struct ck *c)
{
    static const int64_t shapes[][5] = {
        {1, 1, 2, 0, 2},   {3, 2, 8, 5, 8},     {5, 3, 80, 0, 80}, {2, 4, 64, 16, 64},
        {4, 1, 96, 1, 96}, {3, 2, 128, 0, 128}, {2, 3, 8, 1, 6},   {3, 2, 128, 16, 96},
        {2, 1, 7, 0, 2},   {3, 2, 8, 8, 8}};
    if (c->bench) {
        one_rope(c, &(struct rope_case){256, 32, 64, 0, DT_BF16, false, PAT_RANDOM, 64});
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int v = 0; v < 4; v++)
                one_rope(c, &(struct rope_case){shapes[i][0], shapes[i][1], shapes[i][2],
                                                shapes[i][3], v & 1 ? DT_BF16 : DT_F32,
                                                v & 2, (enum ck_pattern)p, shapes[i][4]});
}

static void one_hadamard(struct ck *c, const struct rope_case *k)
{
    if (!ck_begin(c, "[%ld,%ld,%ld] %s, pad %ld, %s", (long)k->T, (long)k->H, (long)k->d,
                  dtype_name(k->t), (long)k->pad, ck_pattern_name[k->pattern]))
        return;
    const struct ck_out x = ck_twins(c, ck_3d(k->t, k->T, k->H, k->d, k->pad), k->pattern);
    double *mag = ck_doubles(c, k->T * k->H * k->d);
    for (int64_t i = 0; i < k->T * k->H; i++) {
        double sum = 0;
        for (int64_t j = 0; j < k->d; j++)
            sum += fabs(ck_get(&x.side[0], i / k->H, i % k->H * k->d + j));
        for (int64_t j = 0; j < k->d; j++)
            mag[i * k->d + j] = sum / sqrt((double)k->d);
    }
    CK_EACH(c, s) ck_ok(c, dev_hadamard(c->dev[s], &x.side[s]));
    ck_close(c, "x", &x, mag, 1);
    ck_end(c);
}

static void test_hadamard(struct ck *c)
{
    static const int64_t shapes[][4] = {{1, 1, 2, 0},   {3, 2, 4, 5},   {2, 3, 8, 0},
                                        {5, 1, 16, 1},  {3, 3, 32, 3},  {4, 5, 64, 16},
                                        {3, 2, 128, 0}, {2, 2, 256, 7}, {2, 1, 512, 0}};
    if (c->bench) {
        one_hadamard(c, &(struct rope_case){256, 32, 64, 0, DT_BF16, false, PAT_RANDOM});
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int v = 0; v < 2; v++)
                one_hadamard(c, &(struct rope_case){
                                    shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3],
                                    v ? DT_BF16 : DT_F32, false, (enum ck_pattern)p});
}

struct attn_case {
    int64_t T, H, K, d, pad;
    enum dtype t;
    bool quantized;
    struct attn_mask mask;
    enum ck_pattern pattern;
    int64_t reach;    /* 0: all tokens */
    int64_t grad_pad; /* of dq; the other gradients have twice as much */
    bool cold;        /* all logits are near -120: hidden keys would outweigh the others */
    bool parts; /* sums over parts of the keys and queries may be rounded (dev_attn()) */
};

struct attn_in {
    struct tensor q, k, v, kq, vq, dout;
    float scale;
};

static bool begin_case(struct ck *c, const struct attn_case *k)
{
    return ck_begin(
        c,
        "T %ld, H %ld, K %ld, d %ld, pad %ld, %s, %s window %ld sink %ld chunk %ld "
        "block %ld reach %ld, %s",
        (long)k->T, (long)k->H, (long)k->K, (long)k->d, (long)k->pad, dtype_name(k->t),
        k->quantized ? "quantized" : "plain", (long)k->mask.window, (long)k->mask.sink,
        (long)k->mask.chunk, (long)k->mask.block, (long)k->reach,
        ck_pattern_name[k->pattern]);
}

/* Makes every element about value, from random ones. */
static void fill_near(const struct tensor *x, double value)
{
    const int64_t cols = x->dim[1] * x->dim[2];
    for (int64_t i = 0; i < x->dim[0] * cols; i++)
        ck_set(x, i / cols, i % cols,
               value * (1 + 0.02 * sin(ck_get(x, i / cols, i % cols))));
}

static struct attn_in make_inputs(struct ck *c, const struct attn_case *k)
{
    const struct ck_shape qs = ck_3d(k->t, k->T, k->H, k->d, k->pad);
    const struct ck_shape ks = ck_3d(k->t, k->T, k->K, k->d, 2 * k->pad);
    struct attn_in in = {.q = ck_in(c, qs, k->pattern),
                         .k = ck_in(c, ks, k->pattern),
                         .v = ck_in(c, ks, k->pattern),
                         .kq = ck_in(c, ks, k->pattern),
                         .vq = ck_in(c, ks, k->pattern),
                         .dout = ck_in(c, qs, PAT_RANDOM),
                         .scale = (float)(1 / sqrt((double)k->d))};
    if (k->cold) {
        fill_near(&in.q, -sqrt(120 / sqrt((double)k->d)));
        fill_near(&in.k, sqrt(120 / sqrt((double)k->d)));
        fill_near(&in.kq, sqrt(120 / sqrt((double)k->d)));
    }
    if (k->pattern == PAT_LARGE) /* logits of a few hundred: one key has all the weight */
        in.scale *= 1e-6f;
    return in;
}

/* The attention of one pair in f64, and the magnitude that its rounding is proportional
 * to. */
struct pair {
    double P, S_mag;                  /* weight; scale sum |q k| */
    const struct tensor *key, *value; /* the form of the key that the query sees */
    bool quantized;
};

static bool sees_quantized(const struct attn_case *k, int64_t i, int64_t j)
{
    const struct attn_mask *m = &k->mask;
    const int64_t last = m->block > 1 ? (j / m->block + 1) * m->block - 1 : j;
    const bool full = last > i - m->window || j < m->sink ||
                      (m->chunk > 1 && last / m->chunk == i / m->chunk);
    return k->quantized && !full;
}

static double dot(const struct tensor *a, int64_t t, int64_t h, const struct tensor *b,
                  int64_t u, int64_t g, bool absolute)
{
    const int64_t d = a->dim[2];
    double sum = 0;
    for (int64_t c = 0; c < d; c++) {
        const double p = ck_get(a, t, h * d + c) * ck_get(b, u, g * d + c);
        sum += absolute ? fabs(p) : p;
    }
    return sum;
}

static struct pair pair_of(const struct attn_case *k, const struct attn_in *in, int64_t h,
                           int64_t i, int64_t j, double lse)
{
    const int64_t g = h / (k->H / k->K);
    struct pair p = {.quantized = sees_quantized(k, i, j)};
    p.key = p.quantized ? &in->kq : &in->k;
    p.value = p.quantized ? &in->vq : &in->v;
    p.P = exp((double)in->scale * dot(&in->q, i, h, p.key, j, g, false) - lse);
    p.S_mag = (double)in->scale * dot(&in->q, i, h, p.key, j, g, true);
    return p;
}

static int64_t first_seen(const struct attn_case *k, int64_t i)
{
    return k->reach && i + 1 > k->reach ? i + 1 - k->reach : 0;
}

/* Relative error of a weight P, in units of a short sum's. The absolute error of S passes
 * through the exponential, and so does that of the sum, which lse holds. With BF16, P and
 * dS may be rounded by at most 2^-8 before sums of n terms. In parts, so may the sum over a
 * head's queries, and that over the past. A weight below 2^-64, with some room for rounding, may
 * be missing. */
static double weight_error(const struct attn_case *k, const struct pair *p, double lse,
                           double worst_S, int64_t n)
{
    const double unit = close_tolerance(k->t, n).sum;
    const double rounding = k->t == DT_BF16 ? 0x1p-8 / unit : 0;
    return 1 + p->S_mag + worst_S + fabs(lse) + rounding * (k->parts ? 3 : 1) +
           (p->P < 0x1.01p-64 ? 1 / unit : 0);
}

static double worst_score(const struct attn_case *k, const struct attn_in *in, int64_t h,
                          int64_t i, double lse)
{
    double worst = 0;
    for (int64_t j = first_seen(k, i); j <= i; j++)
        worst = fmax(worst, pair_of(k, in, h, i, j, lse).S_mag);
    return worst;
}

static void forward_magnitude(const struct attn_case *k, const struct attn_in *in,
                              const struct tensor *lse, double *o, double *l)
{
    for (int64_t h = 0; h < k->H; h++)
        for (int64_t i = 0; i < k->T; i++) {
            const double lse_i = ck_get(lse, h, i), worst = worst_score(k, in, h, i, lse_i);
            l[h * k->T + i] = 1 + worst + fabs(lse_i);
            for (int64_t j = first_seen(k, i); j <= i; j++) {
                const struct pair p = pair_of(k, in, h, i, j, lse_i);
                const double e = p.P * weight_error(k, &p, lse_i, worst, k->d + k->T);
                for (int64_t c = 0; c < k->d; c++)
                    o[(i * k->H + h) * k->d + c] +=
                        e * fabs(ck_get(p.value, j, h / (k->H / k->K) * k->d + c));
            }
        }
}

/* The inputs as the operation takes them; the quantized forms only in cases that have
 * them. */
static struct attn_inputs inputs_of(const struct attn_case *k, const struct attn_in *in)
{
    return (struct attn_inputs){.q = &in->q,
                                .k = &in->k,
                                .v = &in->v,
                                .kq = k->quantized ? &in->kq : NULL,
                                .vq = k->quantized ? &in->vq : NULL,
                                .mask = k->quantized ? &k->mask : NULL,
                                .reach = k->reach,
                                .scale = in->scale};
}

static void one_attn(struct ck *c, const struct attn_case *k)
{
    if (!begin_case(c, k))
        return;
    const struct attn_in in = make_inputs(c, k);
    const struct attn_inputs run = inputs_of(k, &in);
    const struct ck_out o = ck_poisoned(c, ck_3d(k->t, k->T, k->H, k->d, k->pad));
    const struct ck_out lse = ck_poisoned(c, ck_2d(DT_F32, k->H, k->T, 0));
    CK_EACH(c, s)
    ck_ok(c, dev_attn(c->dev[s], &o.side[s], &lse.side[s], &run));
    if (!c->bench) {
        double *o_mag = ck_doubles(c, k->T * k->H * k->d),
               *l_mag = ck_doubles(c, k->H * k->T);
        forward_magnitude(k, &in, &lse.side[SIDE_REF], o_mag, l_mag);
        ck_close(c, "o", &o, o_mag, k->d + k->T);
        ck_close(c, "lse", &lse, l_mag, k->d + k->T);
    }
    ck_end(c);
}

struct grads {
    struct ck_out dq, dk, dv, dkq, dvq;
};

/* Magnitudes of the five gradients, each [T][heads][d]. */
struct grad_mag {
    double *dq, *dk[2], *dv[2]; /* [1]: of the quantized form */
};

static void add_pair(const struct attn_case *k, const struct attn_in *in,
                     const struct grad_mag *m, const struct pair *p, int64_t h, int64_t i,
                     int64_t j, double e, double dS)
{
    const int64_t g = h / (k->H / k->K);
    for (int64_t c = 0; c < k->d; c++) {
        const int64_t at_q = (i * k->H + h) * k->d + c, at_k = (j * k->K + g) * k->d + c;
        m->dq[at_q] += (double)in->scale * dS * fabs(ck_get(p->key, j, g * k->d + c));
        m->dk[p->quantized][at_k] +=
            (double)in->scale * dS * fabs(ck_get(&in->q, i, h * k->d + c));
        m->dv[p->quantized][at_k] += p->P * e * fabs(ck_get(&in->dout, i, h * k->d + c));
    }
}

static void backward_magnitude(const struct attn_case *k, const struct attn_in *in,
                               const struct tensor *o, const struct tensor *lse,
                               const struct grad_mag *m, int64_t n)
{
    for (int64_t h = 0; h < k->H; h++)
        for (int64_t i = 0; i < k->T; i++) {
            const double lse_i = ck_get(lse, h, i), worst = worst_score(k, in, h, i, lse_i);
            const double D = dot(&in->dout, i, h, o, i, h, true);
            for (int64_t j = first_seen(k, i); j <= i; j++) {
                const struct pair p = pair_of(k, in, h, i, j, lse_i);
                const double e = weight_error(k, &p, lse_i, worst, n);
                const double dP = dot(&in->dout, i, h, p.value, j, h / (k->H / k->K), true);
                add_pair(k, in, m, &p, h, i, j, e, p.P * e * (dP + D));
            }
        }
}

static struct grads run_bwd(struct ck *c, const struct attn_case *k,
                            const struct attn_in *in, const struct tensor *o,
                            const struct tensor *lse)
{
    const struct attn_inputs run = inputs_of(k, in);
    const struct ck_shape qs = ck_3d(k->t, k->T, k->H, k->d, k->grad_pad);
    const struct ck_shape ks = ck_3d(k->t, k->T, k->K, k->d, 2 * k->grad_pad);
    const struct grads g = {ck_poisoned(c, qs), ck_poisoned(c, ks), ck_poisoned(c, ks),
                            ck_poisoned(c, ks), ck_poisoned(c, ks)};
    CK_EACH(c, s)
    ck_ok(c, dev_attn_bwd(c->dev[s],
                          &(struct attn_grads){.dq = &g.dq.side[s],
                                               .dk = &g.dk.side[s],
                                               .dv = &g.dv.side[s],
                                               .dkq = k->quantized ? &g.dkq.side[s] : NULL,
                                               .dvq = k->quantized ? &g.dvq.side[s] : NULL},
                          &in->dout, o, lse, &run));
    return g;
}

static void one_attn_bwd(struct ck *c, const struct attn_case *k)
{
    if (!begin_case(c, k))
        return;
    const struct attn_in in = make_inputs(c, k);
    const struct attn_inputs run = inputs_of(k, &in);
    const struct tensor o = ck_in_empty(c, ck_3d(k->t, k->T, k->H, k->d, 0));
    const struct tensor lse = ck_in_empty(c, ck_2d(DT_F32, k->H, k->T, 0));
    ck_ok(c, dev_attn(c->dev[SIDE_REF], &o, &lse, &run));
    const struct grads g = run_bwd(c, k, &in, &o, &lse);
    if (!c->bench) {
        const int64_t nk = k->T * k->K * k->d, n = k->d + k->T * (k->H / k->K);
        const struct grad_mag m = {ck_doubles(c, k->T * k->H * k->d),
                                   {ck_doubles(c, nk), ck_doubles(c, nk)},
                                   {ck_doubles(c, nk), ck_doubles(c, nk)}};
        backward_magnitude(k, &in, &o, &lse, &m, n);
        ck_close(c, "dq", &g.dq, m.dq, n);
        ck_close(c, "dk", &g.dk, m.dk[0], n);
        ck_close(c, "dv", &g.dv, m.dv[0], n);
        if (k->quantized) {
            ck_close(c, "dkq", &g.dkq, m.dk[1], n);
            ck_close(c, "dvq", &g.dvq, m.dv[1], n);
        }
    }
    ck_end(c);
}

/* T, H, K, d, pad */
static const int64_t shapes[][5] = {
    {1, 1, 1, 8, 0},    {2, 2, 1, 16, 3},  {7, 4, 4, 8, 0},
    {19, 8, 1, 64, 5},  {33, 4, 2, 80, 0}, {21, 3, 3, 96, 0},
    {17, 6, 2, 128, 0}, {70, 2, 1, 16, 0}, {134, 2, 1, 16, 0}};
static const struct attn_mask masks[] = {
    {0, 0, 0, 0}, {1, 0, 0, 0}, {3, 0, 0, 0}, {16, 4, 0, 0}, {0, 4, 0, 0},
    {1, 4, 1, 0}, {0, 0, 0, 4}, {1, 6, 0, 4}, {5, 0, 0, 32}, {1, 0, 0, 3}};
static const enum ck_pattern attn_patterns[] = {PAT_RANDOM, PAT_ZERO,  PAT_ONE,
                                                PAT_LARGE,  PAT_SMALL, PAT_ALTERNATING};

/* Sliding windows below, at and above the tiles of the devices, in every kind of mask. */
static void each_reach(struct ck *c, void (*one)(struct ck *c, const struct attn_case *k))
{
    static const int64_t reaches[] = {1, 3, 16, 63, 64, 65, 133, 134, 1 << 20};
    for (size_t i = 0; i < ARRAY_LEN(reaches); i++)
        for (size_t m = i % 2; m < ARRAY_LEN(masks) + 1; m += 2) {
            struct attn_case k = {.T = i % 3 ? 134 : 210,
                                  .H = 2,
                                  .K = 1,
                                  .d = 16,
                                  .t = m % 3 ? DT_F32 : DT_BF16,
                                  .quantized = m < ARRAY_LEN(masks),
                                  .pattern = PAT_RANDOM,
                                  .reach = reaches[i],
                                  .grad_pad = 1};
            if (k.quantized)
                k.mask = masks[m];
            one(c, &k);
        }
}

static void each_attn(struct ck *c, void (*one)(struct ck *c, const struct attn_case *k),
                      bool chunks)
{
    struct attn_case k = {.T = 256,
                          .H = 8,
                          .K = 2,
                          .d = 64,
                          .t = DT_BF16,
                          .quantized = true,
                          .mask = {.window = 1},
                          .pattern = PAT_RANDOM,
                          .grad_pad = 1};
    if (c->bench) {
        one(c, &k);
        return;
    }
    if (!c->quiet)
        each_reach(c, one);
    const size_t n_shapes = c->quiet ? 4 : ARRAY_LEN(shapes); /* enough to show a fault */
    for (size_t i = 0; i < n_shapes; i++)
        for (size_t m = 0; m < ARRAY_LEN(masks) + 1; m++) {
            /* Every mask and pattern with the small shapes, and one of each with the large
             * ones. */
            const size_t n_patterns = i == 2 ? ARRAY_LEN(attn_patterns) : 1;
            for (size_t p = 0; p < n_patterns; p++) {
                if (i >= 3 && (m + i) % 3)
                    continue;
                k = (struct attn_case){.T = shapes[i][0],
                                       .H = shapes[i][1],
                                       .K = shapes[i][2],
                                       .d = shapes[i][3],
                                       .pad = shapes[i][4],
                                       .t = DT_F32,
                                       .quantized = m < ARRAY_LEN(masks),
                                       .pattern = attn_patterns[p],
                                       .grad_pad = 1};
                if (k.quantized)
                    k.mask = masks[m];
                one(c, &k);
                k.t = DT_BF16;
                if (chunks && (m == 0 || m == 6))
                    k.mask.chunk = 5;
                one(c, &k);
            }
        }
}

static const struct attn_mask part_masks[] = {{0, 0, 0, 0},  {0, 4, 0, 0}, {1, 0, 0, 0},
                                              {1, 4, 0, 0},  {3, 0, 1, 1}, {3, 6, 0, 0},
                                              {16, 4, 0, 0}, {17, 4, 0, 0}};

/* Case m of a shape; the last one is without a quantized form. */
static struct attn_case part_case(const int64_t shape[4], size_t i, size_t m)
{
    struct attn_case k = {.T = shape[0],
                          .H = shape[1],
                          .K = shape[2],
                          .d = shape[3],
                          .pad = (int64_t)(m % 3) * 8,
                          .t = DT_BF16,
                          .quantized = m < ARRAY_LEN(part_masks),
                          .pattern = m % 4 == 3 ? PAT_LARGE : PAT_RANDOM,
                          .reach = m % 2 ? shape[0] : 0,
                          .grad_pad = (int64_t)(i % 2) * 8,
                          .parts = true};
    if (k.quantized)
        k.mask = part_masks[m];
    return k;
}

/* Lengths of the past that end in the middle of a library's tile, one before its end, and at it.
 * The zeros that fill the tile would outweigh all keys. */
static void each_cold(struct ck *c, void (*one)(struct ck *c, const struct attn_case *k),
                      int64_t tokens)
{
    static const int64_t lengths[] = {64, 127, 128};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        const int64_t shape[] = {tokens + lengths[i] + 1, 2, 1, 16};
        struct attn_case k = part_case(shape, 0, 2);
        k.cold = true;
        one(c, &k);
    }
}

/* Shapes and masks for which the cuda device asks cuDNN, and some beside them: BF16 in rows of
 * whole 16 bytes, windows up to T and above, up to four query heads to a kv head. A GPU asks it
 * from 512 tokens on, the emulation always. The large shapes are for a GPU alone and come first, so
 * that they are among one case of ten. All but one have a single mask, of window 1, because the
 * reference takes long. */
static void each_part(struct ck *c, void (*one)(struct ck *c, const struct attn_case *k))
{
    static const int64_t small[][4] = {
        {1, 2, 1, 8}, {5, 4, 2, 64}, {23, 6, 2, 80}, {40, 3, 3, 128}, {70, 4, 1, 16}};
    static const int64_t large[][4] = {
        {530, 2, 1, 64}, {513, 2, 2, 128}, {577, 4, 2, 128}, {640, 2, 2, 96}};
    const bool gpu = !strcmp(c->level, "cuda");
    const size_t all = ARRAY_LEN(part_masks) + 1;
    struct attn_case k;
    if (c->bench)
        return;
    for (size_t i = 0; gpu && i < ARRAY_LEN(large); i++)
        for (size_t m = i ? 2 : 0; m < (i ? 3 : all); m++) {
            k = part_case(large[i], i + 1, m);
            one(c, &k);
        }
    for (size_t i = 0; i < ARRAY_LEN(small); i++)
        for (size_t m = 0; m < all; m++) {
            k = part_case(small[i], i, m);
            one(c, &k);
        }
    each_cold(c, one, gpu ? 512 : 0);
}

static void test_attn(struct ck *c)
{
    each_attn(c, one_attn, true);
}

static void test_parts(struct ck *c)
{
    each_part(c, one_attn);
}

static void test_parts_bwd(struct ck *c)
{
    each_part(c, one_attn_bwd);
}

static void test_attn_bwd(struct ck *c)
{
    each_attn(c, one_attn_bwd, false);
}

const struct ck_test ck_attn_tests[] = {{"rope", test_rope},
                                        {"hadamard", test_hadamard},
                                        {"attn", test_attn},
                                        {"attn_bwd", test_attn_bwd},
                                        {"attn_parts", test_parts},
                                        {"attn_parts_bwd", test_parts_bwd},
                                        {NULL, NULL}};

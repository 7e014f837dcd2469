/* SPDX-License-Identifier: MIT
 *
 * checkop: weight clipping and rounding offsets. Forward results are compared bit for bit. */
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
    enum dtype w; /* of the weights */
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
    return ck_begin(
        c, "%s %ldx%ld, groups of %ld, %d bits, scales of %d, %s%s%s%s%s, %s",
        dtype_name(k->w), (long)k->rows, (long)k->cols, (long)k->G, k->bits, k->scale_bits,
        k->learned ? "clipped" : "nearest", k->offset ? ", offsets" : "",
        k->wq == DT_OTHER  ? ", no values"
        : k->wq == DT_BF16 ? ", BF16"
                           : "",
        k->whole ? ", whole quads" : "", values[k->values], ck_pattern_name[k->pattern]);
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
        return ck_in(c, shape_of(k, k->w, 3), k->pattern);
    const struct tensor w = ck_in_empty(c, shape_of(k, k->w, 3));
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
static void one_offset_step(struct ck *c, const struct weight_case *k)
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
        ck_ok(c, dev_offset_step(c->dev[s], &dwq, &sc, &z, &p, 0.125f));
    }
    ck_bits(c, "v", &v);
    ck_end(c);
}

static void test_offset_step(struct ck *c)
{
    each_weight(c, one_offset_step, false, false, false);
}

static void test_fake_quant_weights_bwd(struct ck *c)
{
    each_weight(c, one_fake_quant_weights_bwd, false, false, false);
}

/* What all operations write, with w of one type on side 0 and the same values in F32 on side 1. */
struct written {
    struct ck_out scales, zeros, clipped, stored, da, db, v;
};

static struct written written_of(struct ck *c, const struct weight_case *k)
{
    const struct ck_shape values = shape_of(k, k->wq, 5), rows = shape_of(k, DT_F32, 5);
    const struct ck_shape group = ck_2d(DT_F32, k->rows, groups_of(k), 4);
    return (struct written){.scales =
                                ck_poisoned(c, ck_2d(DT_F16, k->rows, groups_of(k), 1)),
                            .zeros = ck_poisoned(c, ck_2d(DT_U8, k->rows, groups_of(k), 1)),
                            .clipped = ck_poisoned(c, values),
                            .stored = ck_poisoned(c, values),
                            .da = ck_poisoned(c, group),
                            .db = ck_poisoned(c, group),
                            .v = ck_poisoned(c, rows)};
}

static void write_side(struct ck *c, struct dev *d, const struct written *x, int i,
                       const struct tensor *dwq, const struct tensor *v,
                       const struct weight_quant *quant)
{
    const struct tensor *const sc = &x->scales.side[i], *const z = &x->zeros.side[i];
    struct weight_quant p = *quant;
    ck_ok(c, dev_fake_quant_weights(d, &x->clipped.side[i], sc, z, &p));
    ck_ok(c, dev_fake_quant_stored(d, &x->stored.side[i], sc, z, &p));
    ck_ok(c, dev_fake_quant_weights_bwd(d, &x->da.side[i], &x->db.side[i], dwq, &p));
    p.v = &x->v.side[i];
    ck_ok(c, dev_copy(d, &x->v.side[i], v));
    ck_ok(c, dev_offset_step(d, dwq, sc, z, &p, 0.125f));
    ck_ok(c, dev_sync(d));
}

/* Weights in the type that they are stored in give on each device the bits that they give in
 * F32. */
static void one_weight_type(struct ck *c, const struct weight_case *k)
{
    if (!begin_weight(c, k))
        return;
    const struct weight_in in = weight_inputs(c, k);
    const struct tensor w = ck_in_empty(c, shape_of(k, DT_F32, 1));
    const struct tensor dwq = ck_in(c, shape_of(k, DT_F32, 1), PAT_RANDOM);
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t i = 0; i < k->cols; i++)
            ck_set(&w, r, i, ck_get(&in.w, r, i));
    struct weight_quant p = quant_of(k, &in), whole = p;
    whole.w = &w;
    for (int s = 0; s < N_SIDES; s++) {
        const struct written x = written_of(c, k);
        ck_seal(c);
        write_side(c, c->dev[s], &x, 0, &dwq, &in.v, &p);
        write_side(c, c->dev[s], &x, 1, &dwq, &in.v, &whole);
        ck_bits(c, "scales", &x.scales);
        ck_bits(c, "zeros", &x.zeros);
        ck_bits(c, "wq", &x.clipped);
        ck_bits(c, "wq of stored scales", &x.stored);
        ck_bits(c, "da", &x.da);
        ck_bits(c, "db", &x.db);
        ck_bits(c, "v", &x.v);
    }
    ck_end(c);
}

/* Shapes and patterns as above: each layout, with and without offsets, values in both act types. */
static void test_weight_type(struct ck *c)
{
    for (int t = 0; t < 2 && !c->bench; t++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (size_t i = 0; i < ARRAY_LEN(weight_shapes) + ARRAY_LEN(whole_shapes);
                 i++) {
                const bool whole = i >= ARRAY_LEN(weight_shapes);
                const int64_t *n =
                    whole ? whole_shapes[i - ARRAY_LEN(weight_shapes)] : weight_shapes[i];
                const struct weight_case k = {.rows = n[0],
                                              .cols = n[1],
                                              .G = n[2],
                                              .bits = 2 + (int)(p + i) % 7,
                                              .learned = true,
                                              .wq = p % 2 ? DT_BF16 : DT_F32,
                                              .pattern = (enum ck_pattern)p,
                                              .offset = (p + i) % 3 == 0,
                                              .whole = whole,
                                              .w = t ? DT_BF16 : DT_F16};
                one_weight_type(c, &k);
            }
}

const struct ck_test ck_weight_tests[] = {
    {"fake_quant_weights", test_fake_quant_weights},
    {"fake_quant_stored", test_apply},
    {"offset_step", test_offset_step},
    {"fake_quant_weights_bwd", test_fake_quant_weights_bwd},
    {"weight_type", test_weight_type},
    {NULL, NULL}};

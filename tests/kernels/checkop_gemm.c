/* SPDX-License-Identifier: MIT
 *
 * checkop: copy, gemm, sums of products, bias, add, memory. */
#include "tests/kernels/checkop.h"

#include <math.h>
#include <string.h>

static const char *const kind_name[] = {"nt", "nn", "tn"};

struct gemm_case {
    enum gemm_kind kind;
    int64_t m, n, k, pad;
    enum dtype in, out;
    bool accumulate;
    enum ck_pattern pattern;
};

/* sum_k |a b|, which the rounding of an element is proportional to. */
static double *gemm_magnitude(struct ck *c, const struct gemm_case *g,
                              const struct tensor *a, const struct tensor *b,
                              const struct tensor *start)
{
    double *mag = ck_doubles(c, g->m * g->n);
    for (int64_t m = 0; m < g->m; m++)
        for (int64_t n = 0; n < g->n; n++) {
            double sum = start ? fabs(ck_get(start, m, n)) : 0;
            for (int64_t k = 0; k < g->k; k++) {
                const double x = g->kind == GEMM_TN ? ck_get(a, k, m) : ck_get(a, m, k);
                const double y = g->kind == GEMM_NT ? ck_get(b, n, k) : ck_get(b, k, n);
                sum += fabs(x * y);
            }
            mag[m * g->n + n] = sum;
        }
    return mag;
}

/* A matrix of one row may have any stride, also one below its width. */
static void set_row_strides(const struct gemm_case *g, struct tensor *t[4])
{
    for (int i = 0; i < 4; i++)
        if (t[i]->dim[0] == 1 && !g->pad)
            t[i]->ld = 0;
}

static void gemm_operands(struct ck *c, const struct gemm_case *g, struct tensor *a,
                          struct tensor *b)
{
    const bool ta = g->kind == GEMM_TN, tb = g->kind == GEMM_NT;
    *a = ck_in(c, ck_2d(g->in, ta ? g->k : g->m, ta ? g->m : g->k, g->pad), g->pattern);
    *b = ck_in(c, ck_2d(g->in, tb ? g->n : g->k, tb ? g->k : g->n, 2 * g->pad), g->pattern);
}

static void one_gemm(struct ck *c, const struct gemm_case *g)
{
    if (!ck_begin(c, "%s %ldx%ldx%ld, pad %ld, %s to %s%s, %s", kind_name[g->kind],
                  (long)g->m, (long)g->n, (long)g->k, (long)g->pad, dtype_name(g->in),
                  dtype_name(g->out), g->accumulate ? " +=" : "",
                  ck_pattern_name[g->pattern]))
        return;
    struct tensor a, b;
    gemm_operands(c, g, &a, &b);
    const struct ck_shape shape = ck_2d(g->out, g->m, g->n, g->pad);
    struct ck_out o =
        g->accumulate ? ck_twins(c, shape, g->pattern) : ck_poisoned(c, shape);
    set_row_strides(g, (struct tensor *[]){&a, &b, &o.side[SIDE_REF], &o.side[SIDE_CPU]});
    const double *mag =
        c->bench ? NULL
                 : gemm_magnitude(c, g, &a, &b, g->accumulate ? &o.side[SIDE_REF] : NULL);
    CK_EACH(c, s)
    ck_ok(c, dev_gemm(c->dev[s], g->kind, &o.side[s], &a, &b, g->accumulate));
    ck_close(c, "c", &o, mag, g->k);
    ck_end(c);
}

/* Operand and result types, and accumulation, that the contract allows. */
static const struct {
    enum dtype in, out;
    bool accumulate;
} gemm_types[] = {{DT_F32, DT_F32, false},
                  {DT_F32, DT_F32, true},
                  {DT_BF16, DT_F32, false},
                  {DT_BF16, DT_F32, true},
                  {DT_BF16, DT_BF16, false}};

static void test_gemm(struct ck *c)
{
    static const int64_t shapes[][3] = {{1, 1, 1},     {1, 48, 33},   {7, 5, 3},
                                        {17, 31, 64},  {33, 16, 129}, {64, 96, 80},
                                        {70, 130, 520}};
    if (c->bench) {
        one_gemm(c, &(struct gemm_case){GEMM_NT, 128, 576, 576, 0, DT_BF16, DT_BF16, false,
                                        PAT_RANDOM});
        return;
    }
    for (int kind = GEMM_NT; kind <= GEMM_TN; kind++)
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
            for (size_t t = 0; t < ARRAY_LEN(gemm_types); t++)
                for (int p = 0; p < N_PATTERNS; p++) {
                    if (p != PAT_RANDOM && i != 2 && i != 4)
                        continue;
                    one_gemm(c, &(struct gemm_case){(enum gemm_kind)kind, shapes[i][0],
                                                    shapes[i][1], shapes[i][2], p % 3 * 5,
                                                    gemm_types[t].in, gemm_types[t].out,
                                                    gemm_types[t].accumulate,
                                                    (enum ck_pattern)p});
                }
}

/* Adds to the terms' magnitude what makes the tolerance hold the rounding of A B to part's type:
 * one side may round, or both to neighbouring values. */
static void add_rounding(double *mag, const struct gemm_case *g, const struct tensor *part)
{
    const double per_magnitude = close_tolerance(DT_F32, g->k).sum;
    for (int64_t i = 0; i < g->m * g->n; i++)
        mag[i] += close_tolerance(g->out, 1).rel * fabs(ck_get(part, i / g->n, i % g->n)) /
                  per_magnitude;
}

/* y = x + A B, with a product of type g->out. in_place: y is x. */
static void one_gemm_add(struct ck *c, const struct gemm_case *g, bool in_place)
{
    if (!ck_begin(c, "%s %ldx%ldx%ld, pad %ld, %s, product %s%s, %s", kind_name[g->kind],
                  (long)g->m, (long)g->n, (long)g->k, (long)g->pad, dtype_name(g->in),
                  dtype_name(g->out), in_place ? ", in place" : "",
                  ck_pattern_name[g->pattern]))
        return;
    struct tensor a, b;
    gemm_operands(c, g, &a, &b);
    const struct tensor x = ck_in(c, ck_2d(DT_F32, g->m, g->n, 3 * g->pad), g->pattern);
    const struct ck_out y = in_place ? ck_copies(c, &x, g->pad)
                                     : ck_poisoned(c, ck_2d(DT_F32, g->m, g->n, g->pad));
    const struct ck_out part = ck_poisoned(c, ck_2d(g->out, g->m, g->n, 0));
    double *mag = c->bench ? NULL : gemm_magnitude(c, g, &a, &b, &x);
    CK_EACH(c, s)
    ck_ok(c, dev_gemm_add(c->dev[s], g->kind, &y.side[s], in_place ? &y.side[s] : &x, &a,
                          &b, &part.side[s]));
    if (mag)
        add_rounding(mag, g, &part.side[SIDE_REF]);
    ck_close(c, "y", &y, mag, g->k);
    ck_end(c);
}

static void test_gemm_add(struct ck *c)
{
    static const int64_t shapes[][3] = {
        {1, 1, 1}, {1, 48, 33}, {7, 5, 3}, {33, 16, 129}, {64, 96, 80}};
    static const enum dtype types[][2] = {
        {DT_F32, DT_F32}, {DT_BF16, DT_F32}, {DT_BF16, DT_BF16}};
    if (c->bench) {
        one_gemm_add(c,
                     &(struct gemm_case){GEMM_NT, 128, 576, 576, 0, DT_BF16, DT_BF16, false,
                                         PAT_RANDOM},
                     false);
        return;
    }
    for (int kind = GEMM_NT; kind <= GEMM_TN; kind++)
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
            for (size_t t = 0; t < 2 * ARRAY_LEN(types); t++)
                for (int p = 0; p < N_PATTERNS; p++) {
                    if (p != PAT_RANDOM && i != 2)
                        continue;
                    one_gemm_add(c,
                                 &(struct gemm_case){
                                     (enum gemm_kind)kind, shapes[i][0], shapes[i][1],
                                     shapes[i][2], (int64_t)i % 3 * 5, types[t / 2][0],
                                     types[t / 2][1], false, (enum ck_pattern)p},
                                 t % 2);
                }
}

static void one_bias(struct ck *c, int64_t rows, int64_t cols, int64_t pad, enum dtype t,
                     enum ck_pattern p)
{
    if (!ck_begin(c, "%ldx%ld, pad %ld, %s, %s", (long)rows, (long)cols, (long)pad,
                  dtype_name(t), ck_pattern_name[p]))
        return;
    const struct tensor b = ck_in(c, ck_1d(cols), p);
    const struct ck_out y = ck_twins(c, ck_2d(t, rows, cols, pad), p);
    double *mag = ck_doubles(c, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++)
        mag[i] =
            fabs(ck_get(&y.side[0], i / cols, i % cols)) + fabs(ck_get(&b, 0, i % cols));
    CK_EACH(c, s) ck_ok(c, dev_bias(c->dev[s], &y.side[s], &b));
    ck_close(c, "y", &y, mag, 1);
    ck_end(c);
}

static void one_add(struct ck *c, int64_t rows, int64_t cols, int types, bool in_place,
                    enum ck_pattern p)
{
    const enum dtype ty = types & 1 ? DT_BF16 : DT_F32, ta = types & 2 ? DT_BF16 : DT_F32,
                     tb = types & 4 ? DT_BF16 : DT_F32;
    if (!ck_begin(c, "%ldx%ld, %s = %s + %s%s, %s", (long)rows, (long)cols, dtype_name(ty),
                  dtype_name(ta), dtype_name(tb), in_place ? ", y is a" : "",
                  ck_pattern_name[p]))
        return;
    const struct tensor a = ck_in(c, ck_2d(ta, rows, cols, ck_pad(cols, 3)), p);
    const struct tensor b = ck_in(c, ck_2d(tb, rows, cols, ck_pad(cols, 7)), p);
    const struct ck_out y = in_place
                                ? ck_copies(c, &a, ck_pad(cols, 5))
                                : ck_poisoned(c, ck_2d(ty, rows, cols, ck_pad(cols, 5)));
    double *mag = ck_doubles(c, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++)
        mag[i] =
            fabs(ck_get(&a, i / cols, i % cols)) + fabs(ck_get(&b, i / cols, i % cols));
    CK_EACH(c, s)
    ck_ok(c, dev_add(c->dev[s], &y.side[s], in_place ? &y.side[s] : &a, &b));
    ck_close(c, "y", &y, mag, 1);
    ck_end(c);
}

/* A power of two is exact in both types, other factors round once. */
static void one_scale(struct ck *c, int64_t rows, int64_t cols, int64_t pad, enum dtype t,
                      float factor, enum ck_pattern p)
{
    if (!ck_begin(c, "%ldx%ld, pad %ld, %s, by %g, %s", (long)rows, (long)cols, (long)pad,
                  dtype_name(t), (double)factor, ck_pattern_name[p]))
        return;
    const struct ck_out y = ck_twins(c, ck_2d(t, rows, cols, pad), p);
    CK_EACH(c, s) ck_ok(c, dev_scale(c->dev[s], &y.side[s], factor));
    ck_close(c, "y", &y, NULL, 1);
    ck_end(c);
}

/* Rows, columns: one row, odd widths, below, at and above a vector. */
static const int64_t sizes[][2] = {{1, 1}, {1, 37}, {3, 16}, {5, 31}, {9, 129}, {67, 8}};

static void test_bias(struct ck *c)
{
    if (c->bench) {
        one_bias(c, 256, 2048, 0, DT_BF16, PAT_RANDOM);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            one_bias(c, sizes[i][0], sizes[i][1], p % 2 * 3, p % 3 ? DT_F32 : DT_BF16,
                     (enum ck_pattern)p);
}

static void test_add(struct ck *c)
{
    if (c->bench) {
        one_add(c, 256, 2048, 0, false, PAT_RANDOM);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int types = 0; types < 8; types++) {
                one_add(c, sizes[i][0], sizes[i][1], types, false, (enum ck_pattern)p);
                if ((types & 1) == (types >> 1 & 1))
                    one_add(c, sizes[i][0], sizes[i][1], types, true, (enum ck_pattern)p);
            }
}

static void one_copy(struct ck *c, struct ck_shape from, enum dtype to, enum ck_pattern p)
{
    if (!ck_begin(c, "%ld dims [%ld,...], %s to %s, %s", (long)from.n_dims,
                  (long)from.dim[0], dtype_name(from.dtype), dtype_name(to),
                  ck_pattern_name[p]))
        return;
    const struct tensor x = ck_in(c, from, p);
    if (p == PAT_MIXED) { /* hard cases of conversions: ties, subnormals, infinities */
        static const float odd[] = {0x1.01p0f,  0x1.03p0f,       -0x1.01p0f, 0x1p-130f,
                                    -0x1p-149f, 0x1.ffp127f,     INFINITY,   -INFINITY,
                                    -0.0f,      0x1.fffffep-120f};
        for (int64_t k = 0; k < ck_cols(&x); k++)
            ck_set(&x, 0, k, (double)odd[k % (int64_t)ARRAY_LEN(odd)]);
    }
    struct ck_shape shape = from;
    shape.dtype = to;
    shape.pad = from.n_dims == 1 ? 0 : from.pad == 8 ? 8 : 2;
    const struct ck_out y = ck_poisoned(c, shape);
    CK_EACH(c, s) ck_ok(c, dev_copy(c->dev[s], &y.side[s], &x));
    ck_bits(c, "y", &y);
    ck_end(c);
}

/* A GPU's rounding to BF16 has one NaN, the reference keeps sign and payload. */
static void unify_nans(const struct ck_out *y)
{
    for (int s = 0; s < N_SIDES; s++)
        for (int64_t r = 0; r < ck_rows(&y->side[s]); r++)
            for (int64_t k = 0; k < ck_cols(&y->side[s]); k++)
                if (isnan(ck_get(&y->side[s], r, k)))
                    ck_set(&y->side[s], r, k, NAN);
}

/* From F16: its bits count up from `first`. NaN must stay NaN. */
static void one_half_copy(struct ck *c, struct ck_shape from, enum dtype to, uint16_t first)
{
    if (!ck_begin(c, "%ld dims [%ld,...], F16 from %x on to %s", (long)from.n_dims,
                  (long)from.dim[0], (unsigned)first, dtype_name(to)))
        return;
    from.dtype = DT_F16;
    const struct tensor x = ck_in_empty(c, from);
    uint16_t bits = first;
    for (int64_t r = 0; r < ck_rows(&x); r++)
        for (int64_t k = 0; k < ck_cols(&x); k++)
            ((uint16_t *)x.data)[r * x.ld + k] = bits++;
    from.dtype = to;
    const struct ck_out y = ck_poisoned(c, from);
    CK_EACH(c, s) ck_ok(c, dev_copy(c->dev[s], &y.side[s], &x));
    unify_nans(&y);
    ck_bits(c, "y", &y);
    ck_end(c);
}

/* All bit patterns, and rows for each way of access. */
static void test_half_copies(struct ck *c)
{
    for (int t = 0; t < 2; t++) {
        const enum dtype to = t ? DT_BF16 : DT_F32;
        one_half_copy(c, ck_2d(DT_F16, 256, 256, 0), to, 0);
        for (unsigned first = 0; first < 0x10000; first += 0x3c00) {
            one_half_copy(c, ck_1d(101), to, (uint16_t)first);
            one_half_copy(c, ck_2d(DT_F16, 5, 33, 3), to, (uint16_t)first);
            one_half_copy(c, ck_2d(DT_F16, 3, 40, 4), to, (uint16_t)first);
            one_half_copy(c, ck_3d(DT_F16, 4, 3, 8, 8), to, (uint16_t)first);
        }
    }
}

static void test_copy(struct ck *c)
{
    if (c->bench) {
        one_copy(c, ck_2d(DT_F32, 256, 2048, 0), DT_BF16, PAT_RANDOM);
        return;
    }
    test_half_copies(c);
    for (int types = 0; types < 4; types++)
        for (int p = 0; p < N_PATTERNS; p++) {
            const enum dtype from = types & 1 ? DT_BF16 : DT_F32;
            const enum dtype to = types & 2 ? DT_BF16 : DT_F32;
            struct ck_shape flat = ck_1d(101);
            flat.dtype = from;
            one_copy(c, flat, to, (enum ck_pattern)p);
            one_copy(c, ck_2d(from, 5, 33, 3), to, (enum ck_pattern)p);
            one_copy(c, ck_3d(from, 4, 3, 8, 8), to, (enum ck_pattern)p);
        }
}

/* Memory: aligned, writable, zeroed, and copied to the device and back. */
static void test_memory(struct ck *c)
{
    static const size_t bytes[] = {1, 63, 64, 4097};
    for (size_t i = 0; i < ARRAY_LEN(bytes) && !c->bench; i++) {
        if (!ck_begin(c, "%zu bytes", bytes[i]))
            continue;
        uint8_t host[4097], back[4097];
        memset(host, 0x5a, sizeof(host));
        struct dev *d = c->dev[SIDE_CPU];
        void *p = NULL;
        ck_ok(c, dev_alloc(d, &p, bytes[i]));
        if ((uintptr_t)p % 64)
            ck_fail(c, "memory is not 64-byte aligned");
        ck_ok(c, dev_upload(d, p, host, bytes[i]));
        ck_ok(c, dev_download(d, back, p, bytes[i]));
        if (memcmp(host, back, bytes[i]))
            ck_fail(c, "bytes changed on the way");
        ck_ok(c, dev_zero(d, p, bytes[i]));
        ck_ok(c, dev_download(d, back, p, bytes[i]));
        for (size_t k = 0; k < bytes[i]; k++)
            if (back[k])
                ck_fail(c, "byte %zu is not zero", k);
        dev_free(d, p);
        ck_end(c);
    }
}

static void test_scale(struct ck *c)
{
    static const float factors[] = {0.22f, -12, 0.125f, 0};
    if (c->bench) {
        one_scale(c, 256, 2048, 0, DT_BF16, 0.22f, PAT_RANDOM);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int t = 0; t < 2; t++)
                one_scale(c, sizes[i][0], sizes[i][1], p % 2 * 3, t ? DT_BF16 : DT_F32,
                          factors[(i + (size_t)p) % ARRAY_LEN(factors)],
                          (enum ck_pattern)p);
}

const struct ck_test ck_gemm_tests[] = {
    {"memory", test_memory},     {"copy", test_copy}, {"gemm", test_gemm},
    {"gemm_add", test_gemm_add}, {"bias", test_bias}, {"add", test_add},
    {"scale", test_scale},       {NULL, NULL}};

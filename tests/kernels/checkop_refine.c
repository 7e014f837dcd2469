/* SPDX-License-Identifier: MIT
 *
 * checkop: the operations of end-to-end refinement. Weights and scales are compared bit for
 * bit. */
#include "tests/kernels/checkop.h"

#include "kernels/base/half.h"
#include "kernels/dev_refine.h"

#include <math.h>

/* rows x cols in groups of G (0: a row). */
struct group_case {
    int64_t rows, cols, G;
};

static const struct group_case group_cases[] = {{1, 1, 0},     {1, 7, 4},  {5, 64, 16},
                                                {3, 200, 128}, {9, 33, 0}, {2, 257, 32},
                                                {2, 101, 33}};

/* Bytes below `limit` in a tensor made for 16-bit or 8-bit values. */
static struct tensor bytes_in(struct ck *c, int64_t rows, int64_t cols, int limit)
{
    const struct tensor x = ck_in_empty(c, ck_2d(DT_U8, rows, cols, 3));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < cols; i++)
            ((uint8_t *)x.data)[r * x.ld + i] =
                (uint8_t)rng_below(&c->rng, (uint64_t)limit);
    return x;
}

static struct tensor scales_in(struct ck *c, int64_t rows, int64_t groups, int64_t pad)
{
    const struct tensor x = ck_in_empty(c, ck_2d(DT_F16, rows, groups, pad));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < groups; g++)
            ((uint16_t *)x.data)[r * x.ld + g] =
                (uint16_t)(1 + rng_below(&c->rng, 0x7bff)); /* any positive value */
    return x;
}

static void one_dequantize(struct ck *c, const struct group_case *k, int bits, bool packed,
                           enum dtype w)
{
    const int64_t n = weight_groups(k->cols, k->G);
    if (!ck_begin(c, "%ldx%ld, groups of %ld, %d bits%s, %s", (long)k->rows, (long)k->cols,
                  (long)k->G, bits, packed ? " packed" : "", dtype_name(w)))
        return;
    const struct tensor codes = packed ? bytes_in(c, k->rows, (k->cols + 1) / 2, 256)
                                       : bytes_in(c, k->rows, k->cols, 1 << bits);
    const struct tensor zeros = bytes_in(c, k->rows, n, 1 << bits);
    const struct tensor scales = scales_in(c, k->rows, n, 1);
    const struct ck_out out = ck_poisoned(c, ck_2d(w, k->rows, k->cols, 5));
    CK_EACH(c, s)
    ck_ok(c, dev_dequantize(c->dev[s], &out.side[s], &codes, &scales, &zeros, k->G));
    ck_bits(c, "w", &out);
    ck_end(c);
}

static void test_dequantize(struct ck *c)
{
    static const struct group_case large = {2048, 2048, 128};
    if (c->bench) {
        one_dequantize(c, &large, 4, true, DT_BF16);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(group_cases); i++)
        for (int t = 0; t < 2; t++) {
            one_dequantize(c, &group_cases[i], 4, true, t ? DT_BF16 : DT_F32);
            one_dequantize(c, &group_cases[i], 4, false, t ? DT_BF16 : DT_F32);
            one_dequantize(c, &group_cases[i], 8, false, t ? DT_BF16 : DT_F32);
        }
}

static void one_scale_steps(struct ck *c, int64_t rows, int64_t groups, int significant,
                            double reach)
{
    if (!ck_begin(c, "%ldx%ld, %d bits, steps up to %g", (long)rows, (long)groups,
                  significant, reach))
        return;
    const struct tensor base = scales_in(c, rows, groups, 0);
    const struct tensor u = ck_in_range(c, ck_2d(DT_F32, rows, groups, 0), -reach, reach);
    const struct ck_out out = ck_poisoned(c, ck_2d(DT_F16, rows, groups, 0));
    CK_EACH(c, s)
    ck_ok(c, dev_scale_steps(c->dev[s], &out.side[s], &base, &u, significant));
    ck_bits(c, "scales", &out);
    for (int64_t i = 0; i < rows * groups && significant < 11; i++) {
        const uint16_t h = ((const uint16_t *)out.side[SIDE_REF].data)[i];
        if (h >= 0x400 && h & ((1 << (11 - significant)) - 1))
            ck_fail(c, "scale %04x has more than %d bits", h, significant);
        if (!h || h >= 0x7c00)
            ck_fail(c, "scale %04x is not a positive number", h);
    }
    ck_end(c);
}

static void test_scale_steps(struct ck *c)
{
    static const double reach[] = {0, 1e-3, 0.1, 20};
    static const int bits[] = {11, 7, 1};
    for (size_t i = 0; i < ARRAY_LEN(reach); i++)
        for (size_t b = 0; b < ARRAY_LEN(bits); b++)
            one_scale_steps(c, 7, c->bench ? 65536 : 37, bits[b], reach[i]);
}

/* Code c of row r. */
static int code_of(const struct tensor *codes, int64_t cols, int64_t r, int64_t c)
{
    const uint8_t *row = (const uint8_t *)codes->data + r * codes->ld;
    return codes->dim[1] == cols ? row[c] : row[c / 2] >> c % 2 * 4 & 15;
}

/* An offset from -1/2 to 1/2: its ends, zeros and subnormal values are frequent. */
static uint16_t an_offset(struct ck *c)
{
    const uint64_t which = rng_below(&c->rng, 8);
    const uint16_t sign = which % 2 ? 0x8000 : 0;
    if (which < 2)
        return sign | 0x3800; /* 1/2 */
    if (which < 4)
        return sign | (uint16_t)rng_below(&c->rng, 4);
    return sign | (uint16_t)rng_below(&c->rng, 0x3801);
}

/* Fills both sides with the same codes and offsets. The ends of the grid are among the codes. */
static void fill_places(struct ck *c, const struct ck_out *codes,
                        const struct ck_out *offsets, int bits)
{
    const struct tensor *k = &codes->side[0], *o = &offsets->side[0];
    const bool packed = k->dim[1] != o->dim[1];
    for (int64_t r = 0; r < o->dim[0]; r++) {
        for (int64_t i = 0; i < k->dim[1]; i++) {
            const uint8_t x =
                (uint8_t)rng_below(&c->rng, packed ? 256 : (uint64_t)1 << bits);
            for (int s = 0; s < N_SIDES; s++)
                ((uint8_t *)codes->side[s].data)[r * codes->side[s].ld + i] = x;
        }
        for (int64_t i = 0; i < o->dim[1]; i++) {
            const uint16_t x = an_offset(c);
            for (int s = 0; s < N_SIDES; s++)
                ((uint16_t *)offsets->side[s].data)[r * offsets->side[s].ld + i] = x;
        }
    }
}

/* Code plus offset moved as the gradient says, within the grid and fp16's rounding. */
static void check_places(struct ck *c, const struct tensor *codes,
                         const struct tensor *offsets, const struct tensor *grad,
                         const double *before, float step, int bits)
{
    const int64_t C = grad->dim[1];
    const double top = (1 << bits) - 0.5;
    for (int64_t i = 0; i < grad->dim[0] * C; i++) {
        const int64_t r = i / C, k = i % C;
        const double g = ck_get(grad, r, k);
        const double o =
            (double)f16_to_f32(((const uint16_t *)offsets->data)[r * offsets->ld + k]);
        const double want = fmin(top, fmax(-0.5, before[i] - (g > 0   ? (double)step
                                                              : g < 0 ? -(double)step
                                                                      : 0)));
        const double have = code_of(codes, C, r, k) + o;
        if (!(fabs(have - want) <= 0x1p-11) || !(fabs(o) <= 0.5))
            ck_fail(c, "[%ld][%ld]: place %g, want %g", (long)r, (long)k, have, want);
    }
}

/* NaN moves nothing, and the smallest gradient as far as any. */
static double a_gradient(struct ck *c)
{
    static const double of[] = {0, -0.0, 1, -1, 0x1p-149, -0x1p-149, 1e30, -1e30};
    const uint64_t which = rng_below(&c->rng, ARRAY_LEN(of) + 1);
    return which < ARRAY_LEN(of) ? of[which] : NAN;
}

static void one_code_step(struct ck *c, int64_t rows, int64_t cols, int bits, bool packed,
                          float step)
{
    if (!ck_begin(c, "%ldx%ld, %d bits%s, step %g", (long)rows, (long)cols, bits,
                  packed ? " packed" : "", (double)step))
        return;
    const struct tensor grad = ck_in_empty(c, ck_2d(DT_F32, rows, cols, 3));
    const struct ck_out codes =
        ck_poisoned(c, ck_2d(DT_U8, rows, packed ? (cols + 1) / 2 : cols, 1));
    const struct ck_out offsets = ck_poisoned(c, ck_2d(DT_F16, rows, cols, 2));
    double *before = ck_doubles(c, rows * cols);
    fill_places(c, &codes, &offsets, bits);
    for (int64_t i = 0; i < rows * cols; i++) {
        const int64_t r = i / cols, k = i % cols;
        const struct tensor *o = &offsets.side[0];
        ck_set(&grad, r, k, a_gradient(c));
        before[i] = code_of(&codes.side[0], cols, r, k) +
                    (double)f16_to_f32(((const uint16_t *)o->data)[r * o->ld + k]);
    }
    CK_EACH(c, s)
    ck_ok(c, dev_code_step(c->dev[s], &codes.side[s], &offsets.side[s], &grad, bits, step));
    ck_bits(c, "codes", &codes);
    ck_bits(c, "offsets", &offsets);
    if (!c->bench)
        check_places(c, &codes.side[SIDE_REF], &offsets.side[SIDE_REF], &grad, before, step,
                     bits);
    ck_end(c);
}

static void test_code_step(struct ck *c)
{
    static const float steps[] = {1e-3f, 0.25f, 0.9f};
    if (c->bench) {
        one_code_step(c, 2048, 2048, 4, true, 0.01f);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(group_cases); i++)
        for (size_t k = 0; k < ARRAY_LEN(steps); k++) {
            const int64_t rows = group_cases[i].rows, cols = group_cases[i].cols;
            one_code_step(c, rows, cols, 4, true, steps[k]);
            one_code_step(c, rows, cols, 4, false, steps[k]);
            one_code_step(c, rows, cols, 8, false, steps[k]);
            one_code_step(c, rows, cols, 3, false, steps[k]);
        }
}

static void one_group_dot(struct ck *c, const struct group_case *k, enum dtype b_type,
                          enum ck_pattern p)
{
    const int64_t n = weight_groups(k->cols, k->G), G = k->G ? k->G : k->cols;
    if (!ck_begin(c, "%ldx%ld, groups of %ld, %s, %s", (long)k->rows, (long)k->cols,
                  (long)k->G, dtype_name(b_type), ck_pattern_name[p]))
        return;
    const struct tensor a = ck_in(c, ck_2d(DT_F32, k->rows, k->cols, 3), p);
    const struct tensor b = ck_in(c, ck_2d(b_type, k->rows, k->cols, 1), p);
    const struct ck_out out = ck_twins(c, ck_2d(DT_F32, k->rows, n, 2), PAT_RANDOM);
    double *mag = ck_doubles(c, k->rows * n);
    for (int64_t i = 0; i < k->rows * n; i++)
        mag[i] = fabs(ck_get(&out.side[0], i / n, i % n));
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t i = 0; i < k->cols; i++)
            mag[r * n + i / G] += fabs(ck_get(&a, r, i) * ck_get(&b, r, i));
    CK_EACH(c, s) ck_ok(c, dev_group_dot(c->dev[s], &out.side[s], &a, &b, k->G));
    ck_close(c, "out", &out, mag, G);
    ck_end(c);
}

static void test_group_dot(struct ck *c)
{
    static const struct group_case large = {2048, 2048, 128};
    if (c->bench) {
        one_group_dot(c, &large, DT_BF16, PAT_RANDOM);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(group_cases); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int t = 0; t < 2; t++)
                one_group_dot(c, &group_cases[i], t ? DT_BF16 : DT_F32, (enum ck_pattern)p);
}

static void one_gain(struct ck *c, int64_t T, int64_t H, int64_t C, enum dtype t,
                     enum ck_pattern p)
{
    if (!ck_begin(c, "%ldx%ldx%ld %s, %s", (long)T, (long)H, (long)C, dtype_name(t),
                  ck_pattern_name[p]))
        return;
    const struct ck_shape shape = H ? ck_3d(t, T, H, C, 3) : ck_2d(t, T, C, 3);
    const int64_t rows = H ? T * H : T;
    const struct tensor dy = ck_in(c, shape, p), x = ck_in(c, shape, p);
    const struct tensor s = ck_in_range(c, ck_1d(rows), 0.1, 2);
    const struct ck_out dg = ck_twins(c, ck_1d(C), PAT_RANDOM);
    double *mag = ck_doubles(c, C);
    for (int64_t i = 0; i < C; i++)
        mag[i] = fabs(ck_get(&dg.side[0], 0, i));
    for (int64_t r = 0; r < T; r++)
        for (int64_t i = 0; i < (H ? H : 1) * C; i++)
            mag[i % C] += fabs(ck_get(&dy, r, i) * ck_get(&x, r, i) *
                               ck_get(&s, 0, H ? r * H + i / C : r));
    CK_EACH(c, k) ck_ok(c, dev_rmsnorm_gain_bwd(c->dev[k], &dg.side[k], &dy, &x, &s));
    ck_close(c, "dg", &dg, mag, rows);
    ck_end(c);
}

static void test_gain(struct ck *c)
{
    static const int64_t sizes[][3] = {{1, 0, 1}, {70, 0, 33}, {5, 0, 130}, {9, 3, 16}};
    if (c->bench) {
        one_gain(c, 2048, 0, 2048, DT_BF16, PAT_RANDOM);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int t = 0; t < 2; t++)
                one_gain(c, sizes[i][0], sizes[i][1], sizes[i][2], t ? DT_BF16 : DT_F32,
                         (enum ck_pattern)p);
}

/* Largest magnitude of a row's logits, which the rounding of exponents is proportional
 * to. */
static double reach_of(const struct tensor *x, int64_t r)
{
    double most = 0;
    for (int64_t i = 0; i < x->dim[1]; i++)
        most = fmax(most, fabs(ck_get(x, r, i)));
    return most;
}

static void one_distill(struct ck *c, int64_t rows, int64_t vocab, float kl, float ce,
                        double spread)
{
    if (!ck_begin(c, "%ldx%ld, kl %g, ce %g, logits up to %g", (long)rows, (long)vocab,
                  (double)kl, (double)ce, spread))
        return;
    const struct tensor first =
        ck_in_range(c, ck_2d(DT_F32, rows, vocab, 0), -spread, spread);
    const struct tensor other =
        ck_in_range(c, ck_2d(DT_F32, rows, vocab, 0), -spread, spread);
    const struct ck_out student = ck_copies(c, &first, 2),
                        teacher = ck_copies(c, &other, 1);
    struct tensor target = ck_in_empty(c, ck_1d(rows));
    target.dtype = DT_I32;
    double loss[N_SIDES][2], mag = 0, *grad = ck_doubles(c, rows * vocab);
    for (int64_t r = 0; r < rows; r++) {
        const double reach = 1 + reach_of(&first, r) + reach_of(&other, r);
        ((int32_t *)target.data)[r] =
            (int32_t)(r ? (int64_t)rng_below(&c->rng, (uint64_t)vocab) : vocab - 1);
        mag += 4 * (reach + log((double)vocab));
        for (int64_t i = 0; i < vocab; i++) /* probabilities are at most 1 */
            grad[r * vocab + i] = ((double)kl + (double)ce) * reach;
    }
    CK_EACH(c, s)
    ck_ok(c, dev_distill(c->dev[s], loss[s], &student.side[s], &teacher.side[s], &target,
                         kl, ce));
    for (int i = 0; i < 2 && !c->bench; i++) {
        const double both[N_SIDES] = {loss[SIDE_REF][i], loss[SIDE_CPU][i]};
        ck_close_scalar(c, i ? "cross entropy" : "divergence", both, mag, vocab);
    }
    if (!c->bench)
        ck_close(c, "gradient", &student, grad, 4);
    ck_end(c);
}

static void test_distill(struct ck *c)
{
    static const int64_t sizes[][2] = {{1, 1}, {1, 33}, {5, 16}, {4, 1031}};
    static const double spread[] = {0.1, 8, 60};
    if (c->bench) {
        one_distill(c, 64, 32000, 1, 0, 8);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (size_t k = 0; k < ARRAY_LEN(spread); k++) {
            one_distill(c, sizes[i][0], sizes[i][1], 1, 0, spread[k]);
            one_distill(c, sizes[i][0], sizes[i][1], 0.25f, 0.75f, spread[k]);
        }
}

const struct ck_test ck_refine_tests[] = {{"dequantize", test_dequantize},
                                          {"scale_steps", test_scale_steps},
                                          {"code_step", test_code_step},
                                          {"group_dot", test_group_dot},
                                          {"rmsnorm_gain_bwd", test_gain},
                                          {"distill", test_distill},
                                          {NULL, NULL}};

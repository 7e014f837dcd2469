/* SPDX-License-Identifier: MIT
 *
 * checkop: losses, optimizer, finiteness, cross entropy. */
#include "tests/kernels/checkop.h"

#include <math.h>
#include <string.h>

struct loss_case {
    int64_t rows, cols;
    enum loss_kind kind;
    enum dtype y, t, dy; /* dy DT_OTHER: the loss only */
    bool accumulate;
    enum ck_pattern pattern;
};

static void one_loss(struct ck *c, const struct loss_case *k)
{
    if (!ck_begin(c, "%s %ldx%ld, y %s, t %s, dy %s%s, %s",
                  k->kind == LOSS_MAE ? "mae" : "mse", (long)k->rows, (long)k->cols,
                  dtype_name(k->y), dtype_name(k->t), dtype_name(k->dy),
                  k->accumulate ? " +=" : "", ck_pattern_name[k->pattern]))
        return;
    const struct tensor y = ck_in(c, ck_2d(k->y, k->rows, k->cols, 3), k->pattern);
    const struct tensor t = ck_in(c, ck_2d(k->t, k->rows, k->cols, 1), k->pattern);
    if (k->y == k->t) /* equal elements: sign(0) = 0 */
        for (int64_t i = 0; i < k->rows * k->cols; i += 3)
            ck_set(&y, i / k->cols, i % k->cols, ck_get(&t, i / k->cols, i % k->cols));
    const bool grad = k->dy != DT_OTHER;
    const struct ck_shape shape = ck_2d(grad ? k->dy : DT_F32, k->rows, k->cols, 2);
    const struct ck_out dy =
        k->accumulate ? ck_twins(c, shape, PAT_RANDOM) : ck_poisoned(c, shape);
    const double n = (double)(k->rows * k->cols);
    double *mag = ck_doubles(c, k->rows * k->cols);
    double loss[N_SIDES], sum = 0;
    for (int64_t i = 0; i < k->rows * k->cols; i++) {
        const double a = ck_get(&y, i / k->cols, i % k->cols);
        const double b = ck_get(&t, i / k->cols, i % k->cols);
        const double e = k->kind == LOSS_MAE ? 1 : 2 * (fabs(a) + fabs(b));
        mag[i] = 0.75 / n * e +
                 (k->accumulate ? fabs(ck_get(&dy.side[0], i / k->cols, i % k->cols)) : 0);
        sum += k->kind == LOSS_MAE ? fabs(a - b) : (a - b) * (a - b);
    }
    const struct loss_inputs in = {
        .y = &y, .t = &t, .kind = k->kind, .weight = 0.75f, .accumulate = k->accumulate};
    CK_EACH(c, s) ck_ok(c, dev_loss(c->dev[s], &loss[s], grad ? &dy.side[s] : NULL, &in));
    ck_close_scalar(c, "loss", loss, 0.75 * sum / n, 1);
    if (grad)
        ck_close(c, "dy", &dy, mag, 1);
    ck_end(c);
}

/* A difference that is not finite gives a gradient that is not finite, and the loss likewise. */
static void one_lost_loss(struct ck *c, enum loss_kind kind, double lost, int64_t at)
{
    if (!ck_begin(c, "%s with %g at %ld", kind == LOSS_MAE ? "mae" : "mse", lost, (long)at))
        return;
    const struct tensor y = ck_in(c, ck_2d(DT_F32, 3, 37, 0), PAT_RANDOM);
    const struct tensor t = ck_in(c, ck_2d(DT_F32, 3, 37, 0), PAT_RANDOM);
    const struct ck_out dy = ck_poisoned(c, ck_2d(DT_F32, 3, 37, 0));
    const struct loss_inputs in = {.y = &y, .t = &t, .kind = kind, .weight = 1};
    ck_set(&y, 1, at, lost);
    CK_EACH(c, s)
    {
        double loss = 0;
        ck_ok(c, dev_loss(c->dev[s], &loss, &dy.side[s], &in));
        if (isfinite(loss))
            ck_fail(c, "the loss is %g", loss);
        for (int64_t i = 0; i < 3 * 37; i++) {
            const double g = ck_get(&dy.side[s], i / 37, i % 37);
            if (isfinite(g) == (i == 37 + at))
                ck_fail(c, "side %d: the gradient of element %ld is %g", s, (long)i, g);
        }
    }
    ck_end(c);
}

static void test_lost_loss(struct ck *c)
{
    static const double lost[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < ARRAY_LEN(lost); i++)
        for (int64_t at = 0; at < 37;
             at += 12) { /* in a vector, and in the rest of a row */
            one_lost_loss(c, LOSS_MAE, lost[i], at);
            one_lost_loss(c, LOSS_MSE, lost[i], at);
        }
}

static void test_loss(struct ck *c)
{
    static const int64_t sizes[][2] = {{1, 1}, {1, 37}, {5, 16}, {7, 129}};
    static const enum dtype grads[] = {DT_F32, DT_BF16, DT_OTHER};
    if (c->bench) {
        one_loss(c, &(struct loss_case){256, 2048, LOSS_MAE, DT_F32, DT_F32, DT_F32, false,
                                        PAT_RANDOM});
        return;
    }
    test_lost_loss(c);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int v = 0; v < 8; v++)
                for (size_t g = 0; g < ARRAY_LEN(grads); g++) {
                    struct loss_case k = {sizes[i][0],
                                          sizes[i][1],
                                          v & 1 ? LOSS_MAE : LOSS_MSE,
                                          v & 2 ? DT_BF16 : DT_F32,
                                          v & 4 ? DT_BF16 : DT_F32,
                                          grads[g],
                                          false,
                                          (enum ck_pattern)p};
                    one_loss(c, &k);
                    k.accumulate = k.dy == DT_F32;
                    if (k.accumulate)
                        one_loss(c, &k);
                }
}

static void adamw_magnitude(const struct adamw *o, const struct tensor *g,
                            const struct ck_out *state, double *const *mag)
{
    const double b1 = (double)o->beta1, b2 = (double)o->beta2;
    for (int64_t i = 0; i < tensor_count(g); i++) {
        const double grad = ck_get(g, 0, i), p = fabs(ck_get(&state[0].side[0], 0, i));
        mag[1][i] = b1 * fabs(ck_get(&state[1].side[0], 0, i)) + (1 - b1) * fabs(grad);
        mag[2][i] = b2 * ck_get(&state[2].side[0], 0, i) + (1 - b2) * grad * grad;
        const double vhat = mag[2][i] / (1 - pow(b2, (double)o->step));
        const double step =
            mag[1][i] / (1 - pow(b1, (double)o->step)) / (sqrt(vhat) + (double)o->eps);
        mag[0][i] = p + (double)o->lr * (step + (double)o->weight_decay * p);
    }
}

static void one_adamw(struct ck *c, int64_t n, const struct adamw *o, enum ck_pattern p)
{
    if (!ck_begin(c, "%ld values, step %ld, decay %g, %s", (long)n, (long)o->step,
                  (double)o->weight_decay, ck_pattern_name[p]))
        return;
    const struct tensor g = ck_in(c, ck_1d(n), p);
    const struct ck_out state[] = {ck_twins(c, ck_1d(n), PAT_RANDOM),
                                   ck_twins(c, ck_1d(n), o->step == 1 ? PAT_ZERO : p),
                                   ck_twins(c, ck_1d(n), o->step == 1 ? PAT_ZERO : p)};
    for (int64_t i = 0; i < n; i++)
        for (int s = 0; s < N_SIDES; s++) /* a mean of squares is not negative */
            ck_set(&state[2].side[s], 0, i, fabs(ck_get(&state[2].side[s], 0, i)));
    double *const mag[] = {ck_doubles(c, n), ck_doubles(c, n), ck_doubles(c, n)};
    adamw_magnitude(o, &g, state, mag);
    CK_EACH(c, s)
    ck_ok(c, dev_adamw(c->dev[s], &state[0].side[s], &g, &state[1].side[s],
                       &state[2].side[s], o));
    ck_close(c, "p", &state[0], mag[0], 1);
    ck_close(c, "m", &state[1], mag[1], 1);
    ck_close(c, "v", &state[2], mag[2], 1);
    ck_end(c);
}

static void test_adamw(struct ck *c)
{
    static const int64_t n[] = {1, 16, 37, 1000};
    static const struct adamw settings[] = {{1e-2f, 0.9f, 0.999f, 1e-8f, 0, 1},
                                            {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 7},
                                            {5e-3f, 0.9f, 0.999f, 1e-8f, 0, 2560}};
    if (c->bench) {
        one_adamw(c, 1 << 20, &settings[0], PAT_RANDOM);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(n); i++)
        for (size_t k = 0; k < ARRAY_LEN(settings); k++)
            for (int p = 0; p < N_PATTERNS; p++)
                one_adamw(c, n[i], &settings[k], (enum ck_pattern)p);
}

/* A value at one place, or in the gap between rows, where it must be ignored. */
static void one_finite(struct ck *c, struct ck_shape shape, int64_t at, float value)
{
    if (!ck_begin(c, "%d dims %s, %g at %ld", shape.n_dims, dtype_name(shape.dtype),
                  (double)value, (long)at))
        return;
    const struct tensor x = ck_in(c, shape, PAT_RANDOM);
    const int64_t cols = ck_cols(&x);
    if (at >= 0)
        ck_set(&x, at / cols, at % cols, (double)value);
    else if (shape.pad)
        ck_set(&x, 0, cols, (double)value);
    bool finite[N_SIDES] = {false, false};
    CK_EACH(c, s) ck_ok(c, dev_all_finite(c->dev[s], &finite[s], &x));
    for (int s = 0; s < N_SIDES; s++)
        if (finite[s] != (at < 0 || isfinite(value)))
            ck_fail(c, "%s says %s", dev_name(c->dev[s]),
                    finite[s] ? "finite" : "not finite");
    if (at < 0 && shape.pad) /* ck_end() checks it */
        memset((char *)x.data + (size_t)cols * dtype_bytes(x.dtype), CK_POISON,
               dtype_bytes(x.dtype));
    ck_seal(c);
    ck_end(c);
}

static void test_all_finite(struct ck *c)
{
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38f};
    if (c->bench) {
        one_finite(c, ck_2d(DT_F32, 256, 2048, 0), -1, 0);
        return;
    }
    for (int t = 0; t < 2; t++)
        for (int dims = 1; dims <= 3; dims++)
            for (size_t v = 0; v < ARRAY_LEN(values); v++)
                for (int64_t at = -1; at < 3 * 37; at += 5) {
                    const enum dtype type = t ? DT_BF16 : DT_F32;
                    struct ck_shape s = dims == 3   ? ck_3d(type, 3, 1, 37, 2)
                                        : dims == 2 ? ck_2d(type, 3, 37, 3)
                                                    : ck_1d(3 * 37);
                    s.dtype = type;
                    one_finite(c, s, at, values[v]);
                }
}

static void one_entropy(struct ck *c, int64_t rows, int64_t vocab, enum dtype t,
                        enum ck_pattern p)
{
    if (!ck_begin(c, "%ldx%ld %s, %s", (long)rows, (long)vocab, dtype_name(t),
                  ck_pattern_name[p]))
        return;
    const struct tensor x = ck_in(c, ck_2d(t, rows, vocab, 3), p);
    struct tensor target = ck_in_empty(c, ck_1d(rows));
    target.dtype = DT_I32;
    double *mag = ck_doubles(c, rows);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t pick = r ? (int64_t)rng_below(&c->rng, (uint64_t)vocab) : vocab - 1;
        ((int32_t *)target.data)[r] = (int32_t)pick;
        double max = -INFINITY;
        for (int64_t k = 0; k < vocab; k++)
            max = fmax(max, ck_get(&x, r, k));
        mag[r] = fabs(max) + fabs(ck_get(&x, r, pick)) + log((double)vocab) + 1;
    }
    const struct ck_out nll = ck_poisoned(c, ck_1d(rows));
    CK_EACH(c, s) ck_ok(c, dev_cross_entropy(c->dev[s], &nll.side[s], &x, &target));
    ck_close(c, "nll", &nll, mag, vocab);
    ck_end(c);
}

static void test_cross_entropy(struct ck *c)
{
    static const int64_t sizes[][2] = {{1, 1}, {1, 33}, {5, 16}, {5, 1031}};
    if (c->bench) {
        one_entropy(c, 64, 32000, DT_F32, PAT_RANDOM);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int t = 0; t < 2; t++)
                one_entropy(c, sizes[i][0], sizes[i][1], t ? DT_BF16 : DT_F32,
                            (enum ck_pattern)p);
}

const struct ck_test ck_train_tests[] = {{"loss", test_loss},
                                         {"adamw", test_adamw},
                                         {"all_finite", test_all_finite},
                                         {"cross_entropy", test_cross_entropy},
                                         {NULL, NULL}};

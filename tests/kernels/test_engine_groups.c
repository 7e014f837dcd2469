/* SPDX-License-Identifier: MIT
 *
 * Gradients of quanto's and vLLM's groups against differences of a surrogate in f64, in which the
 * rounding errors of all codes are held fixed. Their values are those of the engines' libraries
 * (test_engine_golden.c). */
#include "kernels/base/rng.h"
#include "kernels/dev_engine.h"
#include "kernels/tensor/hadamard.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { D_MAX = 128 };

/* A vector's codes in groups of n, held, and the zeros that they have. */
struct held_codes {
    int64_t d, n;
    bool zeros; /* vLLM: a rotation, and a code for 0 in place of a minimum */
    double code[D_MAX], off[D_MAX], zero[D_MAX];
    int lo[D_MAX], hi[D_MAX];
};

/* Row i of vLLM's R without its factor: signs, then Hadamard over the first power of two in d. */
static void rotate_rht(double *y, const double *x, int64_t d)
{
    /* Channels 0 to 63 that torch's generator gives a minus. */
    static const uint32_t minus[] = {0x9a8ca6f2, 0x7f7fca4e};
    const int64_t n = d & -d;
    for (int64_t i = 0; i < d; i++) {
        y[i] = 0;
        for (int64_t j = i / n * n; j < i / n * n + n; j++) {
            const bool flip = minus[j % n / 32] >> j % 32 & 1;
            y[i] += (flip ? -1 : 1) * (double)hadamard_sign(i % n, j % n) * x[j];
        }
    }
}

static double step_of(const struct held_codes *h, const double *y, int64_t i)
{
    return (y[h->hi[i]] - y[h->lo[i]]) / 15;
}

static void hold_codes(struct held_codes *h, const double *y)
{
    for (int64_t i = 0; i < h->d; i++) {
        const int64_t first = i / h->n * h->n;
        h->lo[i] = h->hi[i] = (int)first;
        for (int64_t k = first; k < first + h->n; k++) {
            h->lo[i] = y[k] < y[h->lo[i]] ? (int)k : h->lo[i];
            h->hi[i] = y[k] > y[h->hi[i]] ? (int)k : h->hi[i];
        }
        const double d = step_of(h, y, i), min = y[h->lo[i]];
        const double zero = h->zeros ? fmin(fmax(round(-min / d), 0), 15) : -min / d;
        const double u = y[i] / d + zero;
        h->zero[i] = zero;
        h->code[i] = fmin(fmax(round(u), 0), 15);
        h->off[i] = fabs(h->code[i] - u) <= 0.5 ? h->code[i] - u : NAN; /* NaN: limited */
    }
}

/* sum g x^ where x moves and rounding errors stay; the zero of vLLM's group stays, too. */
static double held_sum(const double *x, const double *g, const struct held_codes *h)
{
    double y[D_MAX], e[D_MAX], sum = 0;
    memcpy(y, x, (size_t)h->d * sizeof(*y));
    memcpy(e, g, (size_t)h->d * sizeof(*e));
    if (h->zeros) {
        rotate_rht(y, x, h->d);
        rotate_rht(e, g, h->d);
    }
    for (int64_t i = 0; i < h->d; i++) {
        const double d = step_of(h, y, i);
        const double v =
            isnan(h->off[i]) ? (h->code[i] - h->zero[i]) * d : y[i] + h->off[i] * d;
        sum += e[i] * v / (h->zeros ? (double)(h->d & -h->d) : 1);
    }
    return sum;
}

/* offset moves all values beyond 0, so that vLLM's zero does not reach the range. */
static void check_group_grads(enum kv_target target, int64_t d, double offset)
{
    struct held_codes h = {.d = d, .n = 64, .zeros = target == TARGET_VLLM_INT4};
    float x[D_MAX], g[D_MAX], dx[D_MAX];
    double xs[D_MAX], gs[D_MAX], y[D_MAX];
    struct rng r;
    struct dev *dev = NULL;
    const struct dev_settings settings = {.name = "cpu", .threads = 2};
    assert_int_equal(dev_open(&dev, &settings), OK);
    rng_seed(&r, 11);
    for (int64_t i = 0; i < d; i++) {
        x[i] = (float)(rng_uniform(&r) - 0.5);
        g[i] = (float)rng_uniform(&r);
        xs[i] = (double)x[i];
        gs[i] = (double)g[i];
    }
    if (h.zeros) { /* a large first channel gives a large mean behind the rotation */
        h.n = d;
        xs[0] = (double)(x[0] = (float)offset);
        rotate_rht(y, xs, d);
    } else {
        memcpy(y, xs, sizeof(y));
    }
    hold_codes(&h, y);
    const struct tensor in = tensor_3d(x, DT_F32, 1, 1, d),
                        up = tensor_3d(g, DT_F32, 1, 1, d),
                        down = tensor_3d(dx, DT_F32, 1, 1, d);
    const struct engine_quant p = {.x = &in, .target = target, .side = KV_V};
    const struct kv_grads grads = {.dx = &down};
    assert_int_equal(dev_fake_quant_engine_bwd(dev, &grads, &up, &p), OK);
    for (int64_t i = 0; i < d; i++) {
        const double own = xs[i], step = 1e-5;
        xs[i] = own + step;
        const double above = held_sum(xs, gs, &h);
        xs[i] = own - step;
        const double want = (above - held_sum(xs, gs, &h)) / (2 * step);
        xs[i] = own;
        /* f32 sums of up to 128 terms of size 1 lose less than 1e-5. */
        assert_true(fabs((double)dx[i] - want) <= 2e-4 * (1 + fabs(want)));
    }
    dev_close(&dev);
}

static void test_group_grads(void **state)
{
    (void)state;
    check_group_grads(TARGET_QUANTO4, 64, 0);
    check_group_grads(TARGET_QUANTO4, 128, 0);
    check_group_grads(TARGET_VLLM_INT4, 64, 0);
    check_group_grads(TARGET_VLLM_INT4, 96, 0.3);
    check_group_grads(TARGET_VLLM_INT4, 64, 9);
    check_group_grads(TARGET_VLLM_INT4, 64, -9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_grads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

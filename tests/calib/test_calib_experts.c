/* SPDX-License-Identifier: MIT
 *
 * Calibration of a mixture of experts: those that no token reaches. */
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Returns true if the scales and zeros of expert e are the same in both blocks. */
static bool same_expert(const struct block_quant *x, const struct block_quant *y,
                        int64_t experts, int64_t e)
{
    bool same = true;
    for (int l = LIN_GATE; l <= LIN_DOWN; l++) {
        const struct qlinear *p = &x->lin[l], *q = &y->lin[l];
        const int64_t n = p->out / experts * p->groups;
        same = same && !memcmp(p->scales + e * n, q->scales + e * n, (size_t)n * 2);
        same = same && !memcmp(p->zeros + e * n, q->zeros + e * n, (size_t)n);
    }
    return same;
}

/* Routers of experts 2 and 3 are those of 0 and 1, so that each is as probable as the other; the
 * lower number has precedence. Experts that no token reaches are named, and those alone are as
 * rounding to nearest leaves them. */
static void test_unreached_experts(void **state)
{
    struct fixture f;
    struct memory_io m, nearest;
    struct calib_settings s = tiny_settings();
    struct arch a = tiny_arch(4, 2);
    a.n_experts = 4;
    a.n_active = 1;
    fixture_open(&f, a, 7);
    for (int64_t i = 0; i < a.n_layers; i++) {
        float *row = (float *)(uintptr_t)f.blocks[i].router.data;
        memcpy(row + 2 * a.d_model, row, 2 * (size_t)a.d_model * sizeof(*row));
    }
    s.epochs = 6;
    calibrate("ref", &m, &f, &s);
    s.weights.method = WEIGHT_RTN;
    calibrate("ref", &nearest, &f, &s);
    for (int64_t i = 0; i < a.n_layers; i++)
        for (int64_t e = 0; e < a.n_experts; e++) {
            assert_int_equal(m.stats[i].unreached[e], e >= 2);
            assert_false(nearest.stats[i].unreached[e]);
            assert_int_equal(same_expert(&m.block[i], &nearest.block[i], a.n_experts, e),
                             e >= 2);
        }
    memory_io_close(&m);
    memory_io_close(&nearest);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_unreached_experts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

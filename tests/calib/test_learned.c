/* SPDX-License-Identifier: MIT
 *
 * Extensions of the paper: GPTQ, learned rounding, whole runs from searched starts. */
#include "kernels/base/rng.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* GPTQ minimizes the error of each projection's output on these samples. The local error of
 * the first block therefore falls, with either order of columns. */
static void test_gptq_beats_nearest(void **state)
{
    struct fixture f;
    double loss[3];
    fixture_open(&f, tiny_arch(0, 2), 12);
    for (int i = 0; i < 3; i++) {
        struct memory_io m;
        struct calib_settings s = tiny_settings();
        s.crr_blocks = 0, s.crr_loss = LOSS_MSE, s.kv.bits = 16;
        s.weights.bits = 3;
        s.weights.method = i ? WEIGHT_GPTQ : WEIGHT_RTN;
        s.gptq = (struct gptq_settings){0.01, i == 2};
        calibrate("cpu", &m, &f, &s);
        loss[i] = m.stats[0].start_loss;
        memory_io_close(&m);
    }
    print_message("nearest %.3g, gptq %.3g, by act_order %.3g\n", loss[0], loss[1],
                  loss[2]);
    assert_true(loss[1] <= 0.8 * loss[0]);
    assert_true(loss[2] <= 0.8 * loss[0]);
    fixture_close(&f);
}

/* Offsets start at rounding to nearest or at GPTQ's codes, and the best epoch is kept. The
 * first block's loss starts at theirs and falls further than with clipping alone. */
static void test_learned_rounding_gains(void **state)
{
    struct fixture f;
    double lwc_start = 0;
    fixture_open(&f, tiny_arch(0, 2), 12);
    for (int method = WEIGHT_RTN; method <= WEIGHT_GPTQ; method++) {
        struct memory_io nearest, learned;
        struct calib_settings s = tiny_settings();
        s.crr_blocks = 0, s.epochs = 40, s.kv.bits = 16, s.weights.bits = 3;
        s.schedule = SCHEDULE_COSINE;
        s.weights.method = (enum weight_method)method;
        s.gptq.damp = 0.01;
        calibrate("cpu", &nearest, &f, &s);
        s.weights.round = ROUND_LEARNED;
        calibrate("cpu", &learned, &f, &s);
        const struct calib_block_stats *x = &nearest.stats[0], *y = &learned.stats[0];
        print_message("method %d: start %.4g and %.4g, nearest %.4g, learned %.4g\n",
                      method, x->start_loss, y->start_loss, x->best_loss, y->best_loss);
        if (method == WEIGHT_GPTQ) /* GPTQ's codes, but the clipping's scales */
            assert_true(y->start_loss <= 0.9 * lwc_start);
        else
            assert_true(fabs(y->start_loss - x->start_loss) <= 1e-4 * x->start_loss);
        lwc_start = y->start_loss;
        assert_true(y->best_loss <= 0.9 * x->best_loss);
        assert_non_null(learned.block[0].lin[LIN_Q].codes);
        memory_io_close(&nearest);
        memory_io_close(&learned);
    }
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gptq_beats_nearest),
        cmocka_unit_test(test_learned_rounding_gains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

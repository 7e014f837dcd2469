/* SPDX-License-Identifier: MIT
 *
 * Which epoch of a block is kept, by the samples that losses are measured on. */
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* Returns the epoch with the least reported loss; 0: the start. */
static int64_t least_epoch(const struct calib_block_stats *st)
{
    int64_t best = 0;
    double least = st->start_loss;
    for (int64_t e = 0; e < st->n_epochs; e++)
        if (st->epoch_loss[e] < least)
            least = st->epoch_loss[e], best = e + 1;
    return best;
}

/* Trains one block and measures n of its six samples. The rates are so high that losses
 * jump between epochs. */
static void jumping(struct memory_io *m, const struct fixture *f, int64_t n)
{
    struct calib_settings s = tiny_settings();
    s.samples = 6, s.epochs = 8, s.eval_samples = n;
    s.lr_clip = 0.1f, s.lr_shift = s.lr_smooth = 0.02f;
    calibrate("cpu", m, f, &s);
    const int64_t measured = n && n < s.samples ? n : s.samples;
    assert_int_equal(m->n_steps, s.samples * s.epochs);
    assert_int_equal(m->n_evals, measured * (1 + s.epochs));
    assert_int_equal(m->stats[0].best_epoch, least_epoch(&m->stats[0]));
}

/* The kept epoch is the best over the samples that are measured, and training itself does
 * not depend on them. */
static void test_the_best_of_the_measured_samples_is_kept(void **state)
{
    struct fixture f;
    struct memory_io all, none_fewer, m;
    int others = 0;
    fixture_open(&f, tiny_arch(0, 1), 17);
    jumping(&all, &f, 0);
    for (int64_t n = 6; n <= 7; n++) {
        jumping(&none_fewer, &f, n);
        assert_true(same_result(&none_fewer, &all));
        memory_io_close(&none_fewer);
    }
    for (int64_t n = 1; n < 6; n++) {
        jumping(&m, &f, n);
        assert_false(same_result(&m, &all));
        others += m.stats[0].best_epoch != all.stats[0].best_epoch;
        memory_io_close(&m);
    }
    assert_true(others > 0); /* else the choice would not show whose losses it compares */
    memory_io_close(&all);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_best_of_the_measured_samples_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

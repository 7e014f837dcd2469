/* SPDX-License-Identifier: MIT
 *
 * Means, standard errors and paired differences against values worked out by hand. */
#include "tools/eval/statistics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-14 * fabs(want)))
        fail_msg("%.17g, want %.17g", got, want);
}

static void mean_and_error(void **state)
{
    const double x[3] = {1, 2, 6};
    const struct estimate e = estimate_mean(x, 3);
    near(e.mean, 3);
    near(e.stderr_, sqrt(14.0 / 2 / 3));
}

static void few_figures(void **state)
{
    const double x[1] = {4};
    const struct estimate one = estimate_mean(x, 1), none = estimate_mean(x, 0);
    near(one.mean, 4);
    assert_true(isnan(one.stderr_));
    assert_true(isnan(none.mean) && isnan(none.stderr_));
}

/* What both series have in common adds no uncertainty to their difference. */
static void differences_are_paired(void **state)
{
    const double a[4] = {101, 203, 302, 404}, b[4] = {100, 200, 300, 400};
    const struct estimate d = estimate_difference(a, b, 4);
    near(d.mean, 2.5);
    near(d.stderr_, sqrt((1.5 * 1.5 + 0.5 * 0.5 + 0.5 * 0.5 + 1.5 * 1.5) / 3 / 4));
    assert_true(d.stderr_ < estimate_mean(a, 4).stderr_ / 50);
}

static void shares_are_means_of_zeros_and_ones(void **state)
{
    const double x[5] = {1, 0, 1, 1, 0};
    near(share_stderr(0.6, 5), estimate_mean(x, 5).stderr_);
    near(share_stderr(1, 5) + 1, 1);
    assert_true(isnan(share_stderr(1, 1)));
}

/* By hand, by Python's fractions for large counts, and beyond the smallest power of 1/2. */
static void mcnemar(void **state)
{
    near(mcnemar_exact(0, 0), 1);
    near(mcnemar_exact(1, 0), 1);
    near(mcnemar_exact(3, 3), 1);
    near(mcnemar_exact(5, 0), 2.0 / 32);
    near(mcnemar_exact(2, 9), 2.0 * (1 + 11 + 55) / 2048);
    near(mcnemar_exact(9, 2), mcnemar_exact(2, 9));
    assert_true(fabs(mcnemar_exact(120, 80) - 0.0056851559967503055) <= 1e-12);
    assert_true(fabs(mcnemar_exact(5200, 5000) - 0.04878796312682245) <= 1e-9);
    assert_true(mcnemar_exact(3000, 1000) >= 0 && mcnemar_exact(3000, 1000) < 1e-200);
    near(LEVEL_OF_TWO_ERRORS, erfc(sqrt(2)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mean_and_error),
        cmocka_unit_test(few_figures),
        cmocka_unit_test(differences_are_paired),
        cmocka_unit_test(shares_are_means_of_zeros_and_ones),
        cmocka_unit_test(mcnemar),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT
 *
 * The reductions of perplexity. */
#include "tools/eval/eval.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 * fabs(want) + 1e-12))
        fail_msg("%.17g, want %.17g", got, want);
}

static void nll_is_minus_log_softmax(void **state)
{
    const float flat[4] = {7, 7, 7, 7}, steep[3] = {1000, 0, -1000}, two[2] = {1, 0};
    near(eval_nll(flat, 4, 2), log(4));
    near(eval_nll(steep, 3, 0), 0);
    near(eval_nll(steep, 3, 2), 2000);
    near(eval_nll(two, 2, 1), log(1 + exp(1)));
}

static void mean_and_its_error(void **state)
{
    const double nll[3] = {1, 2, 6};
    struct eval_result r = {.nll = 0};
    eval_reduce(&r, nll, 3);
    near(r.nll, 3);
    near(r.ppl, exp(3));
    near(r.nll_stderr, sqrt(7.0 / 3));
    near(r.ppl_stderr, exp(3) * sqrt(7.0 / 3));
    eval_reduce(&r, nll, 1);
    near(r.nll, 1);
    assert_true(isnan(r.nll_stderr));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nll_is_minus_log_softmax),
        cmocka_unit_test(mean_and_its_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

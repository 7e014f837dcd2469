/* SPDX-License-Identifier: MIT
 *
 * Log-sum-exp and KL divergence: known values, extremes, infinities and NaN. */
#include "kernels/base/logsumexp.h"

#include "kernels/base/clock.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-12 * fabs(want) + 1e-15))
        fail_msg("%.17g, want %.17g", got, want);
}

static void known_sums(void **state)
{
    const float flat[4] = {7, 7, 7, 7}, two[2] = {1, 0}, one[1] = {-3};
    near(log_sum_exp(flat, 4), 7 + log(4));
    near(log_sum_exp(two, 2), log(exp(1) + 1));
    near(log_sum_exp(one, 1), -3);
}

static void no_overflow(void **state)
{
    const float high[2] = {3e38f, 3e38f}, low[2] = {-3e38f, -3e38f};
    near(log_sum_exp(high, 2), (double)3e38f);
    near(log_sum_exp(low, 2), (double)-3e38f);
}

static void infinities_and_nan(void **state)
{
    const float none[2] = {-INFINITY, -INFINITY}, some[2] = {-INFINITY, 2},
                high[2] = {INFINITY, 1}, both[2] = {INFINITY, -INFINITY};
    const float first[2] = {NAN, 1}, last[2] = {1, NAN}, worst[3] = {INFINITY, NAN, 1};
    assert_true(log_sum_exp(none, 2) == -HUGE_VAL);
    assert_true(log_sum_exp(none, 0) == -HUGE_VAL);
    near(log_sum_exp(some, 2), 2);
    assert_true(log_sum_exp(high, 2) == HUGE_VAL);
    assert_true(log_sum_exp(both, 2) == HUGE_VAL);
    assert_true(isnan(log_sum_exp(first, 2)));
    assert_true(isnan(log_sum_exp(last, 2)));
    assert_true(isnan(log_sum_exp(worst, 3)));
}

static double kl(const float *p, const float *q, int64_t n)
{
    return kl_divergence(p, log_sum_exp(p, n), q, log_sum_exp(q, n), n);
}

static void known_divergences(void **state)
{
    /* P = (3/4, 1/4), Q = (1/2, 1/2) */
    const float p[2] = {logf(3), 0}, q[2] = {5, 5};
    const double log_p = (double)p[0] - log(exp((double)p[0]) + 1);
    near(kl(p, p, 2), 0);
    near(kl(p, q, 2),
         exp(log_p) * (log_p + log(2)) + (1 - exp(log_p)) * (log1p(-exp(log_p)) + log(2)));
    assert_true(fabs(kl(p, q, 2) - (0.75 * log(1.5) + 0.25 * log(0.5))) <= 1e-7);
    assert_true(kl(q, p, 2) > 0 && kl(q, p, 2) != kl(p, q, 2));
}

static void divergences_at_the_limits(void **state)
{
    const float p[3] = {1, 2, -INFINITY}, q[3] = {1, 2, 3}, bad[3] = {1, NAN, 3};
    const float none[3] = {-INFINITY, -INFINITY, -INFINITY};
    const float rest[2] = {1, 2};
    /* The excluded element adds nothing: KL(P || Q) = lse(q) - lse(p) here. */
    near(kl(p, q, 3), log_sum_exp(q, 3) - log_sum_exp(rest, 2));
    assert_true(kl(q, p, 3) == HUGE_VAL);
    near(kl(p, p, 3), 0);
    assert_true(isnan(kl(bad, q, 3)) && isnan(kl(q, bad, 3)));
    assert_true(isnan(kl(none, q, 3)) && isnan(kl(q, none, 3)));
}

static void the_clock_advances(void **state)
{
    const double start = clock_s();
    nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    const double passed = clock_s() - start;
    assert_true(passed >= 0.0199 && passed <= 60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_sums),
        cmocka_unit_test(no_overflow),
        cmocka_unit_test(infinities_and_nan),
        cmocka_unit_test(known_divergences),
        cmocka_unit_test(divergences_at_the_limits),
        cmocka_unit_test(the_clock_advances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

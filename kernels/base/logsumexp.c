/* SPDX-License-Identifier: MIT
 *
 * log sum exp(x) = top + log sum exp(x - top): exp() of a logit may overflow, exp() of a
 * difference to the largest never does. */
#include "kernels/base/logsumexp.h"

#include <math.h>

double log_sum_exp(const float *x, int64_t n)
{
    double top = -HUGE_VAL, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i]))
            return (double)NAN;
        top = (double)x[i] > top ? (double)x[i] : top;
    }
    if (isinf(top)) /* the differences below would be inf - inf */
        return top;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i] - top);
    return top + log(sum);
}

/* KL(p || q) = sum p (log p - log q) with log p = logit - log sum exp. Logarithms are
 * subtracted, so a probability that is 0 in doubles still has a finite one. */
double kl_divergence(const float *p, double log_p, const float *q, double log_q, int64_t n)
{
    double sum = 0;
    if (!isfinite(log_p) || !isfinite(log_q))
        return (double)NAN;
    for (int64_t i = 0; i < n; i++) {
        const double a = (double)p[i] - log_p, b = (double)q[i] - log_q;
        const double share = exp(a);
        if (share != 0) /* 0 * inf is NaN, the limit is 0 */
            sum += share * (a - b);
    }
    return sum;
}

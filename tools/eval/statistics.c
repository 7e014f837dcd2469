/* SPDX-License-Identifier: MIT
 *
 * Means and their standard errors: with s^2 = sum (x - mean)^2 / (n - 1), the mean of n
 * independent values has the standard error s / sqrt(n). */
#include "tools/eval/statistics.h"

#include <math.h>
#include <stddef.h>

/* b NULL stands for zeros. x - 0 is x bit for bit, so both functions share one loop. */
static double figure(const double *a, const double *b, int64_t i)
{
    return b ? a[i] - b[i] : a[i];
}

/* The error of a paired difference is that of a[i] - b[i]. It is usually far smaller than
 * those of both means, because windows that are hard for one model are hard for the
 * other. */
struct estimate estimate_difference(const double *a, const double *b, int64_t n)
{
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++)
        mean += figure(a, b, i) / (double)n;
    for (int64_t i = 0; i < n; i++)
        square += (figure(a, b, i) - mean) * (figure(a, b, i) - mean);
    return (struct estimate){n ? mean : NAN,
                             n > 1 ? sqrt(square / (double)(n - 1) / (double)n) : NAN};
}

struct estimate estimate_mean(const double *x, int64_t n)
{
    return estimate_difference(x, NULL, n);
}

/* A share is the mean of values 0 and 1, whose s^2 is p (1 - p) n / (n - 1). */
double share_stderr(double p, int64_t n)
{
    return n > 1 ? sqrt(p * (1 - p) / (double)(n - 1)) : NAN;
}

/* C(n, k) / 2^n follows from the term before, as a logarithm, because 2^-n underflows. */
double mcnemar_exact(int64_t x, int64_t y)
{
    const int64_t n = x + y, fewer = x < y ? x : y;
    double log_term = -(double)n * log(2), sum = 0;
    for (int64_t k = 0; k <= fewer; k++) {
        sum += exp(log_term);
        log_term += log((double)(n - k) / (double)(k + 1));
    }
    return fmin(1, 2 * sum);
}

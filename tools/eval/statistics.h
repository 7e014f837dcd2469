/* SPDX-License-Identifier: MIT
 *
 * Means and their standard errors. Pure functions, thread-safe.
 *
 *   mean            m = sum of x[i] / n
 *   standard error  sqrt(sum of (x[i] - m)^2 / (n - 1) / n), of independent figures
 *
 * A paired difference is the mean of a[i] - b[i] with the standard error of these
 * differences, so effects common to both cancel. Sums run from index 0 upward, so the same
 * figures give the same bits. */
#ifndef WKVQ_STATISTICS_H
#define WKVQ_STATISTICS_H

#include <stdint.h>

/* The mean is NAN for n = 0, the standard error for n < 2. */
struct estimate {
    double mean, stderr_;
};

/* Returns mean and standard error of x [n]. */
struct estimate estimate_mean(const double *x, int64_t n);
/* Returns mean and standard error of a[i] - b[i], both [n]. */
struct estimate estimate_difference(const double *a, const double *b, int64_t n);
/* Returns the standard error of a share p of n yes-or-no answers: sqrt(p (1 - p) / (n -
 * 1)). That is the formula above for figures of 0 and 1. NAN for n < 2. */
double share_stderr(double p, int64_t n);

#endif

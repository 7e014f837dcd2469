/* SPDX-License-Identifier: MIT
 *
 * Means of figures, and how certain they are.
 *
 *   mean            m = sum of x[i] / n
 *   standard error  sqrt(sum of (x[i] - m)^2 / (n - 1) / n), of independent figures
 *
 * A paired difference is the mean of a[i] - b[i] and the standard error of these
 * differences: what both have in common cancels. Sums run from index 0 upward, so that the
 * same figures give the same bits. */
#ifndef WKVQ_STATISTICS_H
#define WKVQ_STATISTICS_H

#include <stdint.h>

/* The mean is NAN for n = 0, the standard error for n < 2. */
struct estimate {
    double mean, stderr_;
};

/* Of x [n]. */
struct estimate estimate_mean(const double *x, int64_t n);
/* Of a[i] - b[i], both [n]. */
struct estimate estimate_difference(const double *a, const double *b, int64_t n);
/* Of a share p of n yes-or-no answers: sqrt(p (1 - p) / (n - 1)), which is the standard
 * error above for figures of 0 and 1. NAN for n < 2. */
double share_stderr(double p, int64_t n);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Means and their standard errors, and a test of paired yes-or-no answers. Pure functions,
 * thread-safe.
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

/* What two standard errors of a normal figure are as a probability: P(|Z| > 2). */
#define LEVEL_OF_TWO_ERRORS 0.045500263896358417
/* Returns the exact two-sided p of McNemar's test, which is the sign test of the questions that
 * one of two models alone answers rightly: x and y of them, n = x + y,
 *
 *   p = min(1, 2 sum over k = 0 .. min(x, y) of C(n, k) / 2^n)
 *
 * Q. McNemar, Psychometrika 12 (1947), with the binomial distribution in place of its
 * approximation by chi squared. 1 for n = 0. */
double mcnemar_exact(int64_t x, int64_t y);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Comparison of two results. It reports and judges by one rule: a difference passes when it
 * is within what the storage and the length of the reduction explain. NaN, or an infinity
 * that the other side does not have, is an infinite error. */
#ifndef WKVQ_CLOSE_H
#define WKVQ_CLOSE_H

#include "kernels/tensor/tensor.h"

/* allowed = rel |want| + sum * magnitude + floor, magnitude being the sum of the absolute
 * values of the terms that make up an element (|want| where none is given). */
struct tolerance {
    double rel, sum, floor;
};

/* For results stored as `out` that are sums of n products in F32 (n = 1: no sum). */
struct tolerance close_tolerance(enum dtype out, int64_t n);

/* The worst element of a comparison. */
struct close {
    double ratio; /* error / allowed; at most 1 passes; 0 for equal tensors */
    int64_t row, col;
    double want, got, allowed;
};

/* got, want: views of 1 to 3 dimensions and one shape, F32 or BF16. magnitude: one entry an
 * element, without gaps, or NULL. */
struct close close_compare(const struct tensor *got, const struct tensor *want,
                           const double *magnitude, struct tolerance t);
/* Bit equality, any element type; ratio is 0 or infinite. */
struct close close_bits(const struct tensor *got, const struct tensor *want);
/* A pair of scalars. */
struct close close_scalar(double got, double want, double magnitude, struct tolerance t);

static inline bool close_pass(const struct close *c)
{
    return c->ratio <= 1;
}

#endif

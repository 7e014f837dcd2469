/* SPDX-License-Identifier: MIT
 *
 * The Walsh-Hadamard transform of a head: y_i = sum_j (-1)^popcount(i & j) x_j / sqrt(n), n
 * a power of two (Sylvester's order). Symmetric and orthogonal, so it is its own inverse
 * and its own gradient. */
#ifndef WKVQ_HADAMARD_H
#define WKVQ_HADAMARD_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#define HADAMARD_MAX 512 /* the widest head that can be rotated */

static inline bool hadamard_fits(int64_t n)
{
    return n >= 2 && n <= HADAMARD_MAX && (n & (n - 1)) == 0;
}

static inline float hadamard_scale(int64_t n)
{
    return (float)(1 / sqrt((double)n));
}

/* The sign at row i, column j: +1 or -1. */
static inline float hadamard_sign(int64_t i, int64_t j)
{
    uint64_t both = (uint64_t)(i & j);
    both ^= both >> 8;
    both ^= both >> 4;
    both ^= both >> 2;
    both ^= both >> 1;
    return both & 1 ? -1.0f : 1.0f;
}

/* Transforms x [n] in place with n log2 n additions, by the matrix of signs: not normalized. */
static inline void hadamard_sums_f32(float *x, int64_t n)
{
    for (int64_t half = 1; half < n; half *= 2)
        for (int64_t at = 0; at < n; at += 2 * half)
            for (int64_t i = at; i < at + half; i++) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
}

/* Transforms x [n] in place by the normalized matrix. */
static inline void hadamard_f32(float *x, int64_t n)
{
    const float scale = hadamard_scale(n);
    hadamard_sums_f32(x, n);
    for (int64_t i = 0; i < n; i++)
        x[i] *= scale;
}

/* Transforms the columns of x [n][width] in place. */
static inline void hadamard_f64(double *x, int64_t n, int64_t width)
{
    const double scale = 1 / sqrt((double)n);
    for (int64_t half = 1; half < n; half *= 2)
        for (int64_t at = 0; at < n; at += 2 * half)
            for (int64_t i = at * width; i < (at + half) * width; i++) {
                const double a = x[i], b = x[i + half * width];
                x[i] = a + b;
                x[i + half * width] = a - b;
            }
    for (int64_t i = 0; i < n * width; i++)
        x[i] *= scale;
}

#endif

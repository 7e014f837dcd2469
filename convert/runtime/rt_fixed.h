/* SPDX-License-Identifier: MIT
 *
 * Rows of 4-bit codes times a vector in fixed point, for AVX512-VNNI and for the products
 * of bytes of aarch64. Included by rt_kernels.c in place of its F32 rows; private to that
 * file.
 *
 * RT_PAD_COLUMNS = 128 columns of x share one power of two, sigma:
 *
 *   x = sigma X,  |X| <= 2^30,  X = 65536 high + low,  high and low 16-bit signed
 *
 * An element is off by at most 2^-31 of the largest of its 128, and exact where it exceeds
 * 1/64 of that. Sums of products of (code - z) with low and with high are integers, and
 * exact. What remains is rounded once per 128 columns, where F32 would round every addition:
 *
 *   total += h (sigma low_sum + 65536 sigma high_sum)
 *
 * How X is laid out and multiplied depends on the instructions. One of the headers below
 * defines
 *
 *   struct fixed_columns    RT_PAD_COLUMNS columns of x, in RT_FIXED_FLOATS floats
 *   fix_columns()           writes it
 *   fixed_rows_step()       adds that many columns of four rows to their sums
 *   fixed_store()           writes the four sums */
#ifndef WKVQ_RT_FIXED_H
#define WKVQ_RT_FIXED_H

#include "convert/runtime/rt_kernels.h"
#include "convert/runtime/rt_unit.h"
#include "kernels/simd/simd.h"

#define FIXED_BITS 30 /* |X| <= 2^FIXED_BITS */

/* Four rows at the columns in work. */
struct fixed_rows {
    const uint8_t *p, *z;
    const float *h;
    int64_t stride, pair_stride;
};

#if defined(__AVX512VNNI__)
#include "convert/runtime/rt_fixed_vnni.h"
#else
#include "convert/runtime/rt_fixed_digits.h"
#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "convert/runtime/rt_fixed_matrix.h"
#else
#include "convert/runtime/rt_fixed_dot.h"
#endif
#endif

static void interleave_rows(float *interleaved, const float *x, int64_t n)
{
    struct fixed_columns *out = (struct fixed_columns *)interleaved;
    for (; n > 0; n -= RT_PAD_COLUMNS, x += RT_PAD_COLUMNS) {
        float block[RT_PAD_COLUMNS] = {0};
        memcpy(block, x, (size_t)(n < RT_PAD_COLUMNS ? n : RT_PAD_COLUMNS) * sizeof(*x));
        fix_columns(out++, block);
    }
}

/* Writes y[row .. row + 4). each: every RT_PAD_COLUMNS columns are a group of their own. */
INLINE void fixed_four_rows(float *y, const struct rt_rows *r, int64_t row,
                            const float *interleaved, const bool each)
{
    struct fixed_rows at = {.p = r->codes + row * r->code_stride,
                            .z = r->z + row * r->pair_stride,
                            .h = r->h + row * r->pair_stride,
                            .stride = r->code_stride,
                            .pair_stride = r->pair_stride};
    const struct fixed_columns *x = (const struct fixed_columns *)interleaved;
    const uint8_t *const first = at.p;
    const int64_t step = RT_PAD_COLUMNS / 2, group = r->group / 2;
    const int64_t bytes = r->in / RT_PAD_COLUMNS * step;
    int64_t left = group;
    struct sums total = {0};
    for (int64_t b = 0; b < bytes; b += step, x++) {
        (void)prefetch_lines(first + ROWS_AT_ONCE * b, ROWS_AT_ONCE);
        fixed_rows_step(&total, at, x, step);
        at.p += step;
        left -= step;
        if (each || left == 0) {
            left = group;
            at.z++;
            at.h++;
        }
    }
    if (r->in % RT_PAD_COLUMNS)
        fixed_rows_step(&total, at, x, (r->in % RT_PAD_COLUMNS + 1) / 2);
    fixed_store(y + row, &total);
}

static inline void add_rows(float *y, const struct rt_rows *r, int64_t row,
                            const float *interleaved)
{
    if (r->group == RT_PAD_COLUMNS)
        fixed_four_rows(y, r, row, interleaved, true);
    else
        fixed_four_rows(y, r, row, interleaved, false);
}

#endif

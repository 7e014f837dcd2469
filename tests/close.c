/* SPDX-License-Identifier: MIT */
#include "tests/close.h"

#include "kernels/base/half.h"

#include <math.h>
#include <string.h>

/* Where the numbers come from.
 *
 * Storage: two results that differ by less than a rounding may still fall on neighbouring
 * values: one unit in the last place, at most 2^-23 of an F32 and 2^-7 of a BF16 value.
 * Reduction: a sum of n terms in F32 makes n roundings of at most 2^-24 of the partial sum,
 * which the magnitude bounds; they have either sign, so sqrt(n) of them survive. Twice
 * that, and 8 for the handful of roundings (products, a division, an exponential) around
 * the sum. Floor: a term below the smallest normal number may be flushed. */
struct tolerance close_tolerance(enum dtype out, int64_t n)
{
    return (struct tolerance){
        .rel = out == DT_BF16 ? 0x1p-7 : 0x1p-23,
        .sum = 0x1p-24 * (8 + 2 * sqrt((double)n)),
        .floor = 0x1p-126 * (double)n,
    };
}

/* View as rows of contiguous elements. */
static int64_t n_rows(const struct tensor *x)
{
    return x->n_dims == 1 ? 1 : x->dim[0];
}

static int64_t n_cols(const struct tensor *x)
{
    return tensor_count(x) / n_rows(x);
}

static double value(const struct tensor *x, int64_t i)
{
    switch (x->dtype) {
    case DT_F32:
        return (double)((const float *)x->data)[i];
    case DT_BF16:
        return (double)bf16_to_f32(((const uint16_t *)x->data)[i]);
    case DT_F16:
        return (double)f16_to_f32(((const uint16_t *)x->data)[i]);
    case DT_U8:
        return (double)((const uint8_t *)x->data)[i];
    default:
        return NAN;
    }
}

struct close close_scalar(double got, double want, double magnitude, struct tolerance t)
{
    struct close c = {.want = want, .got = got};
    c.allowed = t.rel * fabs(want) + t.sum * magnitude + t.floor;
    const double error = fabs(got - want);
    if (got == want)
        c.ratio = 0;
    else if (error <= c.allowed) /* false for NaN */
        c.ratio = error / c.allowed;
    else
        c.ratio = isfinite(error) && c.allowed > 0 ? error / c.allowed : INFINITY;
    return c;
}

struct close close_compare(const struct tensor *got, const struct tensor *want,
                           const double *magnitude, struct tolerance t)
{
    struct close worst = {.ratio = -1};
    const int64_t cols = n_cols(want);
    for (int64_t r = 0; r < n_rows(want); r++)
        for (int64_t c = 0; c < cols; c++) {
            const double w = value(want, r * want->ld + c);
            const double m = magnitude ? magnitude[r * cols + c] : fabs(w);
            struct close one = close_scalar(value(got, r * got->ld + c), w, m, t);
            if (one.ratio <= worst.ratio)
                continue;
            worst = one;
            worst.row = r;
            worst.col = c;
        }
    return worst;
}

struct close close_bits(const struct tensor *got, const struct tensor *want)
{
    const size_t bytes = dtype_bytes(want->dtype);
    const char *g = got->data, *w = want->data;
    for (int64_t r = 0; r < n_rows(want); r++)
        for (int64_t c = 0; c < n_cols(want); c++) {
            const int64_t gi = r * got->ld + c, wi = r * want->ld + c;
            if (memcmp(g + (size_t)gi * bytes, w + (size_t)wi * bytes, bytes))
                return (struct close){.ratio = INFINITY,
                                      .row = r,
                                      .col = c,
                                      .want = value(want, wi),
                                      .got = value(got, gi)};
        }
    return (struct close){.ratio = 0};
}

/* SPDX-License-Identifier: MIT
 *
 * With J the matrix that reverses, J h J = L L^T gives h = R R^T for the upper triangular
 * R = J L J, so U = R^-1 = J L^-1 J: one factorization and one triangular inverse, and h^-1
 * is never formed. J M J is M's elements from the last to the first. */
#include "kernels/cholesky.h"

#include "kernels/cpu/gemm.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>

static void reverse(double *h, int64_t n)
{
    for (int64_t i = 0, j = n * n - 1; i < j; i++, j--) {
        const double x = h[i];
        h[i] = h[j];
        h[j] = x;
    }
}

static void clear_upper(double *h, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++)
            h[i * n + j] = 0;
}

static enum err not_definite(int64_t at)
{
    FAIL(ERR_NUMERIC, "the matrix is not positive definite (row %" PRId64 " from the end)",
         at);
}

/* h = L L^T in h's lower triangle, row by row (Cholesky-Banachiewicz):
 *   L_ij = (h_ij - sum_{k<j} L_ik L_jk) / L_jj      L_ii = sqrt(h_ii - sum_{k<i} L_ik^2)
 * A root that is not of a positive number means that h is not positive definite. */
static enum err factor(double *h, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double *a = h + i * n;
        for (int64_t j = 0; j <= i; j++) {
            const double *b = h + j * n;
            double sum = a[j];
            for (int64_t k = 0; k < j; k++)
                sum -= a[k] * b[k];
            if (j < i)
                a[j] = sum / b[j];
            else if (sum > 0 && isfinite(sum))
                a[j] = sqrt(sum);
            else
                return not_definite(i);
        }
    }
    return OK;
}

/* Replaces L by L^-1, row by row; each row uses the inverted rows above it. */
static void invert(double *h, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double *a = h + i * n;
        for (int64_t j = 0; j < i; j++) {
            double sum = 0;
            for (int64_t k = j; k < i; k++)
                sum += a[k] * h[k * n + j];
            a[j] = -sum / a[i];
        }
        a[i] = 1 / a[i];
    }
}

enum err cholesky_of_inverse_plain(double *h, int64_t n)
{
    reverse(h, n);
    TRY(factor(h, n));
    invert(h, n);
    clear_upper(h, n);
    reverse(h, n);
    return OK;
}

/* LAPACK takes a NaN for a positive number, and infinity for one with a root. */
static enum err check_inverse(const double *h, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!(h[i * n + i] > 0))
            return not_definite(i);
        for (int64_t j = 0; j <= i; j++)
            if (!isfinite(h[i * n + j]))
                return not_definite(i);
    }
    return OK;
}

/* LAPACK stores by columns, so the lower triangle here is its upper one. */
enum err cholesky_of_inverse(double *h, int64_t n, int threads)
{
    if (n > INT_MAX || !openblas_lapack())
        return cholesky_of_inverse_plain(h, n);
    int at = 0;
    reverse(h, n);
    TRY(openblas_factor_invert(&at, h, (int)n, threads));
    if (at)
        return not_definite(at - 1);
    TRY(check_inverse(h, n));
    clear_upper(h, n);
    reverse(h, n);
    return OK;
}

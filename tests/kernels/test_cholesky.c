/* SPDX-License-Identifier: MIT
 *
 * U of h^-1 = U^T U: U h U^T is the identity, U is upper triangular, LAPACK and the plain
 * loops agree, and matrices that are not positive definite are refused. */
#include "kernels/cholesky.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static double value(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(*seed >> 11) / (double)(INT64_C(1) << 52) - 1;
}

static double *numbers(int64_t n)
{
    double *x = calloc((size_t)(n * n), sizeof(*x));
    assert_non_null(x);
    return x;
}

/* x x^T / n and a little on the diagonal. */
static double *definite(int64_t n)
{
    uint64_t seed = (uint64_t)n;
    double *x = numbers(n), *h = numbers(n);
    for (int64_t i = 0; i < n * n; i++)
        x[i] = value(&seed);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t k = 0; k < n; k++)
                h[i * n + j] += x[i * n + k] * x[j * n + k] / (double)n;
    for (int64_t i = 0; i < n; i++)
        h[i * n + i] += 0.01;
    free(x);
    return h;
}

/* Largest |U h U^T - I|. */
static double worst_identity(const double *u, const double *h, int64_t n)
{
    double worst = 0, *uh = numbers(n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < n; j++)
                uh[i * n + j] += u[i * n + k] * h[k * n + j];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = i == j ? -1 : 0;
            for (int64_t k = 0; k < n; k++)
                sum += uh[i * n + k] * u[j * n + k];
            worst = fmax(worst, isnan(sum) ? INFINITY : fabs(sum));
        }
    free(uh);
    return worst;
}

static void check_upper(const double *u, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        assert_true(u[i * n + i] > 0);
        for (int64_t j = 0; j < i; j++)
            assert_true(u[i * n + j] == 0);
    }
}

static void test_identity(void **state)
{
    static const int64_t size[] = {1, 2, 3, 17, 64, 130};
    for (size_t s = 0; s < sizeof(size) / sizeof(*size); s++) {
        const int64_t n = size[s];
        double *h = definite(n), *plain = definite(n), *u = definite(n);
        assert_int_equal(cholesky_of_inverse_plain(plain, n), OK);
        assert_int_equal(cholesky_of_inverse(u, n, 2), OK);
        check_upper(plain, n);
        check_upper(u, n);
        assert_true(worst_identity(plain, h, n) <= 1e-10);
        assert_true(worst_identity(u, h, n) <= 1e-10);
        for (int64_t i = 0; i < n * n; i++)
            assert_true(fabs(u[i] - plain[i]) <= 1e-9);
        free(h);
        free(plain);
        free(u);
    }
}

static void test_not_definite(void **state)
{
    double a[4] = {1, 2, 2, 1}, b[4] = {1, 2, 2, 1}, c[4] = {1, NAN, NAN, 1};
    assert_int_equal(cholesky_of_inverse_plain(a, 2), ERR_NUMERIC);
    assert_int_equal(cholesky_of_inverse(b, 2, 1), ERR_NUMERIC);
    assert_int_equal(cholesky_of_inverse_plain(c, 2), ERR_NUMERIC);
    err_clear();
}

/* The numbers stand where the factorization begins, in the middle, and at its end. */
static void test_not_finite(void **state)
{
    enum { N = 64 };
    for (int64_t i = 0; i < N; i += 21)
        for (int infinite = 0; infinite < 2; infinite++) {
            double *h = definite(N);
            h[i * N + i] = infinite ? INFINITY : NAN;
            assert_int_equal(cholesky_of_inverse(h, N, 2), ERR_NUMERIC);
            err_clear();
            free(h);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_not_definite),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

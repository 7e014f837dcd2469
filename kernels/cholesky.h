/* SPDX-License-Identifier: MIT
 *
 * The factor of an inverse that GPTQ needs, for dense symmetric f64 matrices in host
 * memory. It is computed by LAPACK from OpenBLAS, which is loaded at run time, else by
 * plain loops. */
#ifndef WKVQ_CHOLESKY_H
#define WKVQ_CHOLESKY_H

#include "kernels/base/error.h"

#include <stdint.h>

/* Replaces h [n][n] by the upper triangular U with h^-1 = U^T U, zeros below the
 * diagonal. h must be symmetric with both triangles filled. threads is for LAPACK, and
 * the bits may depend on it. ERR_NUMERIC if h is not positive definite, ERR_MEMORY; the contents
 * of h are then undefined. */
enum err cholesky_of_inverse(double *h, int64_t n, int threads);
/* The same by plain loops: the definition. */
enum err cholesky_of_inverse_plain(double *h, int64_t n);

#endif

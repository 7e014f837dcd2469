/* SPDX-License-Identifier: MIT
 *
 * Dense symmetric matrices on the host, in f64: what second-order methods need. By LAPACK
 * from OpenBLAS, which is loaded at run time, or by plain loops where there is none. */
#ifndef WKVQ_CHOLESKY_H
#define WKVQ_CHOLESKY_H

#include "kernels/base/error.h"

#include <stdint.h>

/* h [n][n], symmetric (all of it filled) and positive definite, becomes the upper
 * triangular U with h^-1 = U^T U; below the diagonal: zeros. threads: of LAPACK; the bits
 * may depend on it. Errors: ERR_NUMERIC when h is not positive definite; h is lost then. */
enum err cholesky_of_inverse(double *h, int64_t n, int threads);
/* The same by plain loops: the definition. */
enum err cholesky_of_inverse_plain(double *h, int64_t n);

#endif

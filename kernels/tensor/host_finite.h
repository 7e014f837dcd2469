/* SPDX-License-Identifier: MIT
 *
 * Finds values in host memory that are NaN or infinite. */
#ifndef WKVQ_HOST_FINITE_H
#define WKVQ_HOST_FINITE_H

#include "kernels/tensor/tensor.h"

/* Returns the index of the first of n elements that is NaN or infinite, -1 if there is none.
 * src: any alignment; types other than F32, F16 and BF16 hold only finite values. */
int64_t host_find_nonfinite(const void *src, enum dtype t, int64_t n);
/* Returns ERR_FORMAT if there is one; the message names the tensor and the element, of rows of
 * `cols`. */
enum err host_check_finite(const char *name, const void *src, enum dtype t, int64_t n,
                           int64_t cols);

#endif

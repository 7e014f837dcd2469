/* SPDX-License-Identifier: MIT
 *
 * The rows that a norm normalizes: those of a matrix, or the heads of a [T,H,d] view, which are
 * contiguous within a token. Private to kernels/. */
#ifndef WKVQ_NORM_ROWS_H
#define WKVQ_NORM_ROWS_H

#include "kernels/tensor/tensor.h"

static inline int64_t norm_rows(const struct tensor *x)
{
    return x->n_dims == 3 ? x->dim[0] * x->dim[1] : x->dim[0];
}

/* Elements from the start of x to that of row r. */
static inline int64_t norm_at(const struct tensor *x, int64_t r)
{
    if (x->n_dims == 2)
        return r * x->ld;
    return r / x->dim[1] * x->ld + r % x->dim[1] * x->dim[2];
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * How every public operation begins and ends: the checks and the clock that all of them
 * share, and questions about tensors that several ask. Private to kernels/. */
#ifndef WKVQ_DEV_BEGIN_H
#define WKVQ_DEV_BEGIN_H

#include "config.h"
#include "kernels/base/clock.h"
#include "kernels/dev_ops.h"

#include <stdlib.h>

/* Returns ERR_SHAPE with a message unless cond holds. */
#define WANT(cond, ...)                                                                    \
    do {                                                                                   \
        if (!(cond)) {                                                                     \
            if (DEBUG_ABORT)                                                               \
                abort();                                                                   \
            FAIL(ERR_SHAPE, __VA_ARGS__);                                                  \
        }                                                                                  \
    } while (0)

/* Every operation begins with this. It returns the device's earlier failure, and ERR_DEVICE
 * if the table lacks the operation; else it declares `started`, the time in seconds. */
#define OP_BEGIN(op, started)                                                              \
    do {                                                                                   \
        FAIL_IF(d->failed, d->failed, #op ": device %s has already failed", d->ops.name);  \
        FAIL_IF(!d->ops.op, ERR_DEVICE, #op ": not supported on %s", d->ops.name);         \
    } while (0);                                                                           \
    const double started = clock_s()
/* Every operation ends with this: it adds the time since `started` to a part's total and
 * returns the device's state. */
#define OP_END(part, started)                                                              \
    do {                                                                                   \
        if (d->synchronous)                                                                \
            d->ops.sync(d);                                                                \
        d->part_seconds[part] += clock_s() - (started);                                    \
        return d->failed;                                                                  \
    } while (0)

/* Questions about operands. Backends trust their arguments, so every operation checks the type of
 * every operand, by is_type() or what is made of it. That covers the stride; same_shape(), is_2d()
 * and is_3d() do not. */

/* Rows, or the tokens of a 3-D view, lie apart. A vector has no stride, and that of one row counts
 * for nothing. */
static inline bool rows_fit(const struct tensor *x)
{
    return x->n_dims == 1 || x->dim[0] <= 1 || x->ld >= tensor_width(x);
}

static inline bool is_type(const struct tensor *x, enum dtype t)
{
    return x && x->data && x->dtype == t && rows_fit(x);
}

static inline bool is_f32(const struct tensor *x)
{
    return is_type(x, DT_F32);
}

static inline bool is_act(const struct tensor *x)
{
    return is_type(x, DT_F32) || is_type(x, DT_BF16);
}

static inline bool contiguous(const struct tensor *x)
{
    return x->n_dims == 1 || x->dim[0] <= 1 || x->ld == tensor_width(x);
}

/* n elements of type t without gaps, whatever their shape. */
static inline bool flat(const struct tensor *x, enum dtype t, int64_t n)
{
    return is_type(x, t) && contiguous(x) && tensor_count(x) == n;
}

static inline bool vec(const struct tensor *x, int64_t n)
{
    return flat(x, DT_F32, n);
}

static inline bool same_shape(const struct tensor *a, const struct tensor *b)
{
    if (a->n_dims != b->n_dims)
        return false;
    for (int i = 0; i < a->n_dims; i++)
        if (a->dim[i] != b->dim[i])
            return false;
    return true;
}

static inline bool is_matrix(const struct tensor *x, enum dtype t, int64_t rows,
                             int64_t cols)
{
    return is_type(x, t) && x->n_dims == 2 && x->dim[0] == rows && x->dim[1] == cols;
}

static inline bool is_2d(const struct tensor *x)
{
    return x->n_dims == 2 && x->dim[0] > 0 && x->dim[1] > 0;
}

static inline bool is_3d(const struct tensor *x)
{
    return x->n_dims == 3 && x->dim[0] > 0 && x->dim[1] > 0 && x->dim[2] > 0;
}

/* a and b have one entry for each channel of x [T,K,d], or both are NULL. */
static inline bool per_channel(const struct tensor *a, const struct tensor *b,
                               const struct tensor *x)
{
    return !a == !b && (!a || (vec(a, tensor_width(x)) && vec(b, tensor_width(x))));
}

#endif

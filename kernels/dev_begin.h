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

static inline bool is_type(const struct tensor *x, enum dtype t)
{
    return x && x->data && x->dtype == t;
}

static inline bool is_act(const struct tensor *x)
{
    return is_type(x, DT_F32) || is_type(x, DT_BF16);
}

/* F32 of n elements, whatever their shape. */
static inline bool vec(const struct tensor *x, int64_t n)
{
    return is_type(x, DT_F32) && tensor_count(x) == n;
}

static inline bool matrix(const struct tensor *x, int64_t rows, int64_t cols)
{
    return x->n_dims == 2 && x->dim[0] == rows && x->dim[1] == cols && x->ld >= cols;
}

static inline bool contiguous(const struct tensor *x)
{
    return x->n_dims == 2 && x->ld == x->dim[1];
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * How every public operation begins and ends; private to kernels/. */
#ifndef WKVQ_DEV_BEGIN_H
#define WKVQ_DEV_BEGIN_H

#include "config.h"
#include "kernels/dev_ops.h"

#include <stdlib.h>
#include <time.h>

#define WANT(cond, ...)                                                                    \
    do {                                                                                   \
        if (!(cond)) {                                                                     \
            if (DEBUG_ABORT)                                                               \
                abort();                                                                   \
            FAIL(ERR_SHAPE, __VA_ARGS__);                                                  \
        }                                                                                  \
    } while (0)

static inline double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Every operation begins with this: the sticky failure, and what a table may lack. */
#define BEGIN(op)                                                                          \
    do {                                                                                   \
        FAIL_IF(d->failed, d->failed, #op ": device %s has already failed", d->ops.name);  \
        FAIL_IF(!d->ops.op, ERR_DEVICE, #op ": not supported on %s", d->ops.name);         \
    } while (0);                                                                           \
    const double begin = seconds_now()
/* ... and ends with its time counted. */
#define END(part)                                                                          \
    do {                                                                                   \
        if (d->wait_each)                                                                  \
            d->ops.sync(d);                                                                \
        d->part_seconds[part] += seconds_now() - begin;                                    \
        return d->failed;                                                                  \
    } while (0)

#endif

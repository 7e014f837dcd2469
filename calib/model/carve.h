/* SPDX-License-Identifier: MIT
 *
 * Many tensors out of one device allocation: run a layout once with base NULL to learn its
 * size, allocate, and run it again to place the tensors. */
#ifndef WKVQ_CARVE_H
#define WKVQ_CARVE_H

#include "kernels/base/mem.h"
#include "kernels/tensor/tensor.h"

struct carve {
    char *base; /* NULL: only measuring */
    size_t used;
};

static inline void *carve_bytes(struct carve *c, size_t bytes)
{
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    return p;
}

static inline struct tensor carve_1d(struct carve *c, enum dtype t, int64_t n)
{
    return tensor_1d(carve_bytes(c, (size_t)n * dtype_bytes(t)), t, n);
}

static inline struct tensor carve_2d(struct carve *c, enum dtype t, int64_t rows,
                                     int64_t cols)
{
    const size_t n = (size_t)rows * (size_t)cols;
    return tensor_2d(carve_bytes(c, n * dtype_bytes(t)), t, rows, cols);
}

#endif

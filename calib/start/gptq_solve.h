/* SPDX-License-Identifier: MIT
 *
 * GPTQ of one projection (Frantar et al., arXiv 2210.17323): quantizes columns one after
 * another and spreads each column's error over those not yet quantized, weighted by the
 * second moments of the input. docs/method.md has the mathematics. */
#ifndef WKVQ_GPTQ_SOLVE_H
#define WKVQ_GPTQ_SOLVE_H

#include "calib/calib.h"
#include "kernels/base/pool.h"

/* Shared by the projections of one input. All host memory. */
struct gptq_input {
    int64_t n;      /* columns */
    double *h;      /* [n][n] the Hessian H; gptq_factor replaces it by U, H^-1 = U^T U */
    int64_t *order; /* [n] order[i] is the column that is quantized i-th */
    bool *dead;     /* [n] inputs that were always 0 */
};

/* Damps x->h, chooses the order, permutes and factors it. x->h is complete (both triangles)
 * and of any positive scale. Errors: ERR_NUMERIC if it is not finite, or not positive definite in
 * spite of the damping. */
enum err gptq_factor(struct gptq_input *x, const struct gptq_settings *s, int threads);

/* Columns of a step; an update of all later columns follows it. */
#define GPTQ_COLUMNS 128

struct gptq_work {
    struct dev *dev;
    struct pool *pool;   /* NULL: this thread */
    struct tensor u;     /* device F32: x->h as gptq_factor left it, [n, n] */
    struct tensor block; /* device F32, room for out * GPTQ_COLUMNS */
    float *stage;        /* host, room for out * max(n, GPTQ_COLUMNS) */
    float *range;        /* host [2][out] */
    bool scaled;         /* q has scales and zeros already, which stay */
};

/* Writes codes, scales and zeros into q, which says the format and has room for all of
 * them.
 *   weight  [out, n] F32 on the device; undefined afterwards
 * Errors: ERR_NUMERIC for a row that is not finite, ERR_MEMORY, ERR_DEVICE. */
enum err gptq_linear(struct gptq_work *k, struct qlinear *q, const struct tensor *weight,
                     const struct gptq_input *x, const struct gptq_settings *s);

#endif

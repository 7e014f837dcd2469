/* SPDX-License-Identifier: MIT
 *
 * GPTQ of one projection (Frantar et al., arXiv 2210.17323): columns are quantized one
 * after another, and each column's error is spread over those not yet quantized, as the
 * second moments of the projection's input say. docs/method.md has the mathematics. */
#ifndef WKVQ_GPTQ_SOLVE_H
#define WKVQ_GPTQ_SOLVE_H

#include "calib/calib.h"
#include "kernels/base/pool.h"

/* What the projections with one input share. */
struct gptq_input {
    int64_t n;      /* columns */
    double *h;      /* [n][n] host: the Hessian; gptq_factor makes it U, H^-1 = U^T U */
    int64_t *order; /* [n] the column that is quantized i'th */
    bool *dead;     /* [n] this input was always 0 */
};

/* h: all of it filled, any positive scale. Damps it, chooses the order, factors it. Errors:
 * ERR_NUMERIC when it is not positive definite in spite of damping. */
enum err gptq_factor(struct gptq_input *x, const struct gptq_settings *s, int threads);

/* Columns of one step: an update of all columns behind it follows. */
#define GPTQ_COLUMNS 128

struct gptq_work {
    struct dev *dev;
    struct pool *pool;   /* NULL: this thread */
    struct tensor u;     /* device F32: x->h as gptq_factor left it, [n, n] */
    struct tensor block; /* device F32, room for out * GPTQ_COLUMNS */
    float *stage;        /* host, room for out * max(n, GPTQ_COLUMNS) */
    float *range;        /* host [2][out] */
    bool scaled;         /* q comes with scales and zeros, which stay */
};

/* Codes, scales and zeros of the weight [out, n] on the device (F32; undefined afterwards)
 * into q, which has room for all of them and says the format. */
enum err gptq_linear(struct gptq_work *k, struct qlinear *q, const struct tensor *weight,
                     const struct gptq_input *x, const struct gptq_settings *s);

#endif

/* SPDX-License-Identifier: MIT
 *
 * GPTQ of a block: collects the second moments of its four inputs sample by sample,
 * while the block is in full precision, then quantizes its seven projections one after
 * another. */
#ifndef WKVQ_GPTQ_H
#define WKVQ_GPTQ_H

#include "calib/fakequant.h"
#include "calib/start/gptq_solve.h"
#include "calib/start/inputs.h"

struct gptq {
    struct dev *dev;
    const struct arch *arch;
    const struct calib_settings *s;
    struct pool *pool;
    void *memory; /* on the device */
    /* F32 [n, n]: sum of x x^T, later U; of experts [E n, n], by their own tokens */
    struct tensor h[N_INPUTS];
    struct gptq_work work;
    struct gptq_input input; /* shared by the projections in work */
};

/* d, a and s are borrowed. Errors: ERR_MEMORY, ERR_DEVICE; close in any case. */
enum err gptq_open(struct gptq *g, struct dev *d, const struct arch *a,
                   const struct calib_settings *s);
void gptq_close(struct gptq *g); /* accepts a zeroed or half-built one */
/* Returns its memory, device and host together. */
size_t gptq_bytes(const struct arch *a, const struct calib_settings *s);

/* Returns its flops in a block: the sums x x^T over all samples; for each input with a projection
 * that is quantized 2/3 n^3 for the factor of n columns; and n^2 a row of such projections. 0
 * without GPTQ. */
double gptq_flops(const struct arch *a, const struct calib_settings *s, int64_t block);

/* Starts a block: clears the moments. */
enum err gptq_begin(struct gptq *g);
/* Adds the inputs that the forward pass of a sample left in acts. */
enum err gptq_add(struct gptq *g, const struct block_acts *acts);
/* Quantizes all projections of f's block from its F32 weights; with f->gptq_start it sets
 * the start of the rounding offsets instead, under the scales of the clipping. Experts without
 * tokens are rounded to nearest, and unreached [E] is set for them; it is NULL where training
 * follows, whose steps say so. Errors: ERR_NUMERIC if a Hessian cannot be factored, ERR_MEMORY,
 * ERR_DEVICE. */
enum err gptq_finish(struct gptq *g, struct fakequant *f, bool *unreached);

#endif

/* SPDX-License-Identifier: MIT
 *
 * GPTQ of a block: the second moments of its four inputs, gathered sample by sample while
 * the block is in full precision, then its seven projections one after another. */
#ifndef WKVQ_GPTQ_H
#define WKVQ_GPTQ_H

#include "calib/fakequant.h"
#include "calib/gptq_solve.h"

/* What q, k, v read; o; gate, up; down. */
#define GPTQ_INPUTS 4

struct gptq {
    struct dev *dev;
    const struct arch *arch;
    const struct calib_settings *s;
    struct pool *pool;
    void *memory;                 /* of the device */
    struct tensor h[GPTQ_INPUTS]; /* F32 [n, n]: sum of x x^T, then U */
    struct gptq_work work;
    struct gptq_input input; /* of the projections in work */
};

enum err gptq_open(struct gptq *g, struct dev *d, const struct arch *a,
                   const struct calib_settings *s);
void gptq_close(struct gptq *g); /* accepts a zeroed or half-built one */
/* On the device and on the host. */
size_t gptq_bytes(const struct arch *a, const struct calib_settings *s);

enum err gptq_begin(struct gptq *g);
/* Add the inputs that a forward pass has left. */
enum err gptq_add(struct gptq *g, const struct block_acts *acts);
/* Quantize all projections of f's block, from its F32 weights; or start its offsets there,
 * under the scales that its clipping gives. */
enum err gptq_finish(struct gptq *g, struct fakequant *f);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Start values of the clipping by search (weights.init: search): for every group of weights
 * the gamma and beta of a small grid under which the projection's output errs least, inputs
 * taken as uncorrelated: sum_i E[x_i^2] (W_i - W^_i)^2. The second moments of a block's
 * four inputs are gathered sample by sample while the block is in full precision. */
#ifndef WKVQ_SEARCH_H
#define WKVQ_SEARCH_H

#include "calib/fakequant.h"
#include "kernels/base/pool.h"

/* What q, k, v read; o; gate, up; down. */
#define SEARCH_INPUTS 4

struct search {
    struct dev *dev;
    const struct arch *arch;
    const struct calib_settings *s;
    struct pool *pool;
    double *moment[SEARCH_INPUTS]; /* host, [columns of the projection] sum of x_i^2 */
    void *stage;                   /* host, [T, columns] act, an input of one sample */
};

/* d, a and s are borrowed. ERR_MEMORY; close in any case. */
enum err search_open(struct search *k, struct dev *d, const struct arch *a,
                     const struct calib_settings *s);
void search_close(struct search *k); /* accepts a zeroed or half-built one */
/* Of the host's memory, at most; 0 where nothing is searched. */
size_t search_bytes(const struct arch *a, const struct calib_settings *s);

/* Forget the block before. */
void search_begin(struct search *k);
/* Add the inputs that a forward pass of a sample has left. ERR_DEVICE. */
enum err search_add(struct search *k, const struct block_acts *acts);
/* f's a and b, the logits of gamma and beta, for all groups of its block. ERR_MEMORY,
 * ERR_DEVICE. */
enum err search_finish(struct search *k, struct fakequant *f);

/* *gamma, *beta in (0, 1): of one group of n weights w [n], m [n] their inputs' moments. */
void search_group(float *gamma, float *beta, const float *w, const double *m, int64_t n,
                  int bits);

#endif

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
    double *moment[SEARCH_INPUTS]; /* host, sum of x_i^2 */
    void *stage;                   /* host, an input of one sample */
};

enum err search_open(struct search *k, struct dev *d, const struct arch *a,
                     const struct calib_settings *s);
void search_close(struct search *k); /* accepts a zeroed or half-built one */
size_t search_bytes(const struct arch *a, const struct calib_settings *s); /* host */

void search_begin(struct search *k);
/* Add the inputs that a forward pass has left. */
enum err search_add(struct search *k, const struct block_acts *acts);
/* a and b of all groups of f's block. */
enum err search_finish(struct search *k, struct fakequant *f);

/* One group of n weights w, m their inputs' moments: gamma and beta. */
void search_group(float *gamma, float *beta, const float *w, const double *m, int64_t n,
                  int bits);

#endif

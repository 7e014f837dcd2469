/* SPDX-License-Identifier: MIT
 *
 * Searches the start values of the clipping (weights.init: search). Each group of weights
 * takes the gamma and beta of a small grid that minimize the expected error of the
 * projection's output,
 *
 *   sum_i E[x_i^2] (W_i - W^_i)^2
 *
 * with inputs taken as uncorrelated. The second moments of a block's four inputs (inputs.h) are
 * collected sample by sample while the block is in full precision, of each expert over the tokens
 * that reach it. Each process computes those of its own samples; the sums over samples are the same
 * for all (share_add). */
#ifndef WKVQ_SEARCH_H
#define WKVQ_SEARCH_H

#include "calib/batch/share.h"
#include "calib/fakequant.h"
#include "kernels/base/pool.h"

struct search {
    struct dev *dev;
    const struct arch *arch;
    const struct calib_settings *s;
    struct pool *pool;
    struct share *share;
    int64_t columns; /* of all inputs; of those of experts, E times */
    double
        *sample; /* host [columns], inputs in a row: sums of x_i^2 over a sample's tokens */
    double *sum; /* host [columns], over samples */
    void *stage; /* host [T][columns of an input] act, one input of one sample */
};

/* d, a, s and share are borrowed. Errors: ERR_MEMORY; close in any case. */
enum err search_open(struct search *k, struct dev *d, const struct arch *a,
                     const struct calib_settings *s, struct share *share);
void search_close(struct search *k); /* accepts a zeroed or half-built one */
/* Returns a bound of its host memory; 0 if nothing is searched. */
size_t search_bytes(const struct arch *a, const struct calib_settings *s);

/* Returns the numbers that a sample adds. */
int64_t search_columns(const struct arch *a);

/* Starts a block: clears the moments. */
void search_begin(struct search *k);
/* Adds the inputs that the forward pass of sample i left in acts, for each sample in turn. acts is
 * not read if another process has the sample. Errors: ERR_MEMORY, ERR_DEVICE. */
enum err search_add(struct search *k, const struct block_acts *acts, int64_t i);
/* Sets f's a and b, the logits of gamma and beta, for all groups of its block. Errors:
 * ERR_MEMORY, ERR_DEVICE. */
enum err search_finish(struct search *k, struct fakequant *f);

#endif

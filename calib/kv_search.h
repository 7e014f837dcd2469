/* SPDX-License-Identifier: MIT
 *
 * Start values of the smoothing by search (kv.init: search): the exponent alpha of
 * s = max |x - delta| ^ alpha, one for a block's keys and one for its values, under which
 * the cache errs least: the mean of (x^ - x)^2 over the samples. The grid is 0, 1/8 .. 1;
 * the paper's 1/2 is one of it. */
#ifndef WKVQ_KV_SEARCH_H
#define WKVQ_KV_SEARCH_H

#include "calib/model/block.h"

#define KV_SEARCH_GRID 9
#define KV_ALPHA 0.5f /* the paper's */

struct kv_search {
    struct dev *dev;
    const struct arch *arch;
    void *memory;
    struct tensor s[2][KV_SEARCH_GRID], delta[2]; /* [K*d] F32 of K, of V */
    double error[2][KV_SEARCH_GRID];              /* summed over samples */
};

/* d and a are borrowed. ERR_MEMORY, ERR_DEVICE; close in any case. */
enum err kv_search_open(struct kv_search *k, struct dev *d, const struct arch *a);
void kv_search_close(struct kv_search *k); /* accepts a zeroed or half-built one */
/* Of the device's memory. */
size_t kv_search_bytes(const struct arch *a);

/* log s and delta [n] of n channels that take values from mn to mx: delta = (mn + mx) / 2
 * and s = max |x - delta| ^ alpha, scaled to geometric mean 1. A channel that never moves
 * has no width to smooth; it gets the smallest s of the others. Host memory. */
void kv_smooth(float *ls, float *delta, const float *mn, const float *mx, int64_t n,
               float alpha);

/* A block whose keys and values (index KV_K, KV_V) take values from mn to mx, host [K*d].
 */
enum err kv_search_begin(struct kv_search *k, const float *const mn[2],
                         const float *const mx[2]);
/* Add a sample: keys and values as a forward pass of kv left them; x->kq and x->vq are
 * overwritten. */
enum err kv_search_add(struct kv_search *k, const struct block_acts *x,
                       const struct block_kv *kv);
/* The best of the grid, KV_ALPHA for what is left alone. */
void kv_search_finish(float alpha[2], const struct kv_search *k);

#endif

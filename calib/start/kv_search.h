/* SPDX-License-Identifier: MIT
 *
 * Searches the start values of the smoothing (kv.init: search): the exponent alpha of s =
 * max |x - delta| ^ alpha, one for the keys and one for the values of a block. The best
 * alpha of the grid 0, 1/8 .. 1 minimizes the mean of (x^ - x)^2 over the samples. The
 * paper uses 1/2. Each process computes the errors of its own samples; their sums are the same for
 * all (share_add). */
#ifndef WKVQ_KV_SEARCH_H
#define WKVQ_KV_SEARCH_H

#include "calib/batch/share.h"
#include "calib/model/block.h"

#define KV_SEARCH_GRID 9
#define KV_ALPHA 0.5f /* the paper's */

struct kv_search {
    struct dev *dev;
    const struct arch *arch;
    void *memory;
    struct tensor s[2][KV_SEARCH_GRID], delta[2]; /* [K*d] F32, of K and of V */
    double sample[2][KV_SEARCH_GRID];             /* errors of one sample */
    double error[2][KV_SEARCH_GRID];              /* sums over samples */
};

/* d and a are borrowed. Errors: ERR_MEMORY, ERR_DEVICE; close in any case. */
enum err kv_search_open(struct kv_search *k, struct dev *d, const struct arch *a);
void kv_search_close(struct kv_search *k); /* accepts a zeroed or half-built one */
/* Returns its device memory. */
size_t kv_search_bytes(const struct arch *a);

/* ls, delta [n] = log s and delta of channels with values in [mn, mx]: delta = (mn + mx) /
 * 2 and s = max |x - delta| ^ alpha, scaled to geometric mean 1. A constant channel has no
 * width; it gets the smallest s of the others. All host memory. */
void kv_smooth(float *ls, float *delta, const float *mn, const float *mx, int64_t n,
               float alpha);

/* Starts a block whose keys and values (index KV_K, KV_V) lie in [mn, mx], host [K*d]. */
enum err kv_search_begin(struct kv_search *k, const float *const mn[2],
                         const float *const mx[2]);
/* Sets k->sample to the errors of a sample: keys and values as a forward pass with kv left them in
 * x. Overwrites x->kq and x->vq. */
enum err kv_search_measure(struct kv_search *k, const struct block_acts *x,
                           const struct block_kv *kv);
/* Adds k->sample, which is of sample i, for each of the n samples in turn; it is not read if
 * another process has the sample. ERR_MEMORY. */
enum err kv_search_add(struct kv_search *k, struct share *share, int64_t i, int64_t n);
/* alpha = the best of the grid; KV_ALPHA where the cache is unquantized. */
void kv_search_finish(float alpha[2], const struct kv_search *k);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The whole decoder in full or simulated precision, on a device: embedding, blocks, head.
 * The calibrator's simulation that verification compares the runtime with, and what `eval`
 * runs on checkpoints. Blocks are streamed: one block's weights are resident at a time. */
#ifndef WKVQ_MODEL_H
#define WKVQ_MODEL_H

#include "calib/model/block.h"

/* x [T,D] F32 on d = rows `ids` of embed. ids host. Errors: ERR_FORMAT for an id outside.
 */
enum err model_embed(struct dev *d, const struct tensor *x, const struct host_mat *embed,
                     const int32_t *ids);

/* How a simulated run quantizes block i; *q = NULL: full precision. Scales and zeros apply
 * to the weights that have them, s and delta to the cache; 16 bits leave it alone. q is
 * borrowed until the next call. */
struct model_quant {
    void *ctx;
    enum err (*block)(void *ctx, int64_t i, const struct block_quant **q);
};

/* One run of the model over windows of T tokens. Logits are computed for a bounded number
 * of rows at a time. */
struct model_run {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src;
    const struct model_quant *quant; /* NULL: full precision */
    enum dtype act;
    int64_t chunk; /* tokens of one prefill chunk: within the current chunk the cache is
                      full precision; 1 = decode (POQ), <= 0 or >= T = the whole window */
    /* [n_windows]: the first so many tokens (fewer than T) of a window are those of the
     * window before, and are computed once. NULL: none. */
    const int64_t *shared;
    int act_bits; /* of the projections' inputs in every block, as struct block_kv has it */
    /* Progress in [0,1]; may be NULL. */
    void (*progress)(void *ctx, double share);
    void *progress_ctx;
    /* Hidden states of a window, host [T,D] F32: after `block`, -1 being the embedding. For
     * verification; may be NULL. */
    void (*hidden)(void *ctx, int64_t window, int64_t block, const float *x);
    void *hidden_ctx;
};

/* logits host [n_windows][T][V] F32 (small models, verification). */
enum err model_logits(const struct model_run *r, const int32_t *ids, int64_t n_windows,
                      int64_t T, float *logits);
/* nll host [n_windows][T-1] F32: -log p(ids[t+1] | ids[..t]) in nats. Block by block over
 * all windows, so weights are read once; hidden states of all windows are kept (F32). */
enum err model_nll(const struct model_run *r, const int32_t *ids, int64_t n_windows,
                   int64_t T, float *nll);

/* Logits piece by piece, for what compares two models: all of them do not fit. Opening runs
 * all windows through the blocks and keeps their last hidden states on the device; r->dev
 * and r->src must stay. */
struct model_states; /* opaque */
enum err model_states_open(struct model_states **out, const struct model_run *r,
                           const int32_t *ids, int64_t n_windows, int64_t T);
void model_states_close(struct model_states **s);
/* logits host [rows][V] F32 of tokens [t, t + rows) of window i. Cheapest in order. */
enum err model_states_logits(struct model_states *s, int64_t i, int64_t t, int64_t rows,
                             float *logits);

/* Keys and values of one window as attention sees them (rotated), for the worst-head
 * cosines of verification: k, v host [n_layers][T][K*d] F32. K^ and V^ where r->quant
 * quantizes a block's cache (hidden states then follow r->chunk), K and V elsewhere. Either
 * may be NULL. */
enum err model_kv(const struct model_run *r, const int32_t *ids, int64_t T, float *k,
                  float *v);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The whole decoder in full or simulated precision on a device: embedding, blocks, head. It
 * is the simulation that verification compares the runtime with, and what `eval` runs on
 * checkpoints. Blocks are streamed: one block's weights are resident at a time.
 *
 * Errors of all runs: ERR_FORMAT for an id outside the vocabulary, ERR_MISMATCH for scales
 * of another shape, ERR_SUPPORT for a length the architecture does not allow, ERR_MEMORY,
 * ERR_DEVICE, those of the sources. One caller per device. */
#ifndef WKVQ_MODEL_H
#define WKVQ_MODEL_H

#include "calib/model/block.h"

/* x [T,D] F32 on d = rows ids[t] of embed, times embed_scale; ids host. Errors: ERR_FORMAT
 * for an id that embed does not have. */
enum err model_embed(struct dev *d, const struct arch *a, const struct tensor *x,
                     const struct host_mat *embed, const int32_t *ids);
/* y [T,D] act = the final norm of the states x [T,D] F32 under gain [D], times logit_scale:
 * the head's rows times y are the logits. s [T] as dev_rmsnorm gives it. */
enum err model_last(struct dev *d, const struct arch *a, const struct tensor *y,
                    const struct tensor *s, const struct tensor *x,
                    const struct tensor *gain);
/* dx [T,D] F32 from dy [T,D] F32, which is destroyed. dgain [D] is added to; NULL: not
 * wanted. */
struct last_grads {
    const struct tensor *dx, *dgain, *dy;
};
enum err model_last_bwd(struct dev *d, const struct arch *a, const struct last_grads *g,
                        const struct tensor *s, const struct tensor *x,
                        const struct tensor *gain);

/* Logits of a whole window may be more than memory holds, so they exist for some rows at a time:
 * as many as have LOGITS_BYTES. Results depend on it in their last bits, because products of other
 * shapes round otherwise. */
#define LOGITS_BYTES (INT64_C(64) << 20)
/* Returns how many of T rows have that many bytes of logits in F32, at least 1. */
int64_t model_logit_rows(const struct arch *a, int64_t T, int64_t bytes);

/* How a simulated run quantizes block i; *q = NULL: not at all. Projections with scales are
 * quantized; s and delta apply to the cache where it has fewer than 16 bits. q is borrowed
 * until the next call. */
struct model_quant {
    void *ctx;
    enum err (*block)(void *ctx, int64_t i, const struct block_quant **q);
};

/* One run of the model over windows of T tokens. Everything is borrowed for the run. */
struct model_run {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src;
    const struct model_quant *quant; /* NULL: full precision */
    enum dtype act;
    /* Tokens of a prefill chunk: inside the current chunk the cache is in full precision.
     * 1: decoding; <= 0 or >= T: the whole window. */
    int64_t chunk;
    int act_bits; /* of the projections' inputs in every block, as struct block_kv has it */
    /* Called with the share done, in [0, 1]; may be NULL. */
    void (*progress)(void *ctx, double share);
    void *progress_ctx;
    /* Called with hidden states of a window, host [T][D] F32, after `block`; -1 is the
     * embedding. For verification; may be NULL. */
    void (*hidden)(void *ctx, int64_t window, int64_t block, const float *x);
    void *hidden_ctx;
};

/* logits host [n_windows][T][V] F32 (small models, verification). */
enum err model_logits(const struct model_run *r, const int32_t *ids, int64_t n_windows,
                      int64_t T, float *logits);
/* nll host [n_windows][T-1] F32: -log p(ids[t + 1] | ids[.. t]) in nats. T >= 2. */
enum err model_nll(const struct model_run *r, const int32_t *ids, int64_t n_windows,
                   int64_t T, float *nll);

/* Windows of R rows that hold several texts of any length, so that their products are computed
 * together and what texts begin with in common once. */
struct packed_windows {
    int64_t n, rows; /* windows, R */
    int64_t longest; /* tokens of a text at most */
    const struct sequence
        *sequence;         /* of all windows, in the order of their rows; own rows of a
                                      * window follow each other without gaps */
    const int64_t *start;  /* [n + 1] the first sequence of each window */
    const int32_t *ids;    /* [n][R], valid ids in unused rows too */
    const int32_t *target; /* [n][R]: the id whose loss a row gives; -1: none */
};
/* nll host [n][R] F32: -log p(target), as model_nll() has it for a text alone; 0 without a
 * target. r->chunk counts in the tokens of each text; r->hidden is not called. ERR_SHAPE for
 * sequences that do not fit their window. */
enum err model_nll_packed(const struct model_run *r, const struct packed_windows *w,
                          float *nll);

/* Logits by pieces, to compare two models whose logits do not fit into memory together.
 * Opening runs all windows through the blocks and keeps their last hidden states on the
 * device; r->dev and r->src must outlive it. */
struct model_states; /* opaque */
enum err model_states_open(struct model_states **out, const struct model_run *r,
                           const int32_t *ids, int64_t n_windows, int64_t T);
void model_states_close(struct model_states **s);
/* logits host [rows][V] F32 of tokens [t, t + rows) of window i. */
enum err model_states_logits(struct model_states *s, int64_t i, int64_t t, int64_t rows,
                             float *logits);

/* Keys and values of one window as attention sees them (after rope), host
 * [n_layers][T][K*d] F32; either may be NULL. K^ and V^ where r->quant quantizes a block's
 * cache (hidden states then follow r->chunk), else K and V. */
enum err model_kv(const struct model_run *r, const int32_t *ids, int64_t T, float *k,
                  float *v);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The full-precision decoder forward and all the way back, once: what every block computes
 * and the gradient of the loss in it, shown to who measures them. */
#ifndef WKVQ_MODEL_GRAD_H
#define WKVQ_MODEL_GRAD_H

#include "calib/model/block.h"

/* Visits go from the last block to the first, in each from window 0 on. Views are borrowed
 * for the call. */
struct model_visitor {
    void *ctx;
    /* What the block computes on one window, F32; backward follows. */
    enum err (*window)(void *ctx, int64_t block, const struct block_acts *acts);
    /* The gradients of that window: of the sum of -log p(next token) over its tokens, in
     * nats. */
    enum err (*grad)(void *ctx, enum block_grad what, const struct tensor *g);
    /* All windows have been through block; src: its weights. */
    enum err (*block)(void *ctx, int64_t block, const struct block_src *src);
    bool (*stop)(void *ctx); /* asked after every window: ERR_STOPPED; may be NULL */
};

/* ids host [n][T], T >= 2. *nll: mean over the n (T - 1) tokens that are predicted, nats.
 * Keeps the input of every block for all windows on the host: F32 [layers][n][T][D].
 * ERR_MEMORY, ERR_FORMAT as model_embed and block_weights_load have it, ERR_NUMERIC when
 * the loss is not finite. */
enum err model_backward(double *nll, struct dev *d, const struct arch *a,
                        const struct model_source *src, const int32_t *ids, int64_t n,
                        int64_t T, const struct model_visitor *v);

#endif

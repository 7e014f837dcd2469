/* SPDX-License-Identifier: MIT
 *
 * Runs the full-precision decoder forward and backward once and shows a visitor what every
 * block computes and its gradients. */
#ifndef WKVQ_MODEL_GRAD_H
#define WKVQ_MODEL_GRAD_H

#include "calib/model/block.h"

/* Windows of text to run a model on. */
struct model_windows {
    const int32_t *ids; /* host [n][T] */
    int64_t n, T;
};

/* Callbacks, from the last block to the first, in each block from window 0 on. Views are
 * borrowed for the call. */
struct model_visitor {
    void *ctx;
    /* The block's activations on one window, F32; its backward follows. */
    enum err (*window)(void *ctx, int64_t block, const struct block_acts *acts);
    /* A gradient in that window, of the sum of -log p(next token) over its tokens, in
     * nats. */
    enum err (*grad)(void *ctx, enum block_grad what, const struct tensor *g);
    /* All windows have passed the block; src: its weights. */
    enum err (*block)(void *ctx, int64_t block, const struct block_src *src);
    bool (*stop)(void *ctx); /* asked after every window; true: ERR_STOPPED. May be NULL. */
};

/* *nll = mean over the n (T - 1) predicted tokens, in nats; T >= 2. Keeps the input of
 * every block for all windows in host memory: F32 [layers][n][T][D]. Errors: ERR_MEMORY,
 * ERR_FORMAT as model_embed and block_weights_load, ERR_NUMERIC if the loss is not finite,
 * ERR_STOPPED, and those of the visitor. */
enum err model_backward(double *nll, struct dev *d, const struct arch *a,
                        const struct model_source *src, const struct model_windows *text,
                        const struct model_visitor *v);

#endif

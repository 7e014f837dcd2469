/* SPDX-License-Identifier: MIT
 *
 * Estimates how much rounding one projection, or the keys or values of one layer, costs the
 * model: for every candidate format, from one pass forward and back over a few windows with
 * nothing quantized.
 *
 * For an error e of a projection's output the loss grows by e' H e / 2. H is approximated
 * by the second moments of the gradients (Fisher). Errors of different weights are taken as
 * uncorrelated, and the gradients of all tokens as alike in shape. Then, with N predicted
 * tokens, in nats per token:
 *
 *   weights   sum_oi G_o X_i (W_oi - W^_oi)^2 / (2 N sum_o G_o)
 *             G_o = sum_t g_to^2,  X_i = sum_t |g_t|^2 x_ti^2
 *   cache     sum_th |g_th|^2 |K_th - K^_th|^2 / (2 N d),  per token t and head h
 *
 * Inputs are weighted token by token, because a first token with activations a hundred
 * times larger than the others has almost no gradient. Weights are rounded to nearest, the
 * cache as calibration starts; under KV_CHANNEL a group of keys is that many consecutive tokens
 * of a channel. Calibration recovers part of these losses, so only their order and ratios are
 * meaningful. */
#ifndef WKVQ_SENSITIVITY_H
#define WKVQ_SENSITIVITY_H

#include "calib/model/model_grad.h"

struct sensitivity {
    /* Set by the caller; formats are borrowed. */
    const struct mix_format *weight_format, *kv_format; /* bits 2..8, group sizes given */
    int n_weight, n_kv;                                 /* formats */
    int scale_bits;          /* of weights, as in struct weight_spec */
    struct kv_spec spec;     /* rotation and method of the cache */
    bool (*stop)(void *ctx); /* asked after every window; NULL: never */
    void *stop_ctx;
    /* Results, owned. */
    double *weight; /* [layers][N_LIN][n_weight] nats per token */
    double *kv;     /* [layers][2][n_kv] nats per token, enum kv_side */
    double nll;     /* of the windows in full precision, nats per token */
};

/* Measures all formats on the windows of `text` (T >= 2). Release with sensitivity_free
 * whatever the result. Errors: ERR_STOPPED, and those of model_backward. */
enum err sensitivity_measure(struct sensitivity *s, struct dev *d, const struct arch *a,
                             const struct model_source *src,
                             const struct model_windows *text);
void sensitivity_free(struct sensitivity *s); /* accepts a zeroed or half-built one */

#endif

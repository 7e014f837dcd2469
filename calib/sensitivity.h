/* SPDX-License-Identifier: MIT
 *
 * What rounding one projection, or the keys or values of one layer, costs the model: an
 * estimate for every format in question from one pass forward and back over a few windows,
 * nothing quantized in it.
 *
 * The loss grows by e' H e / 2 for an error e of a projection's output. H is taken as the
 * gradients' second moments (Fisher), errors of different weights as uncorrelated, and the
 * gradient of every token as alike in shape, so that of N predicted tokens
 *
 *   weights   sum_oi G_o X_i (W_oi - W^_oi)^2 / (2 N sum_o G_o),
 *             G_o = sum_t g_to^2,  X_i = sum_t |g_t|^2 x_ti^2
 *   cache     sum_th |g_th|^2 |K_th - K^_th|^2 / (2 N d), per token t and head h
 *
 * Inputs are weighed token by token, as a first token whose activations are a hundred times
 * the others' has next to no gradient.
 * In nats a token. Weights are rounded to nearest, the cache as calibration starts with it.
 * What calibration wins back is not in it: only the order and the ratios count. */
#ifndef WKVQ_SENSITIVITY_H
#define WKVQ_SENSITIVITY_H

#include "calib/model/weights.h"

struct sensitivity {
    /* As struct mix_format has them, bits 2..8, group sizes given; borrowed. */
    const struct mix_format *weight_format, *kv_format;
    int n_weight, n_kv;
    double *weight; /* [layers][N_LIN][n_weight] nats a token, owned */
    double *kv;     /* [layers][2][n_kv], enum kv_side */
    double nll;     /* of the windows in full precision */
};

/* The formats are filled in by the caller; free it whatever the result.
 *   ids    host [n][T], T >= 2
 *   kv     rotation and method, as they are calibrated
 *   stop   asked after every window; NULL: never. ERR_STOPPED
 * Errors: as model_backward has them. */
enum err sensitivity_measure(struct sensitivity *s, struct dev *d, const struct arch *a,
                             const struct model_source *src, const int32_t *ids, int64_t n,
                             int64_t T, const struct kv_spec *kv, bool (*stop)(void *ctx),
                             void *stop_ctx);
void sensitivity_free(struct sensitivity *s); /* accepts a zeroed or half-built one */

#endif

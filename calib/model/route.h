/* SPDX-License-Identifier: MIT
 *
 * The router of a mixture of experts, on the host: which experts a token goes to, and with which
 * weights. Alphabet: T tokens, E experts, k of them for a token, R = T k rows, one for each
 * choice, in the order of experts and then of tokens, so that an expert's rows lie together. */
#ifndef WKVQ_ROUTE_H
#define WKVQ_ROUTE_H

#include "calib/model/arch.h"

struct route {
    void *memory; /* one allocation */
    int64_t E, k;
    bool norm;     /* weights are divided by their sum */
    float *p;      /* [T][E] logits, which become probabilities, then gradients of logits */
    float *weight; /* [T][k] of the choices, largest first */
    float *grad;   /* [T][k] gradients of weight, in */
    float *row_weight; /* [R] */
    int32_t *expert;   /* [T][k] */
    int32_t *slot;     /* [T][k] the choice's row */
    int32_t *token;    /* [R] the row's token */
    int64_t *first;    /* [E + 1] rows of expert e: first[e] to first[e + 1] - 1 */
};

/* Allocates for at most T tokens of a, which has experts. ERR_MEMORY. */
enum err route_alloc(struct route *r, const struct arch *a, int64_t T);
void route_free(struct route *r); /* accepts a zeroed one */

/* From the logits p of T tokens: p = softmax(p), the k largest of each token (of equal ones those
 * with the lower number), their weights and their rows. Fedus et al. 2021; as transformers' router
 * of Qwen3-MoE and Mixtral, which leaves open which of equal probabilities it takes. */
void route_choose(struct route *r, int64_t T);
/* p [T][E] = gradients of the logits, from grad and the probabilities. Choices are constants:
 *   not norm   w_j = p_j           dz_e = p_e (g_e - sum_j g_j p_j), where g_e = 0 if not chosen
 *   norm       w = softmax(z) over the chosen ones, dz_j = w_j (g_j - sum_i g_i w_i), others 0 */
void route_grads(struct route *r, int64_t T);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Log-sum-exp of a row of logits and the Kullback-Leibler divergence of two rows, in f64.
 * The sums run from index 0 upward, so that equal rows give equal bits. */
#ifndef WKVQ_LOGSUMEXP_H
#define WKVQ_LOGSUMEXP_H

#include <stdint.h>

/* log(sum of exp(x[i])) over x [n], without overflow: max + log(sum of exp(x[i] - max)).
 * NaN if an element is NaN, else +inf if one is +inf; -inf if all are -inf or n is 0. */
double log_sum_exp(const float *x, int64_t n);

/* KL(P || Q) in nats for P = softmax(p), Q = softmax(q), both logits [n]:
 * the sum of P[i] (log P[i] - log Q[i]). log_p and log_q are their log_sum_exp. An element
 * with P[i] = 0 contributes 0; where Q[i] = 0 and P[i] > 0 the result is +inf. NaN if an
 * element is NaN, or if log_p or log_q is infinite. */
double kl_divergence(const float *p, double log_p, const float *q, double log_q, int64_t n);

#endif

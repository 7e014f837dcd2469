/* SPDX-License-Identifier: MIT
 *
 * Operations of a mixture of experts: what moves rows between the tokens and the experts that
 * the router chose for them, under the laws of kernels/dev.h. Alphabet: R rows of y, J rows of x
 * that belong to each, N rows of x, C columns. */
#ifndef WKVQ_DEV_EXPERTS_H
#define WKVQ_DEV_EXPERTS_H

#include "kernels/dev.h"

/* y[r] = sum_j weight[r,j] x[index[r,j]], in the order of j. y act [R,C]; x act [N,C]; index I32
 * [R,J], from 0 to N - 1, which is not checked; weight F32 [R,J], or NULL for weights 1. index and
 * weight are contiguous. With J = 1 this copies each token's row to its experts, with J > 1 it
 * adds up what the experts of a token return; each is the other's backward. */
enum err dev_gather(struct dev *d, const struct tensor *y, const struct tensor *x,
                    const struct tensor *index, const struct tensor *weight);

/* dw[r,j] = sum_c dy[r,c] x[index[r,j],c]: the gradient of dev_gather's weights. dw F32 [R,J],
 * contiguous; the others as there. */
enum err dev_gather_dot(struct dev *d, const struct tensor *dw, const struct tensor *dy,
                        const struct tensor *x, const struct tensor *index);

#endif

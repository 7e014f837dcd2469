/* SPDX-License-Identifier: MIT
 *
 * A rotation of values inside their heads, folded into the weights of one block. */
#ifndef WKVQ_HF_FOLD_H
#define WKVQ_HF_FOLD_H

#include "calib/model/weights.h"

/* v' = R v for every kv head, R the Hadamard matrix of kernels/tensor/hadamard.h, and
 * attention's output comes back by R^T = R: b's v_proj and its bias, and o_proj, become
 * views of *memory (the caller's to free) with R in them. Computed in f64 from the stored
 * values and rounded once, to the stored type: this is the only place where a folded weight
 * is rounded before it is quantized. */
enum err fold_values(struct block_src *b, void **memory, const struct arch *a);

#endif

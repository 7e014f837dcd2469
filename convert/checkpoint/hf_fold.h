/* SPDX-License-Identifier: MIT
 *
 * Folds a rotation of values inside their heads into the weights of one block. */
#ifndef WKVQ_HF_FOLD_H
#define WKVQ_HF_FOLD_H

#include "calib/model/weights.h"

/* Multiplies R into b's v_proj, its bias, and o_proj: v' = R v for every kv head, and R^T =
 * R rotates attention's output back. R is the Hadamard matrix of kernels/tensor/hadamard.h.
 * The three become views of *memory, which the caller frees with mem_free().
 * Products are computed in f64 from the stored values and rounded once, to the stored type.
 * This is the only place that rounds a folded weight before quantization. Errors:
 * ERR_MEMORY. */
enum err fold_values(struct block_src *b, void **memory, const struct arch *a);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Operations of a device that simulate the caches of other engines. The rules of kernels/dev.h
 * apply. */
#ifndef WKVQ_DEV_ENGINE_H
#define WKVQ_DEV_ENGINE_H

#include "kernels/dev.h"

/* Keys or values, and the engine's cache that holds them. */
struct engine_quant {
    const struct tensor *x;         /* act [T,K,d], a d that kv_target_check() accepts */
    const struct tensor *s, *shift; /* [K*d], of rotated channels; both NULL: 1 and 0 */
    float scale;           /* of the tensor, with kv_target_has_scales(), else unused */
    enum kv_target target; /* not TARGET_WKVQ */
    enum kv_side side;
    /* The engine's channel 2 i + p of a head is channel p d / 2 + i here. */
    bool interleaved;
};

/* ERR_SUPPORT if the device lacks these operations. A run with a target asks before its work
 * begins. */
enum err dev_engine_check(const struct dev *d, enum kv_target target);

/* xq = what attention reads from the engine's cache, in the basis of x. With P the order of
 * channels and R the engine's rotation (llama.cpp: Hadamard, over the whole head for keys and
 * over 64 channels at a time for values),
 *
 *   x~ = (R P x - shift) / s      xq = P^T R (s x~^ + shift)
 *
 * where x~^ is x~ as blocks of kernels/tensor/engine_block.h. Only llama.cpp has a P. quanto and
 * FP8 have no R; FP8 has s = scale, shift = 0 and x~^ = fp8_round(x~). vLLM's R for 4 bits is H D,
 * with fixed random signs D and H the signs of a Hadamard matrix over n channels, n the largest
 * power of two that divides d; its inverse D H / n stands for P^T R. xq act [T,K,d]; it may be x.
 * All devices compute the same bits. */
enum err dev_fake_quant_engine(struct dev *d, const struct tensor *xq,
                               const struct engine_quant *p);
/* All gradients from dxq, act [T,K,d], straight through the rounding of codes and fp16. A code
 * that is limited to 0 or 15 has a gradient only through d. d's goes to the first channel that its
 * block's d follows from. A value beyond FP8's range has none. */
enum err dev_fake_quant_engine_bwd(struct dev *d, const struct kv_grads *grads,
                                   const struct tensor *dxq, const struct engine_quant *p);

#endif

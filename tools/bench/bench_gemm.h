/* SPDX-License-Identifier: MIT
 *
 * The matrix products of one training step, alone: what the step would take if everything
 * else cost nothing. */
#ifndef WKVQ_BENCH_GEMM_H
#define WKVQ_BENCH_GEMM_H

#include "calib/calib.h"

struct bench_gemm {
    double linear_s, attention_s;         /* median pass */
    double linear_flops, attention_flops; /* made in those times */
};

/* Run, `passes` times after one to warm up, the products that a step of s makes on d, in
 * its order, with its types: forward of crr_blocks + 1 blocks, input gradients (not below
 * the trained block's q, k, v), weight gradients of the trained block. Attention's products
 * are T x T a head: forward S, O, backward S, dP, dV, dQ, dK; the causal mask needs one
 * half, so half of their time is counted. */
enum err bench_gemm_step(struct bench_gemm *out, struct dev *d, const struct arch *a,
                         const struct calib_settings *s, int64_t passes);
/* Bytes that it allocates on the device. */
size_t bench_gemm_bytes(const struct arch *a, const struct calib_settings *s);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The matrix products of one training step, measured alone. Their time is a lower bound of
 * the step's. */
#ifndef WKVQ_BENCH_GEMM_H
#define WKVQ_BENCH_GEMM_H

#include "calib/calib.h"

struct bench_gemm {
    double linear_s, attention_s;         /* seconds of the median pass */
    double linear_flops, attention_flops; /* floating-point operations in a pass */
};

/* Runs the products of a training step of s on d, `passes` times after one for warm-up.
 * Order and types are the step's: forward of crr_blocks + 1 blocks, input gradients (not
 * below the trained block's q, k, v), weight gradients of the trained block. Attention's
 * products are T x T per head: forward S, O, backward S, dP, dV, dQ, dK. Half of their time
 * is counted, since the causal mask needs one half. */
enum err bench_gemm_step(struct bench_gemm *out, struct dev *d, const struct arch *a,
                         const struct calib_settings *s, int64_t passes);
/* Returns the bytes that it allocates on the device. */
size_t bench_gemm_bytes(const struct arch *a, const struct calib_settings *s);

#endif

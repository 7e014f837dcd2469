/* SPDX-License-Identifier: MIT
 *
 * What attention allocates inside a device, beside its operands. The cuda device chooses between
 * cuDNN and its own kernels by these limits, so by shapes alone: the bytes of a run do not depend
 * on the memory that happens to be free, and a plan counts what the run will need. */
#ifndef WKVQ_ATTN_MEMORY_H
#define WKVQ_ATTN_MEMORY_H

#include "kernels/tensor/tensor.h"

/* Tokens from which making one of cuDNN's plans pays: it takes the host about half a second. */
#define CUDNN_LEAST_TOKENS 512
/* The window up to which the recent keys, which cuDNN does not see, cost less than it saves. */
#define CUDNN_MOST_WINDOW 16
/* Bytes that cuDNN may work in: those of 4096 tokens and 40 heads. */
#define CUDNN_MOST_WORKSPACE ((int64_t)3 << 29)
/* Those that the forward may work in: more than the 256 that were seen. */
#define CUDNN_FORWARD_WORKSPACE ((int64_t)1 << 16)

/* Returns the most bytes in which cuDNN's backward of n keys works: dS in BF16 in tiles of 128 by
 * 128, dK and dV of each query head if heads share keys, and a little more.
 * tools/peers/cudnn_plans.sh compares both limits with the library. */
static inline int64_t cudnn_workspace(int64_t n, int64_t H, int64_t K, int64_t d)
{
    const int64_t N = (n + 127) / 128 * 128;
    return CUDNN_FORWARD_WORKSPACE + 2 * H * N * (N + (H == K ? 0 : 2 * d));
}

/* Returns whether cuDNN may compute the backward of attention over T tokens. */
static inline bool cudnn_takes(int64_t T, int64_t H, int64_t K, int64_t d)
{
    return cudnn_workspace(T, H, K, d) <= CUDNN_MOST_WORKSPACE;
}

/* Returns the most bytes that cuda_parts.cu works in: keys and values in BF16, with sinks; two
 * numbers a query and two a recent pair, in F32. */
static inline int64_t parts_bytes(int64_t T, int64_t H, int64_t K, int64_t d)
{
    return 4 * T * K * d + 8 * T * H * (1 + CUDNN_MOST_WINDOW) + 4096;
}

/* Returns an upper bound, in bytes, of what attention with its backward allocates inside any
 * device: sums on the cpu, or cuDNN's part on a GPU. */
static inline int64_t attn_inside_bytes(int64_t T, int64_t H, int64_t K, int64_t d,
                                        enum dtype act)
{
    const int64_t sums = T * H * d * (int64_t)sizeof(float);
    if (act != DT_BF16 || T < CUDNN_LEAST_TOKENS)
        return sums;
    const int64_t workspace =
        cudnn_takes(T, H, K, d) ? cudnn_workspace(T, H, K, d) : CUDNN_FORWARD_WORKSPACE;
    const int64_t parts = parts_bytes(T, H, K, d) + workspace;
    return parts > sums ? parts : sums;
}

#endif

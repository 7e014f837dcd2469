/* SPDX-License-Identifier: MIT
 *
 * What attention allocates inside a device, beside its operands. A plan counts it by shapes and
 * threads alone. The cuda device chooses between cuDNN and its own kernels by these limits: the
 * bytes of a run do not depend on the memory that happens to be free. */
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

/* Sizes of attention over a sample: tokens, query heads, key-value heads, head width, and the type
 * of its operands. */
struct attn_shape {
    int64_t T, H, K, d;
    enum dtype act;
};

/* Returns an upper bound, in bytes, of what attention with its backward allocates inside a device,
 * with keys and values in both forms. cpu_threads: of the cpu device, where each thread has working
 * memory of its own; 0: on a GPU, sums or cuDNN's part. */
int64_t attn_inside_bytes(const struct attn_shape *s, int cpu_threads);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Products of small matrices by a warp: C[16, 8 NT] += A[16, K] B[K, 8 NT]. A and B are
 * in shared memory, C is in registers. BF16 uses the tensor cores' m16n8k16, which the
 * emulation computes lane by lane; F32 uses multiply-adds in the same layout.
 *
 * Lane l holds four elements of each 16 x 8 piece of C. With g = l / 4 and t = 2 (l % 4):
 *
 *             t   t+1                 elements c[0], c[1]: row g,     columns t, t + 1
 *      g    [ c0  c1 ]                elements c[2], c[3]: row g + 8, columns t, t + 1
 *      g+8  [ c2  c3 ]
 *
 * so the 4 lanes with the same g share the rows g and g + 8. */
#ifndef WKVQ_CUDA_MMA_H
#define WKVQ_CUDA_MMA_H

#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

__device__ __forceinline__ int lane_row(void)
{
    return (int)(threadIdx.x % WARP_SIZE) / 4;
}

__device__ __forceinline__ int lane_col(void)
{
    return (int)(threadIdx.x % 4) * 2;
}

/* --- BF16 ---------------------------------------------------------------------------- */

struct frag_a {
    unsigned r[4];
};
struct frag_b {
    unsigned r[2];
};

/* Two neighbouring elements as one word; `at` is even. */
__device__ __forceinline__ unsigned pair_at(SHARED(uint16_t) p, int at)
{
    return SHARED_AS(unsigned, p + at)[0];
}

/* A[16, 16], stored by rows. */
__device__ __forceinline__ frag_a load_a(SHARED(uint16_t) a, int ld)
{
    const int g = lane_row(), t = lane_col();
    return frag_a{{pair_at(a, g * ld + t), pair_at(a, (g + 8) * ld + t),
                   pair_at(a, g * ld + t + 8), pair_at(a, (g + 8) * ld + t + 8)}};
}

/* B[16, 8], stored [k][n] (COLS) or [n][k]. */
template <bool COLS> __device__ __forceinline__ frag_b load_b(SHARED(uint16_t) b, int ld)
{
    const int g = lane_row(), t = lane_col();
    if (!COLS)
        return frag_b{{pair_at(b, g * ld + t), pair_at(b, g * ld + t + 8)}};
    frag_b f;
    PTX_LDMATRIX("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];", f.r[0],
                 f.r[1], b + (int)(threadIdx.x % 16) * ld);
    return f;
}

__device__ __forceinline__ void mma_bf16(float *c, const frag_a &a, const frag_b &b)
{
    PTX_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};",
            c[0], c[1], c[2], c[3], a.r[0], a.r[1], a.r[2], a.r[3], b.r[0], b.r[1]);
}

template <bool COLS>
__device__ __forceinline__ void multiply(float *c, const frag_a &a, SHARED(uint16_t) b,
                                         int ld)
{
    mma_bf16(c, a, load_b<COLS>(b, ld));
}

/* --- F32 ----------------------------------------------------------------------------- */

struct rows_a {
    SHARED(float) p;
    int ld;
};

__device__ __forceinline__ rows_a load_a(SHARED(float) a, int ld)
{
    return rows_a{a, ld};
}

template <bool COLS>
__device__ __forceinline__ void multiply(float *c, const rows_a &a, SHARED(float) b, int ld)
{
    const int g = lane_row(), t = lane_col();
    UNROLL_NOT
    for (int k = 0; k < 16; k++) {
        const float a0 = a.p[g * a.ld + k], a1 = a.p[(g + 8) * a.ld + k];
        const float b0 = b[COLS ? k * ld + t : t * ld + k],
                    b1 = b[COLS ? k * ld + t + 1 : (t + 1) * ld + k];
        c[0] = fmaf(a0, b0, c[0]);
        c[1] = fmaf(a0, b1, c[1]);
        c[2] = fmaf(a1, b0, c[2]);
        c[3] = fmaf(a1, b1, c[3]);
    }
}

/* --- both ---------------------------------------------------------------------------- */

/* C += A B. B is stored [k][n] with COLS, else [n][k]. K is a multiple of 16. */
template <bool COLS, int K, int NT, class S>
__device__ __forceinline__ void product(float (&c)[NT][4], S a, int lda, S b, int ldb)
{
    UNROLL
    for (int k = 0; k < K; k += 16) {
        const auto row = load_a(a + k, lda);
        UNROLL
        for (int n = 0; n < NT; n++)
            multiply<COLS>(c[n], row, b + (COLS ? k * ldb + n * 8 : n * 8 * ldb + k), ldb);
    }
}

} // namespace CUDA_NS

#endif

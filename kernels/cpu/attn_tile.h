/* SPDX-License-Identifier: MIT
 *
 * Products of tiles for attention: the inner loops. Compiled with ATTN_PAIRS=1 for
 * processors that multiply pairs of BF16 (AVX512-BF16, BF16 of aarch64), and with
 * ATTN_PAIRS=0 for F32.
 *
 * A product is C[M,N] += A[M,K] B[K,N]. A is stored by rows. B is stored as "operands": a
 * 32-bit word holds DEPTH consecutive k of one column (two BF16 or one F32).
 *
 *        A [M][K], elements                  B as operands [K / DEPTH][N], words
 *
 *       k0 k1  k2 k3  ...                          n0       n1       n2
 *   m0 [a  a | a  a | ...]             k0,k1   [ b00,b10  b01,b11  b02,b12  ... ]
 *   m1 [a  a | a  a | ...]             k2,k3   [ b20,b30  b21,b31  b22,b32  ... ]
 *
 * One step takes a word of a row of A, copies it to all lanes, and multiplies it with a
 * vector of words of B. Lanes are columns of C, so no sum ever crosses lanes:
 *
 *   C[m0][n0 n1 n2 ...] += (a00,a01) . [(b00,b10) (b01,b11) (b02,b12) ...]
 *
 * A block of BLOCK_ROWS x (BLOCK_VECS VL) of C stays in registers over the whole of K.
 * Tiles are TILE = 64 tokens wide, so A, B and C of one product fit in the L1 and L2
 * caches.
 * */
#ifndef WKVQ_ATTN_TILE_H
#define WKVQ_ATTN_TILE_H

#include "kernels/base/half.h"
#include "kernels/cpu/cpu.h"
#include "kernels/simd/simd.h"

#include <string.h>

/* Queries or keys in a tile. */
#define TILE 64
/* Head widths are padded with zeros to a multiple of this. */
#define PAD 16

#if ATTN_PAIRS
#include "kernels/cpu/attn_pairs.h"
typedef uint16_t elem;
#define DEPTH 2
#define ATTN_NAME(name) ISA_NAME(name##_pairs)
#else
typedef float elem;
#define DEPTH 1
#define ATTN_NAME(name) ISA_NAME(name)
#endif

/* The block of C in registers: rows, and vectors per row. */
#define BLOCK_ROWS 4
#define BLOCK_VECS (VREGS == 32 ? 4 : 2)

#if ATTN_PAIRS
#define multiply_add pairs_multiply_add
#define word_all pairs_all
#define word_load pairs_load
typedef pairs word_vec;
#else
INLINE vf multiply_add(vf c, vf a, vf b)
{
    return vf_fma(a, b, c);
}
#define word_all(p) vf_set1(*(const float *)(p))
#define word_load(p) vf_load((const float *)(p))
typedef vf word_vec;
#endif

/* One block of C, BLOCK_ROWS x (vecs VL): C = C grow + A B, where grow [N] scales columns.
 * grow NULL: C = A B. vecs must be a constant at the call. */
INLINE void block_product(int vecs, float *C, int64_t ldc, const elem *A, int64_t lda,
                          const uint32_t *B, int64_t ldb, int64_t steps, const float *grow)
{
    vf acc[BLOCK_ROWS][BLOCK_VECS];
#pragma GCC unroll 8
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++)
            acc[r][v] = grow ? vf_mul(vf_load(C + r * ldc + v * VL), vf_load(grow + v * VL))
                             : vf_set1(0);
    for (int64_t k = 0; k < steps; k++) {
        word_vec b[BLOCK_VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++)
            b[v] = word_load(B + k * ldb + v * VL);
#pragma GCC unroll 8
        for (int r = 0; r < BLOCK_ROWS; r++) {
            const word_vec a = word_all(A + r * lda + k * DEPTH);
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++)
                acc[r][v] = multiply_add(acc[r][v], a, b[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++)
            vf_store(C + r * ldc + v * VL, acc[r][v]);
}

/* C[M,N] = C grow[N] + A[M,K] B[K,N]; grow NULL: C = A B. M is a multiple of BLOCK_ROWS,
 * N of PAD, K of DEPTH. */
INLINE void tile_product(float *C, int64_t ldc, int64_t M, int64_t N, const elem *A,
                         int64_t lda, const uint32_t *B, int64_t ldb, int64_t K,
                         const float *grow)
{
    int64_t n = 0;
    for (; n + BLOCK_VECS * VL <= N; n += BLOCK_VECS * VL)
        for (int64_t m = 0; m < M; m += BLOCK_ROWS)
            block_product(BLOCK_VECS, C + m * ldc + n, ldc, A + m * lda, lda, B + n, ldb,
                          K / DEPTH, grow ? grow + n : NULL);
    for (; n < N; n += VL)
        for (int64_t m = 0; m < M; m += BLOCK_ROWS)
            block_product(1, C + m * ldc + n, ldc, A + m * lda, lda, B + n, ldb, K / DEPTH,
                          grow ? grow + n : NULL);
}

/* 2^x with a relative error of 2e-7; 0 where x is below -64. A probability that small changes
 * no sum in F32. Kept, it would make subnormal numbers, with which processors of Intel are
 * so slow that they took most of a step where attention is sharp. */
INLINE vf exp2_of(vf x)
{
    const vf least = vf_set1(-64.0f), y = vf_max(least, x);
    const vf n = vf_rint(y), r = vf_sub(y, n);
    vf p = vf_set1(0x1.5bba14p-10f);
    p = vf_fma(p, r, vf_set1(0x1.3cea88p-7f));
    p = vf_fma(p, r, vf_set1(0x1.c6b752p-5f));
    p = vf_fma(p, r, vf_set1(0x1.ebf9bcp-3f));
    p = vf_fma(p, r, vf_set1(0x1.62e42ap-1f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_select(vf_lt(x, least), vf_set1(0), vf_ldexp(p, n));
}

/* Writes rows a and b of a future B as operands; with DEPTH 1 only row a. */
INLINE void put_operands(uint32_t *B, vf a, vf b)
{
#if ATTN_PAIRS
    pairs_put(B, a, b);
#else
    vf_store((float *)B, a);
#endif
}

/* Writes VL elements of a row of a future A. */
INLINE void put_elems(elem *A, vf x)
{
#if ATTN_PAIRS
    pairs_put_one(A, x);
#else
    vf_store(A, x);
#endif
}

/* Packing (attn_pack.c) happens once per block of tokens. dp is d rounded up to PAD. */

/* dst[TILE][dp] = tokens [t0, t0 + TILE) of head h of x. Tokens past the last one and
 * columns past d are zeros. */
void ATTN_NAME(pack_rows)(elem *dst, const struct tensor *x, int64_t t0, int64_t h,
                          int64_t dp);
/* dst[cols][rows] = src[rows][cols], words. */
void ATTN_NAME(transpose_words)(uint32_t *dst, int64_t ld_dst, const uint32_t *src,
                                int64_t ld_src, int64_t rows, int64_t cols);
/* The operands of B = src: dst [TILE / DEPTH][dp] from src [TILE][dp]. */
void ATTN_NAME(pack_operands)(uint32_t *dst, const elem *src, int64_t dp);

#define pack_rows ATTN_NAME(pack_rows)
#define transpose_words ATTN_NAME(transpose_words)
#define pack_operands ATTN_NAME(pack_operands)

/* The operands of B = src^T: dst [dp / DEPTH][TILE] from src [TILE][dp]. */
INLINE void pack_operands_of_transpose(uint32_t *dst, const elem *src, int64_t dp)
{
    transpose_words(dst, TILE, (const uint32_t *)src, dp / DEPTH, TILE, dp / DEPTH);
}

/* A = src^T: dst [dp][TILE] from the operands of src. */
INLINE void pack_transpose(elem *dst, const uint32_t *operands, int64_t dp)
{
    transpose_words((uint32_t *)dst, TILE / DEPTH, operands, dp, TILE / DEPTH, dp);
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * Rows of packed codes as vectors whose lanes are rows. For files that are compiled once
 * per instruction set; private to convert/runtime. */
#ifndef WKVQ_RT_TRANSPOSE_H
#define WKVQ_RT_TRANSPOSE_H

#include "kernels/simd/simd.h"

#include <string.h>

/* words[i], lane r = the i-th 32-bit word of row r: 8 columns of each of VL rows. Rows from
 * n on repeat row n - 1. Each row has bytes > 0 bytes left; those beyond are 0. */
#if defined(__AVX512F__)
static inline void load_transposed(vi *words, const uint8_t *p, int64_t stride, int64_t n,
                                   int64_t bytes)
{
    const __m512i low =
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    vi other[16];
    for (int i = 0; i < 16; i++)
        words[i] = vi_load_bytes_n(p + (i < n ? i : n - 1) * stride, bytes);
    /* Interleaving rows i and i + 8 four times transposes 16 x 16 words. */
    for (int stage = 0; stage < 4; stage += 2) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m512i a = (__m512i)words[i], b = (__m512i)words[i + 8];
            other[2 * i] = (vi)_mm512_permutex2var_epi32(a, low, b);
            other[2 * i + 1] = (vi)_mm512_permutex2var_epi32(a, high, b);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m512i a = (__m512i)other[i], b = (__m512i)other[i + 8];
            words[2 * i] = (vi)_mm512_permutex2var_epi32(a, low, b);
            words[2 * i + 1] = (vi)_mm512_permutex2var_epi32(a, high, b);
        }
    }
}
#elif defined(__aarch64__) && !defined(SIMD_PLAIN)
static inline void load_transposed(vi *words, const uint8_t *p, int64_t stride, int64_t n,
                                   int64_t bytes)
{
    vi row[4];
    for (int i = 0; i < 4; i++)
        row[i] = vi_load_bytes_n(p + (i < n ? i : n - 1) * stride, bytes);
    /* Pairs of words of two rows, and then pairs of these. */
    for (int i = 0; i < 2; i++) {
        const int64x2_t low = vreinterpretq_s64_s32(i ? vtrn2q_s32(row[0], row[1])
                                                      : vtrn1q_s32(row[0], row[1]));
        const int64x2_t high = vreinterpretq_s64_s32(i ? vtrn2q_s32(row[2], row[3])
                                                       : vtrn1q_s32(row[2], row[3]));
        words[i] = vreinterpretq_s32_s64(vtrn1q_s64(low, high));
        words[i + 2] = vreinterpretq_s32_s64(vtrn2q_s64(low, high));
    }
}
#else
static inline void load_transposed(vi *words, const uint8_t *p, int64_t stride, int64_t n,
                                   int64_t bytes)
{
    uint32_t row[VL][VL] = {{0}};
    for (int i = 0; i < VL; i++)
        memcpy(row[i], p + (i < n ? i : n - 1) * stride,
               bytes < 4 * VL ? (size_t)bytes : 4 * VL);
    for (int w = 0; w < VL; w++)
        for (int i = 0; i < VL; i++)
            words[w][i] = (int32_t)row[i][w];
}
#endif

#endif

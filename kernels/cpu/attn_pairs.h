/* SPDX-License-Identifier: MIT
 *
 * Products of pairs of BF16 for kernels/cpu/attn_tile.h: vectors of VL 32-bit words, each a
 * pair. Included with ATTN_PAIRS=1 only. */
#ifndef WKVQ_ATTN_PAIRS_H
#define WKVQ_ATTN_PAIRS_H

#include "kernels/simd/simd.h"

#if defined(__AVX512BF16__)

typedef __m512i pairs;

/* c + a0 b0 + a1 b1 in each lane. */
INLINE vf pairs_multiply_add(vf c, pairs a, pairs b)
{
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}

INLINE pairs pairs_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

/* One pair in every lane. */
INLINE pairs pairs_all(const void *p)
{
    return _mm512_set1_epi32((int)*(const uint32_t *)p);
}

/* Stores x rounded to BF16. */
INLINE void pairs_put_one(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Stores pairs of a, low, and b, rounded to BF16. */
INLINE void pairs_put(uint32_t *p, vf a, vf b)
{
    const __m512i mix =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                         7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(mix, both));
}

/* The same for VL numbers each that are BF16. */
INLINE void pairs_zip(uint32_t *p, const uint16_t *a, const uint16_t *b)
{
    const __m512i lo = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)a));
    const __m512i hi = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)b));
    _mm512_storeu_si512(p, _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
}

#else /* aarch64 */

typedef uint32x4_t pairs;

INLINE vf pairs_multiply_add(vf c, pairs a, pairs b)
{
    return vbfdotq_f32(c, vreinterpretq_bf16_u32(a), vreinterpretq_bf16_u32(b));
}

INLINE pairs pairs_load(const void *p)
{
    return vld1q_u32(p);
}

INLINE pairs pairs_all(const void *p)
{
    return vld1q_dup_u32(p);
}

INLINE void pairs_put_one(uint16_t *p, vf x)
{
    vf_store_bf16(p, x);
}

INLINE void pairs_put(uint32_t *p, vf a, vf b)
{
    const uint16x8_t low = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(a));
    const uint16x8_t high = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(b));
    vst1q_u32(p, vreinterpretq_u32_u16(vzip1q_u16(low, high)));
}

INLINE void pairs_zip(uint32_t *p, const uint16_t *a, const uint16_t *b)
{
    vst1q_u32(p, vorrq_u32(vmovl_u16(vld1_u16(a)), vshll_n_u16(vld1_u16(b), 16)));
}

#endif

#endif

/* SPDX-License-Identifier: MIT
 *
 * kernels/cpu/simd.h with AVX-512 F, BW, VL, DQ. Only simd.h includes this. */
#ifndef WKVQ_SIMD_AVX512_H
#define WKVQ_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define VL 16
typedef __m512 vf;
typedef __mmask16 vm;

static inline vm vm_first(int64_t n)
{
    return n >= VL ? (vm)0xffff : (vm)((1u << n) - 1);
}

static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline vf vf_load_n(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(vm_first(n), p);
}

static inline void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}

static inline void vf_store_n(float *p, vf x, int64_t n)
{
    _mm512_mask_storeu_ps(p, vm_first(n), x);
}

static inline vf widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Ties to even, subnormals kept, NaN quiet: bf16_from_f32(). */
static inline __m256i narrow_bf16(vf x)
{
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const vm nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i r = _mm512_mask_mov_epi32(_mm512_add_epi32(u, bias), nan, quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    return widen_bf16(_mm256_loadu_si256((const __m256i *)p));
}

static inline vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    return widen_bf16(_mm256_maskz_loadu_epi16(vm_first(n), p));
}

static inline void vf_store_bf16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p, narrow_bf16(x));
}

static inline void vf_store_bf16_n(uint16_t *p, vf x, int64_t n)
{
    _mm256_mask_storeu_epi16(p, vm_first(n), narrow_bf16(x));
}

static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

static inline vf vf_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}

static inline vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}

static inline vf vf_rint(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vm vf_lt(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

static inline vm vf_finite(vf a)
{
    return _mm512_cmp_ps_mask(vf_abs(a), vf_set1(3.40282347e38f), _CMP_LE_OQ);
}

static inline vm vm_and(vm a, vm b)
{
    return (vm)(a & b);
}

static inline vm vm_or(vm a, vm b)
{
    return (vm)(a | b);
}

static inline int vm_all(vm m)
{
    return m == (vm)0xffff;
}

static inline vf vf_select(vm m, vf yes, vf no)
{
    return _mm512_mask_mov_ps(no, m, yes);
}

/* Lane numbers 0, 1, ... */
static inline vf vf_iota(void)
{
    return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

/* x 2^n, n integral. */
static inline vf vf_ldexp(vf x, vf n)
{
    return _mm512_scalef_ps(x, n);
}

static inline float vf_sum(vf x)
{
    return _mm512_reduce_add_ps(x);
}

static inline float vf_hmax(vf x)
{
    return _mm512_reduce_max_ps(x);
}

static inline float vf_hmin(vf x)
{
    return _mm512_reduce_min_ps(x);
}

/* Sum of the lanes in f64. */
static inline double vf_sum64(vf x)
{
    const __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(lo, hi));
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * kernels/simd/simd.h for AVX-512 F, BW, VL, DQ: 16 lanes. Only simd.h includes this
 * file. */
#ifndef WKVQ_SIMD_AVX512_H
#define WKVQ_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VL 16
#define VREGS 32
typedef __m512 vf;
typedef __mmask16 vm;
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint8_t vu8 __attribute__((vector_size(VL)));

static inline vm vm_first(int64_t n)
{
    return n >= VL ? (vm)0xffff : (vm)((1u << n) - 1);
}

static inline vf vf_load_n(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(vm_first(n), p);
}

static inline void vf_store_n(float *p, vf x, int64_t n)
{
    _mm512_mask_storeu_ps(p, vm_first(n), x);
}

static inline vf widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Rounds as bf16_from_f32(): ties to even, subnormals kept, NaN made quiet. */
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

static inline vf vf_load_bf16(const void *p)
{
    return widen_bf16(_mm256_loadu_si256(p));
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

static inline vf vf_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

/* Rounds as f16_from_f32(). */
static inline void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((__m256i *)p,
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* The first n words, n >= 0. */
static inline vi vi_load_n(const void *p, int64_t n)
{
    return (vi)_mm512_maskz_loadu_epi32(vm_first(n), p);
}

/* Words of which the first n bytes are read, n >= 0. */
static inline vi vi_load_bytes_n(const void *p, int64_t n)
{
    if (n >= (int64_t)sizeof(vi))
        return (vi)_mm512_loadu_si512(p);
    return (vi)_mm512_maskz_loadu_epi8(((__mmask64)1 << n) - 1, p);
}

/* VL unsigned bytes as floats. By intrinsics: gcc 12 takes a conversion of vectors to lanes
 * of four times the width apart, byte by byte. */
static inline vf vf_load_u8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)));
}

/* Integers from 0 to 255 as VL bytes. */
static inline void vf_store_u8(uint8_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}

static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
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

/* y[4] = the sums of four vectors: transposed while they are added. */
static inline void vf_sum4(float *y, vf a, vf b, vf c, vf d)
{
    const __m512d ab = (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
    const __m512d cd = (__m512d)(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
    const __m512 abcd =
        (__m512)_mm512_unpacklo_pd(ab, cd) + (__m512)_mm512_unpackhi_pd(ab, cd);
    const __m256 half = _mm512_castps512_ps256(abcd) + _mm512_extractf32x8_ps(abcd, 1);
    _mm_storeu_ps(y, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
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

/* acc += a b, two products of signed 16-bit integers in each lane. */
static inline vi vi_dot_int16(vi acc, vi a, vi b)
{
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#else
    return acc + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
}

/* The 128 floats of a[8], reordered: those at even places first, then those at odd ones. */
static inline void vf_even_before_odd(vf *a)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    vf b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_permutex2var_ps(a[2 * i], even, a[2 * i + 1]);
        b[i + 4] = _mm512_permutex2var_ps(a[2 * i], odd, a[2 * i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = b[i];
}

/* Eight 4-bit codes are stored in the 32 bits of a lane, the lowest first. vtable_get()
 * gives code k of every lane minus the zero point: one permutation looks the lowest four
 * bits of each lane up among the table's sixteen floats. */
typedef vf vtable;

#define VTABLE_ROW(z)                                                                      \
    {                                                                                      \
        0 - z, 1 - z, 2 - z, 3 - z, 4 - z, 5 - z, 6 - z, 7 - z, 8 - z, 9 - z, 10 - z,      \
            11 - z, 12 - z, 13 - z, 14 - z, 15 - z                                         \
    }
static const float vtable_rows[16][16] __attribute__((aligned(64))) = {
    VTABLE_ROW(0),  VTABLE_ROW(1),  VTABLE_ROW(2),  VTABLE_ROW(3),
    VTABLE_ROW(4),  VTABLE_ROW(5),  VTABLE_ROW(6),  VTABLE_ROW(7),
    VTABLE_ROW(8),  VTABLE_ROW(9),  VTABLE_ROW(10), VTABLE_ROW(11),
    VTABLE_ROW(12), VTABLE_ROW(13), VTABLE_ROW(14), VTABLE_ROW(15)};

static inline vtable vtable_codes(int zero)
{
    return _mm512_load_ps(vtable_rows[zero]);
}

static inline vf vtable_get(vtable table, vi codes, int k)
{
    return _mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)codes, 4 * (unsigned)k), table);
}

#endif

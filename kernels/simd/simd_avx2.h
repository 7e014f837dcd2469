/* SPDX-License-Identifier: MIT
 *
 * kernels/simd/simd.h for AVX2, FMA and F16C: 8 lanes. Only simd.h includes this file. */
#ifndef WKVQ_SIMD_AVX2_H
#define WKVQ_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VL 8
#define VREGS 16
typedef __m256 vf;
typedef __m256 vm; /* all ones or all zeros per lane */
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint8_t vu8 __attribute__((vector_size(VL)));

static inline vf vf_load_n(const float *p, int64_t n)
{
    float t[VL] = {0};
    memcpy(t, p, (size_t)(n < VL ? n : VL) * sizeof(*t));
    return _mm256_loadu_ps(t);
}

static inline void vf_store_n(float *p, vf x, int64_t n)
{
    float t[VL];
    _mm256_storeu_ps(t, x);
    memcpy(p, t, (size_t)(n < VL ? n : VL) * sizeof(*t));
}

static inline vf vf_load_bf16(const void *p)
{
    const __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

static inline vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[VL] = {0};
    memcpy(t, p, (size_t)(n < VL ? n : VL) * sizeof(*t));
    return vf_load_bf16(t);
}

/* Rounds as bf16_from_f32(): ties to even, subnormals kept, NaN made quiet. */
static inline void vf_store_bf16(uint16_t *p, vf x)
{
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i r = _mm256_blendv_epi8(_mm256_add_epi32(u, bias), quiet, nan);
    r = _mm256_srli_epi32(r, 16);
    r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(r));
}

static inline void vf_store_bf16_n(uint16_t *p, vf x, int64_t n)
{
    uint16_t t[VL];
    vf_store_bf16(t, x);
    memcpy(p, t, (size_t)(n < VL ? n : VL) * sizeof(*t));
}

static inline vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}

/* Rounds as f16_from_f32(). */
static inline void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p,
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* The first n words, n >= 0. */
static inline vi vi_load_n(const void *p, int64_t n)
{
    vi v = {0};
    memcpy(&v, p, n < VL ? 4 * (size_t)n : sizeof(v));
    return v;
}

/* Words of which the first n bytes are read, n >= 0. */
static inline vi vi_load_bytes_n(const void *p, int64_t n)
{
    vi v = {0};
    memcpy(&v, p, n < (int64_t)sizeof(v) ? (size_t)n : sizeof(v));
    return v;
}

/* VL unsigned bytes as floats. By intrinsics: gcc 12 takes a conversion of vectors to lanes
 * of four times the width apart, byte by byte. */
static inline vf vf_load_u8(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)));
}

/* Integers from 0 to 255 as VL bytes. */
static inline void vf_store_u8(uint8_t *p, vf x)
{
    const __m256i i = _mm256_cvtps_epi32(x);
    const __m128i w =
        _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(w, w));
}

static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}

static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

static inline vf vf_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}

static inline vf vf_abs(vf a)
{
    return _mm256_andnot_ps(vf_set1(-0.0f), a);
}

static inline vf vf_rint(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vm vf_lt(vf a, vf b)
{
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}

static inline vm vf_finite(vf a)
{
    return _mm256_cmp_ps(vf_abs(a), vf_set1(3.40282347e38f), _CMP_LE_OQ);
}

static inline vm vm_and(vm a, vm b)
{
    return _mm256_and_ps(a, b);
}

static inline vm vm_or(vm a, vm b)
{
    return _mm256_or_ps(a, b);
}

static inline int vm_all(vm m)
{
    return _mm256_movemask_ps(m) == 0xff;
}

static inline vf vf_select(vm m, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, m);
}

/* Lane numbers 0, 1, ... */
static inline vf vf_iota(void)
{
    return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0);
}

static inline vm vm_first(int64_t n)
{
    return vf_lt(vf_iota(), vf_set1((float)(n < VL ? n : VL)));
}

static inline vf power_of_two(__m256i n)
{
    const __m256i e = _mm256_add_epi32(n, _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}

/* x 2^n, n integral, -250 <= n <= 250. */
static inline vf vf_ldexp(vf x, vf n)
{
    const __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1);
    return x * power_of_two(half) * power_of_two(_mm256_sub_epi32(i, half));
}

static inline float vf_sum(vf x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

/* y[4] = the sums of four vectors. */
static inline void vf_sum4(float *y, vf a, vf b, vf c, vf d)
{
    y[0] = vf_sum(a);
    y[1] = vf_sum(b);
    y[2] = vf_sum(c);
    y[3] = vf_sum(d);
}

static inline float vf_hmax(vf x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline float vf_hmin(vf x)
{
    __m128 s = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_min_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_min_ss(s, _mm_shuffle_ps(s, s, 1)));
}

/* Sum of the lanes in f64. */
static inline double vf_sum64(vf x)
{
    __m256d s = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    s = _mm256_add_pd(s, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
}

/* acc += a b, two products of signed 16-bit integers in each lane. */
static inline vi vi_dot_int16(vi acc, vi a, vi b)
{
    return acc + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

/* Eight 4-bit codes are stored in the 32 bits of a lane, the lowest first. vtable_get()
 * gives code k of every lane minus the zero point. */
typedef vf vtable;

static inline vtable vtable_codes(int zero)
{
    return vf_set1((float)zero);
}

static inline vf vtable_get(vtable zero, vi codes, int k)
{
    return __builtin_convertvector((codes >> 4 * k) & 15, vf) - zero;
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * Vectors of the inner loops: the compilers' own (vector_size), as wide as the registers of
 * the instruction set that the file is compiled for. Private to convert/runtime. */
#ifndef WKVQ_RT_VEC_H
#define WKVQ_RT_VEC_H

#include "kernels/base/half.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* For loops over registers: how many there are must be known where it is called. */
#define INLINED static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef uint8_t vb __attribute__((vector_size(VL)));

/* Contraction is off in the whole tree; sums of products may use the instruction. */
static inline vf madd(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline vf splat(float x)
{
#if defined(__AVX512F__)
    return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){x, x, x, x};
#endif
}

static inline float sum(vf v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s[VL];
    memcpy(s, &v, sizeof(s));
    for (int width = VL / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            s[i] += s[i + width];
    return s[0];
#endif
}

/* y [4] = the sums of four vectors. */
static inline void sum_of_four(float *y, vf a, vf b, vf c, vf d)
{
#if defined(__AVX512F__)
    const __m512 wa = (__m512)a, wb = (__m512)b, wc = (__m512)c, wd = (__m512)d;
    const __m512d ab = (__m512d)(_mm512_unpacklo_ps(wa, wb) + _mm512_unpackhi_ps(wa, wb));
    const __m512d cd = (__m512d)(_mm512_unpacklo_ps(wc, wd) + _mm512_unpackhi_ps(wc, wd));
    const __m512 abcd =
        (__m512)_mm512_unpacklo_pd(ab, cd) + (__m512)_mm512_unpackhi_pd(ab, cd);
    const __m256 half = _mm512_castps512_ps256(abcd) + _mm512_extractf32x8_ps(abcd, 1);
    _mm_storeu_ps(y, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#else
    y[0] = sum(a);
    y[1] = sum(b);
    y[2] = sum(c);
    y[3] = sum(d);
#endif
}

static inline vf from_bytes(vb b)
{
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
}

static inline vb load_bytes(const uint8_t *p)
{
    vb b;
    memcpy(&b, p, sizeof(b));
    return b;
}

static inline vf load_bf16(const uint8_t *p)
{
    vh h;
    memcpy(&h, p, sizeof(h));
    const vi u = __builtin_convertvector(h, vi) << 16;
    vf v;
    memcpy(&v, &u, sizeof(v));
    return v;
}

static inline void store(float *p, vf v)
{
    memcpy(p, &v, sizeof(v));
}

static inline uint16_t half_at(const uint8_t *p, int64_t i)
{
    return (uint16_t)(p[2 * i] | p[2 * i + 1] << 8);
}

static inline vf load_f16(const uint8_t *p)
{
    vf v;
#if defined(__AVX512F__)
    const __m512 x = _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
    memcpy(&v, &x, sizeof(v));
#elif defined(__F16C__) && VL == 8
    const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
    memcpy(&v, &x, sizeof(v));
#else
    for (int i = 0; i < VL; i++)
        v[i] = f16_to_f32(half_at(p, i));
#endif
    return v;
}

/* Columns whose 4-bit codes fill a vector: eight in the 32 bits of each lane. */
#define VECTOR_COLUMNS (8 * VL)

/* A vector of codes at p, of which `bytes` exist; the others are 0. */
static inline vi load_codes(const uint8_t *p, int64_t bytes)
{
    vi v = {0};
    if (bytes >= (int64_t)sizeof(v)) {
        memcpy(&v, p, sizeof(v));
        return v;
    }
#if defined(__AVX512BW__)
    return (vi)_mm512_maskz_loadu_epi8(((__mmask64)1 << bytes) - 1, p);
#else
    memcpy(&v, p, (size_t)bytes);
    return v;
#endif
}

/* Eight 4-bit codes lie in the 32 bits of a lane. The k-th of each, looked up: sixteen
 * values that a lane's lowest four bits index, or without that instruction code - zero. */
#if defined(__AVX512F__)
typedef __m512 vtable;

#define CODES(z)                                                                           \
    0 - z, 1 - z, 2 - z, 3 - z, 4 - z, 5 - z, 6 - z, 7 - z, 8 - z, 9 - z, 10 - z, 11 - z,  \
        12 - z, 13 - z, 14 - z, 15 - z
static const float code_tables[16][16] __attribute__((aligned(64))) = {
    {CODES(0)},  {CODES(1)},  {CODES(2)},  {CODES(3)}, {CODES(4)},  {CODES(5)},
    {CODES(6)},  {CODES(7)},  {CODES(8)},  {CODES(9)}, {CODES(10)}, {CODES(11)},
    {CODES(12)}, {CODES(13)}, {CODES(14)}, {CODES(15)}};

static inline vtable code_table(int zero)
{
    return _mm512_load_ps(code_tables[zero]);
}

static inline vf look_up(vtable table, vi codes, int k)
{
    return (vf)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)codes, 4 * (unsigned)k),
                                     table);
}
/* Eight vectors' even places, then their odd ones. */
static inline void even_before_odd(__m512 *a)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    __m512 b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_permutex2var_ps(a[2 * i], even, a[2 * i + 1]);
        b[i + 4] = _mm512_permutex2var_ps(a[2 * i], odd, a[2 * i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = b[i];
}

#else
typedef vf vtable;

static inline vtable code_table(int zero)
{
    return splat((float)zero);
}

static inline vf look_up(vtable zero, vi codes, int k)
{
    return __builtin_convertvector((codes >> 4 * k) & 15, vf) - zero;
}
#endif

#endif

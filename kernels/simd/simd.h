/* SPDX-License-Identifier: MIT
 *
 * Vectors of VL floats, for kernels that are written once and compiled once per instruction
 * set (kernels/simd/isa.h). The flags of the compilation choose one of four headers:
 *
 *     simd_avx512.h   VL = 16, x86-64      simd_neon.h    VL = 4, aarch64
 *     simd_avx2.h     VL = 8,  x86-64      simd_plain.h   VL = 4, any processor
 *
 * VREGS is the number of vectors that its registers hold.
 *
 * Types: vf holds VL floats, vi VL int32_t, vm a mask with one truth value per lane, and
 * vtable a table that 4-bit codes index. vf and vi are the compiler's vector types, so the
 * operators + - * / and, for vi, & | ~ << >> work on them lane by lane, as v[lane] does.
 *
 * Rounding is IEEE, once per operation; the whole tree is compiled without contraction.
 * Only vf_fma() and what is built on it differ between sets: simd_plain.h rounds twice.
 * Functions that end in _n read or write the first n lanes only, n <= VL or clamped to
 * it; the lanes that are not read are 0. Memory needs no alignment.
 *
 * Each of these headers defines:
 *
 *     vf_load_n vf_store_n vf_load_bf16[_n] vf_store_bf16[_n] vf_load_f16 vf_store_f16
 *     vf_load_u8 vf_store_u8 vi_load_n vi_load_bytes_n vf_set1 vf_iota vf_fma vf_max
 *     vf_min vf_sqrt vf_abs vf_rint vf_ldexp vf_lt vf_finite vf_select vm_and vm_or vm_all
 *     vm_first vf_sum vf_sum4 vf_sum64 vf_hmax vf_hmin vi_dot_int16 vtable_codes vtable_get
 *
 * simd_avx512.h alone has vf_even_before_odd(). */
#ifndef WKVQ_SIMD_H
#define WKVQ_SIMD_H

#include "kernels/base/half.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Loops over arrays of vectors stay in registers only if their bounds are constants where
 * the function is called. */
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) &&              \
    defined(__AVX512DQ__)
#include "kernels/simd/simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "kernels/simd/simd_avx2.h"
#elif defined(__aarch64__) && !defined(SIMD_PLAIN)
#include "kernels/simd/simd_neon.h"
#else
#include "kernels/simd/simd_plain.h"
#endif

/* --- memory -------------------------------------------------------------------------- */

static inline vf vf_load(const void *p)
{
    vf v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void vf_store(float *p, vf x)
{
    memcpy(p, &x, sizeof(x));
}

/* The first n of VL elements; the others are 0. */
static inline vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[VL] = {0};
    memcpy(t, p, (size_t)(n < VL ? n : VL) * sizeof(*t));
    return vf_load_f16(t);
}

static inline void vf_store_f16_n(uint16_t *p, vf x, int64_t n)
{
    uint16_t t[VL];
    vf_store_f16(t, x);
    memcpy(p, t, (size_t)(n < VL ? n : VL) * sizeof(*t));
}

/* Elements [c, c + VL) of a row of F32 or BF16 that ends at `end`. */
static inline vf act_get(const void *row, bool bf16, int64_t c, int64_t end)
{
    const float *f = row;
    const uint16_t *h = row;
    if (end - c >= VL)
        return bf16 ? vf_load_bf16(h + c) : vf_load(f + c);
    return bf16 ? vf_load_bf16_n(h + c, end - c) : vf_load_n(f + c, end - c);
}

static inline void act_put(void *row, bool bf16, int64_t c, int64_t end, vf x)
{
    float *f = row;
    uint16_t *h = row;
    if (end - c >= VL) {
        if (bf16)
            vf_store_bf16(h + c, x);
        else
            vf_store(f + c, x);
    } else if (bf16) {
        vf_store_bf16_n(h + c, x, end - c);
    } else {
        vf_store_n(f + c, x, end - c);
    }
}

/* The same for F32 alone. */
static inline vf f32_get(const float *row, int64_t c, int64_t end)
{
    return end - c >= VL ? vf_load(row + c) : vf_load_n(row + c, end - c);
}

static inline void f32_put(float *row, int64_t c, int64_t end, vf x)
{
    if (end - c >= VL)
        vf_store(row + c, x);
    else
        vf_store_n(row + c, x, end - c);
}

/* ... and for F16. */
static inline vf f16_get(const uint16_t *row, int64_t c, int64_t end)
{
    return end - c >= VL ? vf_load_f16(row + c) : vf_load_f16_n(row + c, end - c);
}

static inline void f16_put(uint16_t *row, int64_t c, int64_t end, vf x)
{
    if (end - c >= VL)
        vf_store_f16(row + c, x);
    else
        vf_store_f16_n(row + c, x, end - c);
}

/* Codes of up to 4 bits that stand two a byte, the first in the low half: NIBBLES of them in half
 * as many bytes. In a word of 16 bits the two halves move apart into its two bytes. */
#define NIBBLES 16
typedef uint8_t nibble_pairs __attribute__((vector_size(NIBBLES / 2)));
typedef uint16_t nibble_words __attribute__((vector_size(NIBBLES)));

static inline void nibbles_unpack(uint8_t *to, const uint8_t *from)
{
    nibble_pairs b;
    memcpy(&b, from, sizeof(b));
    nibble_words w = __builtin_convertvector(b, nibble_words);
    w = (w | w << 4) & 0x0f0f;
    memcpy(to, &w, sizeof(w));
}

static inline void nibbles_pack(uint8_t *to, const uint8_t *from)
{
    nibble_words w;
    memcpy(&w, from, sizeof(w));
    const nibble_pairs b = __builtin_convertvector((w | w >> 4) & 0xff, nibble_pairs);
    memcpy(to, &b, sizeof(b));
}

/* --- arithmetic ---------------------------------------------------------------------- */

static inline vf vf_add(vf a, vf b)
{
    return a + b;
}

static inline vf vf_sub(vf a, vf b)
{
    return a - b;
}

static inline vf vf_mul(vf a, vf b)
{
    return a * b;
}

static inline vf vf_div(vf a, vf b)
{
    return a / b;
}

/* e^x with an error of about 1e-7 relative, for subnormal results too. Overflow gives
 * infinity, NaN stays NaN. Cody and Waite's reduction x = n ln 2 + r, then the polynomial
 * of Cephes' expf in r. */
static inline vf vf_exp(vf x)
{
    x = vf_min(vf_set1(89.0f), vf_max(vf_set1(-104.0f), x));
    const vf n = vf_rint(vf_mul(x, vf_set1(1.44269504f)));
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(vf_mul(r, r), p, r);
    return vf_ldexp(vf_add(p, vf_set1(1.0f)), n);
}

/* 1 / (1 + e^-x) */
static inline vf vf_sigmoid(vf x)
{
    const vf e = vf_exp(vf_sub(vf_set1(0.0f), x));
    return vf_div(vf_set1(1.0f), vf_add(vf_set1(1.0f), e));
}

#endif

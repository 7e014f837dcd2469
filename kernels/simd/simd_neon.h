/* SPDX-License-Identifier: MIT
 *
 * kernels/simd/simd.h for NEON, which every aarch64 processor has: 4 lanes. Only simd.h
 * includes this file. */
#ifndef WKVQ_SIMD_NEON_H
#define WKVQ_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define VL 4
#define VREGS 32
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint8_t vu8 __attribute__((vector_size(VL)));
typedef uint32x4_t vm; /* all ones or all zeros per lane */

static inline size_t lanes_of(int64_t n)
{
    return n < VL ? (size_t)n : VL;
}

static inline vf vf_load_n(const float *p, int64_t n)
{
    float t[VL] = {0};
    memcpy(t, p, lanes_of(n) * sizeof(*t));
    return vld1q_f32(t);
}

static inline void vf_store_n(float *p, vf x, int64_t n)
{
    memcpy(p, &x, lanes_of(n) * sizeof(*p));
}

static inline vf vf_load_bf16(const void *p)
{
    uint16x4_t h;
    memcpy(&h, p, sizeof(h));
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}

static inline vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[VL] = {0};
    memcpy(t, p, lanes_of(n) * sizeof(*t));
    return vf_load_bf16(t);
}

/* Rounds as bf16_from_f32(): ties to even, subnormals kept, NaN made quiet. */
static inline void vf_store_bf16(uint16_t *p, vf x)
{
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    vst1_u16(p, vreinterpret_u16_bf16(vcvt_bf16_f32(x)));
#else
    const uint32x4_t u = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t even = vaddq_u32(vaddq_u32(u, odd), vdupq_n_u32(0x7fff));
    const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), even, quiet), 16));
#endif
}

static inline void vf_store_bf16_n(uint16_t *p, vf x, int64_t n)
{
    uint16_t t[VL];
    vf_store_bf16(t, x);
    memcpy(p, t, lanes_of(n) * sizeof(*t));
}

static inline vf vf_load_f16(const void *p)
{
    uint16x4_t h;
    memcpy(&h, p, sizeof(h));
    return vcvt_f32_f16(vreinterpret_f16_u16(h));
}

/* Rounds as f16_from_f32(). */
static inline void vf_store_f16(uint16_t *p, vf x)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}

/* The first n words, n >= 0. */
static inline vi vi_load_n(const void *p, int64_t n)
{
    int32_t t[VL] = {0};
    memcpy(t, p, lanes_of(n) * sizeof(*t));
    return vld1q_s32(t);
}

/* Words of which the first n bytes are read, n >= 0. */
static inline vi vi_load_bytes_n(const void *p, int64_t n)
{
    int32_t t[VL] = {0};
    if (n >= (int64_t)sizeof(t))
        return vreinterpretq_s32_u8(vld1q_u8(p));
    memcpy(t, p, (size_t)n);
    return vld1q_s32(t);
}

/* VL unsigned bytes as floats. */
static inline vf vf_load_u8(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof(four));
    const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
}

/* Integers from 0 to 255 as VL bytes. */
static inline void vf_store_u8(uint8_t *p, vf x)
{
    const uint16x4_t w = vmovn_u32(vcvtq_u32_f32(x));
    const uint8x8_t b = vmovn_u16(vcombine_u16(w, w));
    memcpy(p, &b, VL);
}

static inline vf vf_set1(float x)
{
    return vdupq_n_f32(x);
}

static inline vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}

static inline vf vf_select(vm m, vf yes, vf no)
{
    return vbslq_f32(m, yes, no);
}

/* b where a lane is NaN, as on other processors; FMAX would give NaN. */
static inline vf vf_max(vf a, vf b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

static inline vf vf_min(vf a, vf b)
{
    return vbslq_f32(vcltq_f32(a, b), a, b);
}

static inline vf vf_sqrt(vf a)
{
    return vsqrtq_f32(a);
}

static inline vf vf_abs(vf a)
{
    return vabsq_f32(a);
}

static inline vf vf_rint(vf a)
{
    return vrndnq_f32(a);
}

static inline vm vf_lt(vf a, vf b)
{
    return vcltq_f32(a, b);
}

static inline vm vf_finite(vf a)
{
    return vcaleq_f32(a, vf_set1(3.40282347e38f));
}

static inline vm vm_and(vm a, vm b)
{
    return vandq_u32(a, b);
}

static inline vm vm_or(vm a, vm b)
{
    return vorrq_u32(a, b);
}

static inline int vm_all(vm m)
{
    return vminvq_u32(m) != 0;
}

/* Lane numbers 0, 1, ... */
static inline vf vf_iota(void)
{
    return (vf){0, 1, 2, 3};
}

static inline vm vm_first(int64_t n)
{
    return vf_lt(vf_iota(), vf_set1((float)(n < VL ? n : VL)));
}

static inline vf power_of_two(int32x4_t n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

/* x 2^n, n integral, -250 <= n <= 250. */
static inline vf vf_ldexp(vf x, vf n)
{
    const int32x4_t i = vcvtq_s32_f32(n), half = vshrq_n_s32(i, 1);
    return x * power_of_two(half) * power_of_two(vsubq_s32(i, half));
}

static inline float vf_sum(vf x)
{
    return vaddvq_f32(x);
}

/* y[4] = the sums of four vectors. */
static inline void vf_sum4(float *y, vf a, vf b, vf c, vf d)
{
    vst1q_f32(y, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline float vf_hmax(vf x)
{
    return vmaxvq_f32(x);
}

static inline float vf_hmin(vf x)
{
    return vminvq_f32(x);
}

/* Sum of the lanes in f64. */
static inline double vf_sum64(vf x)
{
    return vaddvq_f64(vaddq_f64(vcvt_f64_f32(vget_low_f32(x)), vcvt_high_f64_f32(x)));
}

/* acc += a b, two products of signed 16-bit integers in each lane. */
static inline vi vi_dot_int16(vi acc, vi a, vi b)
{
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
    return vaddq_s32(acc, vpaddq_s32(low, vmull_high_s16(x, y)));
}

/* Eight 4-bit codes are stored in the 32 bits of a lane, the lowest first. vtable_get()
 * gives code k of every lane minus the zero point. */
typedef vf vtable;

static inline vtable vtable_codes(int zero)
{
    return vf_set1((float)zero);
}

/* The conversion divides by the power of two at which the code stands. k must be a constant
 * where the function is called. */
#define VTABLE_CASE(k)                                                                     \
    case k:                                                                                \
        return vcvtq_n_f32_u32(vandq_u32(u, vdupq_n_u32(15u << 4 * k)), 4 * k) - zero
INLINE vf vtable_get(vtable zero, vi codes, int k)
{
    const uint32x4_t u = vreinterpretq_u32_s32(codes);
    switch (k) {
        VTABLE_CASE(1);
        VTABLE_CASE(2);
        VTABLE_CASE(3);
        VTABLE_CASE(4);
        VTABLE_CASE(5);
        VTABLE_CASE(6);
        VTABLE_CASE(7);
    default:
        return vcvtq_f32_u32(vandq_u32(u, vdupq_n_u32(15))) - zero;
    }
}
#undef VTABLE_CASE

#endif

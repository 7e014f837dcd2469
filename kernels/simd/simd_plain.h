/* SPDX-License-Identifier: MIT
 *
 * kernels/simd/simd.h for any processor, by the compiler's own vectors: 4 lanes. Only
 * simd.h includes this file. */
#ifndef WKVQ_SIMD_PLAIN_H
#define WKVQ_SIMD_PLAIN_H

#include "kernels/base/half.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define VL 4
#define VREGS 16
#define EACH_LANE for (int l = 0; l < VL; l++)
typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint8_t vu8 __attribute__((vector_size(VL)));
typedef vi vm; /* all ones or all zeros per lane */

static inline size_t lanes_of(int64_t n)
{
    return n < VL ? (size_t)n : VL;
}

static inline vf vf_load_n(const float *p, int64_t n)
{
    vf r = {0};
    memcpy(&r, p, lanes_of(n) * sizeof(float));
    return r;
}

static inline void vf_store_n(float *p, vf x, int64_t n)
{
    memcpy(p, &x, lanes_of(n) * sizeof(float));
}

static inline vf vf_load_bf16_n(const void *p, int64_t n)
{
    uint16_t t[VL] = {0};
    vf r = {0};
    memcpy(t, p, lanes_of(n) * sizeof(*t));
    EACH_LANE r[l] = bf16_to_f32(t[l]);
    return r;
}

static inline vf vf_load_bf16(const void *p)
{
    return vf_load_bf16_n(p, VL);
}

static inline void vf_store_bf16(uint16_t *p, vf x)
{
    EACH_LANE p[l] = bf16_from_f32(x[l]);
}

static inline void vf_store_bf16_n(uint16_t *p, vf x, int64_t n)
{
    uint16_t t[VL];
    vf_store_bf16(t, x);
    memcpy(p, t, lanes_of(n) * sizeof(*t));
}

static inline vf vf_load_f16(const void *p)
{
    uint16_t t[VL];
    vf r = {0};
    memcpy(t, p, sizeof(t));
    EACH_LANE r[l] = f16_to_f32(t[l]);
    return r;
}

static inline void vf_store_f16(uint16_t *p, vf x)
{
    EACH_LANE p[l] = f16_from_f32(x[l]);
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

/* VL unsigned bytes as floats. */
static inline vf vf_load_u8(const uint8_t *p)
{
    return (vf){p[0], p[1], p[2], p[3]};
}

/* Integers from 0 to 255 as VL bytes. */
static inline void vf_store_u8(uint8_t *p, vf x)
{
    EACH_LANE p[l] = (uint8_t)x[l];
}

static inline vf vf_set1(float x)
{
    return (vf){x, x, x, x};
}

/* Two roundings: not every processor has an instruction that rounds once. */
static inline vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}

static inline vf vf_select(vm m, vf yes, vf no)
{
    return (vf)((m & (vi)yes) | (~m & (vi)no));
}

static inline vf vf_max(vf a, vf b)
{
    return vf_select(a > b, a, b);
}

static inline vf vf_min(vf a, vf b)
{
    return vf_select(a < b, a, b);
}

static inline vf vf_sqrt(vf a)
{
    EACH_LANE a[l] = sqrtf(a[l]);
    return a;
}

static inline vf vf_abs(vf a)
{
    EACH_LANE a[l] = fabsf(a[l]);
    return a;
}

static inline vf vf_rint(vf a)
{
    EACH_LANE a[l] = rintf(a[l]);
    return a;
}

static inline vm vf_lt(vf a, vf b)
{
    return a < b;
}

static inline vm vf_finite(vf a)
{
    return vf_abs(a) <= vf_set1(3.40282347e38f);
}

static inline vm vm_and(vm a, vm b)
{
    return a & b;
}

static inline vm vm_or(vm a, vm b)
{
    return a | b;
}

static inline int vm_all(vm m)
{
    return (m[0] & m[1] & m[2] & m[3]) != 0;
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

/* x 2^n, n integral, -250 <= n <= 250. */
static inline vf vf_ldexp(vf x, vf n)
{
    EACH_LANE
    {
        const int i = n[l] == n[l] ? (int)n[l] : 0, half = i >> 1;
        const float lo = f32_from_bits((uint32_t)(half + 127) << 23);
        x[l] = x[l] * lo * f32_from_bits((uint32_t)(i - half + 127) << 23);
    }
    return x;
}

static inline float vf_sum(vf x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
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
    float r = x[0];
    EACH_LANE r = x[l] > r ? x[l] : r;
    return r;
}

static inline float vf_hmin(vf x)
{
    float r = x[0];
    EACH_LANE r = x[l] < r ? x[l] : r;
    return r;
}

/* Sum of the lanes in f64. */
static inline double vf_sum64(vf x)
{
    return ((double)x[0] + (double)x[2]) + ((double)x[1] + (double)x[3]);
}

/* acc += a b, two products of signed 16-bit integers in each lane. */
static inline vi vi_dot_int16(vi acc, vi a, vi b)
{
    return acc + (a >> 16) * (b >> 16) + (a << 16 >> 16) * (b << 16 >> 16);
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

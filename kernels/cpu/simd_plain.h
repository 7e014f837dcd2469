/* SPDX-License-Identifier: MIT
 *
 * kernels/cpu/simd.h in plain C, for any processor: lanes are short loops that a compiler
 * turns into what the machine has. Only simd.h includes this. */
#ifndef WKVQ_SIMD_PLAIN_H
#define WKVQ_SIMD_PLAIN_H

#include "kernels/base/half.h"

#include <math.h>
#include <stdint.h>

#define VL 4
#define EACH_LANE for (int l = 0; l < VL; l++)
typedef struct {
    float v[VL];
} vf;
typedef struct {
    uint32_t v[VL]; /* all ones or all zeros a lane */
} vm;

static inline int lanes_of(int64_t n)
{
    return n < VL ? (int)n : VL;
}

static inline vf vf_load(const float *p)
{
    vf r;
    memcpy(&r, p, sizeof(r));
    return r;
}

static inline vf vf_load_n(const float *p, int64_t n)
{
    vf r = {{0}};
    memcpy(&r, p, (size_t)lanes_of(n) * sizeof(float));
    return r;
}

static inline void vf_store(float *p, vf x)
{
    memcpy(p, &x, sizeof(x));
}

static inline void vf_store_n(float *p, vf x, int64_t n)
{
    memcpy(p, &x, (size_t)lanes_of(n) * sizeof(float));
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    vf r;
    EACH_LANE r.v[l] = bf16_to_f32(p[l]);
    return r;
}

static inline vf vf_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t t[VL] = {0};
    memcpy(t, p, (size_t)lanes_of(n) * sizeof(*t));
    return vf_load_bf16(t);
}

static inline void vf_store_bf16(uint16_t *p, vf x)
{
    EACH_LANE p[l] = bf16_from_f32(x.v[l]);
}

static inline void vf_store_bf16_n(uint16_t *p, vf x, int64_t n)
{
    for (int l = 0; l < lanes_of(n); l++)
        p[l] = bf16_from_f32(x.v[l]);
}

static inline vf vf_set1(float x)
{
    vf r;
    EACH_LANE r.v[l] = x;
    return r;
}

static inline vf vf_add(vf a, vf b)
{
    EACH_LANE a.v[l] = a.v[l] + b.v[l];
    return a;
}

static inline vf vf_sub(vf a, vf b)
{
    EACH_LANE a.v[l] = a.v[l] - b.v[l];
    return a;
}

static inline vf vf_mul(vf a, vf b)
{
    EACH_LANE a.v[l] = a.v[l] * b.v[l];
    return a;
}

static inline vf vf_div(vf a, vf b)
{
    EACH_LANE a.v[l] = a.v[l] / b.v[l];
    return a;
}

/* Two roundings: there may be no instruction for one. */
static inline vf vf_fma(vf a, vf b, vf c)
{
    EACH_LANE a.v[l] = a.v[l] * b.v[l] + c.v[l];
    return a;
}

static inline vf vf_max(vf a, vf b)
{
    EACH_LANE a.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l];
    return a;
}

static inline vf vf_min(vf a, vf b)
{
    EACH_LANE a.v[l] = a.v[l] < b.v[l] ? a.v[l] : b.v[l];
    return a;
}

static inline vf vf_sqrt(vf a)
{
    EACH_LANE a.v[l] = sqrtf(a.v[l]);
    return a;
}

static inline vf vf_abs(vf a)
{
    EACH_LANE a.v[l] = fabsf(a.v[l]);
    return a;
}

static inline vf vf_rint(vf a)
{
    EACH_LANE a.v[l] = rintf(a.v[l]);
    return a;
}

static inline vm vf_lt(vf a, vf b)
{
    vm r;
    EACH_LANE r.v[l] = a.v[l] < b.v[l] ? ~0u : 0u;
    return r;
}

static inline vm vf_finite(vf a)
{
    vm r;
    EACH_LANE r.v[l] = isfinite(a.v[l]) ? ~0u : 0u;
    return r;
}

static inline vm vm_and(vm a, vm b)
{
    EACH_LANE a.v[l] &= b.v[l];
    return a;
}

static inline vm vm_or(vm a, vm b)
{
    EACH_LANE a.v[l] |= b.v[l];
    return a;
}

static inline int vm_all(vm m)
{
    uint32_t all = ~0u;
    EACH_LANE all &= m.v[l];
    return all == ~0u;
}

static inline vm vm_first(int64_t n)
{
    vm r;
    EACH_LANE r.v[l] = l < n ? ~0u : 0u;
    return r;
}

static inline vf vf_select(vm m, vf yes, vf no)
{
    EACH_LANE no.v[l] = m.v[l] ? yes.v[l] : no.v[l];
    return no;
}

/* Lane numbers 0, 1, ... */
static inline vf vf_iota(void)
{
    vf r;
    EACH_LANE r.v[l] = (float)l;
    return r;
}

/* x 2^n, n integral, -250 <= n <= 250. */
static inline vf vf_ldexp(vf x, vf n)
{
    EACH_LANE
    {
        const int i = n.v[l] == n.v[l] ? (int)n.v[l] : 0, half = i >> 1;
        const float lo = f32_from_bits((uint32_t)(half + 127) << 23);
        x.v[l] = x.v[l] * lo * f32_from_bits((uint32_t)(i - half + 127) << 23);
    }
    return x;
}

static inline float vf_sum(vf x)
{
    return (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
}

static inline float vf_hmax(vf x)
{
    float r = x.v[0];
    EACH_LANE r = x.v[l] > r ? x.v[l] : r;
    return r;
}

static inline float vf_hmin(vf x)
{
    float r = x.v[0];
    EACH_LANE r = x.v[l] < r ? x.v[l] : r;
    return r;
}

/* Sum of the lanes in f64. */
static inline double vf_sum64(vf x)
{
    return ((double)x.v[0] + (double)x.v[2]) + ((double)x.v[1] + (double)x.v[3]);
}

#endif

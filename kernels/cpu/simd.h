/* SPDX-License-Identifier: MIT
 *
 * Vectors of VL floats. The kernels of this folder are written once against these functions
 * and compiled once for every instruction set (kernels/meson.build); each includes the
 * widest that its flags allow. All rounding is IEEE, one rounding an operation; only vf_fma
 * and what is built on it differs between the sets. Masked lanes read as 0. */
#ifndef WKVQ_SIMD_H
#define WKVQ_SIMD_H

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "kernels/cpu/simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "kernels/cpu/simd_avx2.h"
#else
#include "kernels/cpu/simd_plain.h"
#endif

#include <stdbool.h>

/* Elements [c, c + VL) of a row that ends at `end`, act type. */
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

/* e^x within about 1e-7 of its value, also where it is subnormal; overflow is infinity, NaN
 * stays. Cody and Waite's reduction, then the polynomial of Cephes' expf. */
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

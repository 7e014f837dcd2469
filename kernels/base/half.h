/* SPDX-License-Identifier: MIT
 *
 * fp16 (IEEE binary16) and bf16 from and to f32: exact, with ties to even, in portable C.
 * The SIMD kernels use instructions that round the same way.
 *
 *          sign  exponent  mantissa bits
 *   f32     1       8         23
 *   bf16    1       8          7       the upper half of an f32
 *   fp16    1       5         10       65504 at most; normal from 2^-14, else 2^-24 */
#ifndef WKVQ_HALF_H
#define WKVQ_HALF_H

#include <stdint.h>
#include <string.h>

/* nvcc compiles these for the GPU too, so that it shares the definition. */
#ifdef __CUDACC__
#define HALF_FN static inline __host__ __device__
#else
#define HALF_FN static inline
#endif

HALF_FN uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

HALF_FN float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

HALF_FN float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

/* NaN becomes a quiet NaN; values beyond the largest bf16 become infinity. */
HALF_FN uint16_t bf16_from_f32(float f)
{
    const uint32_t u = f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

HALF_FN float f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exp = h >> 10 & 0x1fu;
    const uint32_t man = h & 0x3ffu;
    if (exp == 0x1f)
        return f32_from_bits(sign | 0x7f800000u | man << 13);
    if (exp)
        return f32_from_bits(sign | (exp + 112u) << 23 | man << 13);
    const float magnitude = (float)man * 0x1p-24f; /* subnormal or zero, exact */
    return f32_from_bits(sign | f32_bits(magnitude));
}

/* As bf16_from_f32(): beyond 65519.99 the result is infinity. */
HALF_FN uint16_t f16_from_f32(float f)
{
    const uint32_t u = f32_bits(f);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    const uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* below 2^-14: adding 0.5 rounds at bit 2^-24 */
        const float r = f32_from_bits(a) + 0.5f;
        return (uint16_t)(sign | (f32_bits(r) - 0x3f000000u));
    }
    const uint32_t r = a + 0xfffu + (a >> 13 & 1u);
    return (uint16_t)(sign | ((r >> 13) - (112u << 10)));
}

/* The fp16 nearest to f, as f32. */
HALF_FN float f16_round(float f)
{
    return f16_to_f32(f16_from_f32(f));
}

#endif

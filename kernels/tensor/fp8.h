/* SPDX-License-Identifier: MIT
 *
 * FP8 E4M3 as accelerators have it (OCP OFP8, "E4M3FN"): a sign, 4 bits of exponent with bias 7, 3
 * of significand, subnormals with the step 2^-9, no infinity, and 448 as the largest value. */
#ifndef WKVQ_FP8_H
#define WKVQ_FP8_H

#include "kernels/tensor/quant.h"

#define FP8_MAX 448.0f

/* Returns the value that FP8 has for x: the nearest one, ties to even, and +-448 for what is
 * beyond (__NV_SATFINITE). NaN stays NaN. */
HALF_FN float fp8_round(float x)
{
    const float limited = quant_clamp(x, -FP8_MAX, FP8_MAX);
    const uint32_t exponent = f32_bits(limited) & 0x7f800000u;
    const bool normal = fabsf(limited) >= 0x1p-6f;
    const float step = normal ? f32_from_bits(exponent - (3u << 23)) : 0x1p-9f;
    return rintf(limited / step) * step;
}

#endif

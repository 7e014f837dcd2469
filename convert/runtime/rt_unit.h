/* SPDX-License-Identifier: MIT
 *
 * The power of two that a block of x shares in fixed point. For files that are compiled
 * once per instruction set; private to convert/runtime. */
#ifndef WKVQ_RT_UNIT_H
#define WKVQ_RT_UNIT_H

#include "convert/runtime/rt_kernels.h"
#include "kernels/simd/simd.h"

#include <math.h>
#include <string.h>

/* Returns 2^-bits of the power of two above all |x|, x [RT_PAD_COLUMNS]; NaN if one is not
 * finite. The unit is a normal number, so tiny vectors get fewer bits. */
static inline float block_unit(const float *x, int bits)
{
    vi most = {0};
    for (int i = 0; i < RT_PAD_COLUMNS; i += VL) {
        const vi v = vi_load_n(x + i, VL) & 0x7fffffff, larger = v > most;
        most = (v & larger) | (most & ~larger);
    }
    int32_t top = 0;
    for (int l = 0; l < VL; l++)
        top = most[l] > top ? most[l] : top;
    int32_t exponent = top >> 23;
    if (exponent == 255)
        return NAN;
    exponent = exponent < bits ? bits : exponent;
    return f32_from_bits((uint32_t)(exponent + 1 - bits) << 23);
}

#endif

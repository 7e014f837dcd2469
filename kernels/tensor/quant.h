/* SPDX-License-Identifier: MIT
 *
 * The quantizer's arithmetic for one value: the definition that calibration, packing and
 * the runtime share bit for bit. Each operation is one IEEE f32 operation, and the whole
 * tree is built with -ffp-contract=off, so that SIMD kernels give the same bits. Rounding
 * is to nearest, ties to even. docs/method.md has the mathematics.
 *
 *   weights, per group [lo, hi]          h = fp16((hi - lo) / Q)   z = round(-lo / h)
 *                                        q = clamp(round(w/h) + z, 0, Q)   w^ = (q - z) h
 *                                        h may have fewer significant bits than fp16
 *   cache, per group of x~ in [mn, mx]   h = fp16((mx - mn) / Q)   m = fp16(mn)
 *                                        q = clamp(round((x~ - m)/h), 0, Q)  x~^ = m + h q
 *
 * with Q = 2^bits - 1 and bits from QUANT_BITS_MIN to QUANT_BITS_MAX. */
#ifndef WKVQ_QUANT_H
#define WKVQ_QUANT_H

#include "kernels/base/half.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

/* Bits of a code. As a setting, QUANT_BITS_NONE leaves the values unquantized. */
#define QUANT_BITS_MIN 2
#define QUANT_BITS_MAX 8
#define QUANT_BITS_NONE 16
/* The longest group that a setting may name: 0 or more columns, or channels. */
#define QUANT_GROUP_MAX (1 << 24)

/* The smallest scale, and the smallest positive fp16. A group of zeros has it, z = 0, q =
 * 0. */
#define QUANT_TINY 0x1p-24f
#define QUANT_SCALE_MAX 65504.0f
/* Significant bits of fp16. */
#define QUANT_SCALE_BITS 11

HALF_FN bool quant_bits_ok(int64_t bits)
{
    return bits >= QUANT_BITS_MIN && bits <= QUANT_BITS_MAX;
}

HALF_FN bool quant_bits_setting_ok(int64_t bits)
{
    return quant_bits_ok(bits) || bits == QUANT_BITS_NONE;
}

HALF_FN float quant_clamp(float x, float lo, float hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* The integer part of x, limited to [lo, hi], and 0 for NaN, whose conversion to an integer C
 * leaves undefined. */
HALF_FN int quant_integer(float x, int lo, int hi)
{
    return isnan(x) ? 0 : (int)quant_clamp(x, (float)lo, (float)hi);
}

/* A positive scale's fp16 bits with `significant` bits of its significand, to nearest, ties
 * to even; 11 or 0 keep them all. A carry goes into the exponent, as it should; what would
 * become infinite stays at the largest finite value of that many bits. Subnormal scales have
 * fewer bits to begin with. */
HALF_FN uint16_t quant_scale_round(uint16_t h, int significant)
{
    int drop = significant ? QUANT_SCALE_BITS - significant : 0;
    for (int top = 1 << 10; drop > 0 && h < top; top >>= 1)
        drop--;
    if (drop <= 0)
        return h;
    const uint32_t mask = (1u << drop) - 1, half = 1u << (drop - 1);
    uint32_t x = h;
    /* The last kept bit of a normal number's single one is implied. */
    x += half - 1 + (drop == 10 ? 1 : x >> drop & 1);
    x &= ~mask;
    return (uint16_t)(x >= 0x7c00 ? 0x7bff & ~mask : x);
}

/* True if quant_scale_round() leaves the scale as it is. */
HALF_FN bool quant_scale_fits(uint16_t h, int significant)
{
    return quant_scale_round(h, significant) == h;
}

/* h = fp16(clamp((hi - lo) / Q, QUANT_TINY, QUANT_SCALE_MAX)) of the clipped range [lo,
 * hi], lo <= 0 <= hi, by quant_scale_round() in `significant` bits. Returns fp16 bits. */
HALF_FN uint16_t quant_weight_scale(float lo, float hi, int bits, int significant)
{
    const float q = (float)((1 << bits) - 1);
    const float h = (hi - lo) / q;
    return quant_scale_round(f16_from_f32(quant_clamp(h, QUANT_TINY, QUANT_SCALE_MAX)),
                             significant);
}

/* The code of a rounded number: clamp(x, 0, Q), and 0 for NaN, whose conversion to an integer C
 * leaves undefined. */
HALF_FN uint8_t quant_code_of(float x, int bits)
{
    const float q = (float)((1 << bits) - 1);
    return (uint8_t)(x > 0 ? x < q ? x : q : 0.0f);
}

/* z = clamp(round(-lo / h), 0, Q) */
HALF_FN uint8_t quant_weight_zero(float lo, float h, int bits)
{
    return quant_code_of(rintf(-lo / h), bits);
}

/* q = clamp(round(w / h) + z, 0, Q) */
HALF_FN uint8_t quant_weight_code(float w, float h, uint8_t z, int bits)
{
    const float q = rintf(w / h) + (float)z;
    return quant_code_of(q, bits);
}

/* The same with a learned offset v: q = clamp(round(w / h + v) + z, 0, Q) */
HALF_FN uint8_t quant_weight_code_offset(float w, float v, float h, uint8_t z, int bits)
{
    const float q = rintf(w / h + v) + (float)z;
    return quant_code_of(q, bits);
}

/* One signed step of an offset v, given the gradient g in w^; the result is clamped to
 * [-1/2, 1/2]. If the code is clamped, v has no gradient and keeps its value. */
HALF_FN float quant_offset_step(float v, float g, float w, float h, uint8_t z, float rate,
                                int bits)
{
    const float q = rintf(w / h + v) + (float)z;
    const float step = q < 0 || q > (float)((1 << bits) - 1) ? 0 : rate;
    return quant_clamp(g > 0 ? v - step : g < 0 ? v + step : v, -0.5f, 0.5f);
}

/* w^ = (q - z) h */
HALF_FN float quant_weight_value(uint8_t q, uint8_t z, float h)
{
    return (float)((int)q - (int)z) * h;
}

/* fp16(clamp(h exp(u), tiny, 65504)) in `significant` bits: a scale after the relative step
 * u. exp in f64: devices may differ in its last bit, which reaches the result rarely. */
HALF_FN uint16_t quant_scale_step(uint16_t h, float u, int significant)
{
    const float moved = (float)((double)f16_to_f32(h) * exp((double)u));
    return quant_scale_round(f16_from_f32(quant_clamp(moved, QUANT_TINY, QUANT_SCALE_MAX)),
                             significant);
}

/* Moves a code and its offset, fp16 bits, by x on the grid, |x| < 1 (dev_code_step). Returns the
 * code. */
HALF_FN int quant_code_step(int code, uint16_t *offset, float x, int bits)
{
    float o = f16_to_f32(*offset) + x;
    if (o > 0.5f && code < (1 << bits) - 1) {
        code++;
        o -= 1;
    } else if (o < -0.5f && code > 0) {
        code--;
        o += 1;
    }
    *offset = f16_from_f32(quant_clamp(o, -0.5f, 0.5f));
    return code;
}

/* Returns how far a gradient moves a place on the grid. */
HALF_FN float quant_signed_step(float grad, float step)
{
    return grad > 0 ? -step : grad < 0 ? step : 0;
}

/* x~ = (x - shift) / s */
HALF_FN float quant_kv_in(float x, float s, float shift)
{
    return (x - shift) / s;
}

/* h of a KV group from the minimum and maximum of its x~. Returns fp16 bits. */
HALF_FN uint16_t quant_kv_scale(float mn, float mx, int bits)
{
    const float h = (mx - mn) / (float)((1 << bits) - 1);
    return f16_from_f32(h > QUANT_SCALE_MAX ? QUANT_SCALE_MAX : h);
}

/* m of a KV group, clamped to finite fp16 so that x^ is finite. Returns fp16 bits. */
HALF_FN uint16_t quant_kv_min(float mn)
{
    return f16_from_f32(quant_clamp(mn, -QUANT_SCALE_MAX, QUANT_SCALE_MAX));
}

/* q = clamp(round((x~ - m) / h), 0, Q), and 0 if h is 0. h and m are values of fp16. */
HALF_FN uint8_t quant_kv_code(float xt, float h, float m, int bits)
{
    if (!(h > 0))
        return 0;
    return quant_code_of(rintf((xt - m) / h), bits);
}

/* x^ = s (m + h q) + shift */
HALF_FN float quant_kv_out(uint8_t q, float h, float m, float s, float shift)
{
    return s * (m + h * (float)q) + shift;
}

#endif

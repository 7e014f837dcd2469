/* SPDX-License-Identifier: MIT
 *
 * Blocks of 4-bit codes as other engines quantize them. Each is one f32 operation after the other,
 * as a build without fused multiply-add computes.
 *
 * llama.cpp, 32 values (quantize_row_q4_0_ref, quantize_row_q4_1_ref and their dequantization in
 * ggml-quants.c):
 *
 *   Q4_0   max = the first value of largest magnitude      d = max / -8
 *          q = min(15, trunc(x / d + 8.5))                 x^ = (q - 8) fp16(d)
 *   Q4_1   d = (max - min) / 15
 *          q = min(15, trunc((x - min) / d + 0.5))         x^ = q fp16(d) + fp16(min)
 *
 * where x / d is x times the f32 inverse of the unrounded d, and 0 where d is 0. Two values that
 * are undefined there are defined here: d and min beyond fp16 are clamped to its largest finite
 * value, and a d without a finite inverse counts as 0. In all formats the code of NaN is 0.
 *
 * transformers' QuantizedCache with quanto, 64 values (MaxOptimizer, quantize_affine and
 * QBitsDequantizer of optimum-quanto), in f32:
 *
 *   d = (max - min) / 15      q = clamp(round((x - min) / d), 0, 15), ties to even
 *                             x^ = d q + min
 *
 * where q is 0 if d is 0.
 *
 * vLLM's int4_per_token_head, a head (v1/attention/ops/int4_per_token_head.py):
 *
 *   d = max((max - min) / 15, 1e-6)      z = clamp(round(-min / d), 0, 15)
 *   q = clamp(round(x / d + z), 0, 15)   x^ = (q - z) d'
 *
 * where ties are away from 0, x / d is x times the f32 inverse of d, and d' is d without its four
 * lowest bits, which hold z. */
#ifndef WKVQ_ENGINE_BLOCK_H
#define WKVQ_ENGINE_BLOCK_H

#include "kernels/base/half.h"
#include "kernels/tensor/qtensor.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <stdbool.h>

/* A measured block. x^ = (q - zero) d + m. */
struct engine_block {
    enum kv_target target;
    float inverse, min; /* of the unrounded step; what is subtracted before the division */
    float zero, d, m;   /* the code of m; the stored step; the stored minimum, or 0 */
    int at_max, at_min; /* the places that the step follows from */
    float by_max, by_min; /* the step's derivatives with respect to the values there */
};

/* Values that a block holds, of heads of head_dim channels. */
HALF_FN int64_t engine_block_values(enum kv_target target, int64_t head_dim)
{
    return target == TARGET_VLLM_INT4 ? head_dim : target == TARGET_QUANTO4 ? 64 : 32;
}

HALF_FN float engine_half(float x)
{
    return f16_to_f32(f16_from_f32(quant_clamp(x, -QUANT_SCALE_MAX, QUANT_SCALE_MAX)));
}

/* To the nearest integer, ties away from 0, from -1 to 16. */
HALF_FN int engine_round_away(float u)
{
    const float x = quant_clamp(u, -1, 16);
    return quant_integer(x >= 0 ? x + 0.5f : x - 0.5f, -1, 16);
}

/* Sets the places of the largest and the least value; of Q4_0, of the largest magnitude. */
HALF_FN void engine_block_range(struct engine_block *b, const float *x, int64_t n)
{
    const bool signs = b->target == TARGET_Q4_0;
    for (int i = 1; i < n; i++) {
        const bool above = signs ? fabsf(x[i]) > fabsf(x[b->at_max]) : x[i] > x[b->at_max];
        b->at_max = above ? i : b->at_max;
        b->at_min = x[i] < x[b->at_min] ? i : b->at_min;
    }
}

/* Stores the step d, in fp16, and the minimum of a block of llama.cpp's. */
HALF_FN void engine_block_store_half(struct engine_block *b, float d)
{
    const bool clamped = !(fabsf(d) < QUANT_SCALE_MAX);
    b->d = engine_half(d);
    b->m = engine_half(b->min);
    b->by_max = clamped ? 0 : b->by_max;
    b->by_min = clamped ? 0 : b->by_min;
}

HALF_FN int engine_block_limit(int code)
{
    return code < 0 ? 0 : code > 15 ? 15 : code;
}

/* Stores the step and the zero of vLLM's block. */
HALF_FN void engine_block_store_zero(struct engine_block *b, float d, float min)
{
    const bool floor = d < 1e-6f;
    const float step = floor ? 1e-6f : d;
    b->inverse = 1.0f / step;
    b->zero = (float)engine_block_limit(engine_round_away(-min / step));
    b->d = f32_from_bits(f32_bits(step) & ~15u);
    b->by_max = floor ? 0 : b->by_max;
    b->by_min = floor ? 0 : b->by_min;
}

/* Measures x [n]. */
HALF_FN struct engine_block engine_block_of(const float *x, int64_t n,
                                            enum kv_target target)
{
    const bool signs = target == TARGET_Q4_0;
    struct engine_block b = {.target = target,
                             .by_max = signs ? -1.0f / 8 : 1.0f / 15,
                             .by_min = signs ? 0 : -1.0f / 15};
    engine_block_range(&b, x, n);
    const float min = x[b.at_min];
    const float d = signs ? x[b.at_max] / -8 : (x[b.at_max] - min) / 15;
    const float inverse = d != 0 ? 1.0f / d : 0;
    b.inverse = isfinite(inverse) ? inverse : 0;
    b.min = signs || target == TARGET_VLLM_INT4 ? 0 : min;
    b.zero = signs ? 8 : 0;
    b.d = d;
    b.m = b.min;
    if (target == TARGET_VLLM_INT4)
        engine_block_store_zero(&b, d, min);
    else if (target != TARGET_QUANTO4)
        engine_block_store_half(&b, d);
    return b;
}

/* The code before it is limited: -1 or 16 where it would be less than 0 or more than 15. */
HALF_FN int engine_block_round(const struct engine_block *b, float x)
{
    if (b->target == TARGET_QUANTO4)
        return b->d > 0 ? quant_integer(rintf((x - b->min) / b->d), -1, 16) : 0;
    if (b->target == TARGET_VLLM_INT4)
        return engine_round_away(x * b->inverse + b->zero);
    const float u = (x - b->min) * b->inverse + (b->zero + 0.5f);
    return quant_integer(u, 0, 16);
}

/* Nothing is added where there is no minimum, so that -0 stays. */
HALF_FN float engine_block_value(const struct engine_block *b, int code)
{
    const float steps = ((float)engine_block_limit(code) - b->zero) * b->d;
    return b->m != 0 ? steps + b->m : steps;
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * Blocks of 32 values as llama.cpp's ggml quantizes them (quantize_row_q4_0_ref,
 * quantize_row_q4_1_ref and their dequantization in ggml-quants.c). One f32 operation after the
 * other, as a build of it without fused multiply-add computes:
 *
 *   Q4_0   max = the first value of largest magnitude      d = max / -8
 *          q = min(15, trunc(x / d + 8.5))                 x^ = (q - 8) fp16(d)
 *   Q4_1   d = (max - min) / 15
 *          q = min(15, trunc((x - min) / d + 0.5))         x^ = q fp16(d) + fp16(min)
 *
 * where x / d is x times the f32 inverse of the unrounded d, and 0 where d is 0. Two values that
 * are undefined there are defined here: d and min beyond fp16 are clamped to its largest finite
 * value, and a d without a finite inverse counts as 0. */
#ifndef WKVQ_GGML_BLOCK_H
#define WKVQ_GGML_BLOCK_H

#include "kernels/base/half.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <stdbool.h>

#define GGML_BLOCK_VALUES 32

/* A measured block. */
struct ggml_block {
    bool q4_1;
    float inverse, min; /* of the unrounded d; min: of Q4_1, else 0 */
    float d, m;         /* values of fp16 */
    int at_max, at_min; /* the places that d follows from; at_min: of Q4_1 */
};

HALF_FN float ggml_half(float x)
{
    return f16_to_f32(f16_from_f32(quant_clamp(x, -QUANT_SCALE_MAX, QUANT_SCALE_MAX)));
}

/* Measures x [32]. */
HALF_FN struct ggml_block ggml_block_of(const float *x, bool q4_1)
{
    struct ggml_block b = {q4_1, 0, 0, 0, 0, 0, 0};
    for (int i = 1; i < GGML_BLOCK_VALUES; i++) {
        const bool above = q4_1 ? x[i] > x[b.at_max] : fabsf(x[i]) > fabsf(x[b.at_max]);
        b.at_max = above ? i : b.at_max;
        b.at_min = x[i] < x[b.at_min] ? i : b.at_min;
    }
    const float d = q4_1 ? (x[b.at_max] - x[b.at_min]) / 15 : x[b.at_max] / -8;
    const float inverse = d != 0 ? 1.0f / d : 0;
    b.inverse = isfinite(inverse) ? inverse : 0;
    b.min = q4_1 ? x[b.at_min] : 0;
    b.d = ggml_half(d);
    b.m = ggml_half(b.min);
    return b;
}

/* The code before it is limited to 15; 16 where it would be more. */
HALF_FN int ggml_block_round(const struct ggml_block *b, float x)
{
    const float u = (x - b->min) * b->inverse + (b->q4_1 ? 0.5f : 8.5f);
    return (int)quant_clamp(u, 0, 16);
}

HALF_FN float ggml_block_value(const struct ggml_block *b, int code)
{
    const int q = code > 15 ? 15 : code;
    return b->q4_1 ? (float)q * b->d + b->m : (float)(q - 8) * b->d;
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * Clipping trades two errors of a group: values beyond gamma max or beta min are cut off,
 * while all others gain from the smaller step h = (gamma max - beta min) / Q. Where the best
 * trade lies depends on the weights and on how large their inputs are, so the error is
 * evaluated for each factor of a grid. */
#include "kernels/tensor/clip.h"

#include "kernels/base/half.h"
#include "kernels/tensor/quant.h"
#include "kernels/tensor/rounder.h"

#include <math.h>

#define N_FACTORS 12
#define LANES 16

/* A group with its range, which includes 0. */
struct ranged {
    const struct clip_group *g;
    float min, max, most;
};

static float factor(const struct ranged *r, int i)
{
    return i ? 1.0f - 0.05f * (float)i : r->most;
}

static struct ranged range_of(const struct clip_group *g, float most)
{
    struct ranged r = {.g = g, .most = most};
    for (int64_t i = 0; i < g->n; i++) {
        r.min = fminf(r.min, g->w[i]);
        r.max = fmaxf(r.max, g->w[i]);
    }
    return r;
}

static double weighted_error(const struct clip_group *g, float h, uint8_t z)
{
    double sum = 0;
    for (int64_t i = 0; i < g->n; i++) {
        const uint8_t q = quant_weight_code(g->w[i], h, z, g->format.bits);
        const double e = (double)g->w[i] - (double)quant_weight_value(q, z, h);
        sum += g->m[i] * (e * e);
    }
    return sum;
}

static inline float squared_error(float w, float h, float lo, float hi)
{
    float u = w / h;
    u = u < lo ? lo : u;
    u = u > hi ? hi : u;
    const float e = w - ((u + ROUNDER) - ROUNDER) * h;
    return e * e;
}

/* With all moments 1, in independent lanes. Clamping u to [-z, Q - z] before rounding equals
 * clamping round(u) + z to [0, Q] after it, because the bounds are integers. */
static double plain_error(const struct clip_group *g, float h, uint8_t z)
{
    const float lo = -(float)z, hi = (float)((1 << g->format.bits) - 1 - z);
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= g->n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += squared_error(g->w[i + l], h, lo, hi);
    double sum = 0;
    for (; i < g->n; i++)
        sum += (double)squared_error(g->w[i], h, lo, hi);
    for (int l = 0; l < LANES; l++)
        sum += (double)lane[l];
    return sum;
}

/* Scale and zero under gamma and beta. */
static void scale_of(uint16_t *scale, uint8_t *zero, const struct ranged *r, float gamma,
                     float beta)
{
    const struct lin_format *f = &r->g->format;
    const float lo = beta * r->min;
    *scale = quant_weight_scale(lo, gamma * r->max, f->bits, f->scale_bits);
    *zero = quant_weight_zero(lo, f16_to_f32(*scale), f->bits);
}

static double group_error(const struct ranged *r, float gamma, float beta)
{
    uint16_t scale;
    uint8_t z;
    scale_of(&scale, &z, r, gamma, beta);
    const float h = f16_to_f32(scale);
    return r->g->m ? weighted_error(r->g, h, z) : plain_error(r->g, h, z);
}

struct choice {
    int gamma, beta;
    double error;
};

/* Keeps the pair if it is better. A NaN error never is. */
static void consider(struct choice *best, const struct ranged *r, int gamma, int beta)
{
    const double error = group_error(r, factor(r, gamma), factor(r, beta));
    if (error < best->error)
        *best = (struct choice){gamma, beta, error};
}

/* A coordinate search: equal factors first, then gamma alone, then beta alone. 36 trials in
 * place of the 144 of the full grid. */
static struct choice search(const struct ranged *r)
{
    struct choice best = {0, 0, INFINITY};
    for (int i = 0; i < N_FACTORS; i++)
        consider(&best, r, i, i);
    const int equal = best.gamma;
    for (int i = 0; i < N_FACTORS; i++)
        consider(&best, r, i, equal);
    const int upper = best.gamma;
    for (int i = 0; i < N_FACTORS; i++)
        consider(&best, r, upper, i);
    return best;
}

void clip_search(float *gamma, float *beta, const struct clip_group *g, float most)
{
    const struct ranged r = range_of(g, most);
    const struct choice best = search(&r);
    *gamma = factor(&r, best.gamma);
    *beta = factor(&r, best.beta);
}

void clip_scale(uint16_t *scale, uint8_t *zero, const struct clip_group *g)
{
    const struct ranged r = range_of(g, 1);
    const struct choice best = search(&r);
    scale_of(scale, zero, &r, factor(&r, best.gamma), factor(&r, best.beta));
}

/* SPDX-License-Identifier: MIT */
#include "tools/bench/synth_values.h"

#include "kernels/base/half.h"
#include "kernels/base/rng.h"

#include <math.h>

#define NEWTON_STEPS 12
#define DRAWS 4 /* draws of 16 bits per word */

/* Returns z >= from with probability `tail` above it. The distribution function is concave
 * there, so Newton's steps from the left never pass the root. */
static double upper_quantile(double tail, double from)
{
    double z = from;
    for (int i = 0; i < NEWTON_STEPS; i++) {
        const double above = 0.5 * erfc(z * M_SQRT1_2);
        const double density = exp(-0.5 * z * z) * 0.5 * M_SQRT1_2 * M_2_SQRTPI;
        z += (above - tail) / density;
    }
    return z;
}

void normal_table_fill(struct normal_table *t, double mean, double sigma)
{
    const int half = SYNTH_QUANTILES / 2;
    double z = 0;
    for (int i = 0; i < half; i++) {
        z = upper_quantile(0.5 - (i + 0.5) / SYNTH_QUANTILES, z);
        t->value[half + i] = f16_from_f32((float)(mean + sigma * z));
        t->value[half - 1 - i] = f16_from_f32((float)(mean - sigma * z));
    }
}

/* Advances a generator's state by the index, so that each word has its own place. */
static void enter(struct rng *r, uint64_t word)
{
    rng_seed(r, rng_u64(r) ^ word);
}

void synth_row(uint16_t *out, int64_t n, const struct normal_table *t, uint64_t seed,
               uint64_t tensor, uint64_t row)
{
    struct rng r;
    rng_seed(&r, seed);
    enter(&r, tensor);
    enter(&r, row);
    enter(&r, 0);
    int64_t i = 0;
    for (; i + DRAWS <= n; i += DRAWS) {
        const uint64_t bits = rng_u64(&r);
        for (int k = 0; k < DRAWS; k++)
            out[i + k] = t->value[bits >> (16 * k) & (SYNTH_QUANTILES - 1)];
    }
    for (uint64_t bits = rng_u64(&r); i < n; i++, bits >>= 16)
        out[i] = t->value[bits & (SYNTH_QUANTILES - 1)];
}

/* SPDX-License-Identifier: MIT
 *
 * Seeded random numbers. struct rng (SplitMix64) is for tests and synthetic data. struct
 * mt19937 is CPython's random.Random, with which the literature draws its calibration
 * windows. Not thread-safe: one generator per thread. */
#ifndef WKVQ_RNG_H
#define WKVQ_RNG_H

#include <stdint.h>

struct rng {
    uint64_t state;
};

void rng_seed(struct rng *r, uint64_t seed);
uint64_t rng_u64(struct rng *r);
/* Uniform in [0, n), n > 0, without modulo bias. */
uint64_t rng_below(struct rng *r, uint64_t n);
/* Uniform in [0, 1). */
double rng_uniform(struct rng *r);
/* Standard normal (Box-Muller). */
double rng_normal(struct rng *r);

struct mt19937 {
    uint32_t word[624];
    int next;
};

/* random.seed(seed) of CPython for a non-negative integer. */
void mt_seed(struct mt19937 *m, uint64_t seed);
uint32_t mt_u32(struct mt19937 *m);
/* random.randint(lo, hi), both ends included; 0 <= lo <= hi. */
int64_t mt_randint(struct mt19937 *m, int64_t lo, int64_t hi);

#endif

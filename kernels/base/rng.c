/* SPDX-License-Identifier: MIT
 *
 * SplitMix64, and the Mersenne Twister as CPython seeds and uses it. */
#include "kernels/base/rng.h"

#include <math.h>

void rng_seed(struct rng *r, uint64_t seed)
{
    r->state = seed;
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
uint64_t rng_u64(struct rng *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Values from the largest multiple of n on are drawn again, so that all remainders are
 * equally likely. */
uint64_t rng_below(struct rng *r, uint64_t n)
{
    const uint64_t limit = UINT64_MAX - UINT64_MAX % n;
    uint64_t v;
    do
        v = rng_u64(r);
    while (v >= limit);
    return v % n;
}

/* 53 bits, as a double holds: multiples of 2^-53 in [0, 1). */
double rng_uniform(struct rng *r)
{
    return (double)(rng_u64(r) >> 11) * 0x1p-53;
}

/* Box and Muller 1958. u is in (0, 1], so its logarithm is finite. */
double rng_normal(struct rng *r)
{
    const double u = 1.0 - rng_uniform(r);
    const double v = rng_uniform(r);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* Mersenne Twister (Matsumoto, Nishimura 1998). */
static void mt_init(struct mt19937 *m, uint32_t seed)
{
    m->word[0] = seed;
    for (uint32_t i = 1; i < 624; i++)
        m->word[i] = 1812433253u * (m->word[i - 1] ^ m->word[i - 1] >> 30) + i;
    m->next = 624;
}

static int mt_wrap(struct mt19937 *m, int i)
{
    if (i < 624)
        return i;
    m->word[0] = m->word[623];
    return 1;
}

void mt_seed(struct mt19937 *m, uint64_t seed)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t n_keys = key[1] ? 2 : 1;
    mt_init(m, 19650218u);
    uint32_t *w = m->word;
    int i = 1;
    for (uint32_t k = 0, j = 0; k < 624; k++, j = (j + 1) % n_keys) {
        w[i] = (w[i] ^ (w[i - 1] ^ w[i - 1] >> 30) * 1664525u) + key[j] + j;
        i = mt_wrap(m, i + 1);
    }
    for (int k = 0; k < 623; k++) {
        w[i] = (w[i] ^ (w[i - 1] ^ w[i - 1] >> 30) * 1566083941u) - (uint32_t)i;
        i = mt_wrap(m, i + 1);
    }
    w[0] = 0x80000000u;
}

static void mt_refill(struct mt19937 *m)
{
    uint32_t *w = m->word;
    for (int i = 0; i < 624; i++) {
        const uint32_t y = (w[i] & 0x80000000u) | (w[(i + 1) % 624] & 0x7fffffffu);
        w[i] = w[(i + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    m->next = 0;
}

uint32_t mt_u32(struct mt19937 *m)
{
    if (m->next >= 624)
        mt_refill(m);
    uint32_t y = m->word[m->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

int64_t mt_randint(struct mt19937 *m, int64_t lo, int64_t hi)
{
    const uint64_t n = (uint64_t)(hi - lo) + 1;
    int bits = 0;
    while (bits < 64 && n >> bits)
        bits++;
    for (;;) {
        uint64_t r = 0;
        /* CPython's getrandbits: least significant word first, the last one shifted down.
 */
        for (int have = 0; have < bits; have += 32) {
            const int take = bits - have < 32 ? bits - have : 32;
            r |= (uint64_t)(mt_u32(m) >> (32 - take)) << have;
        }
        if (r < n)
            return lo + (int64_t)r;
    }
}

/* SPDX-License-Identifier: MIT
 *
 * The search for group sizes: which of a few pairs (weights, cache) to try with a short
 * calibration, and which to recommend. One size for all weights and one for the cache: the
 * configuration has none per kind of layer. */
#ifndef WKVQ_TUNE_H
#define WKVQ_TUNE_H

#include "tools/sweep.h"

#define TUNE_SIZES 8
#define TUNE_TRIALS (TUNE_SIZES * TUNE_SIZES)

struct tune_size {
    int64_t group; /* weights: 0 is the whole row */
    double bits;   /* effective, as the artifact will measure */
};

/* Candidates, from the most bits to the least. */
struct tune_sizes {
    struct tune_size size[TUNE_SIZES];
    int n;
};

/* Sizes for the configuration's bits on a's shapes. */
void tune_weight_sizes(struct tune_sizes *out, const struct arch *a, int bits);
void tune_kv_sizes(struct tune_sizes *out, const struct arch *a, const struct kv_spec *kv);

struct tune {
    const struct args *args;
    struct sweep sweep; /* cell 0: full precision; 1 + w * kv.n + k: a pair */
    struct tune_sizes weights, kv;
    double max_bits, max_kv_bits; /* 0: no bound */
    double max_increase;          /* 0.02: 2% more perplexity than full precision */
    int tried[TUNE_TRIALS], n_tried;
    int best; /* cell, -1: none */
};

/* One trial against full precision, paired over windows. */
struct tune_outcome {
    double ppl, increase, increase_stderr, weight_bits, kv_bits;
};
int tune_cell(const struct tune *t, int w, int k);
/* Run the trials that are not done yet, and note them as tried. */
enum err tune_try(struct tune *t, const int *cell, int n);
/* Of a cell that was tried. */
enum err tune_outcome(struct tune_outcome *out, const struct tune *t, int cell);

/* Fill t->best. ERR_USAGE when no candidate has so few bits. */
enum err tune_by_bits(struct tune *t);
/* The fewest bits that keep to the increase, weights' and cache's counted alike; best stays
 * -1 if none does. From the coarsest pair on, one step finer at a time. */
enum err tune_by_increase(struct tune *t);

#endif

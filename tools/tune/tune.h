/* SPDX-License-Identifier: MIT
 *
 * The search for formats: which of a few pairs (weights, cache) to try with a short
 * calibration, and which to recommend. Each is one group size for all, or a mix of bits and
 * group sizes (tools/tune_mix.h). */
#ifndef WKVQ_TUNE_H
#define WKVQ_TUNE_H

#include "tools/sweep/sweep.h"

#define TUNE_SIZES 8
#define TUNE_TRIALS ((TUNE_SIZES + 1) * (TUNE_SIZES + 1))

struct tune_size {
    int64_t group; /* weights: 0 is the whole row */
    double bits;   /* effective, as the artifact will measure */
};

/* Formats that differ, as weights.mixed and kv.mixed have them. */
struct tune_mix {
    char *text; /* owned; NULL: there is none */
    double bits;
};

/* Candidates: one size for all, from the most bits to the least, and a mix behind them. */
struct tune_sizes {
    struct tune_size size[TUNE_SIZES];
    int n;
    struct tune_mix mix;
};

/* Sizes for the configuration's bits on a's shapes. */
void tune_weight_sizes(struct tune_sizes *out, const struct arch *a, int bits);
void tune_kv_sizes(struct tune_sizes *out, const struct arch *a, const struct kv_spec *kv);

/* What a search is told. Strings and lists are borrowed. */
struct tune_settings {
    const char *model_dir;
    const char *work_dir;            /* for the trials' sweep and the estimates */
    struct recipe_input recipe;      /* of the configuration that is wanted */
    double max_bits, max_kv_bits;    /* 0: no bound */
    double max_increase;             /* 0.02: 2% more perplexity than full precision */
    bool uniform;                    /* no mixes */
    bool per_kind;                   /* mixes have one format for a kind in all layers */
    int64_t samples, seqlen, epochs; /* of a trial's calibration */
    bool quiet;                      /* no lines of progress */
    const char *log_json;            /* file for progress; NULL: none */
};

struct tune {
    struct tune_settings settings;
    uint32_t model_crc; /* of the whole checkpoint, computed once */
    struct sweep sweep; /* cell 0: full precision; the others: tune_cell */
    struct tune_sizes weights, kv;
    int tried[TUNE_TRIALS], n_tried;
    int best; /* cell, -1: none */
};

/* One trial against full precision, paired over windows. */
struct tune_outcome {
    double ppl, increase, increase_stderr, weight_bits, kv_bits;
};
/* The cell of weights w and cache k, from 0; w = weights.n, k = kv.n: the mix. */
int tune_cell(const struct tune *t, int w, int k);
void tune_pair(int *w, int *k, const struct tune *t, int cell);
/* Candidates of one side, the mix counted. */
int tune_choices(const struct tune_sizes *s);
/* The candidates that --max-bits leads to: the finest within it. A narrow head may not get
 * as low as the weights: then its least is the bound. ERR_USAGE when no candidate has so
 * few bits. */
enum err tune_bounds(int *w, int *k, const struct tune *t);
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

/* SPDX-License-Identifier: MIT
 *
 * Search for formats of weights and cache. It tries a few pairs with short calibrations and
 * recommends one. Each side has one group size, or a mix of bits and group sizes
 * (tools/tune/tune_mix.h). */
#ifndef WKVQ_TUNE_H
#define WKVQ_TUNE_H

#include "kernels/tensor/quant.h"
#include "tools/sweep/sweep.h"

#define TUNE_SIZES 8
#define TUNE_FINEST                                                                        \
    2 /* sizes of a side that --max-bits tries: the finest within it, the next */
#define TUNE_TRIALS ((TUNE_SIZES + 1) * (TUNE_SIZES + 1))

struct tune_size {
    int64_t group; /* group size; for weights 0 is the whole row */
    double bits;   /* effective bits, as measured on an artifact */
};

/* A mix of formats, as in weights.mixed and kv.mixed. */
struct tune_mix {
    char *text; /* owned; NULL: no mix */
    double bits;
};

/* Candidates of one side: group sizes, from the most bits to the fewest, then a mix. */
struct tune_sizes {
    struct tune_size size[TUNE_SIZES];
    int n;
    struct tune_mix mix;
    /* by weights.bits or kv.bits from QUANT_BITS_MIN on: the bits of the coarsest groups */
    double least[QUANT_BITS_MAX + 1];
};

/* Computes the sizes for the configuration's bits on a's shapes. */
void tune_weight_sizes(struct tune_sizes *out, const struct arch *a, int bits);
void tune_kv_sizes(struct tune_sizes *out, const struct arch *a, const struct kv_spec *kv);

/* Settings of a search. Strings and lists are borrowed. */
struct tune_settings {
    const char *model_dir;
    const char *work_dir;            /* directory for the trials' sweep and the estimates */
    struct recipe_input recipe;      /* sources of the recommended configuration */
    double max_bits, max_kv_bits;    /* bits; 0: no bound */
    double max_increase;             /* 0.02: 2% more perplexity than full precision */
    bool uniform;                    /* use no mixes */
    bool per_kind;                   /* mixes use one format per kind in all layers */
    bool no_trials;                  /* mixes are taken by their estimates alone */
    int64_t samples, seqlen, epochs; /* windows of a trial's calibration */
    bool quiet;                      /* print no progress lines */
    const char *log_json;            /* file for progress; NULL: none */
};

struct tune {
    struct tune_settings settings;
    uint32_t model_crc; /* hf_identity of the whole checkpoint, computed once */
    struct sweep sweep; /* cell 0: full precision; others: tune_cell */
    struct tune_sizes weights, kv;
    int tried[TUNE_TRIALS], n_tried;
    int best; /* recommended cell, -1: none */
};

/* A trial compared with full precision, paired over windows. */
struct tune_outcome {
    double ppl, increase, increase_stderr, weight_bits, kv_bits;
};
/* Returns the cell of weights w and cache k, from 0. w = weights.n or k = kv.n is the
 * mix. */
int tune_cell(const struct tune *t, int w, int k);
void tune_pair(int *w, int *k, const struct tune *t, int cell);
/* Returns the number of candidates of one side, including the mix. */
int tune_choices(const struct tune_sizes *s);
/* Finds the finest candidates within --max-bits. A narrow head may need more bits than
 * that; then its minimum is the bound. ERR_USAGE if no candidate has so few bits. */
enum err tune_bounds(int *w, int *k, const struct tune *t);
/* Runs the unfinished trials among these and marks them as tried. */
enum err tune_try(struct tune *t, const int *cell, int n);
/* Computes the score of a tried cell. Without trials it has only bits, and NAN for the rest. */
enum err tune_outcome(struct tune_outcome *out, const struct tune *t, int cell);

/* Fills t->best for --max-bits. ERR_USAGE if no candidate has so few bits. */
enum err tune_by_bits(struct tune *t);
/* Fills t->best with the mix of each side that has one, and else with the finest group size within
 * --max-bits, without a trial. Errors as for tune_by_bits(). */
enum err tune_by_estimate(struct tune *t);
/* Finds the fewest bits, summed over weights and cache, within the increase. It starts from
 * the coarsest pair and refines one step at a time. best stays -1 if none fits. */
enum err tune_by_increase(struct tune *t);

#endif

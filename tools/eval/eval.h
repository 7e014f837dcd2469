/* SPDX-License-Identifier: MIT
 *
 * Perplexity as in the literature: windows do not overlap, and every token of a window but
 * its first is a target. */
#ifndef WKVQ_EVAL_H
#define WKVQ_EVAL_H

#include "convert/artifact/reader.h"
#include "tools/pipeline/job.h"
#include "tools/state/state.h"

/* Evaluation options of the command line. Strings are borrowed; NULL: not given. */
struct eval_settings {
    bool json;                 /* one JSON object instead of text */
    int64_t limit;             /* number of questions per task; 0: all */
    const char *const *labels; /* [n_labels] files of the answers to questions */
    int n_labels;
    const char *prompts, *max_gen; /* LongBench's configuration files */
    const char *out;               /* file (or directory) for one line per question */
    const char *score;             /* selects the predictions that count, for the report */
    const char *against;           /* second model of a paired comparison */
    struct recipe_input recipe;    /* calibration of the second model */
};

/* The evaluated model. It is a checkpoint or an artifact. A checkpoint is evaluated in
 * simulation: full precision, rounded to nearest, or with a state's scales. An artifact is
 * evaluated in simulation or by its packed runtime. The packed runtime also runs a
 * checkpoint in full precision, as an artifact of 16 bits in memory. */
struct eval {
    struct job *job;
    const struct eval_settings *settings;
    struct artifact *artifact; /* NULL: job->model */
    bool unquantized;          /* artifact is job->model as it is */
    struct state *state;       /* calibrated scales for job->model; NULL: none */
    bool rtn;                  /* round job->model to nearest by job->recipe */
    int kv_bits;               /* 0: as configured; 16: cache in full precision */
    int64_t windows, ctx, chunk;
    int64_t first;      /* first scored prediction of each window */
    bool decode;        /* use the packed runtime, chunk tokens at a time */
    double *window_nll; /* [windows] mean losses, written for the caller; may be NULL */
    const char *who;    /* what warnings of the cache begin with; NULL: nothing */
    bool told;          /* that windows of ctx quantize nothing of the cache */
};

struct eval_result {
    double nll, nll_stderr; /* standard error in nats, over the windows' means */
    double ppl, ppl_stderr;
    int64_t tokens, windows;
    double seconds;
};

/* Sets e->windows (0: all) and e->chunk from the text and ctx, and warns of what is not as it was
 * asked. ERR_USAGE if the text has no window. */
enum err eval_count_windows(struct eval *e);
/* Computes the loss on windows of ctx tokens from the start of job->ids, after
 * eval_count_windows(). */
enum err eval_ppl(struct eval_result *out, struct eval *e);
/* Returns how many tokens a text needs as inputs, read in chunks, until a query reads anything
 * quantized from the cache; 0: the cache is not quantized. */
int64_t eval_cache_from(const struct eval *e, int64_t chunk);
/* Returns the number of scored predictions per window. */
int64_t eval_targets(const struct eval *e);
/* Writes the bits of a weight and of a cache element, scales and zero points included: those of an
 * artifact as `wkvq inspect` measures it, else of the simulated formats, with 16 for what is not
 * quantized. */
void eval_bits(double *weights, double *kv, const struct eval *e);
/* Returns the engine whose cache is simulated: that of kv.target in the recipe, or else that of
 * the artifact or state. TARGET_WKVQ: none, or the cache is unquantized. */
enum kv_target eval_target(const struct eval *e);
/* Returns the bits of the projections' inputs in simulation; 16: unquantized. */
int eval_act_bits(const struct eval *e);
/* An artifact's own rounding of inputs stays as it is: ERR_USAGE if the recipe has another. */
enum err eval_check_inputs(const struct eval *e);
/* The type of activations, "f32" or "bf16": the packed runtime's with decode, else the
 * simulation's. */
const char *eval_compute(const struct eval *e);
/* Returns a name such as "W4KV4" or "W4A8KV16", by the bits of the codes alone, as a mean if they
 * are mixed; valid until the next call. */
const char *eval_bits_text(const struct eval *e);
const char *eval_method(const struct eval *e);
/* Sets o's members for those who state its figures elsewhere: manifest_crc32, the identity of the
 * artifact that was measured; a checkpoint, also one under a state's scales, has none. */
enum err eval_set_identity(json_t *o, const struct eval *e);
/* Returns the list of the texts' names as they were typed, without their folders. */
json_t *eval_text_names(const struct job *j);
/* Returns -log p(target) in nats from logits [vocab]. */
double eval_nll(const float *logits, int64_t vocab, int32_t target);
/* Computes mean, standard error and perplexity from n windows' mean losses. */
void eval_reduce(struct eval_result *out, const double *window_nll, int64_t n);

#endif

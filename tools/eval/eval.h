/* SPDX-License-Identifier: MIT
 *
 * Perplexity under the literature's protocol: non-overlapping windows, every target but a
 * window's first token. */
#ifndef WKVQ_EVAL_H
#define WKVQ_EVAL_H

#include "convert/artifact/reader.h"
#include "tools/pipeline/job.h"
#include "tools/state/state.h"

/* What the command line says of an evaluation. Strings are borrowed; NULL: not given. */
struct eval_settings {
    bool json;                     /* one JSON object instead of text */
    int64_t limit;                 /* questions of a task; 0: all */
    const char *labels;            /* file of answers to a task's questions */
    const char *prompts, *max_gen; /* LongBench's configuration files */
    const char *out;               /* file of one JSON object a question */
    const char *score;             /* which predictions count, for the report */
    const char *against;           /* the second model of a paired comparison */
    struct recipe_input recipe;    /* of the second model */
};

/* What is evaluated: a checkpoint (full precision, rounded to nearest, or under a state's
 * scales, all in simulation), or an artifact (simulation, or its packed runtime). */
struct eval {
    struct job *job;
    const struct eval_settings *settings;
    struct artifact *artifact; /* NULL: job->model */
    struct state *state;       /* scales for job->model; NULL: none */
    bool rtn;                  /* job->model rounded to nearest by job->recipe */
    int kv_bits;               /* 0: as configured; 16: full-precision cache */
    int64_t windows, ctx, chunk;
    int64_t first;      /* predictions of a window before this one are not scored */
    bool decode;        /* the packed runtime, chunk tokens at a time */
    double *window_nll; /* [windows] mean losses for the caller; NULL: not wanted */
};

struct eval_result {
    double nll, nll_stderr; /* nats, over windows' means */
    double ppl, ppl_stderr;
    int64_t tokens, windows;
    double seconds;
};

/* Windows of ctx tokens from the start of job->ids; windows 0: all there are. ERR_USAGE
 * when the text has none. */
enum err eval_ppl(struct eval_result *out, struct eval *e);
/* Settle e->windows and e->chunk by the text and ctx. ERR_USAGE when it has no window. */
enum err eval_count_windows(struct eval *e);
/* Scored predictions of a window. */
int64_t eval_targets(const struct eval *e);
/* Bits of a code that are in force, the mean where they are mixed, and how the model is
 * run, for reports. */
void eval_bits(double *weights, double *kv, const struct eval *e);
/* 4, or 4.25. NULL: out of memory. */
json_t *eval_bits_json(double bits);
/* Of the projections' inputs, in simulation; 16: left alone. */
int eval_act_bits(const struct eval *e);
/* "W4KV4", "W4A8KV16"; valid until the next call. */
const char *eval_bits_text(const struct eval *e);
const char *eval_method(const struct eval *e);
/* -log p(target) in nats from logits [vocab]. */
double eval_nll(const float *logits, int64_t vocab, int32_t target);
/* Mean, standard error and perplexity from n windows' mean losses. */
void eval_reduce(struct eval_result *out, const double *window_nll, int64_t n);

#endif

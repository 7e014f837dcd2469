/* SPDX-License-Identifier: MIT */
#include "tools/eval/eval_compare.h"

#include "convert/runtime/runtime.h"
#include "kernels/base/clock.h"
#include "kernels/base/logsumexp.h"
#include "kernels/base/mem.h"
#include "tools/eval/eval_sim.h"

#include <inttypes.h>
#include <math.h>

/* Rows of logits of each model in memory at the same time. */
#define PIECE 64

/* --- one row ------------------------------------------------------------------------ */

/* Returns the index of the first maximum. */
static int64_t likeliest(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t v = 1; v < n; v++)
        best = x[v] > x[best] ? v : best;
    return best;
}

void compare_row(struct compare_row *out, const float *a, const float *b, int64_t vocab,
                 int32_t target)
{
    const double za = log_sum_exp(a, vocab), zb = log_sum_exp(b, vocab);
    *out = (struct compare_row){{za - (double)a[target], zb - (double)b[target]},
                                kl_divergence(b, zb, a, za, vocab),
                                likeliest(a, vocab) == likeliest(b, vocab)};
}

/* --- sources of rows ------------------------------------------------------------------ */

struct side {
    struct eval *e;
    struct eval_sim sim;
    struct model_states *states; /* hidden states of a batch of windows, in simulation */
    struct runtime *rt;          /* used with e->decode */
    float *logits;               /* [piece][V] */
};

static enum err side_open(struct side *s, struct eval *e, int64_t piece)
{
    const struct runtime_settings settings = {.threads = (int)e->job->recipe.threads,
                                              .max_tokens = e->ctx,
                                              .kv_bits = e->kv_bits,
                                              .act = recipe_runtime_act(&e->job->recipe)};
    *s = (struct side){.e = e};
    TRY(eval_sim_open(&s->sim, e));
    TRY(mem_alloc(&s->logits, (size_t)piece * (size_t)e->job->arch.vocab, sizeof(float)));
    return e->decode ? runtime_open(&s->rt, e->artifact, &settings) : OK;
}

static void side_close(struct side *s)
{
    model_states_close(&s->states);
    runtime_close(&s->rt);
    mem_free(s->logits);
    if (s->e)
        eval_sim_close(&s->sim);
}

static enum err side_batch(struct side *s, const int32_t *ids, int64_t n)
{
    model_states_close(&s->states);
    if (s->rt)
        return OK;
    return model_states_open(&s->states, &s->sim.run, ids, n, s->e->ctx);
}

/* Computes rows [t, t + n) of window w of the batch; ids: the window's. The packed runtime
 * must take them in order. */
static enum err side_rows(struct side *s, int64_t w, const int32_t *ids, int64_t t,
                          int64_t n)
{
    const int64_t V = s->e->job->arch.vocab;
    if (!s->rt)
        return model_states_logits(s->states, w, t, n, s->logits);
    if (t == 0)
        runtime_reset(s->rt);
    for (int64_t i = 0, step; i < n; i += step) {
        step = s->e->chunk < n - i ? s->e->chunk : n - i;
        TRY(runtime_forward(s->rt, s->logits + i * V, true, ids + t + i, step));
    }
    return OK;
}

/* --- windows ------------------------------------------------------------------------ */

/* Means over the tokens of each window. */
struct means {
    double *nll[2], *difference, *kl, *top1;
};

struct comparison {
    struct side side[2];
    struct means mean;
    int64_t piece, windows;
};

/* Adds the scored ones of predictions [t, t + n) of window `at` to its means. */
static void add_rows(const struct comparison *c, int64_t at, const int32_t *target,
                     int64_t t, int64_t n)
{
    const struct eval *e = c->side[0].e;
    const int64_t V = e->job->arch.vocab;
    const double share = 1.0 / (double)eval_targets(e);
    for (int64_t i = t < e->first ? e->first - t : 0; i < n; i++) {
        struct compare_row r;
        compare_row(&r, c->side[0].logits + i * V, c->side[1].logits + i * V, V, target[i]);
        c->mean.nll[0][at] += share * r.nll[0];
        c->mean.nll[1][at] += share * r.nll[1];
        c->mean.difference[at] += share * (r.nll[0] - r.nll[1]);
        c->mean.kl[at] += share * r.kl;
        c->mean.top1[at] += r.same ? share : 0;
    }
}

/* Compares window w of a batch, number at of all windows. */
static enum err compare_window(struct comparison *c, int64_t w, int64_t at)
{
    const struct eval *e = c->side[0].e;
    const int32_t *ids = e->job->ids.id + at * e->ctx;
    for (int64_t t = 0, n; t < e->ctx - 1; t += n) {
        n = c->piece < e->ctx - 1 - t ? c->piece : e->ctx - 1 - t;
        TRY(side_rows(&c->side[0], w, ids, t, n));
        TRY(side_rows(&c->side[1], w, ids, t, n));
        add_rows(c, at, ids + t + 1, t, n);
    }
    return OK;
}

static int64_t batch_size(const struct eval *a, const struct eval *b, int64_t windows)
{
    const int64_t fa = eval_sim_windows(a, a->ctx) / 2,
                  fb = eval_sim_windows(b, a->ctx) / 2;
    const int64_t fit = fa < fb ? fa : fb;
    return fit < 1 ? 1 : fit < windows ? fit : windows;
}

static enum err compare_windows(struct comparison *c)
{
    struct eval *a = c->side[0].e;
    const int64_t batch = batch_size(a, c->side[1].e, c->windows);
    for (int64_t at = 0; at < c->windows; at += batch) {
        const int64_t n = batch < c->windows - at ? batch : c->windows - at;
        const int32_t *ids = a->job->ids.id + at * a->ctx;
        TRY(side_batch(&c->side[0], ids, n));
        TRY(side_batch(&c->side[1], ids, n));
        for (int64_t w = 0; w < n; w++) {
            TRY(compare_window(c, w, at + w));
            progress_share(a->job->progress, (double)(at + w + 1) / (double)c->windows);
        }
    }
    return OK;
}

/* A multiple of the runtime's chunk, so that its chunks start at the same tokens as
 * always. */
static int64_t piece_rows(const struct eval *a, const struct eval *b)
{
    const int64_t chunk = a->decode || b->decode ? a->chunk : 1;
    const int64_t rows = chunk > PIECE ? chunk : PIECE / chunk * chunk;
    return rows < a->ctx ? rows : a->ctx;
}

static enum err comparison_open(struct comparison *c, struct eval *a, struct eval *b,
                                double *memory)
{
    const int64_t n = c->windows;
    c->piece = piece_rows(a, b);
    c->mean = (struct means){
        {memory, memory + n}, memory + 2 * n, memory + 3 * n, memory + 4 * n};
    TRY(side_open(&c->side[0], a, c->piece));
    return side_open(&c->side[1], b, c->piece);
}

static void reduce(struct compare_result *out, const struct comparison *c)
{
    const int64_t n = c->windows;
    *out = (struct compare_result){
        .nll = {estimate_mean(c->mean.nll[0], n), estimate_mean(c->mean.nll[1], n)},
        .difference = estimate_mean(c->mean.difference, n),
        .kl = estimate_mean(c->mean.kl, n),
        .top1 = estimate_mean(c->mean.top1, n),
        .windows = n,
        .tokens = n * eval_targets(c->side[0].e)};
}

enum err eval_compare(struct compare_result *out, struct eval *a, struct eval *b)
{
    struct comparison c = {.piece = 0};
    struct compare_result r = {.windows = 0};
    double *memory = NULL;
    const double start = clock_s();
    FAIL_IF(a->job->arch.vocab != b->job->arch.vocab, ERR_MISMATCH,
            "%s has a vocabulary of %" PRId64 ", %s has %" PRId64 ", so their predictions "
            "cannot be compared",
            a->job->model_dir, a->job->arch.vocab, b->job->model_dir, b->job->arch.vocab);
    TRY(eval_count_windows(a));
    b->chunk = a->chunk;
    c.windows = a->windows;
    TRY(mem_calloc(&memory, 5 * (size_t)c.windows, sizeof(*memory)));
    progress_phase(a->job->progress, "comparison");
    enum err err = comparison_open(&c, a, b, memory);
    if (!err)
        err = compare_windows(&c);
    progress_end(a->job->progress);
    if (!err)
        reduce(&r, &c);
    side_close(&c.side[0]);
    side_close(&c.side[1]);
    mem_free(memory);
    TRY(err);
    FAIL_IF(!isfinite(r.difference.mean) || !isfinite(r.kl.mean), ERR_NUMERIC,
            "the mean losses are not finite: %g and %g", r.nll[0].mean, r.nll[1].mean);
    r.seconds = clock_s() - start;
    *out = r;
    return OK;
}

/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/zeroshot.h"

#include "convert/runtime/runtime.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "tools/cli/opt.h"
#include "tools/eval/eval_sim.h"
#include "tools/eval/statistics.h"
#include "tools/eval/tasks/choice_text.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- requests ----------------------------------------------------------------------- */

/* Drops tokens at the front, so that limit of them are input. */
static void cut_front(struct request *r, int64_t limit)
{
    const int64_t drop = r->n - (limit + 1);
    if (drop <= 0)
        return;
    memmove(r->ids, r->ids + drop, (size_t)(r->n - drop) * sizeof(*r->ids));
    r->n -= drop;
    r->ctx -= drop;
}

enum err request_encode(struct request *out, const struct tokenizer *t,
                        const struct choice *c, enum bos_rule bos, int64_t limit)
{
    enum err err = OK;
    char *text = NULL;
    struct token_ids whole = {0}, context = {0};
    TRY(choice_join(&text, (const char *const[]){c->context, c->continuation, NULL}));
    TRY_OUT(tokenizer_encode(&whole, t, text, strlen(text), bos));
    TRY_OUT(tokenizer_encode(&context, t, text, choice_bare_bytes(c->context), bos));
    if (context.n == 0 || context.n >= whole.n)
        FAIL_OUT(ERR_FORMAT, "\"%.60s\" + \"%.60s\": %zu tokens of context, %zu in total",
                 c->context, c->continuation, context.n, whole.n);
    struct request r = {.ids = whole.id, .n = (int64_t)whole.n, .ctx = (int64_t)context.n};
    cut_front(&r, limit);
    if (r.ctx < 1)
        FAIL_OUT(ERR_USAGE, "\"%.60s\": its tokens leave no room for a context in %" PRId64,
                 c->continuation, limit);
    *out = r;
    whole = (struct token_ids){0};
out:
    mem_free(text);
    token_ids_free(&whole);
    token_ids_free(&context);
    return err;
}

static void requests_free(struct request *r, int64_t n)
{
    for (int64_t i = 0; r && i < n; i++)
        mem_free(r[i].ids);
    mem_free(r);
}

static enum err check_ids(const struct request *r, const struct eval *e)
{
    for (int64_t i = 0; i < r->n; i++)
        FAIL_IF(r->ids[i] < 0 || r->ids[i] >= e->job->arch.vocab, ERR_MISMATCH,
                "%s: a question has token %" PRId32 ", the model's vocabulary has %" PRId64
                ": the tokenizer is another model's",
                e->job->model_dir, r->ids[i], e->job->arch.vocab);
    return OK;
}

/* Makes the requests of question i's choices. */
static enum err encode_question(struct request *r, const struct question_set *s, int64_t i,
                                const struct eval *e)
{
    const enum bos_rule bos =
        /* as in lm-evaluation-harness */
        e->job->recipe.bos == BOS_ALWAYS ? BOS_ALWAYS : BOS_NEVER;
    const struct question *q = &s->item[i];
    int64_t longest = 0;
    for (int c = 0; c < q->n; c++) {
        TRY(request_encode(&r[c], e->job->tokenizer, &q->choice[c], bos, e->ctx - 1));
        TRY(check_ids(&r[c], e));
        r[c].question = i;
        r[c].choice = c;
        longest = r[c].n > longest ? r[c].n : longest;
    }
    for (int c = 0; c < q->n; c++)
        r[c].longest = longest;
    return OK;
}

static enum err encode_all(struct request *r, const struct question_set *s,
                           const struct eval *e)
{
    for (int64_t i = 0; i < s->n; r += s->item[i].n, i++) {
        const enum err err = encode_question(r, s, i, e);
        if (err)
            return err_add(err, "question %" PRId64 ": ", i + 1);
    }
    return OK;
}

/* --- simulation --------------------------------------------------------------------- */

/* Orders requests by the longest choice of their question, choices of a question together. */
static int longer(const void *a, const void *b)
{
    const struct request *x = *(struct request *const *)a, *y = *(struct request *const *)b;
    if (x->longest != y->longest)
        return x->longest > y->longest ? -1 : 1;
    if (x->question != y->question)
        return x->question < y->question ? -1 : 1;
    return x->choice - y->choice;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Returns the number of common tokens at the start of both, at most `most`. */
static int64_t common(const struct request *a, const struct request *b, int64_t most)
{
    int64_t n = 0;
    most = min64(most, min64(a->n, b->n));
    while (n < most && a->ids[n] == b->ids[n])
        n++;
    return n;
}

/* A batch of n windows of T tokens each. */
struct windows {
    int32_t *ids;    /* [n][T] */
    int64_t *shared; /* [n] */
    float *nll;      /* [n][T-1] */
};

/* Fills a batch. Shorter texts are padded at their end, where causal attention ignores
 * it. */
static enum err windows_open(struct windows *w, struct request *const *r, int64_t n,
                             int64_t T)
{
    TRY(mem_calloc(&w->ids, (size_t)(n * T), sizeof(*w->ids)));
    TRY(mem_calloc(&w->shared, (size_t)n, sizeof(*w->shared)));
    TRY(mem_alloc(&w->nll, (size_t)(n * T), sizeof(*w->nll)));
    for (int64_t i = 0; i < n; i++) {
        memcpy(w->ids + i * T, r[i]->ids, (size_t)r[i]->n * sizeof(*w->ids));
        if (i > 0 && r[i]->question == r[i - 1]->question)
            w->shared[i] = common(r[i], r[i - 1], T - 1);
    }
    return OK;
}

static enum err score_batch(struct model_run run, struct request **r, int64_t n, int64_t T)
{
    struct windows w = {0};
    enum err err = windows_open(&w, r, n, T);
    run.shared = w.shared;
    if (!err)
        err = model_nll(&run, w.ids, n, T, w.nll);
    for (int64_t i = 0; i < n && !err; i++) {
        r[i]->ll = 0;
        for (int64_t t = r[i]->ctx; t < r[i]->n; t++)
            r[i]->ll -= (double)w.nll[i * (T - 1) + t - 1];
    }
    mem_free(w.ids);
    mem_free(w.shared);
    mem_free(w.nll);
    return err;
}

/* Scores in order of falling length, so that the texts of a batch have similar lengths. */
static enum err simulate(struct eval *e, struct request **r, int64_t n)
{
    struct eval_sim sim;
    enum err err = eval_sim_open(&sim, e);
    if (!sim.run.chunk)
        sim.run.chunk = 1;
    for (int64_t i = 0, batch; i < n && !err; i += batch) {
        const int64_t T = r[i]->longest, fit = eval_sim_windows(e, T);
        batch = fit < n - i ? fit : n - i;
        err = score_batch(sim.run, r + i, batch, T);
        progress_share(e->job->progress, (double)(i + batch) / (double)n);
    }
    eval_sim_close(&sim);
    return err;
}

/* --- the packed runtime ------------------------------------------------------------- */

/* Returns the number of tokens that all choices of a question start with, less than any
 * context. */
static int64_t shared(struct request *const *r, int n)
{
    int64_t same = r[0]->ctx - 1;
    for (int i = 1; i < n; i++)
        same = common(r[i], r[0], min64(same, r[i]->ctx - 1));
    return same;
}

static enum err prefill(struct runtime *rt, const int32_t *ids, int64_t n, int64_t chunk)
{
    for (int64_t t = 0, step; t < n; t += step) {
        step = chunk ? min64(chunk, n - t) : n;
        TRY(runtime_forward(rt, NULL, false, ids + t, step));
    }
    return OK;
}

static enum err decode_choice(struct request *r, struct runtime *rt, const struct eval *e,
                              int64_t past, float *logits)
{
    TRY(prefill(rt, r->ids + past, r->ctx - 1 - past, e->chunk));
    r->ll = 0;
    for (int64_t t = r->ctx; t < r->n; t++) {
        TRY(runtime_forward(rt, logits, false, r->ids + t - 1, 1));
        r->ll -= eval_nll(logits, e->job->arch.vocab, r->ids[t]);
    }
    return OK;
}

/* Scores the choices r of one question. */
static enum err decode_question(struct request **r, int n, struct runtime *rt,
                                const struct eval *e, float *logits)
{
    const int64_t past = shared(r, n);
    runtime_reset(rt);
    TRY(prefill(rt, r[0]->ids, past, e->chunk));
    TRY(runtime_mark(rt));
    for (int i = 0; i < n; i++) {
        runtime_rewind(rt);
        TRY(decode_choice(r[i], rt, e, past, logits));
    }
    return OK;
}

static enum err decode(struct eval *e, struct request **r, int64_t n)
{
    enum err err = OK;
    struct runtime *rt = NULL;
    float *logits;
    const struct runtime_settings s = {.threads = (int)e->job->recipe.threads,
                                       .max_tokens = e->ctx,
                                       .kv_bits = e->kv_bits};
    TRY(mem_alloc(&logits, (size_t)e->job->arch.vocab, sizeof(*logits)));
    TRY_OUT(runtime_open(&rt, e->artifact, &s));
    for (int64_t i = 0, end; i < n; i = end) {
        for (end = i; end < n && r[end]->question == r[i]->question;)
            end++;
        TRY_OUT(decode_question(r + i, (int)(end - i), rt, e, logits));
        progress_share(e->job->progress, (double)end / (double)n);
    }
out:
    runtime_close(&rt);
    mem_free(logits);
    return err;
}

static enum err score(struct eval *e, struct request *r, int64_t n)
{
    struct request **order;
    TRY(mem_alloc(&order, (size_t)n, sizeof(struct request *)));
    for (int64_t i = 0; i < n; i++)
        order[i] = &r[i];
    if (!e->decode)
        qsort(order, (size_t)n, sizeof(struct request *), longer);
    enum err err = e->decode ? decode(e, order, n) : simulate(e, order, n);
    for (int64_t i = 0; i < n && !err; i++)
        if (!isfinite(r[i].ll))
            err = err_set(ERR_NUMERIC, __FILE__, __LINE__,
                          "question %" PRId64 ", choice %d: its log-likelihood is %g",
                          r[i].question + 1, r[i].choice + 1, r[i].ll);
    mem_free(order);
    return err;
}

/* --- results ------------------------------------------------------------------------ */

void zeroshot_reduce(struct zeroshot_result *out, const struct question_set *s,
                     const struct request *r)
{
    int64_t right = 0, right_norm = 0;
    for (int64_t i = 0; i < s->n; r += s->item[i].n, i++) {
        const struct question *q = &s->item[i];
        int best = 0, best_norm = 0;
        for (int c = 1; c < q->n; c++) {
            best = r[c].ll > r[best].ll ? c : best;
            if (r[c].ll / (double)q->choice[c].chars >
                r[best_norm].ll / (double)q->choice[best_norm].chars)
                best_norm = c;
        }
        right += best == q->gold;
        right_norm += best_norm == q->gold;
    }
    const double p = (double)right / (double)s->n, norm = (double)right_norm / (double)s->n;
    *out = (struct zeroshot_result){.n = s->n,
                                    .acc = p,
                                    .acc_stderr = share_stderr(p, s->n),
                                    .norm = norm,
                                    .norm_stderr = share_stderr(norm, s->n)};
}

static enum err write_lines(struct file_writer *w, const struct question_set *s,
                            const struct request *r)
{
    for (int64_t i = 0; w && i < s->n; r += s->item[i].n, i++) {
        TRY(file_printf(
            w, "{\"set\": \"%s\", \"question\": %" PRId64 ", \"gold\": %d, \"ll\": [",
            s->name, i, s->item[i].gold));
        for (int c = 0; c < s->item[i].n; c++)
            TRY(file_printf(w, "%s%.9g", c ? ", " : "", r[c].ll));
        TRY(file_printf(w, "], \"chars\": ["));
        for (int c = 0; c < s->item[i].n; c++)
            TRY(file_printf(w, "%s%" PRId64, c ? ", " : "", s->item[i].choice[c].chars));
        TRY(file_printf(w, "], \"tokens\": ["));
        for (int c = 0; c < s->item[i].n; c++)
            TRY(file_printf(w, "%s%" PRId64, c ? ", " : "", r[c].n - r[c].ctx));
        TRY(file_printf(w, "]}\n"));
    }
    return OK;
}

enum err zeroshot_run(struct zeroshot_result *out, struct question_set *set, struct eval *e,
                      const char *path, struct file_writer *lines)
{
    struct request *r = NULL;
    const double start = clock_s();
    int64_t n = 0;
    TRY(question_set_load(set, path, e->settings->labels, e->settings->limit));
    for (int64_t i = 0; i < set->n; i++)
        n += set->item[i].n;
    TRY(mem_calloc(&r, (size_t)n, sizeof(*r)));
    progress_phase(e->job->progress, set->name);
    enum err err = encode_all(r, set, e);
    if (!err)
        err = score(e, r, n);
    progress_end(e->job->progress);
    if (!err)
        err = write_lines(lines, set, r);
    if (!err) {
        zeroshot_reduce(out, set, r);
        out->seconds = clock_s() - start;
    }
    requests_free(r, n);
    return err ? err_add(err, "%s: ", path) : OK;
}

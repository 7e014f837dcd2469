/* SPDX-License-Identifier: MIT
 *
 * Scores the choices of questions.
 *
 * In simulation, every window of a batch has the length of its longest text, because the
 * activations of a block have room for one length. Questions are sorted by length, and a
 * batch ends where its padding would cost more than reading the weights once more. */
#include "convert/runtime/runtime.h"
#include "kernels/base/mem.h"
#include "tools/eval/eval_sim.h"
#include "tools/eval/tasks/zeroshot.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The run of one file. */
struct scoring {
    struct zeroshot_set *z;
    struct zeroshot_run *run;
    struct request **order; /* [z->n] */
};

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

/* A batch: order [first, end), whole questions, in windows of T tokens. */
struct batch {
    int64_t first, end, T;
};

/* Returns where the question of request i ends in an order of n. */
static int64_t end_of_question(struct request *const *order, int64_t n, int64_t i)
{
    const int64_t question = order[i]->question;
    while (i < n && order[i]->question == question)
        i++;
    return i;
}

static int64_t question_end(const struct scoring *s, int64_t i)
{
    return end_of_question(s->order, s->z->n, i);
}

int64_t zeroshot_batch_end(struct request *const *order, int64_t n, int64_t first)
{
    const int64_t T = order[first]->longest;
    int64_t at = first, padding = 0;
    while (at < n) {
        const int64_t end = end_of_question(order, n, at);
        for (int64_t i = at; i < end; i++)
            padding += T - order[i]->n;
        if (at > first &&
            (padding > ZEROSHOT_BATCH_PADDING || (end - first) * T > ZEROSHOT_BATCH_TOKENS))
            break;
        at = end;
    }
    return at;
}

static struct batch next_batch(const struct scoring *s, int64_t first)
{
    return (struct batch){first, zeroshot_batch_end(s->order, s->z->n, first),
                          s->order[first]->longest};
}

static bool is_done(const struct scoring *s, const struct batch *b)
{
    for (int64_t i = b->first; i < b->end; i++)
        if (!s->z->done[s->order[i]->question])
            return false;
    return true;
}

static enum err check_finite(const struct scoring *s, int64_t first, int64_t end)
{
    for (int64_t i = first; i < end; i++)
        FAIL_IF(!isfinite(s->order[i]->ll), ERR_NUMERIC,
                "%s: question %" PRId64 ", choice %d: its log-likelihood is %g", s->z->path,
                s->z->set.item[s->order[i]->question].row + 1, s->order[i]->choice + 1,
                s->order[i]->ll);
    return OK;
}

/* Writes the lines of the questions in order [first, end) that had none. */
static enum err put_lines(const struct scoring *s, int64_t first, int64_t end)
{
    TRY(check_finite(s, first, end));
    for (int64_t i = first; i < end; i = question_end(s, i))
        if (!s->z->done[s->order[i]->question])
            TRY(zeroshot_put(s->z, s->run->lines, s->order[i]->question));
    return OK;
}

/* Shows the share of a batch in the whole run. */
struct batch_progress {
    struct task_progress *p;
    double tokens, shown; /* of the batch */
};

static void show_share(void *ctx, double share)
{
    struct batch_progress *b = ctx;
    task_progress_add(b->p, share * b->tokens - b->shown);
    b->shown = share * b->tokens;
}

/* Scores a batch in parts that fit the memory. Their texts are computed as in one part,
 * because parts consist of whole questions. */
static enum err simulate_batch(struct scoring *s, struct model_run run,
                               const struct batch *b)
{
    const int64_t fit = eval_sim_windows(s->run->e, b->T);
    for (int64_t i = b->first, end; i < b->end; i = end) {
        end = question_end(s, i);
        while (end < b->end && question_end(s, end) - i <= fit)
            end = question_end(s, end);
        struct batch_progress share = {&s->run->progress, (double)((end - i) * b->T), 0};
        run.progress = show_share;
        run.progress_ctx = &share;
        TRY(score_batch(run, s->order + i, end - i, b->T));
    }
    return OK;
}

static enum err simulate(struct scoring *s)
{
    struct eval_sim sim;
    enum err err = eval_sim_open(&sim, s->run->e);
    for (int64_t i = 0; i < s->z->n && !err;) {
        const struct batch b = next_batch(s, i);
        i = b.end;
        if (is_done(s, &b))
            continue;
        err = task_check_stop();
        if (!err)
            err = simulate_batch(s, sim.run, &b);
        if (!err)
            err = put_lines(s, b.first, b.end);
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

static enum err decode_all(struct scoring *s, struct runtime *rt, float *logits)
{
    for (int64_t i = 0, end; i < s->z->n; i = end) {
        end = question_end(s, i);
        if (s->z->done[s->order[i]->question])
            continue;
        TRY(decode_question(s->order + i, (int)(end - i), rt, s->run->e, logits));
        TRY(put_lines(s, i, end));
        double tokens = 0;
        for (int64_t k = i; k < end; k++)
            tokens += (double)s->order[k]->n;
        task_progress_add(&s->run->progress, tokens);
    }
    return OK;
}

static enum err decode(struct scoring *s)
{
    enum err err = OK;
    struct runtime *rt = NULL;
    float *logits;
    const struct eval *e = s->run->e;
    const struct runtime_settings settings = {.threads = (int)e->job->recipe.threads,
                                              .max_tokens = e->ctx,
                                              .kv_bits = e->kv_bits,
                                              .act = recipe_runtime_act(&e->job->recipe)};
    TRY(mem_alloc(&logits, (size_t)e->job->arch.vocab, sizeof(*logits)));
    TRY_OUT(runtime_open(&rt, e->artifact, &settings));
    TRY_OUT(decode_all(s, rt, logits));
out:
    runtime_close(&rt);
    mem_free(logits);
    return err;
}

/* --- both --------------------------------------------------------------------------- */

static enum err scoring_open(struct scoring *s, struct zeroshot_set *z, bool sorted)
{
    *s = (struct scoring){.z = z};
    TRY(mem_alloc(&s->order, (size_t)z->n, sizeof(struct request *)));
    for (int64_t i = 0; i < z->n; i++)
        s->order[i] = &z->request[i];
    if (sorted)
        qsort(s->order, (size_t)z->n, sizeof(struct request *), longer);
    return OK;
}

enum err zeroshot_score(struct zeroshot_set *z, struct zeroshot_run *run)
{
    struct scoring s;
    enum err err = scoring_open(&s, z, !run->e->decode);
    s.run = run;
    if (!err)
        err = run->e->decode ? decode(&s) : simulate(&s);
    mem_free(s.order);
    return err;
}

enum err zeroshot_tokens(double *out, struct zeroshot_set *z, const struct eval *e)
{
    struct scoring s;
    double tokens = 0;
    TRY(scoring_open(&s, z, !e->decode));
    for (int64_t i = 0; i < z->n;) {
        const struct batch b =
            e->decode ? (struct batch){i, question_end(&s, i), 0} : next_batch(&s, i);
        i = b.end;
        if (is_done(&s, &b))
            continue;
        for (int64_t k = b.first; k < b.end; k++)
            tokens += (double)(e->decode ? s.order[k]->n : b.T);
    }
    mem_free(s.order);
    *out = tokens;
    return OK;
}

/* SPDX-License-Identifier: MIT
 *
 * Scores the choices of questions. */
#include "convert/runtime/runtime.h"
#include "kernels/base/mem.h"
#include "tools/eval/eval_sim.h"
#include "tools/eval/tasks/zeroshot.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* --- packed windows ----------------------------------------------------------------- */

/* A question stays in one window where it fits, because its choices share rows only there. */

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t zeroshot_shared(const struct request *a, const struct request *b, int64_t most)
{
    int64_t n = 0;
    most = min64(most, min64(a->n, b->n));
    while (n < most && a->ids[n] == b->ids[n])
        n++;
    return n;
}

/* Returns how many rows of `a` choice b can use: those of inputs, which score nothing of b. */
static int64_t shared_rows(const struct request *a, const struct request *b)
{
    return zeroshot_shared(a, b, min64(b->ctx, a->n) - 1);
}

int64_t zeroshot_question_rows(const struct request *r, int64_t n)
{
    int64_t rows = r[0].n - 1;
    for (int64_t i = 1; i < n; i++)
        rows += r[i].n - 1 - shared_rows(&r[0], &r[i]);
    return rows;
}

/* Where the next sequence goes. */
struct packing {
    struct zeroshot_windows *w;
    const struct request *r;
    int64_t row; /* the first free row of the last window */
    int64_t
        base; /* the request whose rows later choices of the question share; -1: none here */
};

static void next_window(struct packing *p, int64_t request)
{
    p->w->start[p->w->w.n++] = request;
    p->row = 0;
    p->base = -1;
}

static struct sequence sequence_of(const struct packing *p, int64_t i)
{
    const struct request *r = &p->r[i];
    if (p->base < 0)
        return (struct sequence){.first = p->row, .n = r->n - 1};
    const int64_t past = shared_rows(&p->r[p->base], r);
    return (struct sequence){.from = p->w->sequence[p->base].first,
                             .past = past,
                             .first = p->row,
                             .n = r->n - 1 - past};
}

static void place(struct packing *p, int64_t i)
{
    struct sequence q = sequence_of(p, i);
    if (q.n > p->w->w.rows - p->row) {
        next_window(p, i);
        q = sequence_of(p, i);
    }
    p->w->sequence[i] = q;
    p->w->window[i] = p->w->w.n - 1;
    p->row += q.n;
    if (p->base < 0)
        p->base = i;
}

static int64_t question_end(const struct request *r, int64_t n, int64_t i)
{
    const int64_t question = r[i].question;
    while (i < n && r[i].question == question)
        i++;
    return i;
}

static void place_all(struct packing *p, int64_t n)
{
    for (int64_t i = 0, end; i < n; i = end) {
        end = question_end(p->r, n, i);
        const int64_t rows = zeroshot_question_rows(p->r + i, end - i);
        if (i == 0 || (p->row && rows > p->w->w.rows - p->row))
            next_window(p, i);
        p->base = -1;
        for (int64_t k = i; k < end; k++)
            place(p, k);
    }
    p->w->start[p->w->w.n] = n;
}

/* Writes the ids and targets of request i to its rows. */
static void fill(struct zeroshot_windows *w, const struct request *r, int64_t i)
{
    const struct sequence *q = &w->sequence[i];
    const int64_t at = w->window[i] * w->w.rows + q->first;
    for (int64_t k = 0; k < q->n; k++) {
        const int64_t t = q->past + k;
        w->ids[at + k] = r[i].ids[t];
        w->target[at + k] = t + 1 >= r[i].ctx ? r[i].ids[t + 1] : -1;
    }
}

static void set_sizes(struct packed_windows *w, const struct request *r, int64_t n)
{
    w->longest = 1;
    for (int64_t i = 0; i < n; i++)
        w->longest = r[i].n - 1 > w->longest ? r[i].n - 1 : w->longest;
    w->rows = w->longest > ZEROSHOT_WINDOW_ROWS ? w->longest : ZEROSHOT_WINDOW_ROWS;
}

enum err zeroshot_pack(struct zeroshot_windows *out, const struct request *r, int64_t n)
{
    *out = (struct zeroshot_windows){0};
    set_sizes(&out->w, r, n);
    TRY(mem_alloc(&out->sequence, (size_t)n, sizeof(*out->sequence)));
    TRY(mem_alloc(&out->window, (size_t)n, sizeof(*out->window)));
    TRY(mem_alloc(&out->start, (size_t)n + 1, sizeof(*out->start)));
    place_all(&(struct packing){.w = out, .r = r, .base = -1}, n);
    const size_t rows = (size_t)(out->w.n * out->w.rows);
    TRY(mem_calloc(&out->ids, rows, sizeof(*out->ids)));
    TRY(mem_alloc(&out->target, rows, sizeof(*out->target)));
    memset(out->target, 0xff, rows * sizeof(*out->target)); /* -1 */
    for (int64_t i = 0; i < n; i++)
        fill(out, r, i);
    out->w.sequence = out->sequence;
    out->w.start = out->start;
    out->w.ids = out->ids;
    out->w.target = out->target;
    return OK;
}

void zeroshot_windows_free(struct zeroshot_windows *w)
{
    mem_free(w->sequence);
    mem_free(w->window);
    mem_free(w->start);
    mem_free(w->ids);
    mem_free(w->target);
    *w = (struct zeroshot_windows){0};
}

void zeroshot_unpack(const struct zeroshot_windows *w, struct request *r, int64_t n,
                     const float *nll)
{
    for (int64_t i = 0; i < n; i++) {
        const struct sequence *q = &w->sequence[i];
        const float *own = nll + w->window[i] * w->w.rows + q->first;
        r[i].ll = 0;
        for (int64_t t = r[i].ctx - 1; t < r[i].n - 1; t++)
            r[i].ll -= (double)own[t - q->past];
    }
}

/* The run of one file. */
struct scoring {
    struct zeroshot_set *z;
    struct zeroshot_run *run;
};

/* --- results ------------------------------------------------------------------------ */

static enum err check_finite(const struct zeroshot_set *z, const struct request *r)
{
    FAIL_IF(!isfinite(r->ll), ERR_NUMERIC,
            "%s: question %" PRId64 ", choice %d: its log-likelihood is %g", z->path,
            z->set.item[r->question].row + 1, r->choice + 1, r->ll);
    return OK;
}

/* Writes the lines of questions [first, end) that had none. */
static enum err put_lines(const struct scoring *s, int64_t first, int64_t end)
{
    struct zeroshot_set *z = s->z;
    for (int64_t i = z->first[first]; i < z->first[end]; i++)
        TRY(check_finite(z, &z->request[i]));
    for (int64_t q = first; q < end; q++)
        if (!z->done[q])
            TRY(zeroshot_put(z, s->run->lines, q));
    return OK;
}

/* --- simulation --------------------------------------------------------------------- */

/* Returns the rows of question q. */
static int64_t question_rows(const struct zeroshot_set *z, int64_t q)
{
    return zeroshot_question_rows(z->request + z->first[q], z->first[q + 1] - z->first[q]);
}

/* Returns where the batch ends that starts at question `first`. It depends on the file alone, so
 * that a resumed run computes the same batches. */
static int64_t batch_end(const struct zeroshot_set *z, int64_t first)
{
    int64_t q = first, rows = 0;
    while (q < z->set.n && rows < ZEROSHOT_BATCH_ROWS)
        rows += question_rows(z, q++);
    return q;
}

static bool is_done(const struct zeroshot_set *z, int64_t first, int64_t end)
{
    for (int64_t q = first; q < end; q++)
        if (!z->done[q])
            return false;
    return true;
}

/* Shows the share of some windows in the whole run. */
struct part_progress {
    struct task_progress *p;
    double rows, shown;
};

static void show_share(void *ctx, double share)
{
    struct part_progress *b = ctx;
    task_progress_add(b->p, share * b->rows - b->shown);
    b->shown = share * b->rows;
}

/* Runs the windows of a batch in parts that fit the memory; nll [w->n][w->rows]. tokens: of the
 * batch, as progress counts them. */
static enum err run_windows(struct scoring *s, struct model_run run,
                            const struct packed_windows *w, double tokens, float *nll)
{
    const int64_t fit = eval_sim_windows(s->run->e, w->rows);
    const double share = tokens / (double)w->n;
    for (int64_t i = 0; i < w->n; i += fit) {
        struct packed_windows part = *w;
        part.n = w->n - i < fit ? w->n - i : fit;
        part.start += i;
        part.ids += i * w->rows;
        part.target += i * w->rows;
        struct part_progress progress = {&s->run->progress, share * (double)part.n, 0};
        run.progress = show_share;
        run.progress_ctx = &progress;
        TRY(model_nll_packed(&run, &part, nll + i * w->rows));
    }
    return OK;
}

/* Returns the tokens of questions [first, end), as progress counts them. */
static double batch_tokens(const struct zeroshot_set *z, int64_t first, int64_t end)
{
    double rows = 0;
    for (int64_t q = first; q < end; q++)
        rows += (double)question_rows(z, q);
    return rows;
}

/* Scores questions [first, end). */
static enum err simulate_batch(struct scoring *s, const struct model_run *run,
                               int64_t first, int64_t end)
{
    struct request *r = s->z->request + s->z->first[first];
    const int64_t n = s->z->first[end] - s->z->first[first];
    struct zeroshot_windows w;
    float *nll = NULL;
    enum err err = OK;
    TRY_OUT(zeroshot_pack(&w, r, n));
    TRY_OUT(mem_alloc(&nll, (size_t)(w.w.n * w.w.rows), sizeof(*nll)));
    TRY_OUT(run_windows(s, *run, &w.w, batch_tokens(s->z, first, end), nll));
    zeroshot_unpack(&w, r, n, nll);
out:
    mem_free(nll);
    zeroshot_windows_free(&w);
    return err;
}

static enum err simulate(struct scoring *s)
{
    struct eval_sim sim;
    enum err err = eval_sim_open(&sim, s->run->e);
    for (int64_t q = 0, end; q < s->z->set.n && !err; q = end) {
        end = batch_end(s->z, q);
        if (is_done(s->z, q, end))
            continue;
        err = task_check_stop();
        if (!err)
            err = simulate_batch(s, &sim.run, q, end);
        if (!err)
            err = put_lines(s, q, end);
    }
    eval_sim_close(&sim);
    return err;
}

/* --- the packed runtime ------------------------------------------------------------- */

/* Returns the number of tokens that all choices of a question start with, less than any
 * context. */
static int64_t shared(const struct request *r, int64_t n)
{
    int64_t same = r[0].ctx - 1;
    for (int64_t i = 1; i < n; i++)
        same = zeroshot_shared(&r[0], &r[i], min64(same, r[i].ctx - 1));
    return same;
}

static enum err prefill(struct runtime *rt, const int32_t *ids, int64_t n, int64_t chunk)
{
    for (int64_t t = 0, step; t < n; t += step) {
        step = chunk && chunk < n - t ? chunk : n - t;
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
static enum err decode_question(struct request *r, int64_t n, struct runtime *rt,
                                const struct eval *e, float *logits)
{
    const int64_t past = shared(r, n);
    runtime_reset(rt);
    TRY(prefill(rt, r[0].ids, past, e->chunk));
    TRY(runtime_mark(rt));
    for (int64_t i = 0; i < n; i++) {
        runtime_rewind(rt);
        TRY(decode_choice(&r[i], rt, e, past, logits));
    }
    return OK;
}

/* Returns the tokens of question q, as progress counts them. */
static double question_tokens(const struct zeroshot_set *z, int64_t q)
{
    double tokens = 0;
    for (int64_t i = z->first[q]; i < z->first[q + 1]; i++)
        tokens += (double)z->request[i].n;
    return tokens;
}

static enum err decode_all(struct scoring *s, struct runtime *rt, float *logits)
{
    const struct zeroshot_set *z = s->z;
    for (int64_t q = 0; q < z->set.n; q++) {
        if (z->done[q])
            continue;
        TRY(decode_question(z->request + z->first[q], z->first[q + 1] - z->first[q], rt,
                            s->run->e, logits));
        TRY(put_lines(s, q, q + 1));
        task_progress_add(&s->run->progress, question_tokens(z, q));
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

enum err zeroshot_score(struct zeroshot_set *z, struct zeroshot_run *run)
{
    struct scoring s = {z, run};
    return run->e->decode ? decode(&s) : simulate(&s);
}

double zeroshot_tokens(const struct zeroshot_set *z, const struct eval *e)
{
    double tokens = 0;
    for (int64_t q = 0, end; q < z->set.n; q = end) {
        end = e->decode ? q + 1 : batch_end(z, q);
        if (is_done(z, q, end))
            continue;
        tokens += e->decode ? question_tokens(z, q) : batch_tokens(z, q, end);
    }
    return tokens;
}

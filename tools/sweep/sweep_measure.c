/* SPDX-License-Identifier: MIT
 *
 * Runs one measure of a cell. */
#include "convert/artifact/artifact_plain.h"
#include "kernels/base/clock.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/progress.h"
#include "tools/sweep/sweep_measures.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

/* --- texts -------------------------------------------------------------------------- */

static json_t *text_json(const struct eval_result *r, const struct eval *e,
                         const double *nll)
{
    return json_pack("{s:f, s:o, s:f, s:I, s:I, s:I, s:o}", "ppl", r->ppl, "stderr",
                     json_finite(r->ppl_stderr), "nll", r->nll, "tokens",
                     (json_int_t)r->tokens, "windows", (json_int_t)r->windows, "ctx",
                     (json_int_t)e->ctx, "window_nll", json_reals(nll, r->windows));
}

static enum err measure_text(json_t **out, struct eval *with)
{
    struct eval e = *with;
    struct eval_result r;
    double *nll;
    TRY(eval_count_windows(&e));
    with->told = e.told;
    TRY(mem_calloc(&nll, (size_t)e.windows, sizeof(*nll)));
    e.window_nll = nll;
    const enum err err = eval_ppl(&r, &e);
    if (!err)
        *out = text_json(&r, &e, nll);
    mem_free(nll);
    return err;
}

/* --- multiple choice ---------------------------------------------------------------- */

/* Returns 1 or 0 for each question: whether it is right. */
static json_t *right_json(const struct zeroshot_set *z, bool per_char)
{
    json_t *list = json_array();
    for (int64_t i = 0; list && i < z->set.n; i++) {
        const struct request *r = z->request + z->first[i];
        json_array_append_new(
            list, json_integer(zeroshot_is_right(&z->set.item[i], r, per_char)));
    }
    return list;
}

/* Returns the mean share of right answers of who guesses. */
static double chance_of(const struct question_set *s)
{
    double sum = 0;
    for (int64_t i = 0; i < s->n; i++)
        sum += 1.0 / s->item[i].n;
    return sum / (double)s->n;
}

static json_t *zeroshot_json(const struct zeroshot_set *z)
{
    struct zeroshot_result r;
    const bool norm = z->set.normalized;
    zeroshot_reduce(&r, &z->set, z->request);
    return json_pack(
        "{s:I, s:I, s:I, s:f, s:f, s:o, s:o, s:o, s:o, s:o}", "n", (json_int_t)r.n, "rows",
        (json_int_t)z->set.rows, "cut", (json_int_t)r.cut, "chance", chance_of(&z->set),
        "acc", r.acc, "acc_stderr", json_finite(r.acc_stderr), "acc_norm",
        norm ? json_real(r.norm) : json_null(), "acc_norm_stderr",
        norm ? json_finite(r.norm_stderr) : json_null(), "right", right_json(z, false),
        "right_norm", norm ? right_json(z, true) : json_null());
}

static enum err measure_zeroshot(json_t **out, struct zeroshot_set *z, struct eval *e,
                                 const struct task_kept *kept)
{
    TRY(eval_choices_set(z, e, kept));
    *out = zeroshot_json(z);
    return OK;
}

/* --- LongBench ---------------------------------------------------------------------- */

static json_t *longbench_json(const struct longbench_set *set, const double *percent)
{
    const struct estimate score = estimate_mean(percent, set->n);
    int64_t cut = 0;
    for (int64_t i = 0; i < set->n; i++)
        cut += set->item[i].cut;
    return json_pack("{s:s, s:I, s:I, s:I, s:f, s:o, s:o}", "metric", set->task->metric,
                     "n", (json_int_t)set->n, "rows", (json_int_t)set->rows, "cut",
                     (json_int_t)cut, "score", score.mean, "stderr",
                     json_finite(score.stderr_), "scores", json_reals(percent, set->n));
}

static enum err answer_all(json_t **out, const struct longbench_set *set, struct eval *e,
                           const char *path, const struct task_kept *kept)
{
    double *score;
    TRY(mem_calloc(&score, (size_t)set->n, sizeof(*score)));
    const enum err err = eval_longbench_set(score, e, set, path, kept);
    for (int64_t i = 0; i < set->n; i++)
        score[i] *= 100;
    if (!err)
        *out = longbench_json(set, score);
    mem_free(score);
    return err;
}

/* A checkpoint answers in full precision. */
static enum err measure_longbench(json_t **out, const struct longbench_set *set,
                                  const struct eval *with, const char *path,
                                  const struct task_kept *kept)
{
    struct artifact *plain = NULL;
    struct eval e = *with;
    e.decode = true;
    e.chunk = 0;
    if (!e.artifact)
        TRY(artifact_plain(&plain, e.job->model));
    if (plain) {
        e.artifact = plain;
        e.unquantized = true;
    }
    const enum err err = answer_all(out, set, &e, path, kept);
    artifact_close(&plain);
    return err;
}

/* --- all ---------------------------------------------------------------------------- */

static enum err measure_questions(json_t **out, const struct sweep *s,
                                  const struct sweep_asked *a, struct eval *e,
                                  const struct task_kept *kept)
{
    const struct sweep_questions *q = &s->questions[a->from];
    if (a->kind == SWEEP_ZEROSHOT)
        return measure_zeroshot(out, &q->zeroshot[a->index], e, kept);
    return measure_longbench(out, &q->longbench[a->index], e,
                             s->settings.longbench[a->index], kept);
}

/* Keeps the answers of a measure in the cell's file, so that an interrupted cell continues behind
 * them. */
static enum err measure_kept(json_t **out, const struct sweep *s,
                             const struct sweep_run *run, const struct sweep_asked *a,
                             struct eval *e)
{
    enum err err = OK;
    char *path = NULL, *text = json_text(a->identity, JSON_SORT_KEYS | JSON_COMPACT);
    if (!text)
        FAIL_OUT(ERR_MEMORY, "out of memory for the identity of a measure");
    TRY_OUT(sweep_path(&path, s, run, SWEEP_ANSWERS));
    const struct task_kept kept = {path, text};
    progress_phase(e->job->progress,
                   json_string_value(json_object_get(a->identity, "name")));
    TRY_OUT(measure_questions(out, s, a, e, &kept));
out:
    mem_free(path);
    free(text);
    return err;
}

static enum err measure(json_t **out, const struct sweep *s, const struct sweep_run *run,
                        const struct sweep_asked *a, struct eval *e)
{
    return a->kind == SWEEP_TEXT ? measure_text(out, e) : measure_kept(out, s, run, a, e);
}

enum err sweep_measure(json_t **out, const struct sweep *s, const struct sweep_run *run,
                       int i, struct eval *e)
{
    const struct sweep_asked *a = &run->asked[i];
    const double start = clock_s();
    json_t *figures = NULL;
    TRY(measure(&figures, s, run, a, e));
    *out = json_pack("{s:O, s:O, s:O, s:f}", "task", json_object_get(a->identity, "task"),
                     "name", json_object_get(a->identity, "name"), "identity", a->identity,
                     "seconds", clock_s() - start);
    const bool whole = *out && figures && !json_object_update(*out, figures);
    json_decref(figures);
    if (whole)
        return OK;
    json_decref(*out);
    FAIL(ERR_MEMORY, "out of memory for the result");
}

void sweep_measure_done(const struct sweep *s, const struct sweep_run *run)
{
    char *path = NULL;
    if (!sweep_path(&path, s, run, SWEEP_ANSWERS))
        unlink(path);
    err_clear(); /* the next measure removes it as well */
    mem_free(path);
}

/* SPDX-License-Identifier: MIT */
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/eval/tasks/eval_tasks.h"
#include "tools/eval/tasks/zeroshot.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* A file and its result. */
struct part {
    struct zeroshot_set z;
    struct zeroshot_result r;
    double seconds;
};

struct choices {
    struct zeroshot_run run;
    struct part *part; /* [n] */
    int n;
    bool bos;
};

/* --- printing ----------------------------------------------------------------------- */

static json_t *part_json(const struct part *p)
{
    const struct zeroshot_result *r = &p->r;
    const bool norm = p->z.set.normalized;
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:f, s:o, s:o, s:o, s:f}", "set", p->z.set.name, "file",
        p->z.path, "n", (json_int_t)r->n, "rows", (json_int_t)p->z.set.rows, "cut",
        (json_int_t)r->cut, "acc", r->acc, "acc_stderr", json_finite(r->acc_stderr),
        "acc_norm", norm ? json_real(r->norm) : json_null(), "acc_norm_stderr",
        norm ? json_finite(r->norm_stderr) : json_null(), "seconds", p->seconds);
}

static void print_share(const char *name, double share, double error)
{
    printf("  %s %6.2f %%", name, 100 * share);
    if (isfinite(error))
        printf(" +- %.2f", 100 * error);
}

static void print_part(const struct part *p)
{
    const struct question_set *s = &p->z.set;
    printf("%-13s %6" PRId64, s->name, s->n);
    if (s->n < s->rows)
        printf(" of %" PRId64, s->rows);
    printf(" question%s", plural(s->rows));
    print_share("acc", p->r.acc, p->r.acc_stderr);
    if (s->normalized)
        print_share("acc_norm", p->r.norm, p->r.norm_stderr);
    if (p->r.cut)
        printf("  %" PRId64 " cut at the front", p->r.cut);
    printf("  %.1f s  %s\n", p->seconds, file_base_name(p->z.path));
    fflush(stdout);
}

/* Computes the averages over the files: of acc, and of acc_norm, or of acc where that is
 * not defined. Returns whether it is defined for all. */
static bool averages(struct estimate *acc, struct estimate *norm, const struct choices *c)
{
    bool all = true;
    *acc = *norm = (struct estimate){0, 0};
    for (int i = 0; i < c->n; i++) {
        const struct zeroshot_result *r = &c->part[i].r;
        const struct estimate plain = {r->acc, r->acc_stderr},
                              normed = {r->norm, r->norm_stderr};
        const bool defined = c->part[i].z.set.normalized;
        task_average_add(acc, plain, c->n);
        task_average_add(norm, defined ? normed : plain, c->n);
        all = all && defined;
    }
    return all;
}

static void print_average(const struct choices *c)
{
    struct estimate acc, norm;
    const bool all = averages(&acc, &norm, c);
    printf("%-13s %6d sets     ", "average", c->n);
    print_share("acc", acc.mean, acc.stderr_);
    print_share("acc_norm", norm.mean, norm.stderr_);
    printf("%s\n", all ? "" : "  (of winogrande: acc)");
}

static enum err print_json(const struct choices *c)
{
    struct estimate acc, norm;
    json_t *sets = json_array(),
           *o = json_pack("{s:s, s:O}", "task", "zeroshot", "sets", sets);
    averages(&acc, &norm, c);
    for (int i = 0; i < c->n; i++)
        json_array_append_new(sets, part_json(&c->part[i]));
    json_object_set_new(o, "average",
                        json_pack("{s:i, s:f, s:o, s:f, s:o}", "sets", c->n, "acc",
                                  acc.mean, "acc_stderr", json_finite(acc.stderr_),
                                  "acc_norm", norm.mean, "acc_norm_stderr",
                                  json_finite(norm.stderr_)));
    enum err err = task_add_model(o, c->run.e, c->bos);
    if (!err)
        err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(sets);
    json_decref(o);
    return err;
}

static enum err print_all(const struct choices *c)
{
    if (c->run.e->settings->json)
        return print_json(c);
    if (c->n > 1)
        print_average(c);
    task_print_model(c->run.e, "model         ", c->bos);
    return OK;
}

/* --- the run ------------------------------------------------------------------------ */

/* Loads all files first, so that a mistake in the last one is found before the work. */
static enum err load_all(struct choices *c)
{
    struct eval *e = c->run.e;
    const struct eval_settings *s = e->settings;
    struct label_files labels = {.path = s->labels, .n = s->n_labels};
    TRY(tokenizer_open(&e->job->tokenizer, e->job->model_dir));
    TRY(task_has_bos(&c->bos, e));
    TRY(mem_calloc(&c->part, (size_t)c->n, sizeof(*c->part)));
    for (int i = 0; i < c->n; i++) {
        const char *path = e->job->recipe.data.path[i];
        TRY(zeroshot_load(&c->part[i].z, e, path, &labels));
        for (int k = 0; k < i; k++)
            TRY(task_refuse_twins("data", path, c->part[i].z.set.name,
                                  c->part[k].z.set.name));
    }
    FAIL_IF(labels.used < labels.n, ERR_USAGE,
            "--labels %s: no file of --data is left that lacks labels; give one for each "
            "such file, in their order",
            labels.path[labels.used]);
    return OK;
}

static enum err open_lines(struct choices *c)
{
    char *text = NULL;
    const char *path = c->run.e->settings->out;
    if (path)
        TRY(task_run_text(&text, c->run.e, 0));
    const enum err err = task_lines_open(&c->run.lines, path, text ? text : "", 17);
    mem_free(text);
    TRY(err);
    for (int i = 0; i < c->n; i++)
        TRY(zeroshot_expect(&c->part[i].z, c->run.lines));
    return task_lines_check(c->run.lines);
}

static enum err measure(struct choices *c)
{
    struct task_progress *p = &c->run.progress;
    for (int i = 0; i < c->n; i++)
        p->total += zeroshot_tokens(&c->part[i].z, c->run.e);
    p->p = c->run.e->job->progress;
    progress_phase(p->p, "zeroshot");
    task_progress_add(p, 0);
    for (int i = 0; i < c->n; i++) {
        struct part *part = &c->part[i];
        const double start = clock_s();
        TRY(zeroshot_score(&part->z, &c->run));
        part->seconds = clock_s() - start;
        zeroshot_reduce(&part->r, &part->z.set, part->z.request);
        progress_end(p->p);
        zeroshot_warn_cut(&part->z, "--ctx", c->run.e->ctx);
        zeroshot_warn_cache(&part->z, c->run.e);
        if (!c->run.e->settings->json)
            print_part(part);
    }
    return task_lines_finish(c->run.lines);
}

enum err eval_choices_set(struct zeroshot_set *z, struct eval *e,
                          const struct task_kept *kept)
{
    struct zeroshot_run run = {.e = e, .progress = {.p = e->job->progress}};
    enum err err = task_lines_open_kept(&run.lines, kept, 17);
    if (!err)
        err = zeroshot_expect(z, run.lines);
    if (!err)
        err = task_lines_check(run.lines);
    run.progress.total = err ? 0 : zeroshot_tokens(z, e);
    if (!err)
        err = zeroshot_score(z, &run);
    progress_end(e->job->progress);
    if (!err)
        zeroshot_warn_cache(z, e);
    task_lines_close(&run.lines);
    return err;
}

enum err eval_choices(struct eval *e)
{
    struct choices c = {.run = {.e = e}, .n = e->job->recipe.data.n};
    enum err err = load_all(&c);
    if (!err)
        err = open_lines(&c);
    if (!err)
        err = measure(&c);
    if (!err)
        err = print_all(&c);
    task_lines_close(&c.run.lines);
    for (int i = 0; c.part && i < c.n; i++)
        zeroshot_free(&c.part[i].z);
    mem_free(c.part);
    return err;
}

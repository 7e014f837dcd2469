/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/longbench_report.h"

#include "kernels/base/file/file.h"
#include "kernels/base/plural.h"
#include "tools/eval/tasks/task_run.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

enum err longbench_report_open(struct longbench_report *r, int n, bool json)
{
    *r = (struct longbench_report){.sets = json_array(), .n = n, .json = json};
    FAIL_IF(!r->sets, ERR_MEMORY, "out of memory for the result");
    return OK;
}

void longbench_report_close(struct longbench_report *r)
{
    json_decref(r->sets);
    *r = (struct longbench_report){0};
}

static void print_score(struct estimate score, const char *metric)
{
    printf(" %6.2f", 100 * score.mean);
    if (isfinite(score.stderr_))
        printf(" +- %.2f", 100 * score.stderr_);
    printf("%s%s", *metric ? " " : "", metric);
}

static void print_figures(const struct longbench_figures *f)
{
    printf("%-15s", f->task->name);
    print_score(f->score, f->task->metric);
    printf("  %" PRId64, f->n);
    if (f->n < f->rows)
        printf(" of %" PRId64, f->rows);
    printf(" question%s", plural(f->rows));
    if (f->max_gen)
        printf(", %" PRId64 " cut in the middle  %.1f s", f->cut, f->seconds);
    printf("  %s\n", file_base_name(f->file));
    fflush(stdout);
}

static json_t *figures_json(const struct longbench_figures *f)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:I, s:f, s:o}", "set", f->task->name,
                          "file", f->file, "metric", f->task->metric, "n", (json_int_t)f->n,
                          "rows", (json_int_t)f->rows, "score", 100 * f->score.mean,
                          "stderr", json_finite(100 * f->score.stderr_));
    if (o && f->max_gen) {
        json_object_set_new(o, "cut", json_integer(f->cut));
        json_object_set_new(o, "max_gen", json_integer(f->max_gen));
        json_object_set_new(o, "seconds", json_real(f->seconds));
    }
    return o;
}

enum err longbench_report_add(struct longbench_report *r, const struct longbench_figures *f)
{
    task_average_add(&r->mean, f->score, r->n);
    if (!r->json)
        print_figures(f);
    FAIL_IF(json_array_append_new(r->sets, figures_json(f)), ERR_MEMORY,
            "out of memory for the result");
    return OK;
}

static enum err print_json(const struct longbench_report *r, const struct eval *e, bool bos)
{
    json_t *o = json_pack("{s:s, s:O, s:{s:i, s:f, s:o}}", "task", "longbench", "sets",
                          r->sets, "average", "sets", r->n, "score", 100 * r->mean.mean,
                          "stderr", json_finite(100 * r->mean.stderr_));
    enum err err = e ? task_add_model(o, e, bos) : OK;
    if (!err)
        err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

enum err longbench_report_print(const struct longbench_report *r, const struct eval *e,
                                bool bos)
{
    if (r->json)
        return print_json(r, e, bos);
    if (r->n > 1) {
        printf("%-15s", "average");
        print_score(r->mean, "");
        printf("  %d sets\n", r->n);
    }
    if (e)
        task_print_model(e, "model           ", bos);
    return OK;
}

/* SPDX-License-Identifier: MIT
 *
 * Scores of answers that exist already: JSON lines as LongBench's eval.py reads them, and
 * as `wkvq eval --task longbench -o` writes them. */
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/eval/tasks/eval_tasks.h"
#include "tools/eval/tasks/longbench.h"
#include "tools/eval/tasks/longbench_report.h"
#include "tools/eval/tasks/task_rows.h"
#include "tools/eval/tasks/task_run.h"

/* The answers to one set in one file. */
struct group {
    const struct longbench_task *task;
    const char *file;
    double *score; /* [room], owned */
    int64_t n, room;
};

struct predictions {
    struct group *item;
    int n;
};

static enum err find_group(struct group **out, struct predictions *p,
                           const struct longbench_task *task, const char *file)
{
    for (int i = 0; i < p->n; i++) {
        if (p->item[i].task != task)
            continue;
        if (p->item[i].file != file)
            TRY(task_refuse_twins("predictions", file, task->name, p->item[i].task->name));
        *out = &p->item[i];
        return OK;
    }
    TRY(mem_resize(&p->item, (size_t)p->n, (size_t)p->n + 1, sizeof(*p->item)));
    p->item[p->n] = (struct group){.task = task, .file = file};
    *out = &p->item[p->n++];
    return OK;
}

static enum err add_score(struct group *g, double score)
{
    if (g->n == g->room) {
        const int64_t more = g->room ? 2 * g->room : 64;
        TRY(mem_resize(&g->score, (size_t)g->room, (size_t)more, sizeof(*g->score)));
        g->room = more;
    }
    g->score[g->n++] = score;
    return OK;
}

static enum err add_row(struct predictions *p, const json_t *row, const char *path,
                        const char *where)
{
    const struct longbench_task *task;
    struct group *g;
    json_t *answers;
    struct span pred;
    double score;
    TRY(longbench_row_task(&task, row, file_base_name(path), where));
    TRY(longbench_pred(&pred, row, where));
    TRY(longbench_answers(&answers, row, where));
    TRY(longbench_score(&score, task, pred, answers));
    TRY(find_group(&g, p, task, path));
    return add_score(g, score);
}

static enum err read_file(struct predictions *p, const char *path)
{
    struct task_rows r;
    enum err err = task_rows_open(&r, path, 0);
    for (json_t *row; !err;) {
        err = task_rows_next(&row, &r);
        if (err || !row)
            break;
        err = add_row(p, row, path, r.f.where);
        json_decref(row);
    }
    task_rows_close(&r);
    return err;
}

static enum err print_all(const struct predictions *p, bool json)
{
    struct longbench_report r;
    enum err err = longbench_report_open(&r, p->n, json);
    for (int i = 0; i < p->n && !err; i++) {
        const struct group *g = &p->item[i];
        const struct longbench_figures f = {.task = g->task,
                                            .file = g->file,
                                            .n = g->n,
                                            .rows = g->n,
                                            .score = estimate_mean(g->score, g->n)};
        err = longbench_report_add(&r, &f);
    }
    if (!err)
        err = longbench_report_print(&r, NULL, false);
    longbench_report_close(&r);
    return err;
}

enum err eval_predictions(const char *const *path, int n, bool json)
{
    struct predictions p = {0};
    enum err err = OK;
    for (int i = 0; i < n && !err; i++)
        err = read_file(&p, path[i]);
    if (!err)
        err = print_all(&p, json);
    for (int i = 0; i < p.n; i++)
        mem_free(p.item[i].score);
    mem_free(p.item);
    return err;
}

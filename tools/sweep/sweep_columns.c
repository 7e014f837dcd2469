/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_columns.h"

#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/eval/tasks/task_run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const json_t *sweep_measure_of(const json_t *row, const char *task, const char *name)
{
    size_t i;
    const json_t *list = json_object_get(row, "measures"), *m;
    json_array_foreach(list, i, m) if (!strcmp(json_member_text(m, "task"), task) &&
                                       !strcmp(json_member_text(m, "name"), name)) return m;
    return NULL;
}

const char *sweep_fault_of(const json_t *row)
{
    const bool failed = json_is_false(json_object_get(row, "verified"));
    return failed ? json_member_text(json_object_get(row, "verify"), "first_difference")
                  : NULL;
}

/* --- the list ----------------------------------------------------------------------- */

static bool has_column(const struct sweep_columns *c, const char *task, const char *name,
                       const char *key)
{
    for (int i = 0; i < c->n; i++) {
        const struct sweep_column *x = &c->item[i];
        if (x->name && !strcmp(x->task, task) && !strcmp(x->name, name) &&
            !strcmp(x->key, key))
            return true;
    }
    return false;
}

static enum err add(struct sweep_columns *c, const struct sweep_column *column)
{
    TRY(mem_resize(&c->item, (size_t)c->n, (size_t)c->n + 1, sizeof(*c->item)));
    c->item[c->n++] = *column;
    return OK;
}

/* Adds the figure `key` of a measure unless there is a column for it. */
static enum err add_figure(struct sweep_columns *c, const json_t *m, const char *key)
{
    struct sweep_column x = {.task = json_member_text(m, "task"),
                             .name = json_member_text(m, "name"),
                             .key = key};
    if (!json_is_number(json_object_get(m, key)) || has_column(c, x.task, x.name, key))
        return OK;
    if (!strcmp(key, "ppl"))
        snprintf(x.head, sizeof(x.head), "ppl_%.50s", x.name);
    else if (!strcmp(key, "score"))
        snprintf(x.head, sizeof(x.head), "%.50s", x.name);
    else
        snprintf(x.head, sizeof(x.head), "%.50s_%s", x.name, key);
    return add(c, &x);
}

static enum err add_task(struct sweep_columns *c, const json_t *rows, const char *task,
                         const char *const *key)
{
    size_t i, k;
    json_t *row, *m;
    json_array_foreach(rows, i, row) json_array_foreach(
        json_object_get(row, "measures"), k,
        m) for (int n = 0; key[n] && !strcmp(json_member_text(m, "task"), task); n++)
        TRY(add_figure(c, m, key[n]));
    return OK;
}

/* Returns how many columns, from the first on, show this figure of a task's sets. */
static int count(const struct sweep_columns *c, const char *task, const char *key)
{
    int n = 0;
    for (int i = 0; i < c->n; i++)
        n += c->item[i].name && !strcmp(c->item[i].task, task) &&
             !strcmp(c->item[i].key, key);
    return n;
}

static enum err add_mean(struct sweep_columns *c, const char *task, const char *key)
{
    struct sweep_column x = {.task = task, .key = key};
    if (count(c, task, strcmp(key, "acc_norm") ? key : "acc") < 2)
        return OK;
    if (strcmp(key, "score"))
        snprintf(x.head, sizeof(x.head), "%s_%s", task, key);
    else
        snprintf(x.head, sizeof(x.head), "%s", task);
    return add(c, &x);
}

enum err sweep_columns_of(struct sweep_columns *c, const json_t *rows)
{
    *c = (struct sweep_columns){0};
    TRY(add_task(c, rows, "ppl", (const char *const[]){"ppl", NULL}));
    TRY(add_task(c, rows, "zeroshot", (const char *const[]){"acc", "acc_norm", NULL}));
    TRY(add_mean(c, "zeroshot", "acc"));
    if (count(c, "zeroshot", "acc_norm"))
        TRY(add_mean(c, "zeroshot", "acc_norm"));
    TRY(add_task(c, rows, "longbench", (const char *const[]){"score", NULL}));
    return add_mean(c, "longbench", "score");
}

void sweep_columns_free(struct sweep_columns *c)
{
    mem_free(c->item);
    *c = (struct sweep_columns){0};
}

/* --- values ------------------------------------------------------------------------- */

static double number(const json_t *m, const char *key)
{
    const json_t *v = json_object_get(m, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static struct estimate figure(const json_t *m, const char *key)
{
    char error[32] = "stderr";
    if (!strncmp(key, "acc", 3))
        snprintf(error, sizeof(error), "%s_stderr", key);
    return (struct estimate){number(m, key), number(m, error)};
}

/* Of a set without acc_norm, acc takes its place. */
static struct estimate figure_or_acc(const json_t *m, const char *key)
{
    const struct estimate x = figure(m, key);
    return isfinite(x.mean) || strcmp(key, "acc_norm") ? x : figure(m, "acc");
}

static struct estimate mean_of(const struct sweep_columns *c, const struct sweep_column *x,
                               const json_t *row)
{
    const char *every = strcmp(x->key, "acc_norm") ? x->key : "acc";
    const int n = count(c, x->task, every);
    struct estimate mean = {0, 0};
    for (int i = 0; i < c->n; i++) {
        const struct sweep_column *one = &c->item[i];
        if (!one->name || strcmp(one->task, x->task) || strcmp(one->key, every))
            continue;
        const json_t *m = sweep_measure_of(row, one->task, one->name);
        task_average_add(&mean, figure_or_acc(m, x->key), n);
    }
    return mean;
}

struct estimate sweep_column_value(const struct sweep_columns *c, int i, const json_t *row)
{
    const struct sweep_column *x = &c->item[i];
    return x->name ? figure(sweep_measure_of(row, x->task, x->name), x->key)
                   : mean_of(c, x, row);
}

/* --- the file ----------------------------------------------------------------------- */

/* Writes a CSV field as in RFC 4180. */
static enum err csv_text(struct file_writer *w, const char *text)
{
    TRY(file_printf(w, "\""));
    for (const char *p = text; *p; p++)
        TRY(file_printf(w, *p == '"' ? "\"\"" : "%c", *p));
    return file_printf(w, "\"");
}

static enum err csv_number(struct file_writer *w, double x)
{
    return isfinite(x) ? file_printf(w, ",%.9g", x) : file_printf(w, ",");
}

static enum err csv_set(struct file_writer *w, const json_t *set)
{
    size_t i;
    json_t *item;
    TRY(file_printf(w, ",\""));
    json_array_foreach(set, i, item)
    {
        const char *text = json_string_value(item);
        for (const char *p = text ? text : ""; *p; p++)
            TRY(file_printf(w, *p == '"' ? "\"\"" : "%c", *p));
        if (i + 1 < json_array_size(set))
            TRY(file_printf(w, " "));
    }
    return file_printf(w, "\"");
}

static enum err csv_row(struct file_writer *w, const json_t *row,
                        const struct sweep_columns *c)
{
    static const char *const columns[] = {"ppl",     "stderr", "nll",    "weight_bits",
                                          "kv_bits", "bytes",  "seconds"};
    const bool verified = json_is_true(json_object_get(row, "verified"));
    const char *hash = json_string_value(json_object_get(row, "hash"));
    TRY(csv_text(w, json_string_value(json_object_get(row, "name"))));
    for (size_t i = 0; i < ARRAY_LEN(columns); i++) {
        const json_t *v = json_object_get(row, columns[i]);
        TRY(csv_number(w, json_is_number(v) ? json_number_value(v) : NAN));
    }
    TRY(csv_set(w, json_object_get(row, "set")));
    TRY(file_printf(w, ",%s,", sweep_fault_of(row) ? "no" : verified ? "yes" : ""));
    TRY(csv_text(w, hash ? hash : ""));
    for (int i = 0; i < c->n; i++) {
        const struct estimate x = sweep_column_value(c, i, row);
        TRY(csv_number(w, x.mean));
        TRY(csv_number(w, x.stderr_));
    }
    return file_printf(w, "\r\n");
}

static enum err csv_rows(struct file_writer *w, const json_t *rows,
                         const struct sweep_columns *c)
{
    size_t i;
    json_t *row;
    TRY(file_printf(w, "name,ppl,stderr,nll,weight_bits,kv_bits,bytes,seconds,set,"
                       "verified,hash"));
    for (int k = 0; k < c->n; k++)
        TRY(file_printf(w, ",%s,%s_stderr", c->item[k].head, c->item[k].head));
    TRY(file_printf(w, "\r\n"));
    json_array_foreach(rows, i, row) TRY(csv_row(w, row, c));
    return OK;
}

enum err sweep_columns_csv(const char *path, const json_t *rows)
{
    enum err err = OK;
    struct sweep_columns c = {0};
    struct file_writer *w = NULL;
    TRY_OUT(sweep_columns_of(&c, rows));
    TRY_OUT(file_writer_open(&w, path));
    TRY_OUT(csv_rows(w, rows, &c));
    TRY_OUT(file_writer_commit(&w));
out:
    sweep_columns_free(&c);
    file_writer_abort(&w);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * Paired differences of two cells, by each measure. */
#include "kernels/base/mem.h"
#include "tools/report/report.h"

#include <math.h>
#include <string.h>

#define NOTHING ((struct estimate){NAN, NAN})

/* Three cells: a is compared with the mean of b and c, which may be the same. */
struct trio {
    const struct report_row *a, *b, *c;
};

static double number(const json_t *list, size_t i)
{
    const json_t *v = json_array_get(list, i);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* Computes the paired difference of lists of figures, one for each window or question. */
static enum err pair(struct estimate *out, const json_t *a, const json_t *b,
                     const json_t *c)
{
    double *one;
    const size_t n = json_array_size(a);
    *out = NOTHING;
    if (!n || json_array_size(b) != n || json_array_size(c) != n)
        return OK;
    TRY(mem_alloc(&one, 2 * n, sizeof(*one)));
    for (size_t i = 0; i < n; i++) {
        one[i] = number(a, i);
        one[n + i] = 0.5 * (number(b, i) + number(c, i));
    }
    *out = estimate_difference(one, one + n, (int64_t)n);
    mem_free(one);
    return OK;
}

bool report_same_question(const json_t *a, const json_t *b)
{
    const json_t *x = json_object_get(a, "identity"), *y = json_object_get(b, "identity");
    return x && y && json_equal(x, y);
}

/* Computes the difference of one measure's list `key`. */
static enum err pair_measure(struct estimate *out, const struct trio *t, const char *task,
                             const char *name, const char *key)
{
    const json_t *a = sweep_measure_of(t->a->json, task, name),
                 *b = sweep_measure_of(t->b->json, task, name),
                 *c = sweep_measure_of(t->c->json, task, name);
    *out = NOTHING;
    if (!report_same_question(a, b) || !report_same_question(a, c))
        return OK;
    return pair(out, json_object_get(a, key), json_object_get(b, key),
                json_object_get(c, key));
}

static bool is_set(const struct sweep_column *c, const char *task, const char *key)
{
    return c->name && !strcmp(c->task, task) && !strcmp(c->key, key);
}

/* Computes the mean over a task's sets. points: of the average for 1 of the list's unit. */
static enum err pair_sets(struct estimate *out, const struct report *r,
                          const struct trio *t, const char *task, const char *key,
                          const char *list, double points)
{
    int sets = 0;
    struct estimate mean = {0, 0};
    for (int i = 0; i < r->columns.n; i++) {
        struct estimate one;
        if (!is_set(&r->columns.item[i], task, key))
            continue;
        TRY(pair_measure(&one, t, task, r->columns.item[i].name, list));
        mean.mean += points * one.mean;
        mean.stderr_ = hypot(mean.stderr_, points * one.stderr_);
        sets++;
    }
    *out = sets ? (struct estimate){mean.mean / sets, mean.stderr_ / sets} : NOTHING;
    return OK;
}

/* Returns the name of the task's set if it has only one, else NULL. */
static const char *only_set(const struct report *r, const char *task, const char *key)
{
    const char *name = NULL;
    int sets = 0;
    for (int i = 0; i < r->columns.n; i++)
        if (is_set(&r->columns.item[i], task, key)) {
            name = r->columns.item[i].name;
            sets++;
        }
    return sets == 1 ? name : NULL;
}

double report_compare_exactly(const struct report *r, const struct report_measure *m,
                              const struct report_row *a, const struct report_row *b)
{
    int64_t only_a = 0, only_b = 0;
    const char *name = m->kind == REPORT_ZEROSHOT ? only_set(r, "zeroshot", "acc") : NULL;
    const json_t *x = name ? sweep_measure_of(a->json, "zeroshot", name) : NULL,
                 *y = name ? sweep_measure_of(b->json, "zeroshot", name) : NULL;
    const json_t *right = json_object_get(x, "right"), *of_b = json_object_get(y, "right");
    const size_t n = json_array_size(right);
    if (!report_same_model(a, b) || !report_same_question(x, y) || !n ||
        json_array_size(of_b) != n)
        return NAN;
    for (size_t i = 0; i < n; i++) {
        only_a += number(right, i) > number(of_b, i);
        only_b += number(right, i) < number(of_b, i);
    }
    return mcnemar_exact(only_a, only_b);
}

/* Of the sweep's own text. */
static enum err pair_windows(struct estimate *out, const struct trio *t)
{
    *out = NOTHING;
    if (!isfinite(report_difference(t->a, t->b).mean) ||
        !isfinite(report_difference(t->a, t->c).mean))
        return OK;
    return pair(out, json_object_get(t->a->json, "window_nll"),
                json_object_get(t->b->json, "window_nll"),
                json_object_get(t->c->json, "window_nll"));
}

/* All cells are counted from shapes, and so alike. */
double report_memory(const struct report_row *row)
{
    const json_t *memory = json_object_get(row->json, "memory");
    return json_number_value(json_object_get(memory, "weights")) +
           json_number_value(json_object_get(row->json, "ctx")) * row->cache;
}

enum err report_compare(struct estimate *out, const struct report *r,
                        const struct report_measure *m, const struct report_row *a,
                        const struct report_row *b, const struct report_row *c)
{
    const struct trio t = {a, b, c ? c : b};
    *out = NOTHING;
    if (!report_same_model(a, b) || !report_same_model(a, t.c))
        return OK;
    switch (m->kind) {
    case REPORT_ZEROSHOT:
        return pair_sets(out, r, &t, "zeroshot", "acc", "right", 100);
    case REPORT_LONGBENCH:
        return pair_sets(out, r, &t, "longbench", "score", "scores", 1);
    case REPORT_MEMORY:
        *out = (struct estimate){
            report_memory(a) - 0.5 * (report_memory(t.b) + report_memory(t.c)), 0};
        return OK;
    default:
        return m->name ? pair_measure(out, &t, "ppl", m->name, "window_nll")
                       : pair_windows(out, &t);
    }
}

bool report_has_measure(const struct report *r, const struct report_measure *m)
{
    static const char *const task[] = {"ppl", "zeroshot", "longbench"};
    bool has = m->kind == REPORT_MEMORY || (m->kind == REPORT_TEXT && !m->name);
    for (int i = 0; i < r->columns.n && !has; i++) {
        const struct sweep_column *c = &r->columns.item[i];
        has = c->name && !strcmp(c->task, task[m->kind]) &&
              (!m->name || !strcmp(c->name, m->name));
    }
    return has;
}

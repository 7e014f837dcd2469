/* SPDX-License-Identifier: MIT
 *
 * Reads a sweep's results as figures and computes the differences to the base. */
#include "data/json.h"
#include "kernels/base/mem.h"
#include "tools/report/report.h"
#include "tools/sweep/sweep_record.h"
#include "tools/sweep/sweep_results.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define WINDOWS_MAX (1 << 24)

int64_t report_figures(const struct report_row *row, const char *array)
{
    return (int64_t)json_array_size(json_object_get(row->json, array));
}

double report_figure(const struct report_row *row, const char *array, int64_t i)
{
    const json_t *v = json_array_get(json_object_get(row->json, array), (size_t)i);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

const char *report_text(const json_t *o, const char *path)
{
    for (const char *at = path; o; at = strchr(at, '.') + 1) {
        const size_t n = strcspn(at, ".");
        o = json_object_getn(o, at, n);
        if (!at[n])
            return json_string_value(o);
    }
    return NULL;
}

bool report_quantized(const struct report_row *row)
{
    const json_t *config =
        json_object_get(json_object_get(row->json, "identity"), "config");
    const json_t *bits = json_object_get(json_object_get(config, "activations"), "bits");
    return row->weight_bits < 16 || row->kv_bits < 16 ||
           (json_is_integer(bits) && json_integer_value(bits) < 16);
}

/* Figures that later versions added. The bytes of a cell that is only simulated are counted
 * from its shapes. */
static enum err read_sizes(struct report_row *r, const json_t *o, const char *where)
{
    const double big = DBL_MAX;
    json_t *memory;
    r->bytes = r->cache = NAN;
    TRY(json_get_real(&r->bytes, o, "bytes", 0, big, where));
    r->measured = isfinite(r->bytes);
    TRY(json_get_object(&memory, o, "memory", where));
    if (!memory)
        return OK;
    if (!r->measured)
        TRY(json_need_real(&r->bytes, memory, "weights", 0, big, where));
    return json_need_real(&r->cache, memory, "cache_token", 0, big, where);
}

/* Returns the time of the measures beside the perplexity. */
static double measures_s(const json_t *o)
{
    size_t i;
    double sum = 0;
    const json_t *m;
    json_array_foreach(json_object_get(o, "measures"), i, m) sum +=
        json_number_value(json_object_get(m, "seconds"));
    return sum;
}

static enum err read_figures(struct report_row *r, const json_t *o, const char *where)
{
    const double big = DBL_MAX;
    r->ppl_stderr = NAN;
    TRY(json_need_string(&r->name, o, "name", where));
    TRY(json_need_string(&r->command, o, "command", where));
    TRY(json_need_real(&r->ppl, o, "ppl", 0, big, where));
    TRY(json_get_real(&r->ppl_stderr, o, "stderr", 0, big, where));
    TRY(json_need_real(&r->weight_bits, o, "weight_bits", 0, 64, where));
    TRY(json_need_real(&r->kv_bits, o, "kv_bits", 0, 64, where));
    TRY(read_sizes(r, o, where));
    TRY(json_need_real(&r->seconds, o, "seconds", 0, big, where));
    r->seconds += measures_s(o);
    return OK;
}

static enum err read_row(struct report_row *r, const json_t *o, const char *where)
{
    json_t *nll;
    *r = (struct report_row){.json = o, .diff = {NAN, NAN}};
    TRY(read_figures(r, o, where));
    TRY(json_get_array(&nll, o, "window_nll", where));
    r->windows = (int64_t)json_array_size(nll);
    FAIL_IF(r->windows > WINDOWS_MAX, ERR_FORMAT, "%s: window_nll: too many", where);
    TRY(mem_calloc(&r->nll, (size_t)r->windows, sizeof(*r->nll)));
    for (int64_t i = 0; i < r->windows; i++)
        r->nll[i] = report_figure(r, "window_nll", i);
    return OK;
}

static const json_t *identity_of(const struct report_row *row, const char *part)
{
    return json_object_get(json_object_get(row->json, "identity"), part);
}

bool report_same_model(const struct report_row *a, const struct report_row *b)
{
    const json_t *x = identity_of(a, "checkpoint"), *y = identity_of(b, "checkpoint");
    return x == y || json_equal(x, y);
}

bool report_elsewhere(const struct report *r, const struct report_row *row)
{
    static const char *const part[] = {"machine", "device", "cores"};
    const json_t *a = json_object_get(row->json, "run"),
                 *b = json_object_get(r->row[r->base].json, "run");
    for (size_t i = 0; i < ARRAY_LEN(part); i++) {
        const json_t *x = json_object_get(a, part[i]), *y = json_object_get(b, part[i]);
        if (x && y && !json_equal(x, y))
            return true;
    }
    return false;
}

/* Returns whether two rows are of one checkpoint, evaluated on the same text and windows. */
static bool comparable(const struct report_row *a, const struct report_row *b)
{
    const json_t *x = identity_of(a, "eval"), *y = identity_of(b, "eval");
    return report_same_model(a, b) && a->windows == b->windows && json_equal(x, y);
}

const struct report_row *report_full_precision(const struct report *r,
                                               const struct report_row *like)
{
    for (int i = 0; i < r->n; i++)
        if (!report_quantized(&r->row[i]) && comparable(&r->row[i], like))
            return &r->row[i];
    return NULL;
}

struct estimate report_difference(const struct report_row *a, const struct report_row *b)
{
    if (a == b || !comparable(a, b))
        return (struct estimate){NAN, NAN};
    return estimate_difference(a->nll, b->nll, b->windows);
}

bool report_significant(struct estimate difference)
{
    return fabs(difference.mean) > 2 * difference.stderr_;
}

/* Returns the place of a cell in the sweep's file; behind all of them if it has none. */
static size_t place(const json_t *names, const struct report_row *row)
{
    size_t i = 0;
    for (; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        if (name && !strcmp(name, row->name))
            break;
    }
    return i;
}

/* Sorts the rows into the order of the sweep's file, since cells may run side by side. Those of a
 * list with hashes have it already. */
static void sort_rows(struct report *r)
{
    const json_t *names = json_object_get(r->about, "cells");
    for (int i = 1; i < r->n; i++) {
        const struct report_row row = r->row[i];
        int k = i;
        for (; k > 0 && place(names, &r->row[k - 1]) > place(names, &row); k--)
            r->row[k] = r->row[k - 1];
        r->row[k] = row;
    }
}

static enum err find_base(struct report *r, const char *base, const char *dir)
{
    r->base = 0;
    for (int i = 0; base && i < r->n; i++) {
        r->base = i;
        if (!strcmp(r->row[i].name, base))
            return OK;
    }
    FAIL_IF(base, ERR_NOT_FOUND, "%s: no cell named '%s'", dir, base);
    return OK;
}

/* *row [*n] is to be freed after an error as well. */
static enum err read_rows(struct report_row **row, int *n, const json_t *list,
                          const char *dir)
{
    char where[512];
    const size_t rows = json_array_size(list);
    TRY(mem_calloc(row, rows, sizeof(**row)));
    for (size_t i = 0; i < rows; i++) {
        const json_t *o = json_array_get(list, i);
        snprintf(where, sizeof(where), "%.300s/results.jsonl: cell '%.150s'", dir,
                 json_member_text(o, "name"));
        ++*n;
        TRY(read_row(&(*row)[i], o, where));
    }
    return OK;
}

/* Reads the results, and which of them are of the latest run. */
static enum err read_lists(struct report *r, const char *dir)
{
    TRY(sweep_results_read(&r->list, dir));
    FAIL_IF(!json_array_size(r->list), ERR_USAGE, "%s: no results yet", dir);
    TRY(sweep_record_read(&r->about, dir));
    TRY(sweep_record_split(&r->now, &r->earlier, json_object_get(r->about, "cells"),
                           r->list));
    FAIL_IF(!json_array_size(r->now), ERR_USAGE,
            "%s: no results of the latest run yet, only %zu of earlier ones", dir,
            json_array_size(r->earlier));
    return OK;
}

enum err report_open(struct report *r, const char *dir, const char *base)
{
    *r = (struct report){0};
    TRY(read_lists(r, dir));
    TRY(read_rows(&r->row, &r->n, r->now, dir));
    TRY(read_rows(&r->old, &r->n_old, r->earlier, dir));
    TRY(sweep_columns_of(&r->columns, r->now));
    sort_rows(r);
    TRY(find_base(r, base, dir));
    for (int i = 0; i < r->n; i++)
        r->row[i].diff = report_difference(&r->row[i], &r->row[r->base]);
    return OK;
}

void report_close(struct report *r)
{
    for (int i = 0; i < r->n; i++)
        mem_free(r->row[i].nll);
    for (int i = 0; i < r->n_old; i++)
        mem_free(r->old[i].nll);
    mem_free(r->row);
    mem_free(r->old);
    sweep_columns_free(&r->columns);
    json_decref(r->now);
    json_decref(r->earlier);
    json_decref(r->list);
    json_decref(r->about);
    *r = (struct report){0};
}

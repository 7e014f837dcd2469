/* SPDX-License-Identifier: MIT
 *
 * Tables of further texts and of tasks, and what their figures cannot show. */
#include "data/json.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/report/html.h"
#include "tools/report/report.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A table of the columns of one task. Accuracies are shown in percent. */
struct table {
    const char *task, *caption, *mean; /* heads of the table and of its mean */
    double scale;
};

/* Returns the name of a column: that of its set or text. */
static const char *head_of(const struct table *t, const struct sweep_column *c)
{
    static const struct {
        const char *name, *head;
    } known[] = {{"piqa", "PIQA"},
                 {"arc_easy", "ARC-Easy"},
                 {"arc_challenge", "ARC-Challenge"},
                 {"arc", "ARC"},
                 {"hellaswag", "HellaSwag"},
                 {"winogrande", "WinoGrande"},
                 {"qasper", "Qasper"},
                 {"2wikimqa", "2WikiMultihopQA"},
                 {"hotpotqa", "HotpotQA"},
                 {"multifieldqa_en", "MultiFieldQA-en"},
                 {"triviaqa", "TriviaQA"},
                 {"lcc", "LCC"}};
    for (size_t i = 0; c->name && strcmp(c->task, "ppl") && i < ARRAY_LEN(known); i++)
        if (!strcmp(known[i].name, c->name))
            return known[i].head;
    return c->name ? c->name : t->mean;
}

static bool shown(const struct table *t, const struct sweep_column *c)
{
    return !strcmp(c->task, t->task) && (c->name == NULL || strcmp(c->key, "acc_norm"));
}

/* Returns whether column k of a row has a figure of another text or of other questions than
 * the base's; of a mean, whether one of its sets has. */
static bool is_other(const struct report *r, int k, const struct report_row *row)
{
    const struct sweep_column *mean = &r->columns.item[k];
    bool other = false;
    for (int i = 0; i < r->columns.n; i++) {
        const struct sweep_column *c = mean->name ? mean : &r->columns.item[i];
        if (!c->name || strcmp(c->task, mean->task))
            continue;
        const json_t *a = sweep_measure_of(row->json, c->task, c->name),
                     *b = sweep_measure_of(r->row[r->base].json, c->task, c->name);
        other |= a && b && !report_same_question(a, b);
    }
    return other;
}

static bool has_others(const struct report *r)
{
    for (int i = 0; i < r->n; i++)
        for (int k = 0; k < r->columns.n; k++)
            if (is_other(r, k, &r->row[i]))
                return true;
    return false;
}

static void put_value(FILE *f, struct estimate x, double scale, bool other)
{
    fputs("<td class=\"n\">", f);
    if (isfinite(x.mean))
        fprintf(f, "%.2f", scale * x.mean);
    else
        fputs("&ndash;", f);
    if (isfinite(x.mean) && isfinite(x.stderr_))
        fprintf(f, " &plusmn; %.2f", scale * x.stderr_);
    fputs(other && isfinite(x.mean) ? " *</td>" : "</td>", f);
}

/* Writes the heads as html_table() wants them. Release *out with free(). */
static enum err heads_of(char **out, const struct report *r, const struct table *t)
{
    size_t n;
    FILE *f = open_memstream(out, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for the page");
    fputs("<Cell", f);
    for (int i = 0; i < r->columns.n; i++) {
        const struct sweep_column *c = &r->columns.item[i];
        if (!shown(t, c))
            continue;
        fputs("|", f);
        html_text(f, head_of(t, c));
        fputs(c->name || strcmp(c->key, "acc_norm") ? "" : ", normalized", f);
    }
    const bool failed = ferror(f);
    FAIL_IF(fclose(f) || failed, ERR_MEMORY, "out of memory for the page");
    return OK;
}

static enum err put_table(FILE *f, const struct report *r, const struct table *t)
{
    char *heads = NULL;
    const enum err err = heads_of(&heads, r, t);
    if (!err) {
        fprintf(f, "<h3>%s</h3>\n", t->caption);
        html_table(f, t->caption, heads);
        for (int i = 0; i < r->n; i++) {
            fprintf(f, "<tr%s>", i == r->base ? " class=\"base\"" : "");
            html_row_name(f, r->row[i].name);
            for (int k = 0; k < r->columns.n; k++)
                if (shown(t, &r->columns.item[k]))
                    put_value(f, sweep_column_value(&r->columns, k, r->row[i].json),
                              t->scale, is_other(r, k, &r->row[i]));
            fputs("</tr>\n", f);
        }
        html_table_end(f);
    }
    free(heads);
    return err;
}

/* --- what the figures cannot show --------------------------------------------------- */

static int larger(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* *out = the median over the other cells of the paired standard error to the base; NAN if
 * none can be paired. */
static enum err median_error(double *out, const struct report *r,
                             const struct report_measure *m)
{
    double *error;
    size_t n = 0;
    TRY(mem_alloc(&error, (size_t)r->n, sizeof(*error)));
    for (int i = 0; i < r->n; i++) {
        struct estimate d;
        const enum err err = report_compare(&d, r, m, &r->row[i], &r->row[r->base], NULL);
        if (err) {
            mem_free(error);
            return err;
        }
        if (i != r->base && isfinite(d.stderr_))
            error[n++] = d.stderr_;
    }
    qsort(error, n, sizeof(*error), larger);
    *out = n ? error[n / 2] : NAN;
    mem_free(error);
    return OK;
}

/* Returns the questions of a task that the base answered. */
static int64_t questions_of(const struct report *r, const char *task)
{
    size_t i;
    int64_t n = 0;
    const json_t *m;
    json_array_foreach(json_object_get(r->row[r->base].json, "measures"), i,
                       m) if (!strcmp(json_member_text(m, "task"), task)) n +=
        json_integer_value(json_object_get(m, "n"));
    return n;
}

static enum err put_power(FILE *f, const struct report *r, const char *task,
                          const struct report_measure *m, const char *unit)
{
    double error;
    TRY(median_error(&error, r, m));
    if (!isfinite(error))
        return OK;
    fprintf(f,
            " With %" PRId64 " questions, a difference is significant from about %.1f "
            "points of %s: two paired standard errors, the median of all cells against the "
            "base.",
            questions_of(r, task), 2 * error, unit);
    return OK;
}

/* Names the sets on which the base is not better than a guess. */
static void put_guesses(FILE *f, const struct report *r)
{
    size_t i;
    const json_t *m;
    int n = 0;
    json_array_foreach(json_object_get(r->row[r->base].json, "measures"), i, m)
    {
        const json_t *chance = json_object_get(m, "chance");
        const double acc = json_number_value(json_object_get(m, "acc")),
                     error = json_number_value(json_object_get(m, "acc_stderr"));
        if (!json_is_number(chance) || acc - json_number_value(chance) > 2 * error)
            continue;
        fputs(n++ ? ", " : " The base is not significantly better than guessing on ", f);
        html_text(f, json_member_text(m, "name"));
        fprintf(f, " (guessing: %.1f %%)", 100 * json_number_value(chance));
    }
    fputs(n ? ": what quantization costs there cannot be seen." : "", f);
}

/* Names the sets of which questions were longer than their context. */
static void put_cuts(FILE *f, const struct report *r)
{
    for (int k = 0; k < r->columns.n; k++) {
        const struct sweep_column *c = &r->columns.item[k];
        const json_t *worst = NULL;
        int64_t most = 0;
        for (int i = 0; c->name && !strcmp(c->key, "acc") && i < r->n; i++) {
            const json_t *m = sweep_measure_of(r->row[i].json, c->task, c->name);
            const int64_t cut = json_integer_value(json_object_get(m, "cut"));
            worst = cut > most ? m : worst;
            most = cut > most ? cut : most;
        }
        if (!worst)
            continue;
        const int64_t n = json_integer_value(json_object_get(worst, "n"));
        fprintf(f, " Of %" PRId64 " question%s of ", n, plural(n));
        html_text(f, c->name);
        fprintf(f, ", %" PRId64 " lost the beginning, being longer than --task-ctx.", most);
    }
}

static void put_legend(FILE *f, const struct report *r)
{
    const struct report_measure zeroshot = {REPORT_ZEROSHOT, NULL},
                                longbench = {REPORT_LONGBENCH, NULL};
    fputs(
        "<p class=\"soft\">&plusmn; is the standard error over windows or questions; that "
        "of an average takes the sets' errors as independent. An average gives each set "
        "the same weight.",
        f);
    if (has_others(r))
        fputs(" A figure with * is of another text or other questions than the base's: the "
              "two cannot be compared.",
              f);
    if (report_has_measure(r, &zeroshot))
        fputs(" Accuracy: the right choice has the largest log-likelihood (acc). "
              "Normalized: divided by its characters (acc_norm; of WinoGrande, acc).",
              f);
    if (report_has_measure(r, &longbench))
        fputs(" LongBench's answers are those of the packed runtime; cells that it cannot "
              "run, such as those with keys by channel, have none.",
              f);
    put_cuts(f, r);
    fputs("</p>\n", f);
}

static enum err put_limits(FILE *f, const struct report *r)
{
    const struct report_measure zeroshot = {REPORT_ZEROSHOT, NULL},
                                longbench = {REPORT_LONGBENCH, NULL};
    fputs("<p class=\"soft\"><strong>What these figures cannot show.</strong>", f);
    TRY(put_power(f, r, "zeroshot", &zeroshot, "zero-shot accuracy"));
    TRY(put_power(f, r, "longbench", &longbench, "LongBench"));
    put_guesses(f, r);
    fputs(
        " The verdicts are about this model and these questions. A small model decides "
        "many questions by a hair, so that rounding changes answers at random, in both "
        "directions: a loss that larger models have may stay hidden here, and one that is "
        "seen here need not carry over to them.</p>\n",
        f);
    return OK;
}

enum err report_measures(FILE *f, const struct report *r)
{
    static const struct table tables[] = {
        {"ppl", "Further texts, perplexity", "", 1},
        {"zeroshot", "Zero-shot accuracy, %", "Average", 100},
        {"longbench", "LongBench, score", "Average", 1}};
    const struct report_measure tasks[] = {{REPORT_ZEROSHOT, NULL},
                                           {REPORT_LONGBENCH, NULL}};
    if (!r->columns.n)
        return OK;
    fputs("<h2>Further texts and tasks</h2>\n", f);
    for (size_t i = 0; i < ARRAY_LEN(tables); i++)
        for (int k = 0; k < r->columns.n; k++)
            if (!strcmp(r->columns.item[k].task, tables[i].task)) {
                TRY(put_table(f, r, &tables[i]));
                break;
            }
    put_legend(f, r);
    return report_has_measure(r, &tasks[0]) || report_has_measure(r, &tasks[1])
               ? put_limits(f, r)
               : OK;
}

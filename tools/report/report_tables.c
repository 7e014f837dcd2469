/* SPDX-License-Identifier: MIT */
#include "tools/report/html.h"
#include "tools/report/report.h"

#include <math.h>
#include <string.h>

static void put_set(FILE *f, const struct report_row *row)
{
    size_t i;
    json_t *item;
    fputs("<td class=\"set\">", f);
    json_array_foreach(json_object_get(row->json, "set"), i, item)
    {
        const char *text = json_string_value(item);
        html_text(f, i ? ", " : "");
        html_text(f, text ? text : "");
    }
    fputs("</td>", f);
}

static void put_verdict(FILE *f, const struct report_row *row)
{
    const json_t *v = json_object_get(row->json, "verified");
    html_cell(f, json_is_true(v) ? "passed" : json_is_false(v) ? "FAILED" : "\xe2\x80\x93");
}

/* Writes the bytes of weights; those counted from shapes are marked. */
static void put_bytes(FILE *f, const struct report_row *row)
{
    if (isfinite(row->bytes) && !row->measured)
        fprintf(f, "<td class=\"n\">(%.1f)</td>", 1e-6 * row->bytes);
    else
        html_number(f, 1, 1e-6 * row->bytes);
}

#define ELSEWHERE " \xe2\x80\xa0" /* a dagger */

/* Marks a cell that was computed elsewhere than the base. */
static void put_perplexity(FILE *f, const struct report *r, const struct report_row *row)
{
    fprintf(f, "<td class=\"n\">%.4f%s</td>", row->ppl,
            report_elsewhere(r, row) ? ELSEWHERE : "");
}

static void put_elsewhere(FILE *f, const struct report *r)
{
    bool any = false;
    for (int i = 0; i < r->n; i++)
        any |= report_elsewhere(r, &r->row[i]);
    if (any)
        fputs(
            "<p class=\"soft\">A perplexity with" ELSEWHERE
            " was computed on another processor or device, or with another number of "
            "threads, than the base's. The last bits of each step depend on them, and "
            "training amplifies these: the perplexity of a trained cell may differ about as "
            "much as between two seeds.</p>\n",
            f);
}

static void put_results(FILE *f, const struct report *r)
{
    html_table(
        f, "Results",
        "<Cell|Perplexity|&plusmn;|Weight bits|Cache bits|MB|Cache B/token|Memory MB|s|"
        "<Verified|<Settings");
    for (int i = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        fprintf(f, "<tr%s>", i == r->base ? " class=\"base\"" : "");
        html_row_name(f, row->name);
        put_perplexity(f, r, row);
        html_number(f, 4, row->ppl_stderr);
        html_number(f, 3, row->weight_bits);
        html_number(f, 3, row->kv_bits);
        put_bytes(f, row);
        html_number(f, 0, row->cache);
        html_number(f, 1, 1e-6 * report_memory(row));
        html_number(f, 0, row->seconds);
        put_verdict(f, row);
        put_set(f, row);
        fputs("</tr>\n", f);
    }
    html_table_end(f);
}

void report_results(FILE *f, const struct report *r)
{
    bool counted = false;
    for (int i = 0; i < r->n; i++)
        counted |= isfinite(r->row[i].bytes) && !r->row[i].measured;
    fputs("<h2>Results</h2>\n", f);
    put_results(f, r);
    fprintf(
        f,
        "<p class=\"soft\">&plusmn; is the standard error over evaluation windows. Bits "
        "include scales and zero points, and are measured on the artifact's "
        "bytes.%s Memory is that of weights, and of the cache for one text of the "
        "evaluation's length, counted from shapes.</p>\n",
        counted ? " Cells in brackets are only simulated; their bytes are counted from "
                  "shapes."
                : "");
    put_elsewhere(f, r);
}

/* Returns the verdict; a difference needs more than two standard errors. */
static const char *judge(const struct report_row *row)
{
    if (!isfinite(row->diff.mean) || !isfinite(row->diff.stderr_))
        return "";
    if (!report_significant(row->diff))
        return "no significant difference";
    return row->diff.mean > 0 ? "worse" : "better";
}

void report_differences(FILE *f, const struct report *r)
{
    if (r->n < 2)
        return;
    html_table(f, "Differences to the base",
               "<Cell|nats|&plusmn;|perplexity %|&plusmn;|Windows|<Verdict");
    for (int i = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        if (i == r->base)
            continue;
        fputs("<tr>", f);
        html_row_name(f, row->name);
        html_signed(f, 5, row->diff.mean);
        html_number(f, 5, row->diff.stderr_);
        html_signed(f, 2, 100 * expm1(row->diff.mean));
        html_number(f, 2, 100 * exp(row->diff.mean) * row->diff.stderr_);
        html_number(f, 0, isfinite(row->diff.mean) ? (double)row->windows : NAN);
        html_cell(f, judge(row));
        fputs("</tr>\n", f);
    }
    html_table_end(f);
    fputs(
        "<p class=\"soft\">Differences are paired: both cells were evaluated on the same "
        "windows, so common effects cancel. &plusmn; is the standard error of the mean "
        "difference over windows. A cell is better or worse if the difference exceeds two "
        "of them. Consecutive windows of a text are not quite independent, so the "
        "standard error is a lower bound.</p>\n",
        f);
}

void report_commands(FILE *f, const struct report *r)
{
    fputs("<h2>Commands</h2>\n", f);
    html_fold(f, "A command for each cell, which reproduces its figures without the sweep");
    for (int i = 0; i < r->n; i++) {
        fputs("<h3>", f);
        html_text(f, r->row[i].name);
        fputs("</h3>\n<pre>", f);
        html_text(f, r->row[i].command);
        fputs("</pre>\n", f);
    }
    html_fold_end(f);
}

static void put_earlier(FILE *f, const struct report_row *row)
{
    const char *finished = report_text(row->json, "run.finished");
    const json_t *ctx = json_object_get(row->json, "ctx");
    fputs("<tr>", f);
    html_row_name(f, row->name);
    html_number(f, 4, row->ppl);
    html_number(f, 4, row->ppl_stderr);
    html_number(f, 0, (double)row->windows);
    html_number(f, 0, json_is_number(ctx) ? json_number_value(ctx) : NAN);
    html_number(f, 3, row->weight_bits);
    html_number(f, 3, row->kv_bits);
    html_cell(f, finished ? finished : "\xe2\x80\x93");
    put_set(f, row);
    fputs("</tr>\n", f);
}

void report_earlier(FILE *f, const struct report *r)
{
    if (!r->n_old)
        return;
    fputs("<h2>Earlier runs</h2>\n", f);
    html_fold(f, "Results that the directory has of earlier runs");
    fputs(
        "<p class=\"soft\">The latest run has no cells with this configuration, checkpoint, "
        "texts and evaluation. So nothing above is about them, and their figures may not be "
        "comparable with those above or with each other.</p>\n",
        f);
    html_table(
        f, "Earlier runs",
        "<Cell|Perplexity|&plusmn;|Windows|Tokens each|Weight bits|Cache bits|<Ended|"
        "<Set in the cell");
    for (int i = 0; i < r->n_old; i++)
        put_earlier(f, &r->old[i]);
    html_table_end(f);
    html_fold_end(f);
}

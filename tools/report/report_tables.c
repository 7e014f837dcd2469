/* SPDX-License-Identifier: MIT */
#include "tools/report/html.h"
#include "tools/report/report.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Returns the number of a row, which names it in pictures. */
static void put_number(FILE *f, int i)
{
    fprintf(f, "<td class=\"n\">%d</td>", i + 1);
}

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
    html_cell(f, json_is_true(v) ? "passed" : json_is_false(v) ? "FAILED" : "");
}

static void put_results(FILE *f, const struct report *r)
{
    fputs("<h2>Results</h2>\n", f);
    html_table(f, "#|<Cell|Perplexity|&plusmn;|W bits|KV bits|MB|s|<Verified|<Sets");
    for (int i = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        fputs("<tr>", f);
        put_number(f, i);
        html_cell(f, row->name);
        html_number(f, 4, row->ppl);
        html_number(f, 4, row->ppl_stderr);
        html_number(f, 3, row->weight_bits);
        html_number(f, 3, row->kv_bits);
        html_number(f, 1, 1e-6 * row->bytes);
        html_number(f, 0, row->seconds);
        put_verdict(f, row);
        put_set(f, row);
        fputs("</tr>\n", f);
    }
    html_table_end(f);
    fputs("<p class=\"soft\">&plusmn; is the standard error over evaluation windows. Bits "
          "are measured from the bytes of the artifact, including scales and zero "
          "points.</p>\n",
          f);
}

/* Finds the lowest figure of an array and its index. */
static double lowest(int64_t *at, const struct report_row *row, const char *array)
{
    double low = NAN;
    for (int64_t i = 0; i < report_figures(row, array); i++) {
        const double x = report_figure(row, array, i);
        if (!(x >= low)) {
            low = x;
            *at = i;
        }
    }
    return low;
}

static void put_worst_heads(FILE *f, const struct report *r)
{
    static const char *const arrays[] = {"k_cosine", "v_cosine"};
    fputs("<h2>Worst heads of the cache</h2>\n<p>Cosine of quantized and full-precision "
          "keys and values, in the head where it is lowest.</p>\n",
          f);
    html_table(f, "#|<Cell|K&#770;|layer|V&#770;|layer");
    for (int i = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        if (row->kv_bits >= 16 || !report_figures(row, arrays[0]))
            continue;
        fputs("<tr>", f);
        put_number(f, i);
        html_cell(f, row->name);
        for (int w = 0; w < 2; w++) {
            int64_t at = 0;
            html_number(f, 5, lowest(&at, row, arrays[w]));
            html_number(f, 0, (double)at);
        }
        fputs("</tr>\n", f);
    }
    html_table_end(f);
}

void report_tables(FILE *f, const struct report *r)
{
    bool heads = false;
    put_results(f, r);
    for (int i = 0; i < r->n; i++)
        heads |= r->row[i].kv_bits < 16 && report_figures(&r->row[i], "k_cosine");
    if (heads)
        put_worst_heads(f, r);
}

/* Returns the verdict; a difference needs more than two standard errors. */
static const char *judge(const struct report_row *row)
{
    if (!isfinite(row->diff.mean) || !isfinite(row->diff.stderr_))
        return "";
    if (!(fabs(row->diff.mean) > 2 * row->diff.stderr_))
        return "no significant difference";
    return row->diff.mean > 0 ? "worse" : "better";
}

void report_differences(FILE *f, const struct report *r)
{
    if (r->n < 2)
        return;
    fputs("<h2>Difference to ", f);
    html_text(f, r->row[r->base].name);
    fputs("</h2>\n"
          "<p>Differences are paired: both cells were evaluated on the same windows, so "
          "common effects cancel. &plusmn; is the standard error of the mean difference "
          "over windows. The last column reports a difference if it exceeds two of them. "
          "Consecutive windows of a text are not quite independent, so the standard error "
          "is a lower bound.</p>\n",
          f);
    html_table(f, "#|<Cell|nats|&plusmn;|perplexity %|&plusmn;|Windows|<Verdict");
    for (int i = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        if (i == r->base)
            continue;
        fputs("<tr>", f);
        put_number(f, i);
        html_cell(f, row->name);
        html_number(f, 5, row->diff.mean);
        html_number(f, 5, row->diff.stderr_);
        html_number(f, 2, 100 * expm1(row->diff.mean));
        html_number(f, 2, 100 * exp(row->diff.mean) * row->diff.stderr_);
        html_number(f, 0, isfinite(row->diff.mean) ? (double)row->windows : NAN);
        html_cell(f, judge(row));
        fputs("</tr>\n", f);
    }
    html_table_end(f);
}

void report_commands(FILE *f, const struct report *r)
{
    fputs("<h2>Commands that reproduce the cells</h2>\n", f);
    for (int i = 0; i < r->n; i++) {
        fprintf(f, "<h3>%d. ", i + 1);
        html_text(f, r->row[i].name);
        fputs("</h3>\n<pre>", f);
        html_text(f, r->row[i].command);
        fputs("</pre>\n", f);
    }
}

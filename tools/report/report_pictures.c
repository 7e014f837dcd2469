/* SPDX-License-Identifier: MIT
 *
 * The report's pictures. A cell is shown by its number in the table, so that no text of a
 * results file reaches gnuplot. */
#include "kernels/base/mem.h"
#include "tools/report/html.h"
#include "tools/report/plot.h"
#include "tools/report/report.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LOSSES_MAX 48 /* cells with a picture of their own */

static enum err put_picture(FILE *f, struct plot *p, const char *caption)
{
    char *svg = NULL;
    TRY(plot_end(&svg, p));
    html_picture(f, svg, caption);
    free(svg);
    return OK;
}

/* --- perplexity against bits -------------------------------------------------------- */

static double bits_of(const struct report_row *row, int of_kv)
{
    return of_kv ? row->kv_bits : row->weight_bits;
}

/* Returns whether no shown cell has both fewer bits and less perplexity. */
static bool on_front(const struct report *r, int i, int of_kv)
{
    const struct report_row *a = &r->row[i];
    for (int k = 0; k < r->n; k++) {
        const struct report_row *b = &r->row[k];
        const double x = bits_of(b, of_kv);
        if (k == i || x >= 16)
            continue;
        const bool less = x < bits_of(a, of_kv) || b->ppl < a->ppl;
        if (less && x <= bits_of(a, of_kv) && b->ppl <= a->ppl)
            return false;
    }
    return true;
}

struct frame {
    double x0, x1, y0, y1;
    int points;
};

static struct frame frame_of(const struct report *r, int of_kv)
{
    struct frame b = {INFINITY, -INFINITY, INFINITY, -INFINITY, 0};
    for (int i = 0; i < r->n; i++) {
        const double x = bits_of(&r->row[i], of_kv), y = r->row[i].ppl;
        if (x >= 16)
            continue;
        b.points++;
        b.x0 = fmin(b.x0, x);
        b.x1 = fmax(b.x1, x);
        b.y0 = fmin(b.y0, y);
        b.y1 = fmax(b.y1, y);
    }
    return b;
}

static const struct report_row *full_precision(const struct report *r)
{
    for (int i = 0; i < r->n; i++) {
        if (r->row[i].weight_bits >= 16 && r->row[i].kv_bits >= 16)
            return &r->row[i];
    }
    return NULL;
}

static void put_points(FILE *s, const struct report *r, int of_kv)
{
    fprintf(s, "$all << EOD\n");
    for (int i = 0; i < r->n; i++) {
        if (bits_of(&r->row[i], of_kv) < 16)
            fprintf(s, "%.9g %.9g %d\n", bits_of(&r->row[i], of_kv), r->row[i].ppl, i + 1);
    }
    fprintf(s, "EOD\n$front << EOD\n");
    for (int i = 0; i < r->n; i++) {
        if (bits_of(&r->row[i], of_kv) < 16 && on_front(r, i, of_kv))
            fprintf(s, "%.9g %.9g\n", bits_of(&r->row[i], of_kv), r->row[i].ppl);
    }
    fprintf(s, "EOD\n");
}

static void put_bits_script(FILE *s, const struct report *r, int of_kv, struct frame b)
{
    const struct report_row *full = full_precision(r);
    const double margin = fmax(0.25, 0.08 * (b.x1 - b.x0));
    put_points(s, r, of_kv);
    if (b.y1 > 5 * b.y0)
        fprintf(s, "set logscale y\n");
    fprintf(s,
            "unset key\nset xrange [%.9g:%.9g]\nset offsets 0, 0, graph 0.05, graph 0.05\n",
            b.x0 - margin, b.x1 + margin);
    fprintf(s, "set xlabel \"effective bits of %s\"\nset ylabel \"perplexity\"\n",
            of_kv ? "a cache element" : "a weight");
    fprintf(s, "plot ");
    if (full)
        fprintf(s, "%.9g with lines dt 2 lc rgb \"#707070\", ", full->ppl);
    fprintf(s, "$front using 1:2 smooth unique with lines lw 2 lc rgb \"#0b5fad\", "
               "$all using 1:2 with points pt 7 ps 0.7 lc rgb \"#0b5fad\", "
               "$all using 1:2:3 with labels offset char 1.2,0.5\n");
}

enum err report_pareto(FILE *f, const struct report *r)
{
    bool any = false;
    for (int of_kv = 0; of_kv < 2; of_kv++) {
        const struct frame b = frame_of(r, of_kv);
        struct plot p;
        if (b.points < 2)
            continue;
        fputs(any ? "" : "<h2>Perplexity against bits</h2>\n<div class=\"pictures\">\n", f);
        any = true;
        TRY(plot_begin(&p, 560, 400));
        put_bits_script(p.script, r, of_kv, b);
        TRY(put_picture(f, &p,
                        of_kv ? "Perplexity by measured bits of a cache element, cells by "
                                "number; the line joins those that no other one beats in "
                                "both, dashes are full precision."
                              : "Perplexity by measured bits of a weight, cells by number; "
                                "the line joins those that no other one beats in both, "
                                "dashes are full precision."));
    }
    fputs(any ? "</div>\n" : "", f);
    return OK;
}

/* --- differences -------------------------------------------------------------------- */

enum err report_difference_picture(FILE *f, const struct report *r)
{
    struct plot p;
    int n = 0;
    for (int i = 0; i < r->n; i++)
        n += isfinite(r->row[i].diff.stderr_);
    if (!n)
        return OK;
    TRY(plot_begin(&p, 640, 90 + 24 * n));
    fprintf(p.script, "$d << EOD\n");
    for (int i = 0, y = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        if (isfinite(row->diff.stderr_))
            fprintf(p.script, "%.9g %d %.9g %d\n", row->diff.mean, --y, row->diff.stderr_,
                    i + 1);
    }
    fprintf(p.script,
            "EOD\nunset key\nset yrange [%d:0]\nset xlabel \"nats above the base\"\n"
            "set arrow from 0, graph 0 to 0, graph 1 nohead lc rgb \"#707070\"\n"
            "plot $d using 1:2:(2*$3):ytic(4) with xerrorbars pt 7 ps 0.6 lw 1.5 lc rgb "
            "\"#0b5fad\"\n",
            -n - 1);
    return put_picture(f, &p,
                       "Difference of each cell (by number) to the base, in nats; bars are "
                       "two standard errors, paired over windows.");
}

/* --- losses ------------------------------------------------------------------------- */

/* Computes block b's losses relative to its start. false: its start loss is zero or
 * missing. */
static bool put_losses(FILE *s, const json_t *block, size_t b)
{
    const double start = json_number_value(json_object_get(block, "start"));
    const json_t *epochs = json_object_get(block, "epochs");
    if (!(start > 0) || !json_array_size(epochs))
        return false;
    fprintf(s, "$b%zu << EOD\n0 1 %zu\n", b, b);
    for (size_t e = 0; e < json_array_size(epochs); e++) {
        const double x = json_number_value(json_array_get(epochs, e));
        fprintf(s, "%zu %.9g %zu\n", e + 1, x / start, b);
    }
    fprintf(s, "EOD\n");
    return true;
}

/* Returns the step between whole-number tics, for at most 8 of them on an axis up to n. */
static size_t tic_step(size_t n)
{
    return n > 8 ? (n + 7) / 8 : 1;
}

static void put_losses_script(FILE *s, const json_t *blocks)
{
    const size_t n = json_array_size(blocks);
    const char *comma = "plot ";
    size_t epochs = 1;
    bool *have = calloc(n, sizeof(*have));
    for (size_t b = 0; have && b < n; b++) {
        const json_t *block = json_array_get(blocks, b);
        const size_t e = json_array_size(json_object_get(block, "epochs"));
        epochs = e > epochs ? e : epochs;
        have[b] = put_losses(s, block, b);
    }
    fprintf(s,
            "unset key\nset xlabel \"epoch\"\nset ylabel \"loss / start\"\n"
            "set palette defined (0 \"#0b5fad\", 1 \"#2a9d5c\", 2 \"#e0a100\", 3 "
            "\"#c43b2f\")\nset cblabel \"block\"\nset cbrange [0:%zu]\n"
            "set cbtics %zu\nset xtics %zu\n",
            n > 1 ? n - 1 : 1, tic_step(n), tic_step(epochs));
    for (size_t b = 0; have && b < n; b++) {
        if (have[b])
            fprintf(s, "%s$b%zu using 1:2:3 with linespoints pt 7 ps 0.3 lw 1.5 lc palette",
                    comma, b);
        comma = have[b] ? ", " : comma;
    }
    fprintf(s, "%s\n", *comma == ',' ? "" : "plot 0 notitle");
    free(have);
}

static enum err put_losses_picture(FILE *f, const struct report_row *row, int number)
{
    struct plot p;
    char *caption;
    const size_t n = strlen(row->name) + 32;
    TRY(mem_alloc(&caption, n, 1));
    snprintf(caption, n, "Cell %d: %s", number, row->name);
    enum err err = plot_begin(&p, 560, 300);
    if (!err) {
        put_losses_script(p.script, json_object_get(row->json, "blocks"));
        err = put_picture(f, &p, caption);
    }
    mem_free(caption);
    return err;
}

enum err report_losses(FILE *f, const struct report *r)
{
    int drawn = 0, left = 0;
    for (int i = 0; i < r->n; i++) {
        const json_t *first = json_array_get(json_object_get(r->row[i].json, "blocks"), 0);
        if (!json_array_size(json_object_get(first, "epochs")))
            continue; /* no block learned anything */
        if (drawn == LOSSES_MAX) {
            left++;
            continue;
        }
        fputs(drawn++
                  ? ""
                  : "<h2>Loss by block</h2>\n<p>The loss over the calibration windows "
                    "after each epoch, as a share of what it was with the start values; "
                    "a block keeps its best epoch.</p>\n<div class=\"pictures\">\n",
              f);
        TRY(put_losses_picture(f, &r->row[i], i + 1));
    }
    fputs(drawn ? "</div>\n" : "", f);
    if (left)
        fprintf(f,
                "<p class=\"soft\">These are the first %d cells that learned; "
                "results.jsonl has the losses of %d more.</p>\n",
                drawn, left);
    return OK;
}

/* --- worst heads -------------------------------------------------------------------- */

static bool shown(const struct report_row *row, const char *array)
{
    return row->kv_bits < 16 && report_figures(row, array) > 0;
}

static void put_cosines_script(FILE *s, const struct report *r, const char *array)
{
    const char *comma = "";
    for (int i = 0; i < r->n; i++) {
        if (!shown(&r->row[i], array))
            continue;
        fprintf(s, "$c%d << EOD\n", i + 1);
        for (int64_t l = 0; l < report_figures(&r->row[i], array); l++) {
            const double x = report_figure(&r->row[i], array, l);
            if (x < 1)
                fprintf(s, "%" PRId64 " %.9g\n", l, 1 - x);
        }
        fprintf(s, "EOD\n");
    }
    fprintf(
        s, "set logscale y\nset format y \"%%.0e\"\nset xlabel \"layer\"\nset ylabel \"1 - "
           "cosine\"\nset format x \"%%.0f\"\nset key title \"cell\"\nplot ");
    for (int i = 0; i < r->n; i++) {
        if (!shown(&r->row[i], array))
            continue;
        fprintf(s, "%s$c%d using 1:2 with linespoints pt 7 ps 0.4 title \"%d\"", comma,
                i + 1, i + 1);
        comma = ", ";
    }
    fprintf(s, "\n");
}

enum err report_cosines(FILE *f, const struct report *r)
{
    static const char *const arrays[] = {"k_cosine", "v_cosine"};
    static const char *const captions[] = {
        "Keys: 1 - cosine of quantized and full precision in each layer's worst head, by "
        "cell.",
        "Values: 1 - cosine of quantized and full precision in each layer's worst head, by "
        "cell."};
    bool any = false;
    for (int i = 0; i < r->n; i++)
        any |= shown(&r->row[i], arrays[0]) && shown(&r->row[i], arrays[1]);
    if (!any)
        return OK;
    fputs("<h2>Error of the cache by layer</h2>\n<div class=\"pictures\">\n", f);
    for (int w = 0; w < 2; w++) {
        struct plot p;
        TRY(plot_begin(&p, 560, 400));
        put_cosines_script(p.script, r, arrays[w]);
        TRY(put_picture(f, &p, captions[w]));
    }
    fputs("</div>\n", f);
    return OK;
}

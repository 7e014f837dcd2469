/* SPDX-License-Identifier: MIT
 *
 * What happens layer by layer: the error of the cache as a heat map, and the losses of the
 * calibration, folded. */
#include "kernels/base/mem.h"
#include "tools/report/html.h"
#include "tools/report/plot.h"
#include "tools/report/report.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CELLS_MAX 48 /* cells with pictures */

/* --- error of the cache ------------------------------------------------------------- */

/* Keys or values. */
struct side {
    const char *array, *name, *caption, *table;
};

static const struct side sides[] = {
    {"k_cosine", "keys", "Keys: error in the worst head of each layer.",
     "Error of the keys by layer"},
    {"v_cosine", "values", "Values: error in the worst head of each layer.",
     "Error of the values by layer"},
};

/* A cell has no figure of a layer where verification reads too few tokens for any to leave the
 * window of full precision. */
static bool shown(const struct report_row *row, const char *array)
{
    const int64_t n = report_figures(row, array);
    for (int64_t i = 0; i < n && row->kv_bits < 16; i++)
        if (isfinite(report_figure(row, array, i)))
            return true;
    return false;
}

/* Returns 1 - cosine of layer i; NAN if it is missing. Exact values are shown as the least
 * error that float32 resolves. */
static double error_of(const struct report_row *row, const char *array, int64_t i)
{
    const double error = 1 - report_figure(row, array, i);
    return error < 1e-8 ? 1e-8 : error;
}

/* The rows of a heat map. */
struct heat {
    int n;          /* cells */
    int64_t layers; /* the most of any cell */
    double lo, hi;  /* errors */
};

static struct heat heat_of(const struct report *r, const char *array)
{
    struct heat h = {.lo = INFINITY, .hi = -INFINITY};
    for (int i = 0; i < r->n && h.n < CELLS_MAX; i++) {
        const struct report_row *row = &r->row[i];
        if (!shown(row, array))
            continue;
        h.n++;
        const int64_t n = report_figures(row, array);
        h.layers = n > h.layers ? n : h.layers;
        for (int64_t l = 0; l < n; l++) {
            h.lo = fmin(h.lo, error_of(row, array, l));
            h.hi = fmax(h.hi, error_of(row, array, l));
        }
    }
    if (!(h.hi > 1.5 * h.lo)) {
        h.lo /= 2;
        h.hi *= 2;
    }
    return h;
}

static void put_heat_data(FILE *f, const struct report *r, const char *array, double half)
{
    int y = 0;
    fprintf(f, "$d << EOD\n");
    for (int i = 0; i < r->n && y < CELLS_MAX; i++) {
        const struct report_row *row = &r->row[i];
        if (!shown(row, array))
            continue;
        for (int64_t l = 0; l < report_figures(row, array); l++)
            if (isfinite(error_of(row, array, l)))
                fprintf(f, "%" PRId64 " %d %.9g %.9g\n", l, y, half,
                        error_of(row, array, l));
        y++;
    }
    fprintf(f, "EOD\n");
}

static int64_t tic_step(int64_t n)
{
    return n > 10 ? (n + 9) / 10 : 1;
}

/* Two layouts: names beside rows, or above them for narrow screens. */
struct layout {
    int width;
    double row, half; /* height of a row, and of half its boxes as a share of it */
    double left;
    bool above;
};

static void name_rows(struct plot *p, const struct report *r, const char *array,
                      const struct layout *l)
{
    for (int i = 0, y = 0; i < r->n && y < CELLS_MAX; i++) {
        if (!shown(&r->row[i], array))
            continue;
        const double at = plot_y(p, y++);
        if (l->above)
            plot_text(p, l->left, at - 0.5 * l->row + 3, "start", r->row[i].name);
        else
            plot_text(p, l->left - 8, at, "end", r->row[i].name);
    }
}

static enum err draw_heat(char **svg, const struct report *r, const char *array,
                          const struct layout *l)
{
    const struct heat h = heat_of(r, array);
    const int height = (int)(l->row * h.n) + (l->above ? 124 : 108);
    const double mid = sqrt(h.lo * h.hi);
    struct plot p;
    TRY(plot_begin(&p, l->width, height));
    plot_axes(&p, (struct box){l->left, l->above ? 20 : 8, l->width - 30, height - 100},
              (struct plot_range){-0.5, (double)h.layers - 0.5, false},
              (struct plot_range){h.n - 0.5, -0.5, false});
    put_heat_data(p.script, r, array, l->half);
    fprintf(
        p.script,
        "unset border\nunset grid\nunset ytics\nset xtics 0,%" PRId64
        " out scale 0.4\nset xlabel \"layer\" offset 0,0.7\nset logscale cb\n"
        "set cbrange [%.9g:%.9g]\nset cbtics (\"%.1e\" %.9g, \"%.1e\" %.9g, \"%.1e\" %.9g)\n"
        "set palette defined (0 \"#e8f0f8\", 0.5 \"#4a90c8\", 1 \"#08264e\")\n"
        "set colorbox horizontal user origin %.9g,%.9g size %.9g,%.9g noborder\n"
        "set cblabel \"1 - cosine, worst head\" offset 0,0.6\n"
        "plot $d using 1:2:(0.5):3:4 with boxxyerror fs solid noborder lc palette\n",
        tic_step(h.layers), h.lo, h.hi, h.lo, h.lo, mid, mid, h.hi, h.hi,
        l->left / l->width, 44.0 / height, 1 - (l->left + 30) / l->width, 9.0 / height);
    name_rows(&p, r, array, l);
    return plot_end(svg, &p);
}

static double widest_name(const struct report *r, const char *array)
{
    double width = 0;
    for (int i = 0; i < r->n; i++)
        if (shown(&r->row[i], array))
            width = fmax(width, label_width(r->row[i].name));
    return width;
}

/* Writes a row for each layer and a column for each cell. */
static void put_heat_table(FILE *f, const struct report *r, const struct side *s)
{
    const struct heat h = heat_of(r, s->array);
    html_fold(f, s->table);
    html_table(f, s->table, "<Layer");
    fputs("<tr><th scope=\"row\">1 &minus; cosine</th>", f);
    for (int i = 0, n = 0; i < r->n && n < CELLS_MAX; i++) {
        if (!shown(&r->row[i], s->array))
            continue;
        fputs("<td class=\"set\">", f);
        html_text(f, r->row[i].name);
        fputs("</td>", f);
        n++;
    }
    fputs("</tr>\n", f);
    for (int64_t l = 0; l < h.layers; l++) {
        fprintf(f, "<tr><th scope=\"row\">%" PRId64 "</th>", l);
        for (int i = 0, n = 0; i < r->n && n < CELLS_MAX; i++) {
            if (!shown(&r->row[i], s->array))
                continue;
            html_scientific(f, 2, error_of(&r->row[i], s->array, l));
            n++;
        }
        fputs("</tr>\n", f);
    }
    html_table_end(f);
    html_fold_end(f);
}

static enum err put_heat(FILE *f, const struct report *r, const struct side *s)
{
    enum err err = OK;
    char *wide = NULL, *narrow = NULL;
    char alt[256];
    const struct heat h = heat_of(r, s->array);
    const struct layout beside = {960, 20, 0.46, widest_name(r, s->array) + 20, false},
                        above = {340, 34, 0.24, 28, true};
    snprintf(alt, sizeof(alt),
             "Heat map of %d cells and %" PRId64 " layers: error of the %s, from %.1e to "
             "%.1e. The folded table below has all figures.",
             h.n, h.layers, s->name, h.lo, h.hi);
    TRY_OUT(draw_heat(&wide, r, s->array, &beside));
    TRY_OUT(draw_heat(&narrow, r, s->array, &above));
    html_figure(f, &(struct html_picture){wide, narrow, alt, s->caption});
    put_heat_table(f, r, s);
    html_figure_end(f);
out:
    free(wide);
    free(narrow);
    return err;
}

enum err report_layers(FILE *f, const struct report *r)
{
    if (!heat_of(r, sides[0].array).n || !heat_of(r, sides[1].array).n)
        return OK;
    fputs("<h2>Error of the cache by layer</h2>\n<p>1 &minus; cosine of quantized and "
          "full-precision keys or values, in each layer's worst head. Darker is "
          "worse.</p>\n",
          f);
    for (size_t w = 0; w < ARRAY_LEN(sides); w++)
        TRY(put_heat(f, r, &sides[w]));
    return OK;
}

/* --- losses ------------------------------------------------------------------------- */

/* Writes block b's losses relative to its start. false: its start loss is zero or
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
            "set xlabel \"epoch\"\nset ylabel \"loss / start\"\n"
            "set palette defined (0 \"#0b5fad\", 1 \"#2a9d5c\", 2 \"#e0a100\", 3 "
            "\"#c43b2f\")\nset cblabel \"layer\"\nset cbrange [0:%zu]\n"
            "set cbtics %" PRId64 "\nset xtics %" PRId64 "\n",
            n > 1 ? n - 1 : 1, tic_step((int64_t)n), tic_step((int64_t)epochs));
    for (size_t b = 0; have && b < n; b++) {
        if (have[b])
            fprintf(s, "%s$b%zu using 1:2:3 with linespoints pt 7 ps 0.3 lw 1.5 lc palette",
                    comma, b);
        comma = have[b] ? ", " : comma;
    }
    fprintf(s, "%s\n", *comma == ',' ? "" : "plot 0 notitle");
    free(have);
}

static double member(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static void put_losses_table(FILE *f, const json_t *blocks)
{
    size_t b;
    json_t *block;
    html_fold(f, "Figures");
    html_table(f, "Losses by layer", "<Layer|Start|Best|Epoch of the best");
    json_array_foreach(blocks, b, block)
    {
        fprintf(f, "<tr><th scope=\"row\">%zu</th>", b);
        html_short(f, 4, member(block, "start"));
        html_short(f, 4, member(block, "best"));
        html_number(f, 0, member(block, "best_epoch"));
        fputs("</tr>\n", f);
    }
    html_table_end(f);
    html_fold_end(f);
}

static enum err put_losses_picture(FILE *f, const struct report_row *row)
{
    const json_t *blocks = json_object_get(row->json, "blocks");
    struct plot p;
    char *svg, alt[160];
    snprintf(alt, sizeof(alt),
             "A curve of the loss for each of %zu layers. The folded table below has the "
             "first and the best figures.",
             json_array_size(blocks));
    TRY(plot_begin(&p, 560, 300));
    put_losses_script(p.script, blocks);
    TRY(plot_end(&svg, &p));
    html_figure(f, &(struct html_picture){svg, NULL, alt, row->name});
    put_losses_table(f, blocks);
    html_figure_end(f);
    free(svg);
    return OK;
}

static bool learned(const struct report_row *row)
{
    const json_t *first = json_array_get(json_object_get(row->json, "blocks"), 0);
    return json_array_size(json_object_get(first, "epochs")) > 0;
}

enum err report_losses(FILE *f, const struct report *r)
{
    int all = 0, drawn = 0;
    for (int i = 0; i < r->n; i++)
        all += learned(&r->row[i]);
    if (!all)
        return OK;
    fputs("<h2>Loss of the calibration by layer</h2>\n", f);
    html_fold(f,
              "The loss over the calibration windows after each epoch, as a share of what "
              "it was with the start values");
    fputs("<div class=\"pictures\">\n", f);
    for (int i = 0; i < r->n && drawn < CELLS_MAX; i++)
        if (learned(&r->row[i])) {
            TRY(put_losses_picture(f, &r->row[i]));
            drawn++;
        }
    fputs("</div>\n", f);
    if (drawn < all)
        fprintf(f,
                "<p class=\"soft\">These are the first %d cells that learned; "
                "results.jsonl has the losses of %d more.</p>\n",
                drawn, all - drawn);
    html_fold_end(f);
    return OK;
}

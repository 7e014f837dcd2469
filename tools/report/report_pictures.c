/* SPDX-License-Identifier: MIT
 *
 * Perplexity against bytes, and differences to the base. Each picture is drawn twice, for
 * wide screens and for those of a phone. */
#include "kernels/base/mem.h"
#include "tools/report/html.h"
#include "tools/report/plot.h"
#include "tools/report/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NAMES_MAX 48 /* points with a name */
#define OUTLIER 6.0  /* a difference so many times the next one is outside the picture */

/* --- outliers ----------------------------------------------------------------------- */

typedef double figure_of(const struct report *r, int i);

/* Returns the largest figure below a bound; 0 if there is none. */
static double largest_below(const struct report *r, figure_of *figure, double bound)
{
    double most = 0;
    for (int i = 0; i < r->n; i++)
        if (figure(r, i) < bound)
            most = fmax(most, figure(r, i));
    return most;
}

/* Returns from which figure on a cell is an outlier, which would leave the others no room.
 * Less than half of the cells are. INFINITY: none is. */
static double outliers_from(const struct report *r, figure_of *figure)
{
    double bound = INFINITY;
    for (int left = (r->n - 1) / 2; left > 0; left--) {
        const double most = largest_below(r, figure, bound);
        const double next = largest_below(r, figure, most);
        if (next > 0 && most > OUTLIER * next)
            return most;
        bound = most;
    }
    return INFINITY;
}

/* --- perplexity against bytes ------------------------------------------------------- */

/* One of the two pictures. */
struct sizes {
    const char *what, *axis, *caption;
    double unit;
    bool of_cache;
};

static const struct sizes pictures[] = {
    {"bytes of the weights", "weights, MB",
     "Perplexity against the bytes of the weights. The line joins the cells that no other "
     "one beats in both; the dashes are full precision. An arrow points at a cell above the "
     "picture.",
     1e-6, false},
    {"bytes of the cache", "cache, kB per token",
     "Perplexity against the bytes that the cache takes per token.", 1e-3, true},
};

static double size_of(const struct sizes *s, const struct report_row *row)
{
    return s->unit * (s->of_cache ? row->cache : row->bytes);
}

static bool shown(const struct sizes *s, const struct report_row *row)
{
    return isfinite(size_of(s, row)) && isfinite(row->ppl);
}

/* Returns whether no shown cell has both fewer bytes and less perplexity. Sizes within 1 %
 * count as equal, as artifacts differ by their tables, and bytes that were only counted are
 * compared with nothing. */
static bool on_front(const struct sizes *s, const struct report *r, int i)
{
    const double x = size_of(s, &r->row[i]), y = r->row[i].ppl;
    if (!s->of_cache && !r->row[i].measured)
        return false;
    for (int k = 0; k < r->n; k++) {
        const struct report_row *b = &r->row[k];
        const bool comparable = shown(s, b) && (s->of_cache || b->measured);
        if (k != i && comparable && size_of(s, b) <= 1.01 * x && b->ppl < y)
            return false;
    }
    return true;
}

/* Returns the range of figures that a picture shows, with a margin; low and high are their
 * extremes. */
static struct plot_range widened(double low, double high, bool is_log)
{
    if (is_log)
        return (struct plot_range){low / pow(high / low, 0.06),
                                   high * pow(high / low, 0.08), true};
    const double margin = fmax(0.08 * (high - low), 0.02 * fabs(high) + 1e-9);
    return (struct plot_range){low - margin, high + margin, false};
}

/* Returns by how many nats a cell is worse than the best one. */
static double excess(const struct report *r, int i)
{
    double low = INFINITY;
    for (int k = 0; k < r->n; k++)
        low = fmin(low, r->row[k].ppl);
    return log(r->row[i].ppl / low);
}

/* Finds what the axes show; outliers are drawn at the upper edge. Returns the number of
 * points. */
static int find_ranges(struct plot_range *x, struct plot_range *y, const struct sizes *s,
                       const struct report *r)
{
    double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
    const double bound = outliers_from(r, excess);
    int n = 0;
    for (int i = 0; i < r->n; i++) {
        if (!shown(s, &r->row[i]))
            continue;
        n++;
        x0 = fmin(x0, size_of(s, &r->row[i]));
        x1 = fmax(x1, size_of(s, &r->row[i]));
        y0 = fmin(y0, r->row[i].ppl);
        if (excess(r, i) < bound)
            y1 = fmax(y1, r->row[i].ppl);
    }
    *x = widened(x0, x1, false);
    *y = widened(y0, y1, y0 > 0 && y1 > 4 * y0);
    return n;
}

/* Returns where a cell's perplexity is drawn. */
static double height_of(const struct plot *p, const struct report_row *row)
{
    return fmin(row->ppl, p->y.hi);
}

static void put_points(const struct plot *p, const char *name, const struct sizes *s,
                       const struct report *r, bool front)
{
    FILE *f = p->script;
    fprintf(f, "$%s << EOD\n", name);
    for (int i = 0; i < r->n; i++)
        if (shown(s, &r->row[i]) && on_front(s, r, i) == front)
            fprintf(f, "%.9g %.9g\n", size_of(s, &r->row[i]), height_of(p, &r->row[i]));
    fprintf(f, "EOD\n");
}

static int count_points(const struct sizes *s, const struct report *r, bool front)
{
    int n = 0;
    for (int i = 0; i < r->n; i++)
        n += shown(s, &r->row[i]) && on_front(s, r, i) == front;
    return n;
}

static void put_script(struct plot *p, const struct sizes *s, const struct report *r)
{
    const struct report_row *full = report_full_precision(r, &r->row[r->base]);
    FILE *f = p->script;
    put_points(p, "front", s, r, true);
    put_points(p, "rest", s, r, false);
    fprintf(
        f,
        "set xlabel \"%s\" offset 0,0.5\nset ylabel \"perplexity%s\" offset 1.5,0\nplot ",
        s->axis, p->y.log ? ", logarithmic" : "");
    if (full)
        fprintf(f, "%.9g with lines dt 2 lc rgb \"#909090\", ", full->ppl);
    if (count_points(s, r, false))
        fprintf(f, "$rest with points pt 7 ps 0.7 lc rgb \"#7a8691\", ");
    fprintf(f, "$front smooth unique with lines lw 1.5 lc rgb \"#0b5fad\", "
               "$front with points pt 7 ps 0.7 lc rgb \"#0b5fad\"\n");
}

/* The points of a picture: those with names, and those of the lines. */
struct points {
    struct label *item; /* [room], owned */
    int n, room;
};

static enum err add_point(struct points *l, const char *text, double x, double y)
{
    if (l->n == l->room) {
        const int more = l->room ? 2 * l->room : 128;
        TRY(mem_resize(&l->item, (size_t)l->room, (size_t)more, sizeof(*l->item)));
        l->room = more;
    }
    l->item[l->n++] = (struct label){.text = text, .x = x, .y = y};
    return OK;
}

/* Keeps names away from a line, by points along it. */
static enum err add_line(struct points *l, double x0, double y0, double x1, double y1)
{
    const int steps = (int)(hypot(x1 - x0, y1 - y0) / 10);
    for (int i = 1; i < steps; i++) {
        const double s = (double)i / steps;
        TRY(add_point(l, NULL, x0 + s * (x1 - x0), y0 + s * (y1 - y0)));
    }
    return OK;
}

/* Returns the cell after `last` on the front, by bytes; NULL: there is none. */
static const struct report_row *next_of_front(const struct sizes *s, const struct report *r,
                                              const struct report_row *last)
{
    const struct report_row *next = NULL;
    for (int i = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        if (shown(s, row) && on_front(s, r, i) &&
            (!last || size_of(s, row) > size_of(s, last)) &&
            (!next || size_of(s, row) < size_of(s, next)))
            next = row;
    }
    return next;
}

static enum err add_lines(struct points *l, const struct plot *p, const struct sizes *s,
                          const struct report *r)
{
    const struct report_row *full = report_full_precision(r, &r->row[r->base]);
    const struct report_row *a = next_of_front(s, r, NULL), *b;
    for (; a && (b = next_of_front(s, r, a)); a = b)
        TRY(add_line(l, plot_x(p, size_of(s, a)), plot_y(p, height_of(p, a)),
                     plot_x(p, size_of(s, b)), plot_y(p, height_of(p, b))));
    if (full)
        TRY(add_line(l, p->area.left, plot_y(p, full->ppl), p->area.right,
                     plot_y(p, full->ppl)));
    return OK;
}

/* Names the points, those of the front first, as they get the nearest places. */
static enum err name_points(struct plot *p, const struct sizes *s, const struct report *r)
{
    struct points l = {0};
    enum err err = OK;
    for (int pass = 1; pass >= 0; pass--)
        for (int i = 0; i < r->n; i++)
            if (shown(s, &r->row[i]) && on_front(s, r, i) == pass)
                TRY_OUT(add_point(&l, l.n < NAMES_MAX ? r->row[i].name : NULL,
                                  plot_x(p, size_of(s, &r->row[i])),
                                  plot_y(p, height_of(p, &r->row[i]))));
    TRY_OUT(add_lines(&l, p, s, r));
    labels_place(l.item, l.n, p->area);
    plot_labels(p, l.item, l.n);
    for (int i = 0; i < r->n; i++)
        if (shown(s, &r->row[i]) && r->row[i].ppl > p->y.hi)
            plot_text(p, plot_x(p, size_of(s, &r->row[i])), p->area.top + 10, "middle",
                      "\xe2\x86\x91");
out:
    mem_free(l.item);
    return err;
}

static enum err draw_sizes(char **svg, const struct sizes *s, const struct report *r,
                           int width, int height)
{
    struct plot p;
    struct plot_range x, y;
    find_ranges(&x, &y, s, r);
    TRY(plot_begin(&p, width, height));
    plot_axes(&p, (struct box){60, 10, width - 12, height - 50}, x, y);
    put_script(&p, s, r);
    const enum err err = name_points(&p, s, r);
    if (err) {
        plot_abort(&p);
        return err;
    }
    return plot_end(svg, &p);
}

/* Says what a picture shows, for who cannot see it. Release *out with mem_free. */
static enum err sizes_alt(char **out, const struct sizes *s, const struct report *r, int n)
{
    const struct report_row *low = NULL, *high = NULL;
    for (int i = 0; i < r->n; i++) {
        const struct report_row *row = &r->row[i];
        if (!shown(s, row))
            continue;
        low = !low || row->ppl < low->ppl ? row : low;
        high = !high || row->ppl > high->ppl ? row : high;
    }
    const size_t bytes = strlen(low->name) + strlen(high->name) + 256;
    TRY(mem_alloc(out, bytes, 1));
    snprintf(
        *out, bytes,
        "%d points: perplexity by %s, from %.3f at %.4g (%s) to %.3f at %.4g (%s). The "
        "table of results has all figures.",
        n, s->what, low->ppl, size_of(s, low), low->name, high->ppl, size_of(s, high),
        high->name);
    return OK;
}

static enum err put_sizes(FILE *f, const struct sizes *s, const struct report *r, int n)
{
    enum err err = OK;
    char *wide = NULL, *narrow = NULL, *alt = NULL;
    const int tall = n > 10 ? 560 : 440;
    TRY_OUT(draw_sizes(&wide, s, r, 960, tall));
    TRY_OUT(draw_sizes(&narrow, s, r, 340, tall + 60));
    TRY_OUT(sizes_alt(&alt, s, r, n));
    html_figure(f, &(struct html_picture){wide, narrow, alt, s->caption});
    html_figure_end(f);
out:
    free(wide);
    free(narrow);
    mem_free(alt);
    return err;
}

enum err report_sizes(FILE *f, const struct report *r)
{
    bool any = false;
    for (size_t i = 0; i < ARRAY_LEN(pictures); i++) {
        struct plot_range x, y;
        const int n = find_ranges(&x, &y, &pictures[i], r);
        if (n < 2)
            continue;
        fputs(any ? "" : "<h2>Perplexity and bytes</h2>\n", f);
        any = true;
        TRY(put_sizes(f, &pictures[i], r, n));
    }
    return OK;
}

/* --- differences -------------------------------------------------------------------- */

struct rows {
    double height; /* of a row */
    double left;   /* of the axes */
    double right;  /* from the axes to the picture's edge */
    bool above;    /* names stand above their bars */
};

static int count_differences(const struct report *r)
{
    int n = 0;
    for (int i = 0; i < r->n; i++)
        n += isfinite(r->row[i].diff.stderr_);
    return n;
}

/* Returns how far a cell's bar reaches from 0. */
static double reach(const struct report *r, int i)
{
    return fabs(r->row[i].diff.mean) + 2 * r->row[i].diff.stderr_;
}

/* Returns the range of the axis, without outliers. */
static struct plot_range difference_range(const struct report *r)
{
    const double bound = outliers_from(r, reach);
    double lo = 0, hi = 0;
    for (int i = 0; i < r->n; i++) {
        const struct estimate d = r->row[i].diff;
        if (!(reach(r, i) < bound))
            continue;
        lo = fmin(lo, d.mean - 2 * d.stderr_);
        hi = fmax(hi, d.mean + 2 * d.stderr_);
    }
    const double margin = fmax(0.06 * (hi - lo), 1e-6);
    return (struct plot_range){lo - margin, hi + margin, false};
}

/* Writes the cells that differ significantly from the base, or the others; row y from the top. */
static void put_bars(FILE *f, const struct report *r, bool apart)
{
    int y = 0;
    fprintf(f, "$%s << EOD\n", apart ? "apart" : "near");
    for (int i = 0; i < r->n; i++) {
        const struct estimate d = r->row[i].diff;
        if (!isfinite(d.stderr_))
            continue;
        if (report_significant(d) == apart)
            fprintf(f, "%.9g %d %.9g\n", d.mean, y, 2 * d.stderr_);
        y++;
    }
    fprintf(f, "EOD\n");
}

static void put_difference_script(struct plot *p, const struct report *r)
{
    FILE *f = p->script;
    const char *const bars = "using 1:2:3 with xerrorbars ps 0.7 lw 1.5";
    int apart = 0, near = 0;
    for (int i = 0; i < r->n; i++) {
        apart += report_significant(r->row[i].diff);
        near += isfinite(r->row[i].diff.stderr_) && !report_significant(r->row[i].diff);
    }
    put_bars(f, r, true);
    put_bars(f, r, false);
    fprintf(f, "set border 1\nunset ytics\nunset grid\nset grid x lc rgb \"#d8d8d8\"\n"
               "set bars 0.5\nset xlabel \"nats per token above the base\" offset 0,0.5\n"
               "set arrow from 0, graph 0 to 0, graph 1 nohead lc rgb \"#707070\"\nplot ");
    if (apart)
        fprintf(f, "$apart %s pt 7 lc rgb \"#0b5fad\"%s", bars, near ? ", " : "");
    if (near)
        fprintf(f, "$near %s pt 6 lc rgb \"#7a8691\"", bars);
    fprintf(f, "\n");
}

static void name_bars(struct plot *p, const struct report *r, const struct rows *rows)
{
    for (int i = 0, at = 0; i < r->n; i++) {
        const struct estimate d = r->row[i].diff;
        char text[64];
        if (!isfinite(d.stderr_))
            continue;
        const double y = plot_y(p, at++);
        if (d.mean > p->x.hi)
            plot_text(p, p->area.right, y, "end", "\xe2\x86\x92");
        if (d.mean < p->x.lo)
            plot_text(p, p->area.left, y, "start", "\xe2\x86\x90");
        snprintf(text, sizeof(text), "%+.4f \xc2\xb1 %.4f", d.mean, d.stderr_);
        if (rows->above) {
            plot_text(p, p->area.left, y - 16, "start", r->row[i].name);
            plot_text(p, p->width - 6, y - 16, "end", text);
        } else {
            plot_text(p, p->area.left - 12, y, "end", r->row[i].name);
            plot_text(p, p->width - 6, y, "end", text);
        }
    }
}

static enum err draw_differences(char **svg, const struct report *r, int width,
                                 const struct rows *rows)
{
    const int n = count_differences(r);
    const int height = (int)(rows->height * n) + 60;
    struct plot p;
    TRY(plot_begin(&p, width, height));
    plot_axes(&p, (struct box){rows->left, 8, width - rows->right, height - 52},
              difference_range(r),
              (struct plot_range){n - (rows->above ? 0.7 : 0.5), rows->above ? -0.7 : -0.5,
                                  false});
    put_difference_script(&p, r);
    name_bars(&p, r, rows);
    return plot_end(svg, &p);
}

/* Returns the width of the widest name. */
static double widest_name(const struct report *r)
{
    double width = 0;
    for (int i = 0; i < r->n; i++)
        if (isfinite(r->row[i].diff.stderr_))
            width = fmax(width, label_width(r->row[i].name));
    return width;
}

enum err report_difference_picture(FILE *f, const struct report *r)
{
    enum err err = OK;
    char *wide = NULL, *narrow = NULL;
    const struct rows beside = {24, widest_name(r) + 24, 150, false},
                      above = {44, 12, 12, true};
    if (!count_differences(r))
        return OK;
    TRY_OUT(draw_differences(&wide, r, 960, &beside));
    TRY_OUT(draw_differences(&narrow, r, 340, &above));
    html_figure(
        f,
        &(struct html_picture){
            wide, narrow,
            "A point for each cell with a bar of two standard errors to both "
            "sides. The table below has all figures.",
            "Difference of each cell to the base in nats per token. Bars are two "
            "standard errors, paired over windows. Hollow points do not differ significantly "
            "from the base, and an arrow points at one outside "
            "the axis."});
    html_figure_end(f);
out:
    free(wide);
    free(narrow);
    return err;
}

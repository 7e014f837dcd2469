/* SPDX-License-Identifier: MIT
 *
 * Pictures as SVG text, drawn by gnuplot. A script contains only numbers and our own words,
 * never a name from a file, because gnuplot's language can run commands. Names are added to
 * the finished picture, as escaped text. */
#ifndef WKVQ_PLOT_H
#define WKVQ_PLOT_H

#include "kernels/base/error.h"
#include "tools/report/labels.h"

#include <stdbool.h>
#include <stdio.h>

/* What an axis shows. */
struct plot_range {
    double lo, hi;
    bool log;
};

struct plot {
    FILE *script; /* commands, open between plot_begin and plot_end */
    FILE *over;   /* SVG to draw over the picture, open as long */
    char *over_text;
    size_t over_bytes;
    int width, height; /* units of the SVG; y counts downward */
    struct box area;   /* inside of the axes */
    struct plot_range x, y;
};

/* Returns whether gnuplot can be started. */
bool plot_available(void);
/* Starts a picture of width x height units. The caller writes commands to p->script, with
 * data as here-documents ($d << EOD). Call plot_end() or plot_abort() whatever the
 * result. */
enum err plot_begin(struct plot *p, int width, int height);
/* Sets the axes: their place, and what they show. Call it before commands that plot. */
void plot_axes(struct plot *p, struct box area, struct plot_range x, struct plot_range y);
/* Returns where a value is in the picture, after plot_axes(). */
double plot_x(const struct plot *p, double x);
double plot_y(const struct plot *p, double y);
/* Draws text over the picture, in the size of labels.h; anchor as in SVG: "start", "middle",
 * "end". y is the line's middle. */
void plot_text(struct plot *p, double x, double y, const char *anchor, const char *text);
/* Draws placed names and the lines from their points. */
void plot_labels(struct plot *p, const struct label *l, int n);
/* Runs gnuplot. *svg starts at "<svg"; release it with free(). It is NULL if gnuplot fails, of
 * which a warning tells: that costs one picture, not the page. Releases p whatever the
 * result. */
enum err plot_end(char **svg, struct plot *p);
void plot_abort(struct plot *p); /* accepts a zeroed one */

#endif

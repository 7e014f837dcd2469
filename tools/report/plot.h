/* SPDX-License-Identifier: MIT
 *
 * Pictures as SVG text, drawn by gnuplot. A script contains only numbers and our own words,
 * never a name from a file, because gnuplot's language can run commands. */
#ifndef WKVQ_PLOT_H
#define WKVQ_PLOT_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdio.h>

struct plot {
    FILE *script; /* open between plot_begin and plot_end */
};

/* Returns whether gnuplot can be started. */
bool plot_available(void);
/* Starts a picture of width x height units. The caller writes commands to p->script, with
 * data as here-documents ($d << EOD). */
enum err plot_begin(struct plot *p, int width, int height);
/* Runs gnuplot. *svg starts at "<svg"; release it with free(). ERR_IO if gnuplot fails.
 * Releases p whatever the result. */
enum err plot_end(char **svg, struct plot *p);
void plot_abort(struct plot *p); /* accepts a zeroed one */

#endif

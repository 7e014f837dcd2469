/* SPDX-License-Identifier: MIT
 *
 * Pictures by gnuplot, as SVG text. Only numbers and words of ours go into a script, never
 * a name from a file: gnuplot's language runs commands. */
#ifndef WKVQ_PLOT_H
#define WKVQ_PLOT_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdio.h>

struct plot {
    FILE *script; /* open between plot_begin and plot_end */
};

/* Can gnuplot be started? */
bool plot_available(void);
/* A picture of width x height units; what to draw is written to p->script, data as
 * here-documents ($d << EOD). */
enum err plot_begin(struct plot *p, int width, int height);
/* *svg: from "<svg" on, released with free(). ERR_IO when gnuplot fails. Releases p
 * whatever the result. */
enum err plot_end(char **svg, struct plot *p);
void plot_abort(struct plot *p); /* accepts a zeroed one */

#endif

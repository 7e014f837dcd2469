/* SPDX-License-Identifier: MIT
 *
 * A sweep's results as a page: rows as figures, differences, tables, pictures. */
#ifndef WKVQ_REPORT_H
#define WKVQ_REPORT_H

#include "kernels/base/error.h"
#include "tools/eval/statistics.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct report_row {
    const json_t *json; /* borrowed from the report */
    const char *name, *command;
    double ppl, ppl_stderr, weight_bits, kv_bits, bytes, seconds;
    double *nll; /* [windows], owned */
    int64_t windows;
    /* Difference to the base in nats, paired over windows: base - 1. NAN where the two were
     * not evaluated on the same windows, or for the base itself. */
    struct estimate diff;
};

struct report {
    json_t *list;
    struct report_row *row;
    int n, base; /* index of the full method */
};

/* Read a sweep's directory; base: the cell that differences are to, NULL: the first. Close
 * it whatever the result. Errors: as for reading results, ERR_FORMAT for rows that lack
 * figures, ERR_NOT_FOUND for a base that is not there. */
enum err report_open(struct report *r, const char *dir, const char *base);
void report_close(struct report *r);

/* Member of a row's array of figures; NAN if it is not there. */
double report_figure(const struct report_row *row, const char *array, int64_t i);
int64_t report_figures(const struct report_row *row, const char *array);

void report_tables(FILE *f, const struct report *r);
void report_differences(FILE *f, const struct report *r);
void report_commands(FILE *f, const struct report *r);

/* Pictures by gnuplot; a picture that has nothing to show is left out. */
enum err report_pareto(FILE *f, const struct report *r);
enum err report_difference_picture(FILE *f, const struct report *r);
enum err report_losses(FILE *f, const struct report *r);
enum err report_cosines(FILE *f, const struct report *r);

#endif

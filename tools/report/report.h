/* SPDX-License-Identifier: MIT
 *
 * A sweep's results as a page: figures, differences, tables and pictures. */
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
    /* difference to the base in nats, paired over windows (minus the base); NAN for the
     * base itself, and if the two were not evaluated on the same windows */
    struct estimate diff;
};

struct report {
    json_t *list;
    struct report_row *row;
    int n, base; /* index of the reference cell */
};

/* Reads a sweep's directory. base: name of the reference cell; NULL: the first. Call
 * report_close() whatever the result. ERR_FORMAT for rows that lack figures, ERR_NOT_FOUND
 * for an unknown base, and the errors of reading results. */
enum err report_open(struct report *r, const char *dir, const char *base);
void report_close(struct report *r);

/* Returns member i of a row's array of figures; NAN if it is missing. */
double report_figure(const struct report_row *row, const char *array, int64_t i);
int64_t report_figures(const struct report_row *row, const char *array);

void report_tables(FILE *f, const struct report *r);
void report_differences(FILE *f, const struct report *r);
void report_commands(FILE *f, const struct report *r);

/* Write pictures by gnuplot; an empty picture is omitted. */
enum err report_pareto(FILE *f, const struct report *r);
enum err report_difference_picture(FILE *f, const struct report *r);
enum err report_losses(FILE *f, const struct report *r);
enum err report_cosines(FILE *f, const struct report *r);

#endif

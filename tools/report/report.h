/* SPDX-License-Identifier: MIT
 *
 * A sweep's results as a page: what was run, the finding, tables and pictures. */
#ifndef WKVQ_REPORT_H
#define WKVQ_REPORT_H

#include "kernels/base/error.h"
#include "tools/eval/statistics.h"
#include "tools/sweep/sweep_columns.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* A cell. Figures that its result lacks are NAN. */
struct report_row {
    const json_t *json; /* borrowed from the report */
    const char *name, *command;
    double ppl, ppl_stderr, weight_bits, kv_bits;
    double seconds; /* of all that was measured */
    double bytes;   /* of the checkpoint or artifact; counted from shapes if simulated */
    double cache;   /* bytes per token */
    bool measured;  /* bytes are those of files */
    double *nll;    /* [windows] mean losses, owned */
    int64_t windows;
    /* difference to the base in nats, paired over windows (minus the base); NAN for the
     * base itself, and if the two were not evaluated on the same windows */
    struct estimate diff;
};

struct report {
    json_t *list;
    json_t *about; /* sweep.json, an object; NULL: there is none */
    json_t *now,
        *earlier; /* of list: the latest run's cells (sweep_record_split), others */
    struct sweep_columns columns; /* of the further texts and tasks of now */
    struct report_row *row;       /* [n] of now, in the order of the sweep's file */
    int n, base;                  /* index of the reference cell */
    struct report_row *old; /* [n_old] of earlier runs, which are compared with nothing */
    int n_old;
};

/* Reads a sweep's directory. base: name of the reference cell; NULL: the first. Call
 * report_close() whatever the result. ERR_FORMAT for rows that lack figures, ERR_NOT_FOUND
 * for an unknown base, ERR_USAGE without a result of the latest run, and the errors of reading
 * results. */
enum err report_open(struct report *r, const char *dir, const char *base);
void report_close(struct report *r);

/* Returns member i of a row's array of figures; NAN if it is missing. */
double report_figure(const struct report_row *row, const char *array, int64_t i);
int64_t report_figures(const struct report_row *row, const char *array);
/* Returns the text at a path of members, such as "run.model"; NULL if there is none. */
const char *report_text(const json_t *o, const char *path);
/* Returns whether the cell's weights or cache are quantized. */
bool report_quantized(const struct report_row *row);
/* Returns the first cell in full precision that is of the checkpoint of `like` and was evaluated
 * as it was; NULL: there is none. */
const struct report_row *report_full_precision(const struct report *r,
                                               const struct report_row *like);
/* Returns whether a cell is known to have been computed on another processor or device, or with
 * another number of threads, than the base. */
bool report_elsewhere(const struct report *r, const struct report_row *row);
/* Returns whether two cells are of the same checkpoint. */
bool report_same_model(const struct report_row *a, const struct report_row *b);
/* Returns the loss of a minus that of b in nats, paired over windows; NAN if they are of different
 * checkpoints or were not evaluated on the same windows. */
struct estimate report_difference(const struct report_row *a, const struct report_row *b);
/* By what two cells are compared. */
struct report_measure {
    enum { REPORT_TEXT, REPORT_ZEROSHOT, REPORT_LONGBENCH, REPORT_MEMORY } kind;
    const char *name; /* of a further text, borrowed; NULL: the text of the sweep */
};
/* *out = the figure of a minus the mean of those of b and c (c NULL: that of b), and its
 * paired standard error.
 *
 *   REPORT_TEXT       nats per token, paired over windows
 *   REPORT_ZEROSHOT   points of accuracy: for each set the mean over its questions of
 *                     100 ([a is right] - [b is right]), with the standard error of these
 *                     differences; then the mean over the sets, whose errors are independent
 *   REPORT_LONGBENCH  points of the score, likewise
 *   REPORT_MEMORY     bytes of weights and of the cache of one text of ctx tokens, counted
 *                     from shapes; the error is 0
 *
 * NAN if a cell lacks the measure, was asked something else, or is of another checkpoint.
 * ERR_MEMORY. */
enum err report_compare(struct estimate *out, const struct report *r,
                        const struct report_measure *m, const struct report_row *a,
                        const struct report_row *b, const struct report_row *c);
/* Returns the p of mcnemar_exact() for the accuracies of a and b on the sweep's one zero-shot
 * set. NAN if there are several sets, for other measures, and for what report_compare() cannot
 * compare. */
double report_compare_exactly(const struct report *r, const struct report_measure *m,
                              const struct report_row *a, const struct report_row *b);
/* Returns whether two measures are of the same text or questions; false for NULL. */
bool report_same_question(const json_t *a, const json_t *b);
/* Returns the bytes of weights and of the cache of one text of the evaluation's length; NAN
 * for a result that lacks them. */
double report_memory(const struct report_row *row);
/* Returns whether any cell has the measure. */
bool report_has_measure(const struct report *r, const struct report_measure *m);
/* Returns whether a difference exceeds two standard errors. false for NAN. */
bool report_significant(struct estimate difference);

/* Makes the page's title: "MODEL: TITLE", or the directory's name. Release *out with
 * mem_free. */
enum err report_title(char **out, const struct report *r, const char *dir);
/* Write the parts of the page. */
void report_finding(FILE *f, const struct report *r);
/* Writes how many of the sweep's claims held, or a table of them; nothing without claims. */
enum err report_claims(FILE *f, const struct report *r, bool summary);
void report_facts(FILE *f, const struct report *r);
void report_results(FILE *f, const struct report *r);
/* Writes tables of further texts and of tasks, and what they cannot show; nothing without. */
enum err report_measures(FILE *f, const struct report *r);
void report_differences(FILE *f, const struct report *r);
void report_commands(FILE *f, const struct report *r);
/* Writes a folded table of the results of earlier runs; nothing without. */
void report_earlier(FILE *f, const struct report *r);

/* Write pictures by gnuplot; an empty picture is omitted. */
enum err report_sizes(FILE *f, const struct report *r);
enum err report_difference_picture(FILE *f, const struct report *r);
enum err report_losses(FILE *f, const struct report *r);
enum err report_layers(FILE *f, const struct report *r);

/* Writes the page of an open report to path. title NULL: report_title(). */
enum err report_write(const char *path, const struct report *r, const char *title,
                      const char *dir);

#endif

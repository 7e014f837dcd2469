/* SPDX-License-Identifier: MIT
 *
 * The measures of a sweep's results as columns of a table, with averages over data sets:
 *
 *   ppl_NAME                         a further text
 *   SET_acc, SET_acc_norm            a zero-shot set, in [0,1]
 *   zeroshot_acc, zeroshot_acc_norm  mean over these sets; WinoGrande has acc in both
 *   SET                              a set of LongBench, in percent
 *   longbench                        mean over these sets
 *
 * A mean gives each set the same weight, and takes the sets' errors as independent. A cell
 * that lacks one of the sets has no mean. */
#ifndef WKVQ_SWEEP_COLUMNS_H
#define WKVQ_SWEEP_COLUMNS_H

#include "kernels/base/error.h"
#include "tools/eval/statistics.h"

#include <jansson.h>

struct sweep_column {
    char head[64];
    const char *task,
        *name;       /* borrowed from the rows; name NULL: mean of the task's sets */
    const char *key; /* the figure in a measure: "ppl", "acc", "acc_norm", "score" */
};

struct sweep_columns {
    struct sweep_column *item; /* [n], owned */
    int n;
};

/* Lists what any of the rows has: texts, zero-shot sets, LongBench's sets, each in the order
 * of their first appearance, and behind them their mean if there are several. Rows must
 * outlive c. Free c after an error as well. */
enum err sweep_columns_of(struct sweep_columns *c, const json_t *rows);
void sweep_columns_free(struct sweep_columns *c);
/* Returns a row's figure with its standard error; NAN for what it lacks. */
struct estimate sweep_column_value(const struct sweep_columns *c, int i, const json_t *row);
/* Writes results.csv: a line for each row, with its measures behind its own figures. */
enum err sweep_columns_csv(const char *path, const json_t *rows);
/* Returns what the verification of a row's artifact found to differ, borrowed; NULL if it passed,
 * or there was nothing to verify. */
const char *sweep_fault_of(const json_t *row);
/* Returns a row's measure, borrowed; NULL if it has none. */
const json_t *sweep_measure_of(const json_t *row, const char *task, const char *name);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Multiple-choice questions. They are read from the data sets' own JSON lines and worded as
 * in EleutherAI's lm-evaluation-harness. */
#ifndef WKVQ_CHOICE_H
#define WKVQ_CHOICE_H

#include "data/json.h"

/* A choice, scored by the log-likelihood of continuation after context. */
struct choice {
    char *context, *continuation; /* owned */
    int64_t chars; /* characters of the choice itself, by which acc_norm divides */
};

struct question {
    struct choice *choice;
    int n, gold;
};

struct question_set {
    const char *name; /* "piqa", "arc", "hellaswag", "winogrande" */
    bool normalized;  /* whether acc_norm is defined */
    struct question *item;
    int64_t n;
};

/* Loads the questions of one file. The data set is recognized by its first line; all lines
 * must be of the same one. labels: a file with one index per line (PIQA stores them
 * separately), or NULL. limit 0: all questions. ERR_NOT_FOUND, ERR_FORMAT and ERR_SUPPORT
 * name file and line. */
enum err question_set_load(struct question_set *out, const char *path, const char *labels,
                           int64_t limit);
void question_set_free(struct question_set *s); /* accepts a zeroed one */

#endif

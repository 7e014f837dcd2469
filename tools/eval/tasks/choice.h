/* SPDX-License-Identifier: MIT
 *
 * Multiple-choice questions: the data sets' own JSON lines, put into words as EleutherAI's
 * lm-evaluation-harness does it. */
#ifndef WKVQ_CHOICE_H
#define WKVQ_CHOICE_H

#include "data/json.h"

/* A choice is scored by the log-likelihood of continuation after context. */
struct choice {
    char *context, *continuation; /* owned */
    int64_t chars;                /* of the choice itself, what acc_norm divides by */
};

struct question {
    struct choice *choice;
    int n, gold;
};

struct question_set {
    const char *name; /* "piqa", "arc", "hellaswag", "winogrande" */
    bool normalized;  /* acc_norm means something */
    struct question *item;
    int64_t n;
};

/* Which data set path is shows from its first line; the others must be of the same. labels:
 * a file of one index a line (PIQA keeps them apart), or NULL. limit 0: all questions.
 * Errors: ERR_NOT_FOUND, ERR_FORMAT and ERR_SUPPORT with file and line. */
enum err question_set_load(struct question_set *out, const char *path, const char *labels,
                           int64_t limit);
void question_set_free(struct question_set *s); /* accepts a zeroed one */

#endif

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
    int64_t row; /* index in the file, from 0 */
};

struct question_set {
    /* "piqa", "arc_easy", "arc_challenge", "arc" (one of the two), "hellaswag",
     * "winogrande" */
    const char *name;
    bool normalized; /* whether acc_norm is defined */
    struct question *item;
    int64_t n, rows; /* questions loaded, and in the file */
};

/* Files of labels, one index per line, for data sets that store them separately (PIQA).
 * Borrowed. */
struct label_files {
    const char *const *path;
    int n;
    int used; /* how many of them belong to files loaded so far */
};

/* Loads the questions of one file. The data set is recognized by its first line; all lines
 * must be of the same one. A file without labels takes the next one of labels, which must
 * have as many as the file has questions. limit 0: all questions, else that many, evenly
 * from the file. ERR_NOT_FOUND, ERR_FORMAT and ERR_SUPPORT name file and line. */
enum err question_set_load(struct question_set *out, const char *path,
                           struct label_files *labels, int64_t limit);
void question_set_free(struct question_set *s); /* accepts a zeroed one */

#endif

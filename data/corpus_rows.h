/* SPDX-License-Identifier: MIT
 *
 * Documents out of JSON rows. */
#ifndef WKVQ_CORPUS_ROWS_H
#define WKVQ_CORPUS_ROWS_H

#include "data/rows.h"

#define ROW_FIELD_MAX 128

enum json_layout {
    LAYOUT_NONE,   /* plain text */
    LAYOUT_BROKEN, /* begins as JSON, but is not whole */
    LAYOUT_LINES,
    LAYOUT_ARRAY,
    LAYOUT_VALUES /* whole values one after the other, over lines: one object as a rule */
};

/* What text is. *c: where broken JSON goes wrong. named: the file's name says JSON. Adds
 * the bytes that are looked at to *steps, unless it is NULL. */
enum json_layout json_layout(struct json_scan *c, const char *s, size_t n, bool named,
                             uint64_t *steps);

/* How a file's rows are read, and what came of it. */
struct corpus_rows {
    const char *path; /* for messages; borrowed */
    const char *text;
    size_t n;
    char field[ROW_FIELD_MAX];  /* "": not known yet */
    char within[ROW_FIELD_MAX]; /* name, quoted, of the member that holds the rows, or "" */
    bool chat;                  /* some row was a list of messages */
    int64_t rows, documents, bad;
    uint64_t lone;                          /* surrogates replaced by U+FFFD */
    uint64_t steps;                         /* bytes that were looked at */
    char first_bad[2 * ROW_FIELD_MAX + 64]; /* "line 3: text is null" */
    struct json_span sample;                /* an object without the field, for its names */
};

/* Append the documents, "\n\n" before each but the first; *documents counts all in out.
 * layout: neither LAYOUT_NONE nor LAYOUT_BROKEN. Errors: ERR_FORMAT, ERR_MEMORY. */
enum err corpus_add_rows(struct text *out, int64_t *documents, struct corpus_rows *r,
                         enum json_layout layout);

/* Line of byte `at`, from 1. */
int64_t text_line(const char *s, size_t at);
/* Length of the line at s, its newline included. */
size_t text_line_length(const char *s, size_t n);

#endif

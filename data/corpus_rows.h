/* SPDX-License-Identifier: MIT
 *
 * Extracts documents from JSON rows. */
#ifndef WKVQ_CORPUS_ROWS_H
#define WKVQ_CORPUS_ROWS_H

#include "data/rows.h"

#define ROW_FIELD_MAX 128

enum json_layout {
    LAYOUT_NONE,   /* plain text */
    LAYOUT_BROKEN, /* starts as JSON, but is incomplete or broken */
    LAYOUT_LINES,
    LAYOUT_ARRAY,
    /* consecutive whole values that may span lines, usually a single object */
    LAYOUT_VALUES
};

/* Returns the layout of text s [n]. *c receives the position of the error in broken JSON.
 * named: the file's name ends in a suffix of JSON. Adds the number of bytes read to *steps,
 * if not NULL. */
enum json_layout json_layout(struct json_scan *c, const char *s, size_t n, bool named,
                             uint64_t *steps);

/* How the rows of a file are read, and the counts of the result. */
struct corpus_rows {
    const char *path; /* for messages; borrowed */
    const char *text;
    size_t n;
    const char *between;       /* two documents, borrowed; NULL: two newlines */
    char field[ROW_FIELD_MAX]; /* "" until it is known */
    /* quoted name of the member that contains the rows, or "" */
    char within[ROW_FIELD_MAX];
    bool chat; /* a row was a list of messages */
    int64_t rows, documents, bad;
    uint64_t lone;                          /* surrogates replaced by U+FFFD */
    uint64_t steps;                         /* bytes read, for tests of linear time */
    char first_bad[2 * ROW_FIELD_MAX + 64]; /* "line 3: text is null" */
    struct json_span sample; /* an object without the field, to show its names */
};

/* Appends the documents to out, r->between before each but the first; *documents counts all in
 * out. layout is neither LAYOUT_NONE nor LAYOUT_BROKEN. Errors: ERR_FORMAT, ERR_MEMORY. */
enum err corpus_add_rows(struct text *out, int64_t *documents, struct corpus_rows *r,
                         enum json_layout layout);

/* Returns the line of byte `at`, counted from 1. */
int64_t text_line(const char *s, size_t at);
/* Returns the length of the line at s, including its newline. */
size_t text_line_length(const char *s, size_t n);

#endif

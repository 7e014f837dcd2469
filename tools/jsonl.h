/* SPDX-License-Identifier: MIT
 *
 * Files of one JSON object a line. */
#ifndef WKVQ_JSONL_H
#define WKVQ_JSONL_H

#include "data/json.h"

struct jsonl {
    const char *path; /* borrowed */
    char *text;
    size_t n, at;
    int64_t line;    /* of the row last returned, from 1 */
    char where[512]; /* "FILE: line N", for messages */
};

/* Errors: ERR_NOT_FOUND, ERR_FORMAT, ERR_IO. Close it whatever the result. */
enum err jsonl_open(struct jsonl *f, const char *path);
void jsonl_close(struct jsonl *f);
/* The next line that is not blank, released with json_decref; *row = NULL at the end. */
enum err jsonl_next(json_t **row, struct jsonl *f);

#endif

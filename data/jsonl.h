/* SPDX-License-Identifier: MIT
 *
 * Files of one JSON object a line, also compressed, in an archive, or from a pipe. */
#ifndef WKVQ_JSONL_H
#define WKVQ_JSONL_H

#include "data/json.h"
#include "data/unpack.h"

struct jsonl {
    const char *path; /* borrowed */
    struct unpacked content;
    size_t at;
    int64_t line;    /* of the row last returned, from 1 */
    char where[512]; /* "FILE: line N", for messages */
};

/* Errors: those of unpack_open. Close it whatever the result. */
enum err jsonl_open(struct jsonl *f, const char *path);
void jsonl_close(struct jsonl *f);
/* The next line that is not blank, released with json_decref; *row = NULL at the end. */
enum err jsonl_next(json_t **row, struct jsonl *f);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Reads files with one JSON object per line, which may be compressed, in an archive, or a
 * pipe. Not thread-safe: one reader per thread. */
#ifndef WKVQ_JSONL_H
#define WKVQ_JSONL_H

#include "data/json.h"
#include "data/unpack.h"

struct jsonl {
    const char *path; /* borrowed */
    struct unpacked content;
    size_t at;
    int64_t line;    /* of the row returned last, from 1 */
    char where[512]; /* "FILE: line N", for messages */
};

/* Opens path. Errors: those of unpack_open(). The caller closes f on failure, too. */
enum err jsonl_open(struct jsonl *f, const char *path);
void jsonl_close(struct jsonl *f);
/* Reads the next line that is not blank; *row is NULL at the end. The caller releases *row
 * with json_decref(). Errors: ERR_FORMAT, ERR_MEMORY. */
enum err jsonl_next(json_t **row, struct jsonl *f);
/* Passes over the next line that is not blank, without parsing it. Returns false at the
 * end. */
bool jsonl_skip(struct jsonl *f);
/* Returns the number of lines that are not blank from the current position on. */
int64_t jsonl_count(const struct jsonl *f);

#endif

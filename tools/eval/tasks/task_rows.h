/* SPDX-License-Identifier: MIT
 *
 * Rows of a file of questions: JSON lines, in any packing that data/unpack.h opens. With a
 * limit, rows are taken evenly from the whole file, because data sets are sorted by
 * source. */
#ifndef WKVQ_TASK_ROWS_H
#define WKVQ_TASK_ROWS_H

#include "data/jsonl.h"

struct task_rows {
    struct jsonl f;
    int64_t rows;  /* of the file */
    int64_t taken; /* how many of them are read */
    int64_t at;    /* how many are read so far */
    int64_t row;   /* index in the file of the row read last, from 0 */
};

/* Opens path; limit 0: all rows. Row floor(i rows / limit) is taken for each i < limit.
 * Close r after an error as well. Errors: those of unpack_open(), ERR_FORMAT for CSV and
 * for a file without rows. */
enum err task_rows_open(struct task_rows *r, const char *path, int64_t limit);
void task_rows_close(struct task_rows *r);
/* Reads the next row; NULL at the end. r->f.where names it. The caller releases it with
 * json_decref(). */
enum err task_rows_next(json_t **row, struct task_rows *r);

#endif

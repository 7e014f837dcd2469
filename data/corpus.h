/* SPDX-License-Identifier: MIT
 *
 * Text files as one string, the way the literature builds it. Bytes decide what a file is:
 *  - data/unpack.h decompresses, takes members out of archives and converts to UTF-8;
 *  - JSON lines (most of the first 16 lines are objects), a JSON array, an object that
 * holds an array of objects, and objects one after the other are rows, a document a row;
 *  - anything else is plain text, a document a file. CSV is refused. */
#ifndef WKVQ_CORPUS_H
#define WKVQ_CORPUS_H

#include "kernels/base/error.h"

#include <stddef.h>
#include <stdint.h>

enum corpus_join {
    JOIN_AUTO, /* rows for names that end in .raw or .tokens (before .gz, inside .zip), else
                  file */
    JOIN_ROWS, /* every line with its newline is a row, a line of white space only is an
                  empty row, rows joined by "\n\n" (Hugging Face's wikitext convention) */
    JOIN_FILE  /* as it is */
};

struct corpus_rules {
    enum corpus_join join; /* of plain text */
    const char *field; /* of JSON rows: a string, or a list of chat messages; NULL or "":
                          text, else content, else messages, by the first row that has
                          one of them */
};

struct corpus {
    char *text; /* owned, NUL after the end; invalid UTF-8 is kept */
    size_t bytes;
    int64_t n_documents; /* plain files, and JSON rows */
    int64_t n_skipped;   /* JSON rows that could not be read */
};

/* Read n files and join the documents by "\n\n"; the log says what each file was taken for.
 * "-" is standard input, at most once. Unpacked data is limited to 8 GiB and, for archives,
 * to 100 times the packed size when that is above 16 MiB.
 *
 * A row that Python's json module would refuse, or whose field is no text, is skipped and
 * counted. Errors: those of unpack_open; ERR_FORMAT for more than 1 % of such rows, no row
 * with the field, broken JSON, CSV, and more than 0.1 % of bytes that are not UTF-8 text.
 * Peak memory is the text twice over, while it grows. */
enum err corpus_load(struct corpus *out, const char *const *path, int n,
                     const struct corpus_rules *rules);
void corpus_free(struct corpus *c); /* accepts a zeroed one */

#endif

/* SPDX-License-Identifier: MIT
 *
 * Joins text files to one string, as the literature does. The bytes of a file decide how it
 * is read:
 *  - data/unpack.h decompresses, extracts members of archives and converts to UTF-8.
 *  - JSON rows are one document each: JSON lines (most of the first 16 lines are objects),
 *  a JSON
 *    array, an object that contains an array of objects, or consecutive objects.
 *  - Anything else is plain text, one document per file. CSV is refused.
 * A corpus is read-only once loaded. Different ones may be loaded in different threads. */
#ifndef WKVQ_CORPUS_H
#define WKVQ_CORPUS_H

#include "kernels/base/error.h"

#include <stddef.h>
#include <stdint.h>

enum corpus_join {
    /* JOIN_ROWS for names that end in .raw or .tokens (before .gz, inside .zip), else
     * JOIN_FILE */
    JOIN_AUTO,
    /* every line with its newline is a row, and a line of white space only is an empty row;
     * rows are joined by "\n\n" (Hugging Face's wikitext convention) */
    JOIN_ROWS,
    JOIN_FILE, /* the file unchanged */
    /* every line is a row, without the white space at its ends; rows, documents and files
     * are joined by one space (the convention of Penn Treebank) */
    JOIN_SPACE
};

struct corpus_rules {
    enum corpus_join join; /* of plain text */
    /* Of JSON rows: the name of a string or of a list of chat messages. NULL or "": text,
     * else content, else messages, by the first row that has one of them. */
    const char *field;
};

struct corpus {
    char *text; /* owned, NUL-terminated; invalid UTF-8 is kept */
    size_t bytes;
    int64_t n_documents; /* plain files and JSON rows */
    int64_t n_skipped;   /* JSON rows that could not be read */
};

/* Reads n files and joins the documents by "\n\n", or by a space (JOIN_SPACE). The log
 * says how each file was read. "-" is standard input, at most once. Unpacked data is
 * limited to 8 GiB. Above 16 MiB it is also limited to 100 times the packed size.
 *
 * A row that Python's json module would refuse, or whose field is not text, is skipped and
 * counted. The caller frees *out with corpus_free().
 * Errors: those of unpack_open(); ERR_FORMAT for more than 1 % of such rows, no row with
 * the field, broken JSON, CSV, and more than 0.1 % of bytes that are not UTF-8 text. While
 * the text grows, peak memory is twice its size. */
enum err corpus_load(struct corpus *out, const char *const *path, int n,
                     const struct corpus_rules *rules);
void corpus_free(struct corpus *c); /* accepts a zeroed one */

#endif

/* SPDX-License-Identifier: MIT
 *
 * Text files as one string, the way the literature builds it: .txt, .raw, .tokens and
 * anything else as it is; .gz of these; .jsonl and .jsonl.gz with a `text` field, a
 * document a line, blank lines skipped; .zip (one text file inside); .zip:SUFFIX (the
 * member whose name ends in SUFFIX). */
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

struct corpus {
    char *text; /* owned, NUL behind the end; invalid UTF-8 is kept */
    size_t bytes;
    int64_t n_documents; /* files, or JSONL lines */
};

/* Read n files and join the documents by "\n\n". What is inflated is limited to 8 GiB and,
 * for archives above 16 MiB, to 100 times the packed size. Errors: ERR_NOT_FOUND,
 * ERR_FORMAT (truncated or corrupt gzip, zip without or with several texts, JSONL line
 * without text: with file and line), ERR_IO, ERR_MEMORY. Peak memory is the text twice
 * over, while it grows. */
enum err corpus_load(struct corpus *out, const char *const *path, int n,
                     enum corpus_join join);
void corpus_free(struct corpus *c); /* accepts a zeroed one */

#endif

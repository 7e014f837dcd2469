/* SPDX-License-Identifier: MIT
 *
 * Decompresses data and extracts members of archives in memory, one layer at a time. The
 * input is untrusted: the output is limited, and truncated or corrupt data is an error.
 * Functions are thread-safe on different data. */
#ifndef WKVQ_INFLATE_H
#define WKVQ_INFLATE_H

#include "data/sniff.h"
#include "kernels/base/error.h"

#include <stdbool.h>

#define MEMBER_NAME_MAX 256

/* One layer of packed data, borrowed. */
struct packed {
    const char *path; /* for messages */
    const char *data;
    size_t n;
    size_t limit; /* the most bytes of output */
};

/* Decompresses a gzip, xz, zstd or bzip2 stream, including concatenated parts. The caller
 * frees *data with mem_free(). Errors: ERR_FORMAT (truncated, corrupt, trailing bytes,
 * output above the limit), ERR_MEMORY. */
enum err inflate_stream(char **data, size_t *n, const struct packed *p, enum content kind);

/* Extracts one member of a zip or tar archive, and copies its name to
 * member[MEMBER_NAME_MAX]. suffix is the end of the member's name. If it is NULL, the
 * member is the only one with a text's name, or else the only file. Errors: those above,
 * and ERR_NOT_FOUND if no member's name ends in suffix. */
enum err inflate_member(char **data, size_t *n, char *member, const struct packed *p,
                        enum content kind, const char *suffix);

/* Returns true if name ends in suffix; case is ignored. */
bool name_ends(const char *name, const char *suffix);

#endif

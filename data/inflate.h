/* SPDX-License-Identifier: MIT
 *
 * Compressed data and archives in memory, one layer at a time. Untrusted: the output is
 * limited, and truncated or corrupt data is an error. */
#ifndef WKVQ_INFLATE_H
#define WKVQ_INFLATE_H

#include "data/sniff.h"
#include "kernels/base/error.h"

#include <stdbool.h>

#define MEMBER_NAME_MAX 256

/* One layer of packed data. */
struct packed {
    const char *path; /* for messages */
    const char *data;
    size_t n;
    size_t limit; /* bytes that may come out */
};

/* All of a gzip, xz, zstd or bzip2 stream, its concatenated parts too. *data is released
 * with mem_free. Errors: ERR_FORMAT (truncated, corrupt, other bytes after the end, more
 * than the limit), ERR_MEMORY. */
enum err inflate_stream(char **data, size_t *n, const struct packed *p, enum content kind);

/* One member of a zip or tar archive; its name goes to member[MEMBER_NAME_MAX]. suffix: the
 * end of the member's name; NULL: the only text by its name, else the only file. Errors:
 * those above, and ERR_NOT_FOUND when no member's name ends in suffix. */
enum err inflate_member(char **data, size_t *n, char *member, const struct packed *p,
                        enum content kind, const char *suffix);

/* name ends in suffix; case is ignored. */
bool name_ends(const char *name, const char *suffix);

#endif

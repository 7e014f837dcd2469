/* SPDX-License-Identifier: MIT
 *
 * A file's content, inflated when its name says gzip or zip. Untrusted archives: what comes
 * out is limited, and a truncated or corrupt archive is an error. */
#ifndef WKVQ_UNPACK_H
#define WKVQ_UNPACK_H

#include "kernels/base/file.h"

#include <stddef.h>

struct unpacked {
    const char *data; /* NULL when bytes is 0 */
    size_t bytes;
    char name[256]; /* name of the content: path without .gz, or the member of a zip */
    struct file_map map;
    char *owned;
};

/* path: FILE, FILE.gz, FILE.zip (one text file inside) or FILE.zip:SUFFIX (the member whose
 * name ends so). More than limit bytes inflated, or more than 16 MiB and 100 times the
 * packed size, is ERR_FORMAT. */
enum err unpack_open(struct unpacked *out, const char *path, size_t limit);
void unpack_close(struct unpacked *u); /* accepts a zeroed one */

/* name ends in suffix, letters compared without case. */
bool name_ends(const char *name, const char *suffix);

#endif

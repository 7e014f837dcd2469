/* SPDX-License-Identifier: MIT
 *
 * Returns the content of a text file as UTF-8: decompressed, extracted from its archive,
 * and converted from UTF-16 or UTF-32. Only the file's bytes decide which of these is
 * done. */
#ifndef WKVQ_UNPACK_H
#define WKVQ_UNPACK_H

#include "data/inflate.h"
#include "kernels/base/file/file.h"

struct unpacked {
    const char *data; /* NULL if bytes is 0 */
    size_t bytes;
    /* base name of the content: "t.raw" of "t.raw.gz", or of a member of an archive */
    char name[MEMBER_NAME_MAX];
    char about[128]; /* the layers that were removed, "gzip, UTF-16LE"; "" if none */
    struct file_map map;
    char *owned;
};

/* Opens path: a file, a pipe, "-" for standard input, or ARCHIVE:SUFFIX for the member of a
 * zip or tar archive whose name ends in SUFFIX. Without SUFFIX, the archive must contain
 * one text. The caller closes *out with unpack_close(). Errors: ERR_FORMAT for more than
 * limit bytes, for more than 16 MiB and 100 times the packed size, and for a format that is
 * not text (the message has its name and the command that converts it); ERR_NOT_FOUND,
 * ERR_USAGE (a directory), ERR_IO, ERR_MEMORY. */
enum err unpack_open(struct unpacked *out, const char *path, size_t limit);
void unpack_close(struct unpacked *u); /* accepts a zeroed one */

/* Returns path as messages show it: "standard input" for "-". */
const char *unpack_shown(const char *path);

#endif

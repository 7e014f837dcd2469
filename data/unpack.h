/* SPDX-License-Identifier: MIT
 *
 * A text file's content as UTF-8: decompressed, taken out of its archive and converted from
 * UTF-16 or UTF-32, as its bytes say. Its name decides nothing here. */
#ifndef WKVQ_UNPACK_H
#define WKVQ_UNPACK_H

#include "data/inflate.h"
#include "kernels/base/file.h"

struct unpacked {
    const char *data; /* NULL when bytes is 0 */
    size_t bytes;
    char name[MEMBER_NAME_MAX]; /* base name of the content: "t.raw" of "t.raw.gz", or of
                                   a member of an archive */
    char about[128];            /* what was taken off, "gzip, UTF-16LE"; "" for nothing */
    struct file_map map;
    char *owned;
};

/* path: a file, a pipe, "-" for standard input, or ARCHIVE:SUFFIX for the member of a zip
 * or tar archive whose name ends in SUFFIX. An archive without it holds one text. More than
 * limit bytes, or more than 16 MiB and 100 times the packed size, is ERR_FORMAT. A format
 * that is not text is ERR_FORMAT with its name and the command that converts it. Other
 * errors: ERR_NOT_FOUND, ERR_USAGE (a directory), ERR_IO, ERR_MEMORY. */
enum err unpack_open(struct unpacked *out, const char *path, size_t limit);
void unpack_close(struct unpacked *u); /* accepts a zeroed one */

/* path in messages: "standard input" for "-". */
const char *unpack_shown(const char *path);

#endif

/* SPDX-License-Identifier: MIT
 *
 * What a file holds, by its first bytes. */
#ifndef WKVQ_SNIFF_H
#define WKVQ_SNIFF_H

#include <stddef.h>

enum content {
    CONTENT_TEXT, /* nothing below; empty input too */
    CONTENT_GZIP,
    CONTENT_XZ,
    CONTENT_ZSTD,
    CONTENT_BZIP2,
    CONTENT_ZIP,
    CONTENT_TAR,
    CONTENT_UTF8, /* these with a byte order mark */
    CONTENT_UTF16LE,
    CONTENT_UTF16BE,
    CONTENT_UTF32LE,
    CONTENT_UTF32BE,
    CONTENT_OTHER /* a known format that is not read */
};

struct sniffed {
    enum content content;
    size_t mark;        /* bytes of the byte order mark */
    const char *name;   /* of the format: "gzip", "a Parquet file"; "" for text */
    const char *advice; /* CONTENT_OTHER: what makes text of FILE */
};

/* s: n bytes; at most the first 512 are read. */
struct sniffed sniff(const char *s, size_t n);

#endif

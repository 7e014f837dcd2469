/* SPDX-License-Identifier: MIT
 *
 * Recognizes the format of a file by its first bytes. */
#ifndef WKVQ_SNIFF_H
#define WKVQ_SNIFF_H

#include <stddef.h>

enum content {
    CONTENT_TEXT, /* none of the formats below; also empty input */
    CONTENT_GZIP,
    CONTENT_XZ,
    CONTENT_ZSTD,
    CONTENT_BZIP2,
    CONTENT_ZIP,
    CONTENT_TAR,
    CONTENT_UTF8, /* UTF-8, UTF-16 and UTF-32 with a byte order mark */
    CONTENT_UTF16LE,
    CONTENT_UTF16BE,
    CONTENT_UTF32LE,
    CONTENT_UTF32BE,
    CONTENT_OTHER /* a known format that this program does not read */
};

/* The longest header of a safetensors file, in bytes: the format's own limit. */
#define SAFETENSORS_HEADER_MAX 100000000u

struct sniffed {
    enum content content;
    size_t mark;        /* length of the byte order mark */
    const char *name;   /* of the format: "gzip", "a Parquet file"; "" for text */
    const char *advice; /* if CONTENT_OTHER: the command that converts FILE to text */
};

/* The end of a message that refuses CSV, which only a file's name or its header shows. */
#define CSV_ADVICE                                                                         \
    "is CSV; make JSON lines of it: python3 -c \"import csv, json, sys; "                  \
    "[print(json.dumps(r)) for r in csv.DictReader(open('FILE', newline=''))]\" > "        \
    "FILE.jsonl"

/* Recognizes s [n], a whole file; at most the first 512 bytes are read. Letters that a text
 * may begin with do not suffice: what follows must fit the format, too. Thread-safe. */
struct sniffed sniff(const char *s, size_t n);

#endif

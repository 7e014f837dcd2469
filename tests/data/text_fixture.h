/* SPDX-License-Identifier: MIT
 *
 * Text files and archives in a scratch directory, and checks of what corpus_load() makes of
 * them. */
#ifndef WKVQ_TEXT_FIXTURE_H
#define WKVQ_TEXT_FIXTURE_H

#include "data/corpus.h"

#include <archive.h>

extern char text_dir[96];
/* Setup and teardown of a cmocka group. */
int text_make_dir(void **state);
int text_drop_dir(void **state);

/* "DIR/NAME", in one static buffer. */
const char *in_dir(const char *name);
void put(const char *name, const char *data, size_t n);
void put_text(const char *name, const char *text);
/* Writes text as one gzip member; returns its size. */
size_t gzip(uint8_t *out, size_t room, const char *text, size_t n);
/* An archive of libarchive's format (zip, ustar, raw) through one of its filters (0: none);
 * names and texts alternate, NULL at the end. A name that ends in / is a directory. */
void put_archive(const char *name, int format, int filter, ...);
#define put_zip(name, ...) put_archive(name, ARCHIVE_FORMAT_ZIP, 0, __VA_ARGS__)
void put_stream(const char *name, int filter, const char *text);

/* Checks the file's text and its number of documents. */
void want(const char *name, enum corpus_join join, const char *text, int64_t documents);
void want_field(const char *name, enum corpus_join join, const char *field,
                const char *text, int64_t documents);
/* Checks that the file is refused with e and a message that contains word. */
void refuse(const char *name, enum err e, const char *word);
void refuse_field(const char *name, const char *field, enum err e, const char *word);

#endif

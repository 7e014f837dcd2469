/* SPDX-License-Identifier: MIT
 *
 * Scans JSON text as Python's json module reads it: NaN and Infinity are numbers, a number
 * has any length, the last of equal keys is used, and \u0000 is a character. Only the
 * wanted strings are decoded. All functions are linear in the length of their text, and
 * thread-safe. */
#ifndef WKVQ_ROWS_H
#define WKVQ_ROWS_H

#include "data/tokenizer/tok_text.h"

/* JSON text, borrowed; s is NULL if there is none. */
struct json_span {
    const char *s;
    size_t n;
};

/* The position of a reader in n bytes of JSON text. */
struct json_scan {
    const char *s;
    size_t n, at;
    size_t complete; /* members and elements of the outermost value read so far */
    const char *why; /* the reason of a failure at byte `at` */
    uint64_t *steps; /* counts the bytes read; may be NULL */
};

/* Skips white space; false at the end of the text. */
bool json_scan_space(struct json_scan *c);
/* Reads one whole value into *out. Returns false for an invalid value, or one nested deeper
 * than JSON_DEPTH_MAX; c->why is the reason and c->at the byte. */
bool json_scan_value(struct json_span *out, struct json_scan *c);
#define JSON_DEPTH_MAX 900

/* The functions below expect text that json_scan_value() has accepted. */

/* Returns the last member `key` of an object; s is NULL if it is missing. */
struct json_span json_span_member(struct json_span object, const char *key,
                                  uint64_t *steps);
/* Reads the next member of an object, or element of an array (which has no key). *at starts
 * at 0. Returns false at the end. */
bool json_span_next(struct json_span *key, struct json_span *value, struct json_span outer,
                    size_t *at, uint64_t *steps);
/* Appends the characters of a string. A lone surrogate, which UTF-8 cannot encode, becomes
 * U+FFFD and is counted in *lone. ERR_MEMORY. */
enum err json_span_decode(struct text *out, struct json_span string, uint64_t *lone,
                          uint64_t *steps);
/* Returns "null", "a number", ... for messages. */
const char *json_span_kind(struct json_span v);

#endif

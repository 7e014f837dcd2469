/* SPDX-License-Identifier: MIT
 *
 * JSON text, read as Python's json module reads it: NaN and Infinity are numbers, a number
 * has any length, of equal keys the last one counts, and \u0000 is a character. Nothing but
 * the wanted strings is decoded. All functions are linear in the text they are given. */
#ifndef WKVQ_ROWS_H
#define WKVQ_ROWS_H

#include "data/tokenizer/tok_text.h"

/* JSON text; s is NULL for none. */
struct json_span {
    const char *s;
    size_t n;
};

/* Where a reader stands in n bytes of JSON text. */
struct json_scan {
    const char *s;
    size_t n, at;
    size_t complete; /* members and elements of the outermost value so far */
    const char *why; /* after a failure at byte `at` */
    uint64_t *steps; /* counts the bytes that are looked at; may be NULL */
};

/* Past white space; false at the end of the text. */
bool json_scan_space(struct json_scan *c);
/* Past one whole value, which *out gets. false: no valid value, or one that nests more than
 * JSON_DEPTH_MAX deep; c->why says it and c->at is the byte. */
bool json_scan_value(struct json_span *out, struct json_scan *c);
#define JSON_DEPTH_MAX 900

/* The functions below take what json_scan_value accepted. */

/* The last member `key` of an object; a span of NULL when there is none. */
struct json_span json_span_member(struct json_span object, const char *key,
                                  uint64_t *steps);
/* The next member of an object, or element of an array (key: none); *at starts at 0. false
 * at the end. */
bool json_span_next(struct json_span *key, struct json_span *value, struct json_span outer,
                    size_t *at, uint64_t *steps);
/* Append the characters of a string. A lone surrogate, which UTF-8 cannot say, becomes
 * U+FFFD and is counted in *lone. ERR_MEMORY. */
enum err json_span_decode(struct text *out, struct json_span string, uint64_t *lone,
                          uint64_t *steps);
/* "null", "a number", ... for messages. */
const char *json_span_kind(struct json_span v);

#endif

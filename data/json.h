/* SPDX-License-Identifier: MIT
 *
 * A thin layer over jansson: untrusted JSON with a size limit, and typed getters whose
 * messages name the path ("config.json: rope_scaling.factor: ..."). Strict functions read
 * what this program writes; lenient ones read the files that come with a model.
 *
 * `where` is what a message starts with: a file's name, or a file and a path inside it. */
#ifndef WKVQ_JSON_H
#define WKVQ_JSON_H

#include "kernels/base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Parse n bytes strictly. Errors: ERR_FORMAT with where, line and column; duplicate keys, invalid
 * UTF-8 and trailing bytes are errors. Release with json_decref. */
enum err json_parse(json_t **out, const char *text, size_t n, const char *where);
/* Of a repeated key, take the last value with a warning (settings), or refuse it (tables,
 * where it is damage). */
enum json_repeats { JSON_REPEATS_LAST, JSON_REPEATS_NONE };

/* Parse n bytes as Python's json module does. A byte order mark is skipped. These are
 * accepted where nobody asks for the value: integers beyond 64 bits, reals beyond a double,
 * NaN, Infinity, -Infinity, and halves of surrogate pairs. The getters below refuse such a
 * value by name. */
enum err json_parse_lenient(json_t **out, const char *text, size_t n,
                            enum json_repeats repeats, const char *where);
/* A whole file of at most limit bytes; messages start with path. ERR_FORMAT too for a
 * git-lfs pointer. */
enum err json_load_file_strict(json_t **out, const char *path, size_t limit);
enum err json_load_file_lenient(json_t **out, const char *path, size_t limit,
                                enum json_repeats repeats);

/* Member key of object o. Missing or null: ERR_FORMAT for the json_need_* functions, while
 * json_get_* leave *out alone and return OK. A wrong type or a value outside [lo, hi] is
 * ERR_FORMAT in both. An integral real (1e6) is taken for an integer. Strings and values
 * are borrowed from o. */
enum err json_need_int(int64_t *out, const json_t *o, const char *key, int64_t lo,
                       int64_t hi, const char *where);
enum err json_get_int(int64_t *out, const json_t *o, const char *key, int64_t lo,
                      int64_t hi, const char *where);
enum err json_need_real(double *out, const json_t *o, const char *key, double lo, double hi,
                        const char *where);
enum err json_get_real(double *out, const json_t *o, const char *key, double lo, double hi,
                       const char *where);
enum err json_get_bool(bool *out, const json_t *o, const char *key, const char *where);
enum err json_need_string(const char **out, const json_t *o, const char *key,
                          const char *where);
enum err json_get_string(const char **out, const json_t *o, const char *key,
                         const char *where);
/* *out = NULL when the member is missing or null. */
enum err json_get_object(json_t **out, const json_t *o, const char *key, const char *where);
enum err json_get_array(json_t **out, const json_t *o, const char *key, const char *where);

/* A new array of n numbers, null for what is not finite. NULL when memory is short. */
json_t *json_reals(const double *x, int64_t n);

/* Has jansson been refused memory on this thread, at any time? Documents are then not what
 * they should be: its functions fail quietly where one goes into another. */
bool json_out_of_memory(void);
/* v as text; NULL when v is NULL or memory ran out for the text or for any document before.
 * Release with free. */
char *json_text(const json_t *v, size_t flags);
/* The same for a document that was parsed leniently: its odd numbers and characters are
 * written as they were read. */
char *json_text_restored(const json_t *v, size_t flags);
/* As json_text, and a newline to standard output; ERR_MEMORY. */
enum err json_print(const json_t *v, size_t flags);

/* The number as written ("1e400", "NaN") if a lenient parse met one that jansson cannot
 * hold; NULL otherwise. Borrowed from v. */
const char *json_odd_number(const json_t *v);

/* "an object", "a string", ...: for messages. */
const char *json_kind(const json_t *v);

#endif

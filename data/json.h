/* SPDX-License-Identifier: MIT
 *
 * A thin layer over jansson: untrusted JSON with a size limit, and typed getters whose
 * messages name the path ("config.json: rope_scaling.factor: ..."). Strict functions read
 * files that this program writes. Lenient functions read the files of a model.
 *
 * `where` starts every message: the name of a file, or a file and a path inside it.
 * Different documents may be used in different threads. */
#ifndef WKVQ_JSON_H
#define WKVQ_JSON_H

#include "kernels/base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Parses n bytes strictly. ERR_FORMAT, with where, line and column, also for duplicate
 * keys, invalid UTF-8 and trailing bytes. The caller releases *out with json_decref(). */
enum err json_parse(json_t **out, const char *text, size_t n, const char *where);
/* What a repeated key means: for settings, the last value is used, with a warning. In a
 * table it is damage and refused. */
enum json_repeats { JSON_REPEATS_LAST, JSON_REPEATS_NONE };

/* Parses n bytes as Python's json module does. A byte order mark is skipped. The parser
 * accepts integers beyond 64 bits, reals beyond a double, NaN, Infinity, -Infinity and
 * halves of surrogate pairs. A getter refuses such a value by name. */
enum err json_parse_lenient(json_t **out, const char *text, size_t n,
                            enum json_repeats repeats, const char *where);
/* The limit of a model's configuration files, config.json and those beside the tokenizer. */
#define JSON_CONFIG_MAX ((size_t)16 << 20)
/* Loads a whole file of at most limit bytes; messages start with path. ERR_FORMAT also for
 * a git-lfs pointer. */
enum err json_load_file_strict(json_t **out, const char *path, size_t limit);
enum err json_load_file_lenient(json_t **out, const char *path, size_t limit,
                                enum json_repeats repeats);

/* The same for a table, with JSON_REPEATS_NONE. *lost_keys: some key held a NUL or half a
 * surrogate pair, in whose place JSON_LOST_CHAR stands (data/json_soften.h). */
enum err json_load_table(json_t **out, bool *lost_keys, const char *path, size_t limit);

/* Read member key of object o. If it is missing or null, json_need_*() return ERR_FORMAT,
 * and json_get_*() keep *out and return OK. Both return ERR_FORMAT for a wrong type and for
 * a value outside [lo, hi]. An integral real (1e6) is accepted as an integer. Strings and
 * values are borrowed from o. */
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
/* Set *out to NULL if the member is missing or null. */
enum err json_get_object(json_t **out, const json_t *o, const char *key, const char *where);
enum err json_get_array(json_t **out, const json_t *o, const char *key, const char *where);

/* Returns the string of member key of o, borrowed, or "" if there is none. o may be NULL. */
const char *json_member_text(const json_t *o, const char *key);

/* Returns a new number, or null for a non-finite one, which JSON lacks. */
json_t *json_finite(double x);
/* Returns a new array of n numbers, with null for non-finite ones; NULL if out of
 * memory. */
json_t *json_reals(const double *x, int64_t n);

/* Returns true if jansson has failed to allocate memory on this thread at any time.
 * Documents may then be incomplete, because some of its functions do not report the
 * failure. */
bool json_out_of_memory(void);
/* Returns v as text that the caller frees with free(). NULL if v is NULL, or if memory ran
 * out for the text or for any earlier document. */
char *json_text(const json_t *v, size_t flags);
/* As json_text(), for a document that was parsed leniently: numbers and characters that
 * jansson cannot hold are written as they were read. */
char *json_text_restored(const json_t *v, size_t flags);
/* Prints json_text() and a newline to standard output. ERR_MEMORY. */
enum err json_print(const json_t *v, size_t flags);

/* Returns the number as written ("1e400", "NaN") if a lenient parse read one that jansson
 * cannot hold, else NULL. Borrowed from v. */
const char *json_odd_number(const json_t *v);

/* Returns "an object", "a string", ...: for messages. */
const char *json_kind(const json_t *v);

#endif

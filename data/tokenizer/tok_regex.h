/* SPDX-License-Identifier: MIT
 *
 * Regular expressions of tokenizer.json through Oniguruma, the engine of the reference
 * implementation, with its default syntax. Expressions and texts are untrusted. */
#ifndef WKVQ_TOK_REGEX_H
#define WKVQ_TOK_REGEX_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct regex; /* opaque, read-only */

/* Compiles a pattern; where, "PATH: pre_tokenizer", starts every message about it. Errors:
 * ERR_FORMAT for a pattern that Oniguruma refuses, ERR_SUPPORT for one of more than 16 KiB,
 * ERR_MEMORY. */
enum err regex_open(struct regex **out, const char *pattern, const char *where);
void regex_close(struct regex **r); /* accepts NULL */

/* Returns the pattern, borrowed. */
const char *regex_pattern(const struct regex *r);

/* Working memory for searches one after another, and what they may cost together: time
 * and backtracks are limited in proportion to `bytes`, the length of the whole text. One
 * thread. */
struct regex_work; /* opaque */
enum err regex_work_open(struct regex_work **out, size_t bytes);
void regex_work_close(struct regex_work **w); /* accepts NULL */

/* The matches in one text, from left to right, without overlap. An empty match directly
 * after another match does not count, as in the reference. */
struct regex_matches {
    const struct regex *regex;
    struct regex_work *work;
    const char *s; /* valid UTF-8 */
    size_t n;
    size_t next, last_end; /* start of the next search; end of the last match */
    bool any;              /* there was a match */
};

/* Finds the next match; *found is false after the last. ERR_SUPPORT if backtracking takes
 * too many steps, too much time or too much memory; ERR_MEMORY. */
enum err regex_next(bool *found, size_t *start, size_t *end, struct regex_matches *m);

#endif

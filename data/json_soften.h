/* SPDX-License-Identifier: MIT
 *
 * Converts JSON as Python reads and writes it to JSON that jansson reads, and back. A
 * number that jansson cannot hold becomes a string: NUL, then the number as written. NUL, or
 * half of a surrogate pair, becomes NUL and its four hexadecimal digits, so that a NUL is
 * never mistaken for another. The getters of data/json.h never return a string with a NUL.
 * In a key, a NUL or half a pair becomes JSON_LOST_CHAR. */
#ifndef WKVQ_JSON_SOFTEN_H
#define WKVQ_JSON_SOFTEN_H

#include "data/tokenizer/tok_text.h"

/* U+FDD0, which Unicode reserves for a program's own use. */
#define JSON_LOST_CHAR "\xEF\xB7\x90"

/* *out = the softened text, empty if text needs no change. *lost_keys: a key was changed;
 * else JSON_LOST_CHAR in a key is a character of the text. One pass: text that is not JSON
 * is copied, and the parser refuses it later. ERR_MEMORY. */
enum err json_soften(struct text *out, bool *lost_keys, const char *text, size_t n);
/* *out = text, a dump of a softened document, with the original numbers and characters.
 * Keys are not restored. ERR_MEMORY. */
enum err json_restore(struct text *out, const char *text, size_t n);
/* Returns true if these n bytes are a number that jansson cannot hold. */
bool json_is_odd_number(const char *s, size_t n);

#endif

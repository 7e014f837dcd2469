/* SPDX-License-Identifier: MIT
 *
 * JSON as Python reads and writes it, turned into JSON that jansson reads. A number that
 * jansson cannot hold becomes the string NUL + the number as written. Half of a surrogate
 * pair becomes NUL + its four hexadecimal digits. No getter of data/json.h returns a string
 * with a NUL. In a key both a NUL and half a pair become JSON_LOST_CHAR. */
#ifndef WKVQ_JSON_SOFTEN_H
#define WKVQ_JSON_SOFTEN_H

#include "data/tokenizer/tok_text.h"

/* U+FDD0, which Unicode reserves for a program's own use. */
#define JSON_LOST_CHAR "\xEF\xB7\x90"

/* *out = the softened text, or nothing if text needs no change. One pass: what is not JSON
 * at all stays as it is, for the parser to refuse. ERR_MEMORY. */
enum err json_soften(struct text *out, const char *text, size_t n);
/* *out = text, a dump of a softened document, as it was before. Keys stay as they are. */
enum err json_restore(struct text *out, const char *text, size_t n);
/* Are these n bytes a number that jansson cannot hold? */
bool json_is_odd_number(const char *s, size_t n);

#endif

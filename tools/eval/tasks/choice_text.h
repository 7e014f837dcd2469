/* SPDX-License-Identifier: MIT
 *
 * String functions that word the questions, with Python's semantics. Results are
 * NUL-terminated and released with mem_free; inputs are UTF-8. Thread-safe. */
#ifndef WKVQ_CHOICE_TEXT_H
#define WKVQ_CHOICE_TEXT_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

/* Returns whether str.isspace() is true for the code point c. */
bool python_is_space(int32_t c);
/* Concatenates all parts up to NULL. */
enum err choice_join(char **out, const char *const *part);
enum err choice_cut(char **out, const char *s, size_t n);
/* Removes white space at both ends. */
enum err choice_strip(char **out, const char *s);
/* Changes the first character to title case and the rest to lower case. */
enum err choice_capitalize(char **out, const char *s);
/* Removes HellaSwag's WikiHow marks. Strips the text, replaces " [title]" by ". ", removes
 * other bracketed text, then replaces two spaces by one. */
enum err choice_hellaswag(char **out, const char *s);
int64_t choice_chars(const char *s);
/* Returns the bytes of s before its trailing white space. */
size_t choice_bare_bytes(const char *s);

#endif

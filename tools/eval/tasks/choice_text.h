/* SPDX-License-Identifier: MIT
 *
 * The string functions that put questions into words, with Python's meaning. Results are
 * NUL-terminated, released with mem_free; inputs are UTF-8. */
#ifndef WKVQ_CHOICE_TEXT_H
#define WKVQ_CHOICE_TEXT_H

#include "kernels/base/error.h"

#include <stdint.h>

/* All parts, up to NULL, one behind the other. */
enum err choice_join(char **out, const char *const *part);
enum err choice_cut(char **out, const char *s, size_t n);
/* Without white space at both ends. */
enum err choice_strip(char **out, const char *s);
/* First character in title case, the rest in lower case. */
enum err choice_capitalize(char **out, const char *s);
/* HellaSwag's WikiHow marks: stripped, " [title]" becomes ". ", what else is in brackets
 * goes, then two spaces become one. */
enum err choice_hellaswag(char **out, const char *s);
int64_t choice_chars(const char *s);
/* Bytes of s before its trailing white space. */
size_t choice_bare_bytes(const char *s);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Text that grows token by token: the part that later tokens cannot change, and the
 * position of a stop string. Lengths are bytes of UTF-8. Pure functions, thread-safe. */
#ifndef WKVQ_STOP_TEXT_H
#define WKVQ_STOP_TEXT_H

#include "tools/cli/opt.h"

#include <stddef.h>

/* Returns the bytes of text [n] that are complete characters: all but a U+FFFD at the end,
 * as which an incomplete character decodes. */
size_t stop_text_settled(const char *text, size_t n);
/* Finds the first stop string in text [n] at `from` or later and writes its position.
 * false: none is found. */
bool stop_text_find(size_t *at, const char *text, size_t n, size_t from,
                    const struct text_list *stop);
/* Returns the bytes of text [n] that may be printed while more may come: all but the
 * longest end that is the start of a stop string. */
size_t stop_text_safe(const char *text, size_t n, const struct text_list *stop);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Text as it grows token by token: what of it no later token can change, and where a stop
 * string ends it. Bytes of UTF-8 throughout; pure functions. */
#ifndef WKVQ_STOP_TEXT_H
#define WKVQ_STOP_TEXT_H

#include "tools/cli/opt.h"

#include <stddef.h>

/* Bytes of text [n] that are whole characters: all but U+FFFD at the end, which is how an
 * unfinished character decodes until the rest of it is there. */
size_t stop_text_settled(const char *text, size_t n);
/* *at: where the first of the stop strings begins in text [n], at `from` or later; of two
 * at one place either. false: there is none. */
bool stop_text_find(size_t *at, const char *text, size_t n, size_t from,
                    const struct text_list *stop);
/* Bytes of text [n] that may be shown while more may come: all but the longest end of it
 * that a stop string begins with. */
size_t stop_text_safe(const char *text, size_t n, const struct text_list *stop);

#endif

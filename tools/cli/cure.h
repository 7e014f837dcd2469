/* SPDX-License-Identifier: MIT
 *
 * Whether a message says itself what to do, so that general advice would only contradict it. Pure
 * functions. */
#ifndef WKVQ_CURE_H
#define WKVQ_CURE_H

#include <stdbool.h>

/* True if a part of text after "; " or ": " begins with an imperative, perhaps after "or": "no
 * text; give --data FILE", "; did you mean 'quantize'?", ": `wkvq calibrate` ...". */
bool cure_is_in(const char *text);

#endif

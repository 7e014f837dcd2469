/* SPDX-License-Identifier: MIT
 *
 * The precompiled normalization of SentencePiece (nmt_nfkc and others): a double array of
 * the strings that are replaced, and their replacements. The file's data is untrusted. */
#ifndef WKVQ_TOK_CHARSMAP_H
#define WKVQ_TOK_CHARSMAP_H

#include "data/tokenizer/tok_text.h"

struct charsmap {
    uint32_t *unit; /* owned */
    size_t n_units;
    char *text; /* owned; replacements, each with a NUL */
    size_t n_text;
};

/* Takes the n bytes of a precompiled charsmap. Every step of a search in it stays inside
 * the array, and every replacement inside the text. ERR_FORMAT with a message without a
 * file name; ERR_MEMORY. */
enum err charsmap_open(struct charsmap *m, const char *data, size_t n);
void charsmap_free(struct charsmap *m); /* accepts a zeroed one */

/* Appends s, which is valid UTF-8, normalized as tokenizer.json's Precompiled does: first
 * short grapheme clusters, then single characters. Replacements count as growth. */
enum err charsmap_add(struct text *out, struct text_growth *growth,
                      const struct charsmap *m, const char *s, size_t n);

#endif

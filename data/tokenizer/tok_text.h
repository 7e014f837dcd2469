/* SPDX-License-Identifier: MIT
 *
 * Text for the tokenizers: growing buffers, UTF-8 that may be invalid, the three character
 * classes of pre-tokenizers, and NFC. Functions are thread-safe on different data; those
 * that append return ERR_MEMORY. */
#ifndef WKVQ_TOK_TEXT_H
#define WKVQ_TOK_TEXT_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct text {
    char *p; /* owned; not NUL-terminated */
    size_t n, cap;
};

/* Makes room for extra more bytes. */
enum err text_reserve(struct text *t, size_t extra);
enum err text_add(struct text *t, const char *s, size_t n);
enum err text_add_char(struct text *t, int32_t c);
void text_free(struct text *t); /* accepts a zeroed one */

/* How much longer the steps of a tokenizer, whose file is untrusted, have made a text. */
struct text_growth {
    size_t bytes; /* of the text as it was given */
    size_t grown; /* bytes that were added since */
};

/* Counts `to` bytes in place of `from`; a shorter result gives nothing back. ERR_SUPPORT if
 * the sum exceeds 16 times the text and 1 MiB. */
enum err text_grow(struct text_growth *g, size_t from, size_t to);

/* Decodes s to out, which has room for 3 n / 4 bytes. Returns their number, or -1 if s is
 * not base64. */
int64_t base64_decode(char *out, const char *s, size_t n);

/* The longest token, in bytes. A model compares every place of a text with the tokens that
 * may begin there, so that longer tokens would make the time of a long text quadratic. */
#define TOKEN_BYTES_MAX 4096

/* A growing list of ids. */
struct id_list {
    int32_t *id; /* owned */
    size_t n, cap;
};

enum err id_list_add(struct id_list *l, int32_t id);
enum err id_list_add_n(struct id_list *l, const int32_t *id, size_t n);
void id_list_free(struct id_list *l);

/* Reads one character from s, n > 0, and returns its length in bytes. *c is the character,
 * or -1 for a maximal invalid part (Unicode chapter 3: what a decoder replaces by one
 * U+FFFD). */
size_t utf8_next(int32_t *c, const char *s, size_t n);
/* Writes c to out as UTF-8 and returns its length, at most 4 bytes. */
size_t utf8_put(char *out, int32_t c);
bool utf8_valid(const char *s, size_t n);
/* Appends s with U+FFFD for each maximal invalid part. */
enum err utf8_repair(struct text *out, const char *s, size_t n);

/* Unicode's general categories L* and N*, and the property White_Space. */
enum char_class { CHAR_OTHER, CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE };
enum char_class char_class(int32_t c);
/* Returns true if \w of a regular expression matches c: Alphabetic, M*, Nd, Pc,
 * Join_Control. */
bool char_is_word(int32_t c);
/* Returns true for ASCII's punctuation, symbols included, and the general category P*. */
bool char_is_punctuation(int32_t c);
bool char_is_space(int32_t c); /* White_Space */

/* Appends valid UTF-8 s in a normalization form. Time is linear in n, even for long runs of
 * combining marks. */
enum normal_form { FORM_NFC, FORM_NFD, FORM_NFKC, FORM_NFKD };
enum err text_normalize(struct text *out, const char *s, size_t n, enum normal_form form);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The decoders of tokenizer.json: the steps transform a list of tokens, which is then
 * joined. */
#ifndef WKVQ_TOK_DECODE_H
#define WKVQ_TOK_DECODE_H

#include "data/tokenizer/tok_pre.h"

enum decode_kind {
    DECODE_BYTE_LEVEL,
    DECODE_REPLACE,
    DECODE_BYTE_FALLBACK,
    DECODE_FUSE,
    DECODE_STRIP,
    DECODE_METASPACE
};

struct decode_step {
    enum decode_kind kind;
    /* owned; REPLACE: both are set; STRIP, METASPACE: from is the character */
    char *from, *to;
    struct regex *regex; /* owned; REPLACE: in place of from */
    int64_t start, stop; /* STRIP: the most characters removed from either end of a token */
    bool drop_first;     /* METASPACE: from is removed in the first token */
};

struct decoder {
    struct decode_step step[TOK_MAX_STEPS];
    int n;
    bool is_null; /* there is no decoder: tokens are joined by spaces */
};

struct pieces {
    struct text text; /* the pieces, concatenated */
    size_t *end;      /* owned; end of each piece in text */
    size_t n, cap;
};

/* Ends a piece whose text has been appended. ERR_MEMORY. */
enum err pieces_close(struct pieces *p);
void pieces_free(struct pieces *p); /* accepts a zeroed one */

/* Appends the text of the tokens in p to *out. The content of p is undefined afterwards.
 * Errors: those of text_add_rewritten(). */
enum err decoder_run(struct text *out, const struct decoder *d, struct pieces *p);
void decoder_free(struct decoder *d);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The decoders of tokenizer.json: a list of tokens goes through the steps and is joined. */
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
    char *from, *to;     /* owned; REPLACE: both; STRIP, METASPACE: from is the character */
    int64_t start, stop; /* STRIP: at most so many of it at either end of a token */
    bool drop_first;     /* METASPACE: from vanishes in the first token */
};

struct decoder {
    struct decode_step step[TOK_MAX_STEPS];
    int n;
    bool is_null; /* no decoder: tokens are joined by spaces */
};

struct pieces {
    struct text text; /* the pieces, one behind the other */
    size_t *end;      /* owned; end of each piece in text */
    size_t n, cap;
};

/* End a piece that was appended to text. */
enum err pieces_close(struct pieces *p);
void pieces_free(struct pieces *p); /* accepts a zeroed one */

/* Append the text of the tokens in p, whose content is used up, to *out. */
enum err decoder_run(struct text *out, const struct decoder *d, struct pieces *p);
void decoder_free(struct decoder *d);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The steps before the model: normalizers, which rewrite a text, and pre-tokenizers, which
 * cut it into words. */
#ifndef WKVQ_TOK_PRE_H
#define WKVQ_TOK_PRE_H

#include "data/tokenizer/tok_text.h"

#define TOK_MAX_STEPS 16

/* Length of the first word of s (n > 0 bytes of valid UTF-8). Linear in what it returns,
 * up to a constant and one look at a run of white space. */
typedef size_t scan_fn(const char *s, size_t n);
scan_fn scan_gpt2, scan_llama3, scan_qwen2, scan_digit, scan_digit_run;

/* The scanner that cuts like this regular expression with behavior Isolated. NULL: not one
 * of the known ones. *family: a name for messages. */
scan_fn *scan_of_regex(const char **family, const char *regex);

enum normal_kind { NORMAL_NFC, NORMAL_PREPEND, NORMAL_REPLACE };

struct normal_step {
    enum normal_kind kind;
    char *from, *to; /* owned; PREPEND: to; REPLACE: both, from not empty */
};

struct normalizer {
    struct normal_step step[TOK_MAX_STEPS];
    int n;
};

/* *out (whose content is replaced) = s normalized; spare is scratch. */
enum err normalizer_run(struct text *out, struct text *spare, const struct normalizer *m,
                        const char *s, size_t n);
void normalizer_free(struct normalizer *m);

enum pre_kind { PRE_SCAN, PRE_LITERAL, PRE_BYTE_LEVEL, PRE_METASPACE };
enum literal_behavior {
    LITERAL_ISOLATED,
    LITERAL_REMOVED,
    LITERAL_WITH_PREVIOUS,
    LITERAL_WITH_NEXT
};
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct pre_step {
    enum pre_kind kind;
    scan_fn *scan;                  /* PRE_SCAN; PRE_BYTE_LEVEL: its regex, or NULL */
    bool prefix_space;              /* PRE_BYTE_LEVEL */
    bool split;                     /* PRE_METASPACE: cut before each replacement */
    enum prepend_scheme prepend;    /* PRE_METASPACE */
    enum literal_behavior behavior; /* PRE_LITERAL */
    char *literal;                  /* owned; PRE_LITERAL: what to cut at, not empty;
                                       PRE_METASPACE: the replacement */
};

struct pre_tokenizer {
    struct pre_step step[TOK_MAX_STEPS];
    int n;
    bool byte_level; /* words are bytes, to be mapped by byte_level_map */
};

/* One text on its way through the steps. */
struct pre_run {
    const struct pre_tokenizer *pre;
    struct text spare[TOK_MAX_STEPS]; /* rewritten pieces, by step */
    enum err (*word)(void *ctx, const char *s, size_t n);
    void *ctx;
};

/* Hand every word of s to run->word, in order. first: s starts where the whole text does.
 * Words are never empty. */
enum err pre_run_text(struct pre_run *run, const char *s, size_t n, bool first);
void pre_run_free(struct pre_run *run);
void pre_tokenizer_free(struct pre_tokenizer *p);

/* The byte-level alphabet: the character that stands for a byte, and back (-1: none). */
int32_t byte_level_char(uint8_t byte);
int byte_level_byte(int32_t c);
/* *out (whose content is replaced) = one character a byte. */
enum err byte_level_map(struct text *out, const char *s, size_t n);

/* Replace every from (not empty) by to. */
enum err text_add_replaced(struct text *out, const char *s, size_t n, const char *from,
                           const char *to);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The steps before the model: normalizers, which rewrite a text, and pre-tokenizers, which
 * split it into words. */
#ifndef WKVQ_TOK_PRE_H
#define WKVQ_TOK_PRE_H

#include "data/tokenizer/tok_charsmap.h"
#include "data/tokenizer/tok_regex.h"
#include "data/tokenizer/tok_text.h"

#define TOK_MAX_STEPS 16

/* Returns the length of the first word of s [n], n > 0, which is valid UTF-8. Takes time
 * linear in that length, apart from a constant and one look at a run of white space. */
typedef size_t scan_fn(const char *s, size_t n);
scan_fn scan_gpt2, scan_llama3, scan_qwen2, scan_digit, scan_digit_run;

/* Returns the scanner that splits like this regular expression with behavior Isolated, or
 * NULL if the expression is unknown. *family: a name for messages. */
scan_fn *scan_of_regex(const char **family, const char *regex);

/* What the steps share while one text passes through them, so that their limits hold for
 * the whole text, however many parts it has. One thread. */
struct step_work {
    struct text_growth growth;
    struct regex_work *regex; /* owned; NULL until it is needed */
};

/* Opens regex unless it is open. */
enum err step_work_regex(struct step_work *w);
void step_work_free(struct step_work *w); /* accepts one with growth alone */

enum normal_kind {
    NORMAL_FORM,
    NORMAL_PREPEND,
    NORMAL_REPLACE,
    NORMAL_STRIP,
    NORMAL_CHARSMAP
};

struct normal_step {
    enum normal_kind kind;
    enum normal_form form; /* FORM */
    bool left, right;      /* STRIP: the ends that lose their white space */
    /* owned; PREPEND: to; REPLACE: to, and either from, not empty, or regex */
    char *from, *to;
    struct regex *regex;
    struct charsmap map; /* CHARSMAP */
};

struct normalizer {
    struct normal_step step[TOK_MAX_STEPS];
    int n;
};

/* Replaces the content of *out by s normalized; spare is scratch memory. ERR_SUPPORT beyond
 * the limits of work. */
enum err normalizer_run(struct text *out, struct text *spare, struct step_work *work,
                        const struct normalizer *m, const char *s, size_t n);
void normalizer_free(struct normalizer *m);

enum pre_kind { PRE_SCAN, PRE_SPLIT, PRE_BYTE_LEVEL, PRE_METASPACE };
enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_CONTIGUOUS,
    SPLIT_WITH_PREVIOUS,
    SPLIT_WITH_NEXT
};
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct pre_step {
    enum pre_kind kind;
    scan_fn *scan;               /* PRE_SCAN; PRE_BYTE_LEVEL: its regex, or NULL */
    bool prefix_space;           /* PRE_BYTE_LEVEL */
    bool split;                  /* PRE_METASPACE: split before each replacement */
    enum prepend_scheme prepend; /* PRE_METASPACE */
    /* PRE_SPLIT has one of scan, literal, regex and is as pattern. */
    enum split_behavior behavior;
    bool invert; /* PRE_SPLIT: gaps count as matches, and matches as gaps */
    /* owned, not empty; PRE_SPLIT: the separator; PRE_METASPACE: the replacement */
    char *literal;
    struct regex *regex; /* owned */
    bool (*is)(int32_t c);
};

/* Divides s by a step with a pattern, and passes the pieces to each, in order. Pieces may
 * be empty. work is needed for a regular expression. Returns the first error of each, or
 * one of regex_next(). */
enum err split_text(const struct pre_step *step, struct regex_work *work, const char *s,
                    size_t n, enum err (*each)(void *ctx, size_t start, size_t end),
                    void *ctx);

struct pre_tokenizer {
    struct pre_step step[TOK_MAX_STEPS];
    int n;
    bool byte_level; /* words are bytes, which byte_level_map() maps to characters */
    bool mapped;     /* byte_level: words are these characters, because steps follow */
};

/* One text while it passes through the steps. */
struct pre_run {
    const struct pre_tokenizer *pre;
    struct text spare[TOK_MAX_STEPS]; /* rewritten pieces of each step */
    struct text mapped;               /* a piece in the byte-level alphabet */
    struct step_work *work;           /* borrowed; of the whole text */
    enum err (*word)(void *ctx, const char *s, size_t n);
    void *ctx;
};

/* Passes every word of s to run->word, in order. first: s starts at the start of the whole
 * text. Words are never empty. */
enum err pre_run_text(struct pre_run *run, const char *s, size_t n, bool first);
void pre_run_free(struct pre_run *run);
void pre_tokenizer_free(struct pre_tokenizer *p);

/* The byte-level alphabet: the character that represents a byte, and the byte of a
 * character (-1 if none). */
int32_t byte_level_char(uint8_t byte);
int byte_level_byte(int32_t c);
/* Replaces the content of *out by one character per byte of s. */
enum err byte_level_map(struct text *out, const char *s, size_t n);

/* Appends s with every `from` (not empty) replaced by `to`. */
enum err text_add_replaced(struct text *out, const char *s, size_t n, const char *from,
                           const char *to);
/* The same in the limits of work, or for every match of regex unless it is NULL. Errors:
 * those of regex_next() and text_grow(). */
enum err text_add_rewritten(struct text *out, struct step_work *work, const char *s,
                            size_t n, const char *from, const struct regex *regex,
                            const char *to);

#endif

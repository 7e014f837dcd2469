/* SPDX-License-Identifier: MIT
 *
 * A tokenizer as GGUF's keys. Two of llama.cpp's tokenizers fit ours:
 *   gpt2   byte-level BPE; tokenizer.ggml.pre names how a text is split into words
 *   llama  SentencePiece BPE: of two neighbours that form a token, the pair whose token has
 *          the highest score is merged first
 * What would silently give other ids there is refused. What gives other ids only for unusual
 * text is a note. */
#ifndef WKVQ_GGUF_VOCAB_H
#define WKVQ_GGUF_VOCAB_H

#include "calib/model/arch.h"
#include "convert/export/gguf/gguf_file.h"
#include "data/tokenizer/files/tok_json.h"
#include "data/tokenizer/tok_spm.h"

#define GGUF_NOTES_MAX 6

struct gguf_token {
    size_t at, n; /* its bytes in gguf_vocab.bytes */
    float score;  /* llama */
    enum piece_type type;
};

struct gguf_vocab {
    const char *model;        /* "gpt2" or "llama"; static */
    char pre[64];             /* tokenizer.ggml.pre */
    struct text bytes;        /* of all tokens */
    struct gguf_token *token; /* [n] by id; owned */
    int64_t n;                /* rows of the embedding */
    struct text merges;       /* gpt2: lines "left right", in order of rank */
    size_t n_merges;
    int32_t bos, eos, unk, pad; /* -1: none */
    bool add_bos, add_eos, add_space_prefix;
    char *chat_template;            /* owned; NULL: none */
    char note[GGUF_NOTES_MAX][200]; /* where llama.cpp gives other ids; without full stop */
    int n_notes;
};

/* Reads the tokenizer of a model directory for the model a. pre: the name to use for a
 * byte-level tokenizer instead of the one that is found; NULL: none. Errors: those of
 * tokenizer_open(); ERR_SUPPORT, with what would work; ERR_USAGE for a pre that does not
 * apply. Free with gguf_vocab_free(). */
enum err gguf_vocab_read(struct gguf_vocab *out, const char *dir, const struct arch *a,
                         const char *pre);
/* Adds the keys. */
enum err gguf_vocab_keys(struct gguf_writer *w, const struct gguf_vocab *v);
void gguf_vocab_free(struct gguf_vocab *v); /* accepts a zeroed one */

/* --- gguf_pre.c --------------------------------------------------------------------- */

/* Returns name i of those that llama.cpp loads, in alphabetical order; NULL after the last. */
const char *gguf_pre_name(size_t i);
/* *out = the name under which llama.cpp splits words like byte-level t, NULL if it knows
 * none; static. */
const char *gguf_pre_of(const struct json_tokenizer *t);
/* *prefix = a space is added in front of a text. ERR_SUPPORT unless t prepares text as
 * SentencePiece does: spaces become U+2581, and words are not split. */
enum err gguf_check_chars(bool *prefix, const struct json_tokenizer *t, const char *where);
/* scores [t->bpe.n_ids] = scores under which "llama" merges as t does; 0 for tokens that no
 * merge forms. ERR_SUPPORT, with an example, if there are none. */
enum err gguf_scores(float *scores, const struct json_tokenizer *t, const char *where);

/* The merges in order of rank; pairs of one rank by their ids. *out is owned by the caller
 * (mem_free()). */
struct gguf_merge {
    int32_t rank, left, right;
};
enum err gguf_merges(struct gguf_merge **out, size_t *n, const struct bpe *b);

#endif

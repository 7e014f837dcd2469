/* SPDX-License-Identifier: MIT
 *
 * The BPE model of tokenizer.json: encodes a word as ids. Words are UTF-8. For byte-level
 * tokenizers, every character represents a byte (data/tokenizer/tok_pre.h). A model is
 * read-only once built and may be shared between threads; struct bpe_work may not. */
#ifndef WKVQ_TOK_BPE_H
#define WKVQ_TOK_BPE_H

#include "data/tokenizer/tok_map.h"

/* Higher ids are refused as damage, because the tables are as long as the highest id. */
#define BPE_MAX_ID (1 << 21)
/* Characters whose ids are in a table: all that byte-level tokenizers use. */
#define BPE_FAST_CHARS 0x180

struct bpe {
    struct dict token;
    int32_t *id_of;    /* by the token's number in the dictionary */
    int32_t *token_of; /* [n_ids] number in the dictionary, or -1 if no token has the id */
    int32_t n_ids;     /* highest id + 1 */
    struct pair_map rank; /* pair of ids -> the merge's rank */
    int32_t *merged;      /* rank -> id of the result */
    size_t n_merges;
    int32_t char_id[BPE_FAST_CHARS]; /* -1 if not in the vocabulary */
    int32_t byte_id[256];            /* of <0x00> to <0xFF>; -1 if not in the vocabulary */
    char *unk_token;                 /* NULL: unknown characters are dropped */
    int32_t unk_id;                  /* -1 if unk_token is not in the vocabulary */
    bool byte_fallback, fuse_unk, ignore_merges;
};

/* Build a model: add every token once, call bpe_index(), then add the merges in order of
 * rank. ERR_FORMAT with a message without a file name; ERR_MEMORY. */
enum err bpe_add_token(struct bpe *b, const char *s, size_t n, int64_t id);
enum err bpe_index(struct bpe *b);
enum err bpe_add_merge(struct bpe *b, const char *left, size_t n_left, const char *right,
                       size_t n_right);
void bpe_free(struct bpe *b);

/* Returns the id of a token, or -1 if it is missing. */
int32_t bpe_id(const struct bpe *b, const char *s, size_t n);
/* Returns the token of an id, or NULL if it is missing. Borrowed from b. */
const char *bpe_token(size_t *n, const struct bpe *b, int32_t id);

/* Scratch memory of bpe_encode(), reused for every word. A zeroed one is empty. */
struct bpe_work {
    struct bpe_symbol {
        int32_t id; /* -1: merged into the symbol on its left */
        int32_t prev, next;
    } * symbol;
    uint64_t *heap; /* rank << 32 | position of the left symbol: smallest first */
    size_t n_symbols, symbol_cap, n_heap, heap_cap;
};

void bpe_work_free(struct bpe_work *w);

/* Appends the ids of word s [n], which is valid UTF-8. O(n log n). */
enum err bpe_encode(struct id_list *out, const struct bpe *b, struct bpe_work *w,
                    const char *s, size_t n);

#endif

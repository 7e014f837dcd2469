/* SPDX-License-Identifier: MIT
 *
 * The BPE model of tokenizer.json: a word in, ids out. Words are UTF-8; for byte-level
 * tokenizers every character stands for a byte (data/tok_pre.h). */
#ifndef WKVQ_TOK_BPE_H
#define WKVQ_TOK_BPE_H

#include "data/tokenizer/tok_map.h"

/* Ids above this are taken for damage: the tables are as long as the highest id. */
#define BPE_MAX_ID (1 << 21)
/* Characters whose ids stand in a table: all that byte-level tokenizers use. */
#define BPE_FAST_CHARS 0x180

struct bpe {
    struct dict token;
    int32_t *id_of;       /* by the token's number in the dictionary */
    int32_t *token_of;    /* number in the dictionary by id, -1: a hole */
    int32_t n_ids;        /* highest id + 1 */
    struct pair_map rank; /* pair of ids -> the merge's rank */
    int32_t *merged;      /* rank -> id of the result */
    size_t n_merges;
    int32_t char_id[BPE_FAST_CHARS]; /* -1: not in the vocabulary */
    int32_t byte_id[256];            /* of <0x00> to <0xFF>, -1: not in the vocabulary */
    char *unk_token;                 /* NULL: unknown characters vanish */
    int32_t unk_id;                  /* -1: unk_token is not in the vocabulary */
    bool byte_fallback, fuse_unk, ignore_merges;
};

/* Building: every token once, then bpe_index, then the merges in order of rank. Errors of
 * all three: ERR_FORMAT, the sentence without a file name. */
enum err bpe_add_token(struct bpe *b, const char *s, size_t n, int64_t id);
enum err bpe_index(struct bpe *b);
enum err bpe_add_merge(struct bpe *b, const char *left, size_t n_left, const char *right,
                       size_t n_right);
void bpe_free(struct bpe *b);

/* -1 if there is no such token. */
int32_t bpe_id(const struct bpe *b, const char *s, size_t n);
/* NULL if there is no such id. Borrowed. */
const char *bpe_token(size_t *n, const struct bpe *b, int32_t id);

/* Scratch of bpe_encode, reused from word to word. Zeroed: empty. */
struct bpe_work {
    struct bpe_symbol {
        int32_t id; /* -1: merged into the symbol on its left */
        int32_t prev, next;
    } * symbol;
    uint64_t *heap; /* rank << 32 | position of the left symbol: smallest first */
    size_t n_symbols, symbol_cap, n_heap, heap_cap;
};

void bpe_work_free(struct bpe_work *w);

/* Append the ids of word s of n bytes, valid UTF-8. O(n log n). */
enum err bpe_encode(struct id_list *out, const struct bpe *b, struct bpe_work *w,
                    const char *s, size_t n);

#endif

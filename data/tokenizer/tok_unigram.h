/* SPDX-License-Identifier: MIT
 *
 * The Unigram model of tokenizer.json: of all ways to write a word as tokens, the one with
 * the greatest sum of scores. Read-only once built. */
#ifndef WKVQ_TOK_UNIGRAM_H
#define WKVQ_TOK_UNIGRAM_H

#include "data/tokenizer/tok_bpe.h"

struct unigram {
    double *score;         /* owned; by id; NULL: the model is not a Unigram */
    double unknown;        /* score of an unknown character */
    struct pair_map child; /* a trie of bytes: (node, byte) -> node; the root is 0 */
    int32_t *id_of;        /* [n_nodes] owned; id of the token that ends there, or -1 */
    size_t n_nodes, cap;
};

/* Builds the trie of vocabulary b, whose unk_id is set, and takes ownership of score, which
 * is finite. ERR_FORMAT, ERR_MEMORY. */
enum err unigram_build(struct unigram *u, const struct bpe *b, double *score);
void unigram_free(struct unigram *u);

/* Scratch memory of unigram_encode(), reused for every word. A zeroed one is empty. */
struct unigram_work {
    struct unigram_place {
        double score; /* of the best path that ends here */
        int32_t id;   /* of its last token, or -1 if no path ends here */
        int32_t from; /* where that token starts */
    } * place;
    size_t cap;
    struct id_list reverse; /* ends of the tokens, the last first */
};

void unigram_work_free(struct unigram_work *w);

/* Appends the ids of word s [n], which is valid UTF-8. Adjacent unknown characters are one
 * unknown token, or their bytes with byte_fallback. Time is O(n), times the length of the
 * longest token. ERR_FORMAT for an unknown character without an unknown token. */
enum err unigram_encode(struct id_list *out, const struct unigram *u, const struct bpe *b,
                        struct unigram_work *w, const char *s, size_t n);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Finds added tokens in a text before the model encodes it: the leftmost, and of those the
 * longest. */
#ifndef WKVQ_TOK_ADDED_H
#define WKVQ_TOK_ADDED_H

#include "data/tokenizer/tok_map.h"

struct added_token {
    char *content; /* owned */
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
    bool decides; /* of a file beside tokenizer.json: these flags count, not those there */
};

/* A trie over bytes. A zeroed one matches nothing. */
struct added_matcher {
    struct pair_map child; /* node, byte -> node; the root is 0 */
    int32_t *token_of;     /* [n_nodes] index of the token that ends at a node, or -1 */
    size_t n_nodes, cap;
    bool first[256]; /* first bytes of tokens */
};

/* Adds a token; it replaces an earlier one of the same content. ERR_MEMORY, ERR_FORMAT. */
enum err added_matcher_add(struct added_matcher *m, const char *content, size_t n,
                           int32_t token);
void added_matcher_free(struct added_matcher *m);

/* A part of a text: token >= 0 for an added token, -1 for text between tokens. */
struct added_part {
    size_t start, end;
    int32_t token;
};

/* Passes the non-empty parts of s to `each`, in order. Returns the first error of each. */
enum err added_matcher_run(const struct added_matcher *m, const struct added_token *token,
                           const char *s, size_t n,
                           enum err (*each)(void *ctx, const char *s, struct added_part p),
                           void *ctx);

#endif

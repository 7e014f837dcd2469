/* SPDX-License-Identifier: MIT
 *
 * Added tokens: found in the text before the model sees it, leftmost and longest. */
#ifndef WKVQ_TOK_ADDED_H
#define WKVQ_TOK_ADDED_H

#include "data/tokenizer/tok_map.h"

struct added_token {
    char *content; /* owned */
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};

/* A trie over bytes. Zeroed: matches nothing. */
struct added_matcher {
    struct pair_map child; /* node, byte -> node; the root is 0 */
    int32_t *token_of;     /* by node: index of the token that ends there, -1 */
    size_t n_nodes, cap;
    bool first[256]; /* bytes that a token starts with */
};

/* A later token of the same content takes the place of an earlier one. */
enum err added_matcher_add(struct added_matcher *m, const char *content, size_t n,
                           int32_t token);
void added_matcher_free(struct added_matcher *m);

/* A part of a text: token >= 0 for an added token, -1 for what lies between. */
struct added_part {
    size_t start, end;
    int32_t token;
};

/* Hand the parts of s that are not empty to each, in order. */
enum err added_matcher_run(const struct added_matcher *m, const struct added_token *token,
                           const char *s, size_t n,
                           enum err (*each)(void *ctx, const char *s, struct added_part p),
                           void *ctx);

#endif

/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/tok_unigram.h"

#include "kernels/base/mem.h"

#include <math.h>

/* How much worse an unknown character is than the worst token. */
#define UNKNOWN_PENALTY 10.0

static enum err new_node(struct unigram *u)
{
    FAIL_IF(u->n_nodes >= INT32_MAX, ERR_FORMAT, "the vocabulary is too large");
    if (u->n_nodes == u->cap) {
        const size_t cap = u->cap ? u->cap * 2 : 64;
        TRY(mem_resize(&u->id_of, u->n_nodes, cap, sizeof(*u->id_of)));
        u->cap = cap;
    }
    u->id_of[u->n_nodes++] = -1;
    return OK;
}

static enum err add_token(struct unigram *u, const char *s, size_t n, int32_t id)
{
    int32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t next = pair_map_get(&u->child, node, (uint8_t)s[i]);
        if (next < 0) {
            next = (int32_t)u->n_nodes;
            TRY(new_node(u));
            TRY(pair_map_put(&u->child, node, (uint8_t)s[i], next));
        }
        node = next;
    }
    if (node) /* an empty token matches nothing */
        u->id_of[node] = id;
    return OK;
}

enum err unigram_build(struct unigram *u, const struct bpe *b, double *score)
{
    double least = INFINITY;
    u->score = score;
    TRY(new_node(u));
    for (int32_t id = 0; id < b->n_ids; id++) {
        size_t n;
        const char *s = bpe_token(&n, b, id);
        if (!s)
            continue;
        TRY(add_token(u, s, n, id));
        least = score[id] < least ? score[id] : least;
    }
    u->unknown = least - UNKNOWN_PENALTY;
    return OK;
}

void unigram_free(struct unigram *u)
{
    mem_free(u->score);
    mem_free(u->id_of);
    pair_map_free(&u->child);
    *u = (struct unigram){0};
}

void unigram_work_free(struct unigram_work *w)
{
    mem_free(w->place);
    id_list_free(&w->reverse);
    *w = (struct unigram_work){0};
}

static enum err work_reserve(struct unigram_work *w, size_t n)
{
    FAIL_IF(n >= INT32_MAX, ERR_SUPPORT, "a word of %zu bytes: the limit is 2 GiB", n);
    if (n + 1 > w->cap) {
        mem_free(w->place);
        w->place = NULL;
        w->cap = 0;
        TRY(mem_alloc(&w->place, n + 64, sizeof(*w->place)));
        w->cap = n + 64;
    }
    for (size_t i = 0; i <= n; i++)
        w->place[i] = (struct unigram_place){0, -1, -1};
    return OK;
}

/* Of two paths with the same score the first one stays, as in the reference. */
static void offer(struct unigram_place *place, double score, int32_t id, size_t from)
{
    if (place->from < 0 || score > place->score)
        *place = (struct unigram_place){score, id, (int32_t)from};
}

/* Offers every token that starts at `at`, whose first character has k bytes. */
static enum err offer_tokens(const struct unigram *u, const struct bpe *b,
                             struct unigram_work *w, const char *s, size_t n, size_t at,
                             size_t k)
{
    const double so_far = w->place[at].score;
    bool whole = false; /* the character itself is a token */
    int32_t node = 0;
    for (size_t end = at; end < n;) {
        node = pair_map_get(&u->child, node, (uint8_t)s[end++]);
        if (node < 0)
            break;
        const int32_t id = u->id_of[node];
        if (id < 0)
            continue;
        offer(&w->place[end], so_far + u->score[id], id, at);
        whole |= end == at + k;
    }
    struct unigram_place *next = &w->place[at + k];
    const double unknown = so_far + u->unknown;
    if (whole || (next->from >= 0 && unknown <= next->score))
        return OK;
    FAIL_IF(b->unk_id < 0, ERR_FORMAT,
            "unknown character \"%.*s\", and the model has no unk_id", (int)k, s + at);
    offer(next, unknown, b->unk_id, at);
    return OK;
}

/* Appends the token of s [n], or else its bytes, or else the unknown token. */
static enum err emit(struct id_list *out, const struct bpe *b, const char *s, size_t n)
{
    const int32_t id = bpe_id(b, s, n);
    if (id >= 0)
        return id_list_add(out, id);
    bool bytes = b->byte_fallback;
    for (size_t i = 0; bytes && i < n; i++)
        bytes = b->byte_id[(uint8_t)s[i]] >= 0;
    if (!bytes)
        return id_list_add(out, b->unk_id);
    for (size_t i = 0; i < n; i++)
        TRY(id_list_add(out, b->byte_id[(uint8_t)s[i]]));
    return OK;
}

enum err unigram_encode(struct id_list *out, const struct unigram *u, const struct bpe *b,
                        struct unigram_work *w, const char *s, size_t n)
{
    int32_t c;
    TRY(work_reserve(w, n));
    for (size_t at = 0, k; at < n; at += k) {
        k = utf8_next(&c, s + at, n - at);
        TRY(offer_tokens(u, b, w, s, n, at, k));
    }
    w->reverse.n = 0;
    for (size_t end = n; end > 0;) {
        TRY(id_list_add(&w->reverse, (int32_t)end));
        size_t from = (size_t)w->place[end].from;
        /* adjacent unknown tokens become one */
        while (from && w->place[end].id == b->unk_id && w->place[from].id == b->unk_id)
            from = (size_t)w->place[from].from;
        end = from;
    }
    size_t start = 0;
    for (size_t i = w->reverse.n; i-- > 0;) {
        const size_t end = (size_t)w->reverse.id[i];
        TRY(emit(out, b, s + start, end - start));
        start = end;
    }
    return OK;
}

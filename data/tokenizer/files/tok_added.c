/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/files/tok_added.h"

#include "kernels/base/mem.h"

static enum err new_node(struct added_matcher *m)
{
    if (m->n_nodes == m->cap) {
        const size_t cap = m->cap ? m->cap * 2 : 64;
        TRY(mem_resize(&m->token_of, m->n_nodes, cap, sizeof(*m->token_of)));
        m->cap = cap;
    }
    m->token_of[m->n_nodes++] = -1;
    return OK;
}

enum err added_matcher_add(struct added_matcher *m, const char *content, size_t n,
                           int32_t token)
{
    if (!n)
        return OK;
    if (!m->n_nodes)
        TRY(new_node(m));
    m->first[(uint8_t)content[0]] = true;
    int32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t next = pair_map_get(&m->child, node, (uint8_t)content[i]);
        if (next < 0) {
            FAIL_IF(m->n_nodes >= INT32_MAX, ERR_FORMAT, "too many added tokens");
            next = (int32_t)m->n_nodes;
            TRY(new_node(m));
            TRY(pair_map_put(&m->child, node, (uint8_t)content[i], next));
        }
        node = next;
    }
    m->token_of[node] = token;
    return OK;
}

void added_matcher_free(struct added_matcher *m)
{
    pair_map_free(&m->child);
    mem_free(m->token_of);
    *m = (struct added_matcher){0};
}

/* Returns the length of the longest token at s, 0 if there is none. */
static size_t match_at(int32_t *token, const struct added_matcher *m, const char *s,
                       size_t n)
{
    size_t length = 0;
    if (!n || !m->first[(uint8_t)s[0]])
        return 0;
    int32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        node = pair_map_get(&m->child, node, (uint8_t)s[i]);
        if (node < 0)
            break;
        if (m->token_of[node] >= 0) {
            *token = m->token_of[node];
            length = i + 1;
        }
    }
    return length;
}

/* Returns the character that ends at s + at (at > 0); *k is its length. */
static int32_t char_before(size_t *k, const char *s, size_t at)
{
    int32_t c;
    *k = 1;
    while (*k < at && *k < 4 && ((uint8_t)s[at - *k] & 0xC0) == 0x80)
        ++*k;
    utf8_next(&c, s + at - *k, *k);
    return c;
}

static bool is_alone(const char *s, size_t n, size_t start, size_t end)
{
    size_t k;
    int32_t c = -1;
    if (start && char_is_word(char_before(&k, s, start)))
        return false;
    if (end < n)
        utf8_next(&c, s + end, n - end);
    return !char_is_word(c);
}

/* A run of white space that has been scanned. No character is scanned twice, even if many
 * tokens look at the same white space. */
struct known_space {
    size_t start, end;
};

static size_t space_end(struct known_space *known, const char *s, size_t n, size_t at)
{
    size_t k, end = at;
    int32_t c;
    if (at >= known->start && at < known->end)
        return known->end;
    while (end < n) {
        k = utf8_next(&c, s + end, n - end);
        if (char_class(c) != CHAR_SPACE)
            break;
        end += k;
    }
    *known = (struct known_space){at, end};
    return end;
}

/* Returns the start of the white space before s + at, at least floor. */
static size_t space_start(const char *s, size_t at, size_t floor)
{
    size_t k;
    while (at > floor && char_class(char_before(&k, s, at)) == CHAR_SPACE)
        at -= k;
    return at;
}

enum err added_matcher_run(const struct added_matcher *m, const struct added_token *token,
                           const char *s, size_t n,
                           enum err (*each)(void *ctx, const char *s, struct added_part p),
                           void *ctx)
{
    struct known_space known = {0};
    size_t done = 0;
    for (size_t at = 0, length; at < n; at += length) {
        struct added_part p = {.token = -1};
        length = match_at(&p.token, m, s + at, n - at);
        if (!length) {
            length = 1;
            continue;
        }
        const struct added_token *t = &token[p.token];
        p.start = at;
        p.end = at + length;
        if (t->single_word && !is_alone(s, n, p.start, p.end))
            continue;
        if (t->lstrip)
            p.start = at < done ? done : space_start(s, at, done);
        if (t->rstrip)
            p.end = space_end(&known, s, n, p.end);
        if (p.start >= p.end) /* an earlier token has absorbed it */
            continue;
        if (done < p.start)
            TRY(each(ctx, s, (struct added_part){done, p.start, -1}));
        TRY(each(ctx, s, p));
        /* As in the reference, the search continues right after the token, even inside
         * white space that the token has absorbed. */
        done = p.end;
    }
    if (done < n)
        TRY(each(ctx, s, (struct added_part){done, n, -1}));
    return OK;
}

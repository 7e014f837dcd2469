/* SPDX-License-Identifier: MIT
 *
 * Symbols are a doubly linked list in an array. Candidate pairs are a binary heap ordered
 * by rank, then by position. A merge leaves stale entries in the heap; they are recognized
 * when they are removed, because the pair at their position has changed. Each merge adds at
 * most two entries, hence O(n log n). */
#include "data/tokenizer/tok_bpe.h"

#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum err bpe_add_token(struct bpe *b, const char *s, size_t n, int64_t id)
{
    uint32_t index;
    FAIL_IF(id < 0 || id > BPE_MAX_ID, ERR_FORMAT,
            "token \"%.*s\" has id %" PRId64 ", want 0 to %d", (int)(n < 80 ? n : 80), s,
            id, BPE_MAX_ID);
    const size_t before = b->token.n;
    TRY(dict_add(&index, &b->token, s, n));
    FAIL_IF(b->token.n == before, ERR_FORMAT, "token \"%.*s\" appears twice",
            (int)(n < 80 ? n : 80), s);
    if ((index & (index - 1)) == 0) /* a power of two: the table is full */
        TRY(mem_resize(&b->id_of, index, index ? (size_t)index * 2 : 1, sizeof(*b->id_of)));
    b->id_of[index] = (int32_t)id;
    if (id >= b->n_ids)
        b->n_ids = (int32_t)id + 1;
    return OK;
}

int32_t bpe_id(const struct bpe *b, const char *s, size_t n)
{
    const int64_t index = dict_find(&b->token, s, n);
    return index < 0 ? -1 : b->id_of[index];
}

const char *bpe_token(size_t *n, const struct bpe *b, int32_t id)
{
    if (id < 0 || id >= b->n_ids || b->token_of[id] < 0)
        return NULL;
    return dict_string(n, &b->token, (uint32_t)b->token_of[id]);
}

static void index_characters(struct bpe *b)
{
    char s[8];
    for (int32_t c = 0; c < BPE_FAST_CHARS; c++)
        b->char_id[c] = bpe_id(b, s, utf8_put(s, c));
    for (int i = 0; i < 256; i++) {
        snprintf(s, sizeof(s), "<0x%02X>", (unsigned)i & 0xFF);
        b->byte_id[i] = bpe_id(b, s, 6);
    }
    b->unk_id = b->unk_token ? bpe_id(b, b->unk_token, strlen(b->unk_token)) : -1;
}

enum err bpe_index(struct bpe *b)
{
    TRY(mem_alloc(&b->token_of, (size_t)b->n_ids, sizeof(*b->token_of)));
    for (int32_t i = 0; i < b->n_ids; i++)
        b->token_of[i] = -1;
    for (uint32_t k = 0; k < b->token.n; k++) {
        int32_t *t = &b->token_of[b->id_of[k]];
        size_t n;
        const char *s = dict_string(&n, &b->token, k);
        FAIL_IF(*t >= 0, ERR_FORMAT,
                "token \"%.*s\" has id %d, which another token has too",
                (int)(n < 80 ? n : 80), s, b->id_of[k]);
        *t = (int32_t)k;
    }
    index_characters(b);
    return OK;
}

static enum err merge_part(int32_t *id, const struct bpe *b, const char *s, size_t n)
{
    *id = bpe_id(b, s, n);
    FAIL_IF(*id < 0, ERR_FORMAT, "merge %zu: token \"%.*s\" is not in the vocabulary",
            b->n_merges, (int)(n < 80 ? n : 80), s);
    return OK;
}

enum err bpe_add_merge(struct bpe *b, const char *left, size_t n_left, const char *right,
                       size_t n_right)
{
    enum err err = OK;
    int32_t l, r, m;
    struct text whole = {0};
    FAIL_IF(b->n_merges >= INT32_MAX / 2, ERR_FORMAT, "too many merges");
    TRY_OUT(merge_part(&l, b, left, n_left));
    TRY_OUT(merge_part(&r, b, right, n_right));
    TRY_OUT(text_add(&whole, left, n_left));
    TRY_OUT(text_add(&whole, right, n_right));
    TRY_OUT(merge_part(&m, b, whole.p, whole.n));
    const size_t k = b->n_merges;
    if ((k & (k - 1)) == 0)
        TRY_OUT(mem_resize(&b->merged, k, k ? k * 2 : 1, sizeof(*b->merged)));
    TRY_OUT(pair_map_put(&b->rank, l, r, (int32_t)k));
    b->merged[b->n_merges++] = m;
out:
    text_free(&whole);
    return err;
}

void bpe_free(struct bpe *b)
{
    dict_free(&b->token);
    pair_map_free(&b->rank);
    mem_free(b->id_of);
    mem_free(b->token_of);
    mem_free(b->merged);
    mem_free(b->unk_token);
    *b = (struct bpe){0};
}

void bpe_work_free(struct bpe_work *w)
{
    mem_free(w->symbol);
    mem_free(w->heap);
    *w = (struct bpe_work){0};
}

/* Makes room for the symbols of a word of n bytes and for all heap entries. A character has
 * at most four bytes and gives at most as many symbols. Their n - 1 pairs start in the
 * heap, and each of n - 1 merges removes one entry and adds two. */
static enum err work_reserve(struct bpe_work *w, size_t n)
{
    FAIL_IF(n > INT32_MAX, ERR_SUPPORT, "a word of %zu bytes: the limit is 2 GiB", n);
    if (n + 1 > w->symbol_cap) {
        mem_free(w->symbol);
        w->symbol = NULL;
        w->symbol_cap = 0;
        TRY(mem_alloc(&w->symbol, n + 64, sizeof(*w->symbol)));
        w->symbol_cap = n + 64;
    }
    if (2 * n > w->heap_cap) {
        mem_free(w->heap);
        w->heap = NULL;
        w->heap_cap = 0;
        TRY(mem_alloc(&w->heap, 2 * n + 128, sizeof(*w->heap)));
        w->heap_cap = 2 * n + 128;
    }
    return OK;
}

static void add_symbol(struct bpe_work *w, int32_t id)
{
    const int32_t i = (int32_t)w->n_symbols++;
    w->symbol[i] = (struct bpe_symbol){id, i - 1, i + 1};
}

/* Adds the bytes of a character that is not in the vocabulary. Returns false if one of the
 * bytes is not in it either. */
static bool add_bytes(const struct bpe *b, struct bpe_work *w, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (b->byte_id[(uint8_t)s[i]] < 0)
            return false;
    for (size_t i = 0; i < n; i++)
        add_symbol(w, b->byte_id[(uint8_t)s[i]]);
    return true;
}

/* Converts characters to symbols. As in the reference, an unknown symbol is held back until
 * the next known character (not until the next bytes), so that neighbours can be fused. */
static enum err split_characters(const struct bpe *b, struct bpe_work *w, const char *s,
                                 size_t n)
{
    bool held = false;
    size_t k;
    int32_t c;
    for (size_t at = 0; at < n; at += k) {
        k = utf8_next(&c, s + at, n - at);
        const int32_t id =
            c >= 0 && c < BPE_FAST_CHARS ? b->char_id[c] : bpe_id(b, s + at, k);
        if (id >= 0) {
            if (held)
                add_symbol(w, b->unk_id);
            held = false;
            add_symbol(w, id);
            continue;
        }
        if ((b->byte_fallback && add_bytes(b, w, s + at, k)) || !b->unk_token)
            continue;
        FAIL_IF(b->unk_id < 0, ERR_FORMAT,
                "unknown character U+%04X, and unk_token \"%s\" is not in the vocabulary",
                (unsigned)c, b->unk_token);
        if (held && !b->fuse_unk)
            add_symbol(w, b->unk_id);
        held = true;
    }
    if (held)
        add_symbol(w, b->unk_id);
    return OK;
}

static void heap_sink(uint64_t *heap, size_t n, size_t i)
{
    const uint64_t x = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= x)
            break;
        heap[i] = heap[child];
    }
    heap[i] = x;
}

static void heap_push(struct bpe_work *w, uint64_t x)
{
    size_t i = w->n_heap++;
    for (; i && w->heap[(i - 1) / 2] > x; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = x;
}

static uint64_t heap_pop(struct bpe_work *w)
{
    const uint64_t top = w->heap[0];
    w->heap[0] = w->heap[--w->n_heap];
    if (w->n_heap)
        heap_sink(w->heap, w->n_heap, 0);
    return top;
}

/* Returns the rank of the pair that starts at symbol i, or -1. */
static int32_t rank_at(const struct bpe *b, const struct bpe_work *w, int32_t i)
{
    const int32_t next = w->symbol[i].next;
    if (next >= (int32_t)w->n_symbols)
        return -1;
    return pair_map_get(&b->rank, w->symbol[i].id, w->symbol[next].id);
}

static void offer_pair(const struct bpe *b, struct bpe_work *w, int32_t i)
{
    const int32_t rank = rank_at(b, w, i);
    if (rank >= 0)
        heap_push(w, (uint64_t)(uint32_t)rank << 32 | (uint32_t)i);
}

static void merge_at(const struct bpe *b, struct bpe_work *w, int32_t i, int32_t id)
{
    struct bpe_symbol *left = &w->symbol[i], *right = &w->symbol[left->next];
    left->id = id;
    left->next = right->next;
    right->id = -1;
    if (left->next < (int32_t)w->n_symbols)
        w->symbol[left->next].prev = i;
    if (left->prev >= 0)
        offer_pair(b, w, left->prev);
    offer_pair(b, w, i);
}

static void merge_all(const struct bpe *b, struct bpe_work *w)
{
    w->n_heap = 0;
    for (int32_t i = 0; i + 1 < (int32_t)w->n_symbols; i++) {
        const int32_t rank = rank_at(b, w, i);
        if (rank >= 0)
            w->heap[w->n_heap++] = (uint64_t)(uint32_t)rank << 32 | (uint32_t)i;
    }
    for (size_t i = w->n_heap / 2; i-- > 0;)
        heap_sink(w->heap, w->n_heap, i);
    while (w->n_heap) {
        const uint64_t top = heap_pop(w);
        const int32_t i = (int32_t)(top & UINT32_MAX);
        if (w->symbol[i].id < 0)
            continue;
        /* An entry is stale unless the pair at its position still gives the same token. The
         * reference compares the results and not the ranks. */
        const int32_t id = b->merged[top >> 32], rank = rank_at(b, w, i);
        if (rank >= 0 && b->merged[rank] == id)
            merge_at(b, w, i, id);
    }
}

enum err bpe_encode(struct id_list *out, const struct bpe *b, struct bpe_work *w,
                    const char *s, size_t n)
{
    if (b->ignore_merges) {
        const int32_t id = bpe_id(b, s, n);
        if (id >= 0)
            return id_list_add(out, id);
    }
    TRY(work_reserve(w, n));
    w->n_symbols = 0;
    TRY(split_characters(b, w, s, n));
    merge_all(b, w);
    for (size_t i = 0; i < w->n_symbols; i++)
        if (w->symbol[i].id >= 0)
            TRY(id_list_add(out, w->symbol[i].id));
    return OK;
}

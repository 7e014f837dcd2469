/* SPDX-License-Identifier: MIT
 *
 * Causal attention over the packed past and the chunk in full precision. A piece of work is
 * one kv head, up to QUERIES queries, and a span of the keys; it leaves a running
 * softmax (maximum, sum, weighted values), and the pieces of a query are put together in
 * order. */
#include "convert/runtime/rt_priv.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define QUERIES 16     /* share one unpacking of the keys */
#define TILE RT_TILE   /* keys unpacked at a time */
#define SPLIT_KEYS 512 /* keys of a piece, when there are few queries */
#define MAX_SPLITS 16

struct work {
    const struct rt_attn *a;
    struct rt_attn_scratch *s;
    int64_t query_blocks, splits, span; /* of queries; of keys */
    int64_t part_floats;                /* of one (query, head, split): 2 + d */
    int64_t pieces;                     /* in all */
    int threads;                        /* that take them */
};

struct tile {
    int64_t at, n;
    const float *k[TILE], *v[TILE];           /* as packed */
    const float *k_full[TILE], *v_full[TILE]; /* as kept, for the query in hand; or NULL */
};

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static float *part_of(const struct work *w, int64_t t, int64_t h, int64_t split)
{
    return w->s->part + ((t * w->a->H + h) * w->splits + split) * w->part_floats;
}

/* --- one query against one tile ----------------------------------------------------- */

/* score [n] of keys, then the running softmax takes them and their values in. */
static void absorb(const struct rt_attn *a, float *part, const float *q, const float **k,
                   const float **v, int64_t n)
{
    const int64_t d = a->cache->d;
    const float scale = 1 / sqrtf((float)d);
    float score[TILE], top = part[0], *acc = part + 2;
    for (int64_t i = 0; i < n; i++) {
        score[i] = scale * a->kern->dot(q, k[i], d);
        top = score[i] > top || isnan(score[i]) ? score[i] : top;
    }
    const float keep = part[0] == -INFINITY ? 0 : expf(part[0] - top);
    for (int64_t c = 0; c < d; c++)
        acc[c] *= keep;
    part[1] *= keep;
    part[0] = top;
    for (int64_t i = 0; i < n; i++) {
        const float p = expf(score[i] - top);
        part[1] += p;
        a->kern->axpy(acc, p, v[i], d);
    }
}

/* Query t of the chunk against a tile of the past: what it sees in full precision is taken
 * from there. */
static void past_query(const struct work *w, const struct tile *tile, int64_t t, int64_t kh,
                       int64_t split)
{
    const struct rt_attn *a = w->a;
    const int64_t G = a->H / a->cache->K, d = a->cache->d, i = a->past + t;
    const float *k[TILE], *v[TILE];
    for (int64_t j = 0; j < tile->n; j++) {
        const int64_t at = tile->at + j;
        const float *kf = rt_cache_full(a->cache, a->layer, KV_K, kh, at, i);
        const float *vf = rt_cache_full(a->cache, a->layer, KV_V, kh, at, i);
        k[j] = kf ? kf : tile->k[j];
        v[j] = vf ? vf : tile->v[j];
    }
    for (int64_t h = kh * G; h < (kh + 1) * G; h++)
        absorb(a, part_of(w, t, h, split), a->q + (t * a->H + h) * d, k, v, tile->n);
}

/* Without past-only quantization the chunk's own keys and values are seen as packed, but
 * for the sink's. */
static void see_packed(const struct rt_attn *a, int64_t kh, int64_t at, int64_t n,
                       float *buffer, const float **k, const float **v)
{
    const struct rt_cache *c = a->cache;
    const int64_t kept = c->sink - (a->past + at), skip = kept < 0 ? 0 : kept;
    if (c->spec.past_only || skip >= n)
        return;
    rt_cache_tile(c, a->layer, KV_K, kh, a->past + at + skip, n - skip, buffer, k + skip);
    rt_cache_tile(c, a->layer, KV_V, kh, a->past + at + skip, n - skip,
                  buffer + TILE * c->d, v + skip);
}

static void chunk_query(const struct work *w, int64_t t, int64_t kh, float *buffer)
{
    const struct rt_attn *a = w->a;
    const int64_t G = a->H / a->cache->K, d = a->cache->d, C = a->cache->K * d;
    const float *k[TILE], *v[TILE];
    for (int64_t at = 0; at <= t; at += TILE) {
        const int64_t n = t + 1 - at < TILE ? t + 1 - at : TILE;
        for (int64_t j = 0; j < n; j++) {
            k[j] = a->k + (at + j) * C + kh * d;
            v[j] = a->v + (at + j) * C + kh * d;
        }
        see_packed(a, kh, at, n, buffer, k, v);
        for (int64_t h = kh * G; h < (kh + 1) * G; h++)
            absorb(a, part_of(w, t, h, w->splits - 1), a->q + (t * a->H + h) * d, k, v, n);
    }
}

/* --- pieces ------------------------------------------------------------------------- */

static void clear_parts(const struct work *w, int64_t t, int64_t kh, int64_t split)
{
    const int64_t G = w->a->H / w->a->cache->K;
    for (int64_t h = kh * G; h < (kh + 1) * G; h++) {
        float *part = part_of(w, t, h, split);
        memset(part, 0, (size_t)w->part_floats * sizeof(float));
        part[0] = -INFINITY;
    }
}

/* Queries [first, end) against the past's tokens [at, end_at), tile by tile. */
static void past_tiles(const struct work *w, int64_t kh, int64_t split, int64_t first,
                       int64_t end, int64_t at, int64_t end_at, float *buffer)
{
    const struct rt_attn *a = w->a;
    const int64_t d = a->cache->d;
    struct tile tile;
    for (tile.at = at; tile.at < end_at; tile.at += tile.n) {
        tile.n = end_at - tile.at < TILE ? end_at - tile.at : TILE;
        rt_cache_tile(a->cache, a->layer, KV_K, kh, tile.at, tile.n, buffer, tile.k);
        rt_cache_tile(a->cache, a->layer, KV_V, kh, tile.at, tile.n, buffer + TILE * d,
                      tile.v);
        for (int64_t t = first; t < end; t++)
            past_query(w, &tile, t, kh, split);
    }
}

static int64_t between(int64_t x, int64_t lo, int64_t hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

static int64_t split_of(const struct work *w, int64_t number)
{
    return number % w->splits;
}

static int64_t head_of(const struct work *w, int64_t number)
{
    return number / w->splits / w->query_blocks;
}

/* Threads take pieces in turn, so this one's next is about `threads` further. */
static void prefetch_next_piece(const struct work *w, int64_t number)
{
    const struct rt_attn *a = w->a;
    const int64_t next = number + w->threads, at = split_of(w, next) * w->span;
    if (next < w->pieces && at < a->past && a->cache->interleaved[a->layer])
        rt_attn_prefetch(a, head_of(w, next), at, min_i64(at + w->span, a->past));
}

static void attend_piece(void *ctx, int64_t number, int thread)
{
    const struct work *w = ctx;
    const struct rt_attn *a = w->a;
    const int64_t split = split_of(w, number), block = number / w->splits % w->query_blocks;
    const int64_t kh = head_of(w, number), d = a->cache->d;
    const int64_t first = block * QUERIES;
    const int64_t end = min_i64(a->n, first + QUERIES);
    const int64_t at = min_i64(split * w->span, a->past);
    const int64_t end_at = min_i64(at + w->span, a->past);
    float *buffer = w->s->tiles + (int64_t)thread * w->s->thread_floats;
    /* what all queries of the chunk see as packed */
    int64_t from = end_at, to = end_at;
    if (a->cache->interleaved[a->layer]) {
        from = between(a->cache->sink, at, end_at);
        to = between(a->past - a->cache->recent, from, end_at);
    }
    prefetch_next_piece(w, number);
    for (int64_t t = first; t < end; t++)
        clear_parts(w, t, kh, split);
    if (from < to)
        rt_attn_packed(&(struct rt_attn_packed){a, kh, first, end, from, to,
                                                part_of(w, 0, 0, split),
                                                w->splits * w->part_floats},
                       buffer + 2 * TILE * d);
    past_tiles(w, kh, split, first, end, at, from, buffer);
    past_tiles(w, kh, split, first, end, to, end_at, buffer);
    for (int64_t t = first; split + 1 == w->splits && t < end; t++)
        chunk_query(w, t, kh, buffer);
}

/* out of query t: its splits put together. */
static void merge(void *ctx, int64_t t, int thread)
{
    const struct work *w = ctx;
    const struct rt_attn *a = w->a;
    const int64_t d = a->cache->d;
    for (int64_t h = 0; h < a->H; h++) {
        float *out = a->out + (t * a->H + h) * d, top = -INFINITY, total = 0;
        for (int64_t s = 0; s < w->splits; s++) {
            const float m = part_of(w, t, h, s)[0];
            top = m > top || isnan(m) ? m : top;
        }
        memset(out, 0, (size_t)d * sizeof(float));
        for (int64_t s = 0; s < w->splits; s++) {
            const float *part = part_of(w, t, h, s);
            const float share = part[0] == -INFINITY ? 0 : expf(part[0] - top);
            total += share * part[1];
            a->kern->axpy(out, share, part + 2, d);
        }
        for (int64_t c = 0; c < d; c++)
            out[c] /= total;
    }
}

/* --- the whole ---------------------------------------------------------------------- */

static enum err make_room(struct work *w, struct pool *pool)
{
    struct rt_attn_scratch *s = w->s;
    const int64_t dims[] = {w->a->n, w->a->H, w->splits, w->part_floats};
    size_t need;
    TRY(size_product(&need, dims, 4, 1));
    if (need > s->part_n) {
        mem_free(s->part);
        s->part = NULL;
        s->part_n = 0;
        TRY(mem_alloc(&s->part, need, sizeof(float)));
        s->part_n = need;
    }
    if (s->tiles)
        return OK;
    const struct rt_cache *c = w->a->cache;
    s->thread_floats = 2 * TILE * c->d + rt_attn_packed_floats(c, QUERIES * w->a->H / c->K);
    s->thread_floats = (s->thread_floats + 15) / 16 * 16;
    return mem_alloc(&s->tiles, (size_t)pool_threads(pool),
                     (size_t)s->thread_floats * sizeof(float));
}

enum err rt_attn_run(const struct rt_attn *a, struct rt_attn_scratch *s, struct pool *pool)
{
    struct work w = {.a = a, .s = s, .part_floats = 2 + a->cache->d};
    w.query_blocks = (a->n + QUERIES - 1) / QUERIES;
    /* few queries: threads share the keys instead */
    w.splits = a->n <= QUERIES ? (a->past + SPLIT_KEYS - 1) / SPLIT_KEYS : 1;
    w.splits = w.splits < 1 ? 1 : w.splits > MAX_SPLITS ? MAX_SPLITS : w.splits;
    w.span = (a->past + w.splits - 1) / w.splits;
    w.span = (w.span + TILE - 1) / TILE * TILE; /* tiles begin with a vector of keys */
    TRY(make_room(&w, pool));
    w.threads = pool_threads(pool);
    w.pieces = a->cache->K * w.query_blocks * w.splits;
    pool_run(pool, w.pieces, attend_piece, &w);
    pool_run(a->n > 1 ? pool : NULL, a->n, merge, &w);
    return OK;
}

void rt_attn_close(struct rt_attn_scratch *s)
{
    mem_free(s->part);
    mem_free(s->tiles);
    *s = (struct rt_attn_scratch){0};
}

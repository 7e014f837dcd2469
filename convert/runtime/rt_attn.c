/* SPDX-License-Identifier: MIT
 *
 * Causal attention of a chunk over the quantized past and the chunk itself.
 *
 * The unit of work is a piece: one kv head, some queries of the chunk, and one
 * span of the past. A piece leaves a partial softmax for each (query, head):
 *
 *   partial = { maximum m of the scores | sum of exp(s - m) | [d] sum of these times v }
 *
 * With few queries the past is split into several spans, so that all threads have work. The
 * last span also covers the chunk. merge() then adds up the partials of a query in the
 * order of the spans, whatever thread computed them: results do not depend on threads.
 *
 *   past:   0 ...... sink ................ past - recent .... past | chunk ...
 *           F32      quantized, the same   F32 for queries    F32, or packed
 *           (sink)   for every query       near enough        without past_only
 *
 * With a sliding window, spans begin where the chunk's first query begins to see, and the
 * middle where its last one does.
 *
 * Of few queries, the middle goes to rt_attn_packed.c where the layer is interleaved. Many
 * queries share dequantized tiles of the middle and of the chunk, in rt_attn_block.c. The
 * rest is computed here, query by query. */
#include "convert/runtime/rt_priv.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define QUERIES 16 /* of a piece: they share one dequantization of the keys */
/* Of a piece for rt_attn_block.c: multiples of 12 fill the registers of the products, and
 * BLOCK_ROWS (query, head) pairs fit the second-level cache. */
#define BLOCK_QUERIES 48
#define BLOCK_ROWS 192
#define MIN_BLOCK_ROWS 16 /* of a chunk: fewer do not pay for dequantized tiles */
#define TILE RT_TILE      /* tokens dequantized at a time */
#define SPLIT_KEYS 512    /* tokens of a span, when there are few queries */
#define MAX_SPLITS 16

struct work {
    const struct rt_attn *a;
    struct rt_attn_scratch *s;
    bool blocks;            /* the chunk has enough queries for rt_attn_block.c */
    int64_t queries;        /* of a piece, */
    int64_t query_blocks;   /* and pieces that the chunk's queries make */
    int64_t base;           /* tokens before it are out of reach of every query */
    int64_t splits, span;   /* of the past from base on, and tokens of one */
    int64_t partial_floats; /* 2 + d */
    int64_t pieces;
    int threads;
};

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static float *partial_of(const struct work *w, int64_t t, int64_t h, int64_t split)
{
    return w->s->partial + ((t * w->a->H + h) * w->splits + split) * w->partial_floats;
}

/* --- one query against one tile ----------------------------------------------------- */

/* Adds n keys and values to a running softmax: when the maximum rises, what was summed
 * before is scaled down to the new one. A NaN score becomes the maximum and stays. */
static void absorb(const struct rt_attn *a, float *partial, const float *q, const float **k,
                   const float **v, int64_t n)
{
    const int64_t d = a->cache->d;
    float score[TILE], top = partial[0], *acc = partial + 2;
    for (int64_t i = 0; i < n; i++) {
        score[i] = a->scale * a->kern->dot(q, k[i], d);
        top = score[i] > top || isnan(score[i]) ? score[i] : top;
    }
    const float keep = partial[0] == -INFINITY ? 0 : expf(partial[0] - top);
    for (int64_t c = 0; c < d; c++)
        acc[c] *= keep;
    partial[1] *= keep;
    partial[0] = top;
    for (int64_t i = 0; i < n; i++) {
        const float p = expf(score[i] - top);
        partial[1] += p;
        a->kern->axpy(acc, p, v[i], d);
    }
}

/* Query t of the chunk against a tile of the past. Tokens it sees in full precision are
 * taken from their F32 copies. */
static void past_query(const struct work *w, const struct rt_tile *tile, int64_t t,
                       int64_t kh, int64_t split)
{
    const struct rt_attn *a = w->a;
    const int64_t G = a->H / a->cache->K, d = a->cache->d, i = a->past + t;
    const float *k[TILE], *v[TILE];
    const int64_t first = rt_attn_first_seen(a, t) - tile->at, skip = first > 0 ? first : 0;
    if (skip >= tile->n)
        return;
    for (int64_t j = skip; j < tile->n; j++) {
        const int64_t at = tile->at + j;
        const float *kf = rt_cache_full(a->cache, a->layer, KV_K, kh, at, i);
        const float *vf = rt_cache_full(a->cache, a->layer, KV_V, kh, at, i);
        k[j] = kf ? kf : tile->k[j];
        v[j] = vf ? vf : tile->v[j];
    }
    for (int64_t h = kh * G; h < (kh + 1) * G; h++)
        absorb(a, partial_of(w, t, h, split), a->q + (t * a->H + h) * d, k + skip, v + skip,
               tile->n - skip);
}

/* Without past_only a query sees the chunk's own keys and values packed, except the sink:
 * replaces k[i], v[i] accordingly. */
static void see_packed(const struct rt_attn *a, int64_t kh, int64_t at, int64_t n,
                       float *buffer, const float **k, const float **v)
{
    const struct rt_cache *c = a->cache;
    const int64_t kept = c->sink - (a->past + at), skip = kept < 0 ? 0 : kept;
    if (c->spec.past_only || skip >= n)
        return;
    const struct rt_span keys = {a->layer, KV_K, kh, a->past + at + skip, n - skip};
    const struct rt_span values = {a->layer, KV_V, kh, a->past + at + skip, n - skip};
    rt_cache_tile(c, keys, buffer, k + skip);
    rt_cache_tile(c, values, buffer + TILE * c->d, v + skip);
}

/* Tokens [at, at + n) of the chunk, in full precision or packed. */
static struct rt_tile chunk_tile(const struct rt_attn *a, int64_t kh, int64_t at, int64_t n,
                                 float *buffer)
{
    const int64_t d = a->cache->d, C = a->cache->K * d;
    struct rt_tile tile = {.at = a->past + at, .n = n};
    for (int64_t j = 0; j < n; j++) {
        tile.k[j] = a->k + (at + j) * C + kh * d;
        tile.v[j] = a->v + (at + j) * C + kh * d;
    }
    see_packed(a, kh, at, n, buffer, tile.k, tile.v);
    return tile;
}

/* Query t against what it sees of the chunk, up to itself. */
static void chunk_query(const struct work *w, int64_t t, int64_t kh, float *buffer)
{
    const struct rt_attn *a = w->a;
    const int64_t G = a->H / a->cache->K, d = a->cache->d;
    const int64_t first = rt_attn_first_seen(a, t) - a->past;
    for (int64_t at = first > 0 ? first : 0; at <= t; at += TILE) {
        const int64_t n = min_i64(t + 1 - at, TILE);
        struct rt_tile tile = chunk_tile(a, kh, at, n, buffer);
        for (int64_t h = kh * G; h < (kh + 1) * G; h++)
            absorb(a, partial_of(w, t, h, w->splits - 1), a->q + (t * a->H + h) * d, tile.k,
                   tile.v, n);
    }
}

/* --- pieces ------------------------------------------------------------------------- */

static void clear_partials(const struct work *w, int64_t t, int64_t kh, int64_t split)
{
    const int64_t G = w->a->H / w->a->cache->K;
    for (int64_t h = kh * G; h < (kh + 1) * G; h++) {
        float *partial = partial_of(w, t, h, split);
        memset(partial, 0, (size_t)w->partial_floats * sizeof(float));
        partial[0] = -INFINITY;
    }
}

/* One piece: queries [first, end) of kv head kh against tokens [at, at_end) of the past. */
struct piece {
    int64_t kh, split, first, end, at, at_end;
    float *buffer; /* of this thread */
};

/* Dequantizes the tile of the past that begins at `at` and ends at `to` at the latest.
 * block: for rt_attn_block.c, which reads the keys of an interleaved layer itself. */
static struct rt_tile past_tile(const struct rt_attn *a, const struct piece *p, int64_t at,
                                int64_t to, bool block)
{
    struct rt_tile tile = {.at = at, .n = min_i64(to - at, TILE - at % TILE)};
    const struct rt_span keys = {a->layer, KV_K, p->kh, at, tile.n};
    const struct rt_span values = {a->layer, KV_V, p->kh, at, tile.n};
    tile.packed_keys = block && a->cache->interleaved[a->layer] && at % RT_KEYS == 0;
    if (!tile.packed_keys)
        rt_cache_tile(a->cache, keys, p->buffer, tile.k);
    rt_cache_tile(a->cache, values, p->buffer + TILE * a->cache->d, tile.v);
    return tile;
}

/* The piece's queries against tokens [from, to), query by query. */
static void past_tiles(const struct work *w, const struct piece *p, int64_t from,
                       int64_t to)
{
    for (int64_t at = from, n; at < to; at += n) {
        const struct rt_tile tile = past_tile(w->a, p, at, to, false);
        n = tile.n;
        for (int64_t t = p->first; t < p->end; t++)
            past_query(w, &tile, t, p->kh, p->split);
    }
}

/* The piece's queries against packed tokens [from, to) and, in the last split, the chunk. */
static void block_tiles(const struct work *w, const struct piece *p, int64_t from,
                        int64_t to)
{
    const struct rt_attn *a = w->a;
    const struct rt_attn_block j = {a,
                                    p->kh,
                                    p->first,
                                    p->end,
                                    partial_of(w, 0, 0, p->split),
                                    w->splits * w->partial_floats};
    float *scratch = p->buffer + 2 * TILE * a->cache->d;
    const int64_t seen = rt_attn_first_seen(a, p->first) - a->past;
    rt_attn_block_begin(&j, scratch);
    for (int64_t at = from, n; at < to; at += n) {
        const struct rt_tile tile = past_tile(a, p, at, to, true);
        n = tile.n;
        rt_attn_block_tile(&j, &tile, scratch);
    }
    const int64_t end = p->split + 1 == w->splits ? p->end : 0;
    for (int64_t at = seen > 0 ? seen / TILE * TILE : 0; at < end; at += TILE) {
        const struct rt_tile tile =
            chunk_tile(a, p->kh, at, min_i64(end - at, TILE), p->buffer);
        rt_attn_block_tile(&j, &tile, scratch);
    }
    rt_attn_block_end(&j, scratch);
}

static int64_t clamp_i64(int64_t x, int64_t lo, int64_t hi)
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

/* Threads take pieces in turn, so this thread's next one is about `threads` further. */
static void prefetch_next_piece(const struct work *w, int64_t number)
{
    const struct rt_attn *a = w->a;
    const int64_t next = number + w->threads, at = w->base + split_of(w, next) * w->span;
    if (next < w->pieces && at < a->past && a->cache->interleaved[a->layer])
        rt_attn_prefetch(a, head_of(w, next), at, min_i64(at + w->span, a->past));
}

static struct piece piece_of(const struct work *w, int64_t number, int thread)
{
    const struct rt_attn *a = w->a;
    const int64_t split = split_of(w, number), block = number / w->splits % w->query_blocks;
    const int64_t at = min_i64(w->base + split * w->span, a->past);
    return (struct piece){.kh = head_of(w, number),
                          .split = split,
                          .first = block * w->queries,
                          .end = min_i64(a->n, (block + 1) * w->queries),
                          .at = at,
                          .at_end = min_i64(at + w->span, a->past),
                          .buffer = w->s->tiles + (int64_t)thread * w->s->thread_floats};
}

/* Splits a piece's tokens at *from and *to: those between are packed for every query. */
static void find_middle(int64_t *from, int64_t *to, const struct work *w,
                        const struct piece *p)
{
    const struct rt_attn *a = w->a;
    /* rt_attn_block.c masks what is out of a query's reach. */
    const int64_t all_see = w->blocks ? p->at : rt_attn_first_seen(a, p->end - 1);
    const int64_t sink = a->cache->sink;
    *from = *to = p->at_end;
    if (!w->blocks && !a->cache->interleaved[a->layer])
        return;
    *from = clamp_i64(all_see > sink ? all_see : sink, p->at, p->at_end);
    *to = clamp_i64(a->past - a->cache->recent, *from, p->at_end);
}

static void attend_piece(void *ctx, int64_t number, int thread)
{
    const struct work *w = ctx;
    const struct rt_attn *a = w->a;
    const struct piece p = piece_of(w, number, thread);
    int64_t from, to;
    find_middle(&from, &to, w, &p);
    prefetch_next_piece(w, number);
    for (int64_t t = p.first; t < p.end; t++)
        clear_partials(w, t, p.kh, p.split);
    if (!w->blocks && from < to)
        rt_attn_packed(&(struct rt_attn_packed){a, p.kh, p.first, p.end, from, to,
                                                partial_of(w, 0, 0, p.split),
                                                w->splits * w->partial_floats},
                       p.buffer + 2 * TILE * a->cache->d);
    past_tiles(w, &p, p.at, from);
    past_tiles(w, &p, to, p.at_end);
    if (w->blocks)
        block_tiles(w, &p, from, to);
    for (int64_t t = p.first; !w->blocks && p.split + 1 == w->splits && t < p.end; t++)
        chunk_query(w, t, p.kh, p.buffer);
}

/* Writes out of query t: rescales its partials to their common maximum and adds them up. */
static void merge(void *ctx, int64_t t, int thread)
{
    const struct work *w = ctx;
    const struct rt_attn *a = w->a;
    const int64_t d = a->cache->d;
    for (int64_t h = 0; h < a->H; h++) {
        float *out = a->out + (t * a->H + h) * d, top = -INFINITY, total = 0;
        for (int64_t s = 0; s < w->splits; s++) {
            const float m = partial_of(w, t, h, s)[0];
            top = m > top || isnan(m) ? m : top;
        }
        memset(out, 0, (size_t)d * sizeof(float));
        for (int64_t s = 0; s < w->splits; s++) {
            const float *partial = partial_of(w, t, h, s);
            const float share = partial[0] == -INFINITY ? 0 : expf(partial[0] - top);
            total += share * partial[1];
            a->kern->axpy(out, share, partial + 2, d);
        }
        for (int64_t c = 0; c < d; c++)
            out[c] /= total;
    }
}

/* --- the whole ---------------------------------------------------------------------- */

/* Returns the queries of a piece for rt_attn_block.c, with so many heads per kv head. */
static int64_t block_queries(int64_t heads)
{
    int64_t queries = BLOCK_QUERIES;
    while (queries > BLOCK_QUERIES / 8 && queries * heads > BLOCK_ROWS)
        queries /= 2;
    return queries;
}

static enum err make_room(struct work *w, struct pool *pool)
{
    struct rt_attn_scratch *s = w->s;
    const int64_t dims[] = {w->a->n, w->a->H, w->splits, w->partial_floats};
    size_t need;
    TRY(size_product(&need, dims, 4, 1));
    if (need > s->partial_count) {
        mem_free(s->partial);
        s->partial = NULL;
        s->partial_count = 0;
        TRY(mem_alloc(&s->partial, need, sizeof(float)));
        s->partial_count = need;
    }
    if (s->tiles)
        return OK;
    const struct rt_cache *c = w->a->cache;
    const int64_t G = w->a->H / c->K, packed = rt_attn_packed_floats(c, QUERIES * G);
    const int64_t block = rt_attn_block_floats(c->d, block_queries(G) * G);
    s->thread_floats = 2 * TILE * c->d + (packed > block ? packed : block);
    s->thread_floats = (s->thread_floats + 15) / 16 * 16;
    return mem_alloc(&s->tiles, (size_t)pool_threads(pool),
                     (size_t)s->thread_floats * sizeof(float));
}

enum err rt_attn_run(const struct rt_attn *a, struct rt_attn_scratch *s, struct pool *pool)
{
    struct work w = {.a = a, .s = s, .partial_floats = 2 + a->cache->d};
    const int64_t G = a->H / a->cache->K;
    w.blocks = a->n > 1 && a->n * G >= MIN_BLOCK_ROWS;
    w.queries = w.blocks ? block_queries(G) : QUERIES;
    w.query_blocks = (a->n + w.queries - 1) / w.queries;
    /* With few queries, threads share the past instead. */
    w.base = min_i64(rt_attn_first_seen(a, 0), a->past) / TILE * TILE;
    const int64_t seen = a->past - w.base;
    w.splits = a->n <= QUERIES ? (seen + SPLIT_KEYS - 1) / SPLIT_KEYS : 1;
    w.splits = w.splits < 1 ? 1 : w.splits > MAX_SPLITS ? MAX_SPLITS : w.splits;
    w.span = (seen + w.splits - 1) / w.splits;
    w.span = (w.span + TILE - 1) / TILE * TILE; /* spans begin with a strip of keys */
    TRY(make_room(&w, pool));
    w.threads = pool_threads(pool);
    w.pieces = a->cache->K * w.query_blocks * w.splits;
    pool_run(pool, w.pieces, attend_piece, &w);
    pool_run(a->n > 1 ? pool : NULL, a->n, merge, &w);
    return OK;
}

void rt_attn_close(struct rt_attn_scratch *s)
{
    mem_free(s->partial);
    mem_free(s->tiles);
    *s = (struct rt_attn_scratch){0};
}

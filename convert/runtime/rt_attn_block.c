/* SPDX-License-Identifier: MIT
 *
 * Attention of many queries to a tile of keys and values in F32, as two products of panels
 * (rt_kernels_panel.c draws them). A row is a (query, head) pair, the queries of one head
 * in sequence:
 *
 *   keys    [tokens / 32][d][32]     score [rows][RT_TILE] = q . k
 *   soften: scale, mask, p = exp(score - top); sums are rescaled when the top rises
 *   values  [d / 32][tokens][32]     acc [rows][d] += p v
 *
 * Each row is computed by itself, so its bits do not depend on the rows beside it. */
#include "convert/runtime/rt_priv.h"

#include <math.h>
#include <string.h>

/* A thread's buffers. */
struct buffers {
    int64_t queries, rows; /* of this piece, rows = queries (heads per kv head) */
    int64_t wide;          /* d, padded to whole panels */
    float *score;          /* [rows][RT_TILE] */
    float *acc;            /* [rows][wide] sums of p v */
    float *top, *total;    /* [rows] maximum score, sum of p */
    float *keys, *values;  /* panels */
    float *pairs;          /* [2][groups of k][RT_TILE] h, m of packed keys */
};

static int64_t padded(int64_t n)
{
    return (n + RT_PANEL - 1) / RT_PANEL * RT_PANEL;
}

/* Places the buffers from `at` on and returns their size in floats. at NULL: size only. */
static int64_t place_buffers(struct buffers *b, float *at, int64_t d)
{
    const struct {
        float **p;
        int64_t n;
    } place[] = {{&b->score, b->rows * RT_TILE},  {&b->acc, b->rows * b->wide},
                 {&b->keys, RT_TILE * d},         {&b->values, RT_TILE * b->wide},
                 {&b->top, padded(b->rows)},      {&b->total, padded(b->rows)},
                 {&b->pairs, 2 * d / 8 * RT_TILE}};
    int64_t used = 0;
    for (size_t i = 0; i < ARRAY_LEN(place); i++) {
        *place[i].p = at ? at + used : NULL;
        used += place[i].n;
    }
    return used;
}

static struct buffers buffers_of(const struct rt_attn_block *j, float *scratch)
{
    const int64_t G = j->a->H / j->a->cache->K, d = j->a->cache->d;
    struct buffers b = {
        .queries = j->end - j->first, .rows = (j->end - j->first) * G, .wide = padded(d)};
    place_buffers(&b, scratch, d);
    return b;
}

int64_t rt_attn_block_floats(int64_t d, int64_t rows)
{
    struct buffers b = {.rows = rows, .wide = padded(d)};
    return place_buffers(&b, NULL, d);
}

/* Returns the partial softmax of a row. */
static float *partial_of(const struct rt_attn_block *j, const struct buffers *b,
                         int64_t row)
{
    const int64_t G = j->a->H / j->a->cache->K;
    const int64_t t = j->first + row % b->queries, h = j->kh * G + row / b->queries;
    return j->partial + (t * j->a->H + h) * j->partial_step;
}

void rt_attn_block_begin(const struct rt_attn_block *j, float *scratch)
{
    const struct buffers b = buffers_of(j, scratch);
    memset(b.acc, 0, (size_t)(b.rows * b.wide) * sizeof(float));
    for (int64_t r = 0; r < b.rows; r++) {
        const float *partial = partial_of(j, &b, r);
        b.top[r] = partial[0];
        b.total[r] = partial[1];
        memcpy(b.acc + r * b.wide, partial + 2, (size_t)j->a->cache->d * sizeof(float));
    }
}

void rt_attn_block_end(const struct rt_attn_block *j, float *scratch)
{
    const struct buffers b = buffers_of(j, scratch);
    for (int64_t r = 0; r < b.rows; r++) {
        float *partial = partial_of(j, &b, r);
        partial[0] = b.top[r];
        partial[1] = b.total[r];
        memcpy(partial + 2, b.acc + r * b.wide, (size_t)j->a->cache->d * sizeof(float));
    }
}

/* Strips of RT_KEYS keys go from the cache to the panels. Lanes after the last token hold
 * anything; their scores are masked. */
static void unpack_keys(const struct rt_attn_block *j, const struct buffers *b,
                        const struct rt_tile *tile)
{
    const struct rt_cache *c = j->a->cache;
    const struct rt_plane *p = rt_cache_plane(c, j->a->layer, KV_K);
    const uint8_t *codes = rt_cache_codes(c, j->a->layer, KV_K, j->kh);
    const struct rt_channels ch = rt_cache_channels(c, j->a->layer, KV_K, j->kh);
    float *const h = b->pairs, *const m = h + p->groups * RT_TILE;
    rt_attn_pairs(h, m, j->a, KV_K, j->kh, tile->at);
    for (int64_t i = 0; i < tile->n; i += RT_KEYS) {
        const int64_t t = tile->at + i;
        j->a->kern->kv->unpack_keys(b->keys + i / RT_PANEL * RT_PANEL * c->d + i % RT_PANEL,
                                    codes + t * p->code_bytes, rt_cache_width(c, t), h + i,
                                    m + i, ch, p->group, c->d);
    }
}

/* The last key fills the rest of its panel; its scores there are masked. */
static void fill_keys(const struct rt_attn_block *j, const struct buffers *b,
                      const struct rt_tile *tile)
{
    const int64_t d = j->a->cache->d;
    for (int64_t i = 0; i < padded(tile->n); i++)
        j->a->kern->panel->fill_rows(b->keys + i / RT_PANEL * RT_PANEL * d + i % RT_PANEL,
                                     tile->k[i < tile->n ? i : tile->n - 1], d, 1);
}

static void fill_values(const struct rt_attn_block *j, const struct buffers *b,
                        const struct rt_tile *tile)
{
    const int64_t d = j->a->cache->d;
    float *out = b->values;
    for (int64_t c = 0; c < d; c += RT_PANEL) {
        const int64_t n = d - c < RT_PANEL ? d - c : RT_PANEL;
        for (int64_t i = 0; i < tile->n; i++, out += RT_PANEL) {
            memcpy(out, tile->v[i] + c, (size_t)n * sizeof(float));
            memset(out + n, 0, (size_t)(RT_PANEL - n) * sizeof(float));
        }
    }
}

/* score = q . k of all rows and keys, the masked ones included. */
static void score_tile(const struct rt_attn_block *j, const struct buffers *b, int64_t n)
{
    const struct rt_attn *a = j->a;
    const int64_t G = a->H / a->cache->K, d = a->cache->d;
    for (int64_t g = 0; g < G; g++)
        for (int64_t at = 0; at < n; at += RT_PANEL) {
            const struct rt_panel args = {.y = b->score + g * b->queries * RT_TILE + at,
                                          .ldy = RT_TILE,
                                          .panel = b->keys + at * d,
                                          .rows = RT_PANEL,
                                          .x = a->q + (j->first * a->H + j->kh * G + g) * d,
                                          .ldx = a->H * d,
                                          .n = b->queries,
                                          .in = d};
            a->kern->panel->multiply(&args);
        }
}

/* Turns the scores of a row, of which it sees keys [from, to), into exponentials below the
 * highest score so far. When that rises, the row's sums are scaled down to the new one. */
static void soften(const struct rt_attn_block *j, const struct buffers *b, int64_t row,
                   int64_t from, int64_t to)
{
    const struct rt_kv_kernels *kv = j->a->kern->kv;
    float *score = b->score + row * RT_TILE;
    if (from >= to) {
        memset(score, 0, RT_TILE * sizeof(*score));
        return;
    }
    kv->scale(score, j->a->scale, RT_TILE);
    for (int64_t i = 0; i < from; i++)
        score[i] = -INFINITY;
    for (int64_t i = to; i < RT_TILE; i++)
        score[i] = -INFINITY;
    const float best = kv->maximum(score, RT_TILE), before = b->top[row];
    if (best > before) {
        const float keep = before == -INFINITY ? 0 : expf(before - best);
        kv->scale(b->acc + row * b->wide, keep, b->wide);
        b->total[row] *= keep;
        b->top[row] = best;
    }
    b->total[row] += kv->exponentials(score, score, b->top[row], RT_TILE);
}

static void add_values(const struct rt_attn_block *j, const struct buffers *b, int64_t n)
{
    for (int64_t c = 0; c < b->wide; c += RT_PANEL) {
        const struct rt_panel args = {.y = b->acc + c,
                                      .ldy = b->wide,
                                      .panel = b->values + c * n,
                                      .rows = RT_PANEL,
                                      .x = b->score,
                                      .ldx = RT_TILE,
                                      .n = b->rows,
                                      .in = n,
                                      .add = true};
        j->a->kern->panel->multiply(&args);
    }
}

void rt_attn_block_tile(const struct rt_attn_block *j, const struct rt_tile *tile,
                        float *scratch)
{
    const struct rt_attn *a = j->a;
    const struct buffers b = buffers_of(j, scratch);
    if (tile->packed_keys)
        unpack_keys(j, &b, tile);
    else
        fill_keys(j, &b, tile);
    fill_values(j, &b, tile);
    score_tile(j, &b, tile->n);
    for (int64_t r = 0; r < b.rows;)
        for (int64_t t = j->first; t < j->end; t++, r++) {
            const int64_t first = rt_attn_first_seen(a, t) - tile->at;
            const int64_t end = a->past + t + 1 - tile->at;
            soften(j, &b, r, first < 0 ? 0 : first, end < tile->n ? end : tile->n);
        }
    add_values(j, &b, tile->n);
}

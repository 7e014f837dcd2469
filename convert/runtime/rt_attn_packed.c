/* SPDX-License-Identifier: MIT
 *
 * Attention over 4-bit keys and values without dequantizing them. With
 * x^ = s (m + h code) + delta, where s and delta belong to channels and h and m to a token
 * and group, the parameters move out of the sums over codes:
 *
 *   q . k^   = sum over groups of (h sum (s q) code + m sum (s q)) + sum delta q
 *   sum p v^ = s (sum (p h) code + sum p m) + delta sum p
 *
 * So s and delta are applied once per query and output, h and m once per token and group,
 * and a code costs one lookup and one multiply-add. Per tile of RT_TILE tokens:
 *
 *   codes of keys   --score_keys-->  score [rows][RT_TILE]
 *   scores          --soften------>  p = exp(score - top), sums rescaled to the new top
 *   p, h, m of values               weight = p h, low += p m
 *   codes of values --add_values-->  acc += weight code
 *
 * and at the end out = s (acc + low) + delta total. A row is a (query, head) pair; all rows
 * of a kv head share each load of codes. */
#include "convert/runtime/rt_priv.h"

#include <math.h>
#include <string.h>

/* The planes of the layer, and a thread's buffers for `rows` rows. */
struct buffers {
    const struct rt_plane *k, *v;
    float *q;                 /* [rows][folded_floats] */
    float *acc;               /* [rows][acc_floats] sums of weight code */
    float *score, *weight;    /* [rows][RT_TILE] */
    float *low;               /* [rows][groups of v] sums of p m */
    float *top, *total;       /* [rows] maximum score, sum of p */
    float *kh, *km, *vh, *vm; /* [groups of k, of v][RT_TILE] */
};

static int64_t folded_floats(const struct rt_cache *c, const struct rt_plane *k)
{
    return c->d + k->groups + 1;
}

static int64_t acc_floats(const struct rt_plane *v)
{
    return v->groups * rt_acc_floats(v->group / 8);
}

/* Places the buffers from `at` on and returns their size in floats. at NULL: size only. */
static int64_t place_buffers(struct buffers *b, float *at, const struct rt_cache *c,
                             int64_t layer, int64_t rows)
{
    const struct rt_plane *k = rt_cache_plane(c, layer, KV_K);
    const struct rt_plane *v = rt_cache_plane(c, layer, KV_V);
    const struct {
        float **p;
        int64_t n;
    } place[] = {{&b->acc, rows * acc_floats(v)},
                 {&b->q, rows * folded_floats(c, k)},
                 {&b->score, rows * RT_TILE},
                 {&b->weight, rows * RT_TILE},
                 {&b->low, rows * v->groups},
                 {&b->top, rows},
                 {&b->total, rows},
                 {&b->kh, k->groups * RT_TILE},
                 {&b->km, k->groups * RT_TILE},
                 {&b->vh, v->groups * RT_TILE},
                 {&b->vm, v->groups * RT_TILE}};
    int64_t used = 0;
    *b = (struct buffers){.k = k, .v = v};
    for (size_t i = 0; i < ARRAY_LEN(place); i++) {
        *place[i].p = at ? at + used : NULL;
        used += place[i].n;
    }
    return used;
}

int64_t rt_attn_packed_floats(const struct rt_cache *c, int64_t rows)
{
    int64_t most = 0;
    struct buffers b;
    for (int64_t i = 0; i < c->layers; i++) {
        const int64_t n = c->interleaved[i] ? place_buffers(&b, NULL, c, i, rows) : 0;
        most = n > most ? n : most;
    }
    return most;
}

/* Folds s and delta of the keys into the query of one head. */
static void fold(float *out, const float *q, const struct rt_attn *a,
                 const struct rt_plane *k, struct rt_channels key)
{
    const int64_t d = a->cache->d;
    float *sums = out + d, *shift = sums + k->groups;
    *shift = 0;
    for (int64_t g = 0, i = 0; g < k->groups; g++, i += k->group) {
        const struct rt_channels of = {key.s + i, key.delta + i};
        *shift += a->kern->kv->fold(out + i, &sums[g], q + i, of, a->scale, k->group);
    }
}

void rt_attn_pairs(float *h, float *m, const struct rt_attn *a, enum kv_side side,
                   int64_t kh, int64_t at)
{
    const struct rt_cache *c = a->cache;
    const int64_t n = c->max - at < RT_TILE ? c->max - at : RT_TILE;
    const uint16_t *pair = rt_cache_pairs(c, a->layer, side, kh) + at;
    const int64_t groups = rt_cache_plane(c, a->layer, side)->groups;
    for (int64_t g = 0; g < groups; g++, pair += 2 * c->max) {
        a->kern->to_f32(h + g * RT_TILE, pair, DT_F16, n);
        a->kern->to_f32(m + g * RT_TILE, pair + c->max, DT_F16, n);
    }
}

/* Prefetches one tile. Its few kilobytes are spread over up to 2 groups + groups arrays,
 * each too short for the hardware prefetcher. */
static void prefetch_tile(const struct rt_attn *a, enum kv_side side, int64_t kh,
                          int64_t at, int64_t end)
{
    const struct rt_cache *c = a->cache;
    const struct rt_plane *p = rt_cache_plane(c, a->layer, side);
    const int64_t n = end - at < RT_TILE ? end - at : RT_TILE;
    const uint8_t *codes = rt_cache_codes(c, a->layer, side, kh);
    const uint16_t *pair = rt_cache_pairs(c, a->layer, side, kh) + at;
    /* Keys are one run of memory, values one per group. */
    const int64_t runs = side == KV_K ? 1 : p->groups, token = p->code_bytes / runs;
    if (n <= 0)
        return;
    for (int64_t i = 0; i < runs; i++)
        rt_prefetch(codes + (i * c->max + at) * token, n * token);
    for (int64_t i = 0; i < 2 * p->groups; i++)
        rt_prefetch(pair + i * c->max, 2 * n);
}

void rt_attn_prefetch(const struct rt_attn *a, int64_t kh, int64_t at, int64_t end)
{
    prefetch_tile(a, KV_K, kh, at, end);
    prefetch_tile(a, KV_V, kh, at, end);
}

/* Overwrites tokens outside [first, end) of the tile: the cache may hold anything there. */
static void clear_outside(float *x, int64_t rows, float value, int64_t first, int64_t end)
{
    for (int64_t r = 0; r < rows; r++, x += RT_TILE) {
        for (int64_t i = 0; i < first; i++)
            x[i] = value;
        for (int64_t i = end; i < RT_TILE; i++)
            x[i] = value;
    }
}

static void score_tile(const struct rt_attn_packed *j, const struct buffers *b,
                       const struct rt_folded *f, int64_t at, int64_t end)
{
    const struct rt_cache *c = j->a->cache;
    const uint8_t *codes = rt_cache_codes(c, j->a->layer, KV_K, j->kh);
    rt_attn_pairs(b->kh, b->km, j->a, KV_K, j->kh, at);
    for (int64_t t = at; t < end; t += RT_KEYS)
        j->a->kern->kv->score_keys(b->score + t - at, f, codes + t * b->k->code_bytes,
                                   rt_cache_width(c, t), b->kh + t - at, b->km + t - at);
}

/* Turns scores into exponentials below the highest score so far. When that rises, the row's
 * sums are scaled down to the new one. */
static void soften(const struct rt_attn_packed *j, const struct buffers *b, int64_t row)
{
    const struct rt_kv_kernels *kv = j->a->kern->kv;
    float *score = b->score + row * RT_TILE, *acc = b->acc + row * acc_floats(b->v);
    const float best = kv->maximum(score, RT_TILE), before = b->top[row];
    if (best > before && before == -INFINITY) {
        b->top[row] = best; /* the sums are still 0 */
    } else if (best > before) {
        const float keep = expf(before - best);
        kv->scale(acc, keep, acc_floats(b->v));
        for (int64_t g = 0; g < b->v->groups; g++)
            b->low[row * b->v->groups + g] *= keep;
        b->total[row] *= keep;
        b->top[row] = best;
    }
    b->total[row] += kv->exponentials(score, score, b->top[row], RT_TILE);
}

static void add_values(const struct rt_attn_packed *j, const struct buffers *b,
                       int64_t rows, int64_t at, int64_t n)
{
    const struct rt_cache *c = j->a->cache;
    const int64_t groups = b->v->groups, words = b->v->group / 8;
    const uint8_t *codes = rt_cache_codes(c, j->a->layer, KV_V, j->kh) + 4 * at * words;
    for (int64_t g = 0; g < groups; g++, codes += 4 * c->max * words) {
        const float *h = b->vh + g * RT_TILE, *m = b->vm + g * RT_TILE;
        for (int64_t r = 0; r < rows; r++) {
            const float *p = b->score + r * RT_TILE;
            float *w = b->weight + r * RT_TILE;
            j->a->kern->kv->multiply(w, p, h, RT_TILE);
            b->low[r * groups + g] += j->a->kern->dot(p, m, RT_TILE);
        }
        j->a->kern->kv->add_values(b->acc + g * rt_acc_floats(words), acc_floats(b->v),
                                   b->weight, rows, codes, n, words);
    }
}

/* Writes the row's partial softmax: { top, total, [d] sum p v^ }. */
static void write_partial(const struct rt_attn_packed *j, const struct buffers *b,
                          int64_t row, float *partial)
{
    const struct rt_channels v = rt_cache_channels(j->a->cache, j->a->layer, KV_V, j->kh);
    const int64_t groups = b->v->groups, group = b->v->group;
    const float *acc = b->acc + row * acc_floats(b->v);
    float *out = partial + 2;
    partial[0] = b->top[row];
    partial[1] = b->total[row];
    for (int64_t g = 0; g < groups; g++) {
        const float low = b->low[row * groups + g];
        j->a->kern->kv->collect(out + g * group, acc + g * rt_acc_floats(group / 8),
                                group / 8);
        for (int64_t i = g * group; i < (g + 1) * group; i++)
            out[i] = v.s[i] * (out[i] + low) + v.delta[i] * b->total[row];
    }
}

/* Folds the queries of all rows and clears their sums. */
static void begin(const struct rt_attn_packed *j, const struct buffers *b, int64_t rows)
{
    const struct rt_cache *c = j->a->cache;
    const int64_t G = j->a->H / c->K;
    const struct rt_channels key = rt_cache_channels(c, j->a->layer, KV_K, j->kh);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t t = j->first + r / G, h = j->kh * G + r % G;
        fold(b->q + r * folded_floats(c, b->k), j->a->q + (t * j->a->H + h) * c->d, j->a,
             b->k, key);
        b->top[r] = -INFINITY;
        b->total[r] = 0;
    }
    memset(b->acc, 0, (size_t)(rows * acc_floats(b->v)) * sizeof(float));
    memset(b->low, 0, (size_t)(rows * b->v->groups) * sizeof(float));
}

void rt_attn_packed(const struct rt_attn_packed *j, float *scratch)
{
    const struct rt_cache *c = j->a->cache;
    const int64_t G = j->a->H / c->K, rows = (j->end - j->first) * G;
    struct buffers b;
    place_buffers(&b, scratch, c, j->a->layer, rows);
    const struct rt_folded f = {b.q, rows, folded_floats(c, b.k), c->d, b.k->group};
    const int64_t first = j->from / RT_KEYS * RT_KEYS;
    rt_attn_prefetch(j->a, j->kh, first, j->to);
    begin(j, &b, rows);
    for (int64_t at = first; at < j->to; at += RT_TILE) {
        prefetch_tile(j->a, KV_K, j->kh, at + RT_TILE, j->to);
        const int64_t end = j->to - at < RT_TILE ? j->to : at + RT_TILE;
        const int64_t before = at < j->from ? j->from - at : 0;
        score_tile(j, &b, &f, at, end);
        clear_outside(b.score, rows, -INFINITY, before, end - at);
        for (int64_t r = 0; r < rows; r++)
            soften(j, &b, r);
        prefetch_tile(j->a, KV_V, j->kh, at + RT_TILE, j->to);
        rt_attn_pairs(b.vh, b.vm, j->a, KV_V, j->kh, at);
        clear_outside(b.vh, b.v->groups, 0, before, end - at);
        clear_outside(b.vm, b.v->groups, 0, before, end - at);
        add_values(j, &b, rows, at, end - at);
    }
    for (int64_t r = 0; r < rows; r++)
        write_partial(j, &b, r,
                      j->partial + ((j->first + r / G) * j->a->H + j->kh * G + r % G) *
                                       j->partial_step);
}

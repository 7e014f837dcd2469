/* SPDX-License-Identifier: MIT
 *
 * Attention over keys and values as they lie in the cache, 4 bits each. With
 * x^ = s (m + h code) + delta of a token and group:
 *   q . k^   = h sum (s q) code + m sum (s q) + sum delta q
 *   sum p v^ = s (sum (p h) code + sum p m) + delta sum p
 * so that s and delta are met once a query, h and m once a token, and a code only by a
 * multiplication. */
#include "convert/runtime/rt_priv.h"

#include <math.h>
#include <string.h>

/* A thread's buffers, for `rows` rows. */
struct buffers {
    float *q, *acc, *score, *weight; /* [rows] of each */
    float *low;                      /* [rows][groups]: sum p m */
    float *top, *total;              /* [rows] */
    float *kh, *km, *vh, *vm;        /* [groups][RT_TILE] */
};

static int64_t folded_floats(const struct rt_cache *c)
{
    return c->d + c->groups + 1;
}

static int64_t acc_floats(const struct rt_cache *c)
{
    return c->groups * rt_acc(c->group / 8);
}

int64_t rt_attn_packed_floats(const struct rt_cache *c, int64_t rows)
{
    const int64_t row = folded_floats(c) + acc_floats(c) + 2 * RT_TILE + c->groups + 2;
    return rows * row + 4 * c->groups * RT_TILE;
}

static struct buffers buffers_in(float *at, const struct rt_cache *c, int64_t rows)
{
    struct buffers b;
    const struct {
        float **p;
        int64_t n;
    } part[] = {{&b.acc, rows * acc_floats(c)},
                {&b.q, rows * folded_floats(c)},
                {&b.score, rows * RT_TILE},
                {&b.weight, rows * RT_TILE},
                {&b.low, rows * c->groups},
                {&b.top, rows},
                {&b.total, rows},
                {&b.kh, c->groups * RT_TILE},
                {&b.km, c->groups * RT_TILE},
                {&b.vh, c->groups * RT_TILE},
                {&b.vm, c->groups * RT_TILE}};
    for (size_t i = 0; i < ARRAY_LEN(part); i++) {
        *part[i].p = at;
        at += part[i].n;
    }
    return b;
}

/* Query q of one head, folded. */
static void fold(float *out, const float *q, const struct rt_cache *c,
                 struct rt_channels key)
{
    const float scale = 1 / sqrtf((float)c->d);
    float *sums = out + c->d, shift = 0;
    for (int64_t g = 0; g < c->groups; g++) {
        sums[g] = 0;
        for (int64_t i = g * c->group; i < (g + 1) * c->group; i++) {
            out[i] = scale * q[i] * key.s[i];
            sums[g] += out[i];
            shift += scale * q[i] * key.delta[i];
        }
    }
    sums[c->groups] = shift;
}

/* h and m of tokens [at, at + RT_TILE) from planes of the head: those that are there. */
static void load_pairs(float *h, float *m, const struct rt_attn_packed *j, int which,
                       int64_t at)
{
    const struct rt_cache *c = j->a->cache;
    const int64_t n = c->max - at < RT_TILE ? c->max - at : RT_TILE;
    const uint16_t *pair = rt_cache_pairs(c, j->a->layer, which, j->kh) + at;
    for (int64_t g = 0; g < c->groups; g++, pair += 2 * c->max) {
        j->a->kern->to_f32(h + g * RT_TILE, pair, DT_F16, n);
        j->a->kern->to_f32(m + g * RT_TILE, pair + c->max, DT_F16, n);
    }
}

/* Tokens outside the stretch: their memory may hold anything. */
static void clear_outside(float *x, int64_t rows, float value, int64_t before,
                          int64_t behind)
{
    for (int64_t r = 0; r < rows; r++, x += RT_TILE) {
        for (int64_t i = 0; i < before; i++)
            x[i] = value;
        for (int64_t i = behind; i < RT_TILE; i++)
            x[i] = value;
    }
}

static void score_tile(const struct rt_attn_packed *j, const struct buffers *b,
                       const struct rt_folded *f, int64_t at, int64_t end)
{
    const struct rt_cache *c = j->a->cache;
    const uint8_t *codes = rt_cache_codes(c, j->a->layer, RT_K, j->kh);
    load_pairs(b->kh, b->km, j, RT_K, at);
    for (int64_t t = at; t < end; t += RT_KEYS)
        j->a->kern->kv->keys(b->score + t - at, f, codes + t * c->code_bytes,
                             rt_cache_width(c, t), b->kh + t - at, b->km + t - at);
}

/* Scores become exponentials, under the highest so far; sums follow it. */
static void soften(const struct rt_attn_packed *j, const struct buffers *b, int64_t row)
{
    const struct rt_cache *c = j->a->cache;
    const struct rt_kv_kernels *kv = j->a->kern->kv;
    float *score = b->score + row * RT_TILE, *acc = b->acc + row * acc_floats(c);
    const float best = kv->highest(score, RT_TILE), before = b->top[row];
    if (best > before) {
        const float keep = before == -INFINITY ? 0 : expf(before - best);
        for (int64_t i = 0; i < acc_floats(c); i++)
            acc[i] *= keep;
        for (int64_t g = 0; g < c->groups; g++)
            b->low[row * c->groups + g] *= keep;
        b->total[row] *= keep;
        b->top[row] = best;
    }
    b->total[row] += kv->weights(score, score, b->top[row], RT_TILE);
}

static void add_values(const struct rt_attn_packed *j, const struct buffers *b,
                       int64_t rows, int64_t at, int64_t n)
{
    const struct rt_cache *c = j->a->cache;
    const int64_t words = c->group / 8;
    const uint8_t *codes = rt_cache_codes(c, j->a->layer, RT_V, j->kh) + 4 * at * words;
    for (int64_t g = 0; g < c->groups; g++, codes += 4 * c->max * words) {
        const float *h = b->vh + g * RT_TILE, *m = b->vm + g * RT_TILE;
        for (int64_t r = 0; r < rows; r++) {
            const float *p = b->score + r * RT_TILE;
            float *w = b->weight + r * RT_TILE;
            for (int i = 0; i < RT_TILE; i++)
                w[i] = p[i] * h[i];
            b->low[r * c->groups + g] += j->a->kern->dot(p, m, RT_TILE);
        }
        j->a->kern->kv->values(b->acc + g * rt_acc(words), acc_floats(c), b->weight, rows,
                               codes, n, words);
    }
}

static void write_part(const struct rt_attn_packed *j, const struct buffers *b, int64_t row,
                       float *part)
{
    const struct rt_cache *c = j->a->cache;
    const struct rt_channels v = rt_cache_channels(c, j->a->layer, RT_V, j->kh);
    const float *acc = b->acc + row * acc_floats(c);
    float *out = part + 2;
    part[0] = b->top[row];
    part[1] = b->total[row];
    for (int64_t g = 0; g < c->groups; g++) {
        const float low = b->low[row * c->groups + g];
        j->a->kern->kv->collect(out + g * c->group, acc + g * rt_acc(c->group / 8),
                                c->group / 8);
        for (int64_t i = g * c->group; i < (g + 1) * c->group; i++)
            out[i] = v.s[i] * (out[i] + low) + v.delta[i] * b->total[row];
    }
}

static void begin(const struct rt_attn_packed *j, const struct buffers *b, int64_t rows)
{
    const struct rt_cache *c = j->a->cache;
    const int64_t G = j->a->H / c->K;
    const struct rt_channels key = rt_cache_channels(c, j->a->layer, RT_K, j->kh);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t t = j->first + r / G, h = j->kh * G + r % G;
        fold(b->q + r * folded_floats(c), j->a->q + (t * j->a->H + h) * c->d, c, key);
        b->top[r] = -INFINITY;
        b->total[r] = 0;
    }
    memset(b->acc, 0, (size_t)(rows * acc_floats(c)) * sizeof(float));
    memset(b->low, 0, (size_t)(rows * c->groups) * sizeof(float));
}

void rt_attn_packed(const struct rt_attn_packed *j, float *scratch)
{
    const struct rt_cache *c = j->a->cache;
    const int64_t G = j->a->H / c->K, rows = (j->end - j->first) * G;
    const struct buffers b = buffers_in(scratch, c, rows);
    const struct rt_folded f = {b.q, rows, folded_floats(c), c->d, c->group};
    begin(j, &b, rows);
    for (int64_t at = j->from / RT_KEYS * RT_KEYS; at < j->to; at += RT_TILE) {
        const int64_t end = j->to - at < RT_TILE ? j->to : at + RT_TILE;
        const int64_t before = at < j->from ? j->from - at : 0;
        score_tile(j, &b, &f, at, end);
        clear_outside(b.score, rows, -INFINITY, before, end - at);
        for (int64_t r = 0; r < rows; r++)
            soften(j, &b, r);
        load_pairs(b.vh, b.vm, j, RT_V, at);
        clear_outside(b.vh, c->groups, 0, before, end - at);
        clear_outside(b.vm, c->groups, 0, before, end - at);
        add_values(j, &b, rows, at, end - at);
    }
    for (int64_t r = 0; r < rows; r++)
        write_part(j, &b, r,
                   j->part +
                       ((j->first + r / G) * j->a->H + j->kh * G + r % G) * j->part_step);
}

/* SPDX-License-Identifier: MIT
 *
 * The packed cache: codes and fp16 pairs by layer, token and head. */
#include "convert/artifact/bitpack.h"
#include "convert/runtime/rt_priv.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <string.h>

#define MAX_HEAD 4096 /* arch_check's bound on head_dim */

/* --- memory ------------------------------------------------------------------------- */

/* [layers][2][tokens][width] items of unit bytes; nothing for none. */
static enum err room(struct rt_cache *c, void *out, int64_t tokens, int64_t width,
                     size_t unit)
{
    const int64_t dims[] = {c->layers, 2, tokens, width};
    size_t bytes;
    TRY(size_product(&bytes, dims, 4, unit));
    if (bytes == 0)
        return OK;
    TRY(mem_alloc(out, bytes, 1));
    c->bytes += bytes;
    return OK;
}

static int64_t at_most(int64_t n, int64_t max)
{
    return n < 0 ? 0 : n < max ? n : max;
}

enum err rt_cache_open(struct rt_cache *c, const struct artifact *a,
                       const struct rt_kernels *kern, const struct kv_spec *spec,
                       int64_t max)
{
    const struct arch *arch = artifact_arch(a);
    *c = (struct rt_cache){.a = a,
                           .kern = kern,
                           .spec = *spec,
                           .layers = arch->n_layers,
                           .max = max,
                           .K = arch->n_kv,
                           .d = arch->head_dim};
    const int64_t C = c->K * c->d;
    if (spec->bits >= 16)
        return room(c, &c->full, max, C, sizeof(float));
    c->group = kv_group(c->d, spec->group_size);
    c->groups = (c->d + c->group - 1) / c->group;
    c->code_bytes = bitpack_bytes(c->d, spec->bits);
    c->lanes = spec->bits == 4 && c->group % 8 == 0 && c->d % c->group == 0 &&
               spec->key_stage == KEY_POST_ROPE;
    c->recent = spec->past_only ? at_most(spec->window - 1, max) : 0;
    c->sink = at_most(spec->sink, max);
    TRY(room(c, &c->codes, max, c->K * c->code_bytes, 1));
    TRY(room(c, &c->pairs, max, c->K * c->groups * 2, sizeof(uint16_t)));
    TRY(room(c, &c->ring, c->recent, C, sizeof(float)));
    return room(c, &c->first, c->sink, C, sizeof(float));
}

void rt_cache_close(struct rt_cache *c)
{
    mem_free(c->codes);
    mem_free(c->pairs);
    mem_free(c->full);
    mem_free(c->ring);
    mem_free(c->first);
    mem_free(c->marked);
    *c = (struct rt_cache){0};
}

static size_t ring_floats(const struct rt_cache *c)
{
    return c->ring ? (size_t)(c->layers * 2 * c->recent * c->K * c->d) : 0;
}

enum err rt_cache_mark(struct rt_cache *c)
{
    const size_t n = ring_floats(c);
    if (!n)
        return OK;
    if (!c->marked)
        TRY(mem_alloc(&c->marked, n, sizeof(float)));
    memcpy(c->marked, c->ring, n * sizeof(float));
    return OK;
}

void rt_cache_rewind(struct rt_cache *c)
{
    const size_t n = ring_floats(c);
    if (n && c->marked)
        memcpy(c->ring, c->marked, n * sizeof(float));
}

/* Index of (layer, which, token, head) when each token of a plane has K items. */
static int64_t place(const struct rt_cache *c, int64_t layer, int which, int64_t tokens,
                     int64_t t, int64_t kh)
{
    return ((layer * 2 + which) * tokens + t) * c->K + kh;
}

/* --- codes in the order of vectors -------------------------------------------------- */

/* Index of the head's first token. */
static int64_t head_at(const struct rt_cache *c, int64_t layer, int which, int64_t kh)
{
    return ((layer * 2 + which) * c->K + kh) * c->max;
}

const uint8_t *rt_cache_codes(const struct rt_cache *c, int64_t layer, int which,
                              int64_t kh)
{
    return c->codes + head_at(c, layer, which, kh) * c->code_bytes;
}

const uint16_t *rt_cache_pairs(const struct rt_cache *c, int64_t layer, int which,
                               int64_t kh)
{
    return c->pairs + head_at(c, layer, which, kh) * c->groups * 2;
}

int64_t rt_cache_width(const struct rt_cache *c, int64_t t)
{
    const int64_t left = c->max - t / RT_KEYS * RT_KEYS;
    return left < RT_KEYS ? left : RT_KEYS;
}

/* Where the 32 bits of word i of token t lie, from the head's beginning. */
static int64_t word_at(const struct rt_cache *c, int which, int64_t t, int64_t i)
{
    const int64_t words = c->group / 8, block = t / RT_KEYS * RT_KEYS;
    if (which == RT_V)
        return 4 * ((i / words * c->max + t) * words + i % words);
    return block * c->code_bytes + 4 * (i * rt_cache_width(c, t) + t - block);
}

/* One token's row of codes into place, or out of it. */
static void put_words(struct rt_cache *c, int64_t layer, int which, int64_t kh, int64_t t,
                      const uint8_t *row)
{
    uint8_t *codes = c->codes + head_at(c, layer, which, kh) * c->code_bytes;
    for (int64_t i = 0; i < c->d / 8; i++)
        memcpy(codes + word_at(c, which, t, i), row + 4 * i, 4);
}

static void get_words(const struct rt_cache *c, int64_t layer, int which, int64_t kh,
                      int64_t t, uint8_t *row)
{
    const uint8_t *codes = rt_cache_codes(c, layer, which, kh);
    for (int64_t i = 0; i < c->d / 8; i++)
        memcpy(row + 4 * i, codes + word_at(c, which, t, i), 4);
}

/* Where group g's pair of token t lies; h, and m at so many behind it. */
static uint16_t *pair_at(const struct rt_cache *c, int64_t layer, int which, int64_t kh,
                         int64_t t, int64_t g, int64_t *to_m)
{
    *to_m = c->lanes ? c->max : 1;
    if (c->lanes)
        return c->pairs + (head_at(c, layer, which, kh) * c->groups + g * c->max) * 2 + t;
    return c->pairs + (place(c, layer, which, c->max, t, kh) * c->groups + g) * 2;
}

/* --- packing ------------------------------------------------------------------------ */

struct rt_channels rt_cache_channels(const struct rt_cache *c, int64_t layer, int which,
                                     int64_t kh)
{
    const struct packed_block *b = artifact_block(c->a, layer);
    return which == RT_K
               ? (struct rt_channels){b->k_scale + kh * c->d, b->k_shift + kh * c->d}
               : (struct rt_channels){b->v_scale + kh * c->d, b->v_shift + kh * c->d};
}

/* Codes and pair (h at 0, m at to_m) of channels [begin, end) of a head. */
static void pack_group(uint8_t *codes, uint16_t *pair, int64_t to_m, const float *x,
                       struct rt_channels ch, int64_t begin, int64_t end, int bits)
{
    float mn = quant_kv_in(x[begin], ch.s[begin], ch.delta[begin]), mx = mn;
    for (int64_t i = begin + 1; i < end; i++) {
        const float xt = quant_kv_in(x[i], ch.s[i], ch.delta[i]);
        mn = xt < mn ? xt : mn;
        mx = xt > mx ? xt : mx;
    }
    pair[0] = quant_kv_scale(mn, mx, bits);
    pair[to_m] = quant_kv_min(mn);
    const float h = f16_to_f32(pair[0]), m = f16_to_f32(pair[to_m]);
    for (int64_t i = begin; i < end; i++)
        codes[i] = quant_kv_code(quant_kv_in(x[i], ch.s[i], ch.delta[i]), h, m, bits);
}

static void pack_head(struct rt_cache *c, int64_t layer, int which, int64_t t, int64_t kh,
                      const float *x)
{
    const struct rt_channels ch = rt_cache_channels(c, layer, which, kh);
    uint8_t codes[MAX_HEAD], row[MAX_HEAD];
    int64_t to_m;
    for (int64_t g = 0; g < c->groups; g++) {
        const int64_t begin = g * c->group;
        const int64_t end = c->d - begin < c->group ? c->d : begin + c->group;
        uint16_t *pair = pair_at(c, layer, which, kh, t, g, &to_m);
        pack_group(codes, pair, to_m, x, ch, begin, end, c->spec.bits);
    }
    bitpack_row(row, codes, c->d, c->spec.bits);
    if (c->lanes)
        put_words(c, layer, which, kh, t, row);
    else
        memcpy(c->codes + place(c, layer, which, c->max, t, kh) * c->code_bytes, row,
               (size_t)c->code_bytes);
}

struct pack_job {
    struct rt_cache *c;
    int64_t layer, at;
    const float *x[2]; /* [n][C] */
};

static void pack_token(void *ctx, int64_t i, int thread)
{
    const struct pack_job *j = ctx;
    struct rt_cache *c = j->c;
    const int64_t C = c->K * c->d;
    for (int which = RT_K; which <= RT_V; which++) {
        const float *x = j->x[which] + i * C;
        if (c->full) {
            memcpy(c->full + place(c, j->layer, which, c->max, j->at + i, 0) * c->d, x,
                   (size_t)C * sizeof(float));
            continue;
        }
        for (int64_t kh = 0; kh < c->K; kh++)
            pack_head(c, j->layer, which, j->at + i, kh, x + kh * c->d);
    }
}

void rt_cache_pack(struct rt_cache *c, struct pool *pool, int64_t layer, int64_t at,
                   int64_t n, const float *k_packed, const float *v)
{
    struct pack_job j = {.c = c, .layer = layer, .at = at, .x = {k_packed, v}};
    pool_run(n > 1 ? pool : NULL, n, pack_token, &j);
}

void rt_cache_keep(struct rt_cache *c, int64_t layer, int64_t at, int64_t n, const float *k,
                   const float *v)
{
    const int64_t C = c->K * c->d;
    for (int which = RT_K; which <= RT_V; which++)
        for (int64_t i = 0; i < n; i++) {
            const float *x = (which == RT_K ? k : v) + i * C;
            const int64_t t = at + i;
            if (t < c->sink)
                memcpy(c->first + place(c, layer, which, c->sink, t, 0) * c->d, x,
                       (size_t)C * sizeof(float));
            if (c->recent)
                memcpy(c->ring + place(c, layer, which, c->recent, t % c->recent, 0) * c->d,
                       x, (size_t)C * sizeof(float));
        }
}

/* --- reading ------------------------------------------------------------------------ */

static void rotate(const struct rt_cache *c, float *x, int64_t t)
{
    const int64_t half = c->d / 2;
    const float *co = c->cos + t * half, *si = c->sin + t * half;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * co[i] - b * si[i];
        x[half + i] = b * co[i] + a * si[i];
    }
}

static void unpack_head(const struct rt_cache *c, int64_t layer, int which, int64_t t,
                        int64_t kh, float *x)
{
    const struct rt_channels ch = rt_cache_channels(c, layer, which, kh);
    uint8_t codes[MAX_HEAD], words[MAX_HEAD];
    const uint8_t *row = words;
    if (c->lanes)
        get_words(c, layer, which, kh, t, words);
    else
        row = c->codes + place(c, layer, which, c->max, t, kh) * c->code_bytes;
    bitpack_unpack_row(codes, row, c->d, c->spec.bits);
    for (int64_t g = 0; g < c->groups; g++) {
        const int64_t begin = g * c->group;
        const int64_t n = c->d - begin < c->group ? c->d - begin : c->group;
        int64_t to_m;
        const uint16_t *pair = pair_at(c, layer, which, kh, t, g, &to_m);
        c->kern->kv_out(x + begin, codes + begin, f16_to_f32(pair[0]),
                        f16_to_f32(pair[to_m]), ch.s + begin, ch.delta + begin, n);
    }
    if (which == RT_K && c->spec.key_stage == KEY_PRE_ROPE)
        rotate(c, x, t);
}

void rt_cache_tile(const struct rt_cache *c, int64_t layer, int which, int64_t kh,
                   int64_t at, int64_t n, float *tile, const float **row)
{
    for (int64_t i = 0; i < n; i++) {
        if (c->full) {
            row[i] = c->full + place(c, layer, which, c->max, at + i, kh) * c->d;
            continue;
        }
        unpack_head(c, layer, which, at + i, kh, tile + i * c->d);
        row[i] = tile + i * c->d;
    }
}

const float *rt_cache_full(const struct rt_cache *c, int64_t layer, int which, int64_t kh,
                           int64_t t, int64_t i)
{
    if (t < c->sink)
        return c->first + place(c, layer, which, c->sink, t, kh) * c->d;
    if (t + c->recent >= i) /* t > i - window */
        return c->ring + place(c, layer, which, c->recent, t % c->recent, kh) * c->d;
    return NULL;
}

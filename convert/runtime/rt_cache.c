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

/* Room for n dims of items of unit bytes; nothing for none. */
static enum err alloc_counted(struct rt_cache *c, void *out, const int64_t *dim, int n,
                              size_t unit)
{
    size_t bytes;
    TRY(size_product(&bytes, dim, n, unit));
    if (bytes == 0)
        return OK;
    TRY(mem_alloc(out, bytes, 1));
    c->bytes += bytes;
    return OK;
}

static enum err open_plane(struct rt_cache *c, struct rt_plane *p, struct kv_format f)
{
    *p = (struct rt_plane){.bits = f.bits};
    if (f.bits >= 16)
        return alloc_counted(c, &p->full, (int64_t[]){c->max, c->K, c->d}, 3,
                             sizeof(float));
    p->group = kv_group(c->d, f.group_size);
    p->groups = (c->d + p->group - 1) / p->group;
    p->code_bytes = bitpack_bytes(c->d, f.bits);
    TRY(alloc_counted(c, &p->codes, (int64_t[]){c->max, c->K, p->code_bytes}, 3, 1));
    return alloc_counted(c, &p->pairs, (int64_t[]){c->max, c->K, p->groups, 2}, 4,
                         sizeof(uint16_t));
}

static bool fits_interleaving(const struct rt_cache *c, const struct rt_plane *p)
{
    return p->bits == 4 && p->group % 8 == 0 && c->d % p->group == 0 &&
           c->spec.key_stage == KEY_POST_ROPE;
}

/* Planes of every layer; *packed: not all of them are full. */
static enum err open_planes(struct rt_cache *c, bool *packed)
{
    *packed = false;
    TRY(mem_calloc(&c->planes, 2 * (size_t)c->layers, sizeof(*c->planes)));
    TRY(mem_calloc(&c->interleaved, (size_t)c->layers, sizeof(*c->interleaved)));
    for (int64_t i = 0; i < c->layers; i++) {
        struct rt_plane *const k = rt_cache_plane(c, i, KV_K), *const v = rt_cache_plane(
                                                                   c, i, KV_V);
        TRY(open_plane(c, k, kv_format(&c->spec, i, KV_K)));
        TRY(open_plane(c, v, kv_format(&c->spec, i, KV_V)));
        c->interleaved[i] = fits_interleaving(c, k) && fits_interleaving(c, v);
        *packed |= !k->full || !v->full;
    }
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
    bool packed;
    TRY(open_planes(c, &packed));
    if (!packed)
        return OK;
    c->recent = spec->past_only ? at_most(spec->window - 1, max) : 0;
    c->sink = at_most(spec->sink, max);
    TRY(alloc_counted(c, &c->ring, (int64_t[]){c->layers, 2, c->recent, c->K, c->d}, 5,
                      sizeof(float)));
    return alloc_counted(c, &c->first, (int64_t[]){c->layers, 2, c->sink, c->K, c->d}, 5,
                         sizeof(float));
}

void rt_cache_close(struct rt_cache *c)
{
    for (int64_t i = 0; c->planes && i < 2 * c->layers; i++) {
        mem_free(c->planes[i].codes);
        mem_free(c->planes[i].pairs);
        mem_free(c->planes[i].full);
    }
    mem_free(c->planes);
    mem_free(c->interleaved);
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

/* F32 of (layer, side, token, head) where each plane holds so many tokens. */
static float *kept_f32(const struct rt_cache *c, float *memory, int64_t tokens,
                       int64_t layer, enum kv_side side, int64_t t, int64_t kh)
{
    return memory + (((2 * layer + side) * tokens + t) * c->K + kh) * c->d;
}

static float *full_at(const struct rt_cache *c, const struct rt_plane *p, int64_t t,
                      int64_t kh)
{
    return p->full + (t * c->K + kh) * c->d;
}

/* --- codes in the order of vectors -------------------------------------------------- */

/* Where the head's first token lies. */
static uint8_t *codes_of(const struct rt_cache *c, const struct rt_plane *p, int64_t kh)
{
    return p->codes + kh * c->max * p->code_bytes;
}

const uint8_t *rt_cache_codes(const struct rt_cache *c, int64_t layer, enum kv_side side,
                              int64_t kh)
{
    return codes_of(c, rt_cache_plane(c, layer, side), kh);
}

const uint16_t *rt_cache_pairs(const struct rt_cache *c, int64_t layer, enum kv_side side,
                               int64_t kh)
{
    const struct rt_plane *p = rt_cache_plane(c, layer, side);
    return p->pairs + kh * c->max * p->groups * 2;
}

int64_t rt_cache_width(const struct rt_cache *c, int64_t t)
{
    const int64_t left = c->max - t / RT_KEYS * RT_KEYS;
    return left < RT_KEYS ? left : RT_KEYS;
}

/* Where the 32 bits of word i of token t lie, from the head's beginning. */
static int64_t word_at(const struct rt_cache *c, const struct rt_plane *p,
                       enum kv_side side, int64_t t, int64_t i)
{
    const int64_t words = p->group / 8, block = t / RT_KEYS * RT_KEYS;
    if (side == KV_V)
        return 4 * ((i / words * c->max + t) * words + i % words);
    return block * p->code_bytes + 4 * (i * rt_cache_width(c, t) + t - block);
}

/* --- one head of one token ---------------------------------------------------------- */

/* A head of a token, and the plane that holds it. */
struct token_head {
    struct rt_plane *plane;
    int64_t layer;
    enum kv_side side;
    int64_t t, kh;
};

/* Its row of codes into place; or out of it, to row where it does not lie in one piece. */
static void put_codes(const struct rt_cache *c, struct token_head e, const uint8_t *row)
{
    const struct rt_plane *p = e.plane;
    if (!c->interleaved[e.layer]) {
        memcpy(p->codes + (e.t * c->K + e.kh) * p->code_bytes, row, (size_t)p->code_bytes);
        return;
    }
    uint8_t *codes = codes_of(c, p, e.kh);
    for (int64_t i = 0; i < c->d / 8; i++)
        memcpy(codes + word_at(c, p, e.side, e.t, i), row + 4 * i, 4);
}

static const uint8_t *get_codes(const struct rt_cache *c, struct token_head e, uint8_t *row)
{
    const struct rt_plane *p = e.plane;
    if (!c->interleaved[e.layer])
        return p->codes + (e.t * c->K + e.kh) * p->code_bytes;
    const uint8_t *codes = codes_of(c, p, e.kh);
    for (int64_t i = 0; i < c->d / 8; i++)
        memcpy(row + 4 * i, codes + word_at(c, p, e.side, e.t, i), 4);
    return row;
}

/* Where group g's pair lies; h, and m at so many behind it. */
static uint16_t *pair_at(const struct rt_cache *c, struct token_head e, int64_t g,
                         int64_t *to_m)
{
    const struct rt_plane *p = e.plane;
    const bool interleaved = c->interleaved[e.layer];
    *to_m = interleaved ? c->max : 1;
    return interleaved ? p->pairs + (e.kh * p->groups + g) * c->max * 2 + e.t
                       : p->pairs + ((e.t * c->K + e.kh) * p->groups + g) * 2;
}

/* --- packing ------------------------------------------------------------------------ */

struct rt_channels rt_cache_channels(const struct rt_cache *c, int64_t layer,
                                     enum kv_side side, int64_t kh)
{
    const struct packed_block *b = artifact_block(c->a, layer);
    return side == KV_K
               ? (struct rt_channels){b->k_scale + kh * c->d, b->k_shift + kh * c->d}
               : (struct rt_channels){b->v_scale + kh * c->d, b->v_shift + kh * c->d};
}

static void pack_head(struct rt_cache *c, struct token_head e, const float *x)
{
    const struct rt_plane *p = e.plane;
    const struct rt_channels ch = rt_cache_channels(c, e.layer, e.side, e.kh);
    uint8_t codes[MAX_HEAD], row[MAX_HEAD];
    int64_t to_m;
    for (int64_t g = 0; g < p->groups; g++) {
        const int64_t begin = g * p->group;
        const int64_t end = c->d - begin < p->group ? c->d : begin + p->group;
        uint16_t *pair = pair_at(c, e, g, &to_m);
        c->kern->kv->quantize(codes + begin, pair, pair + to_m, x + begin, ch.s + begin,
                              ch.delta + begin, end - begin, p->bits);
    }
    bitpack_row(row, codes, c->d, p->bits);
    put_codes(c, e, row);
}

struct pack_job {
    struct rt_cache *c;
    int64_t layer, at;
    const float *x[2], *full[2]; /* [n][C]: what is packed, and what a full plane takes */
};

static void pack_token(void *ctx, int64_t i, int thread)
{
    const struct pack_job *j = ctx;
    struct rt_cache *c = j->c;
    const int64_t C = c->K * c->d, t = j->at + i;
    for (enum kv_side side = KV_K; side <= KV_V; side++) {
        struct rt_plane *p = rt_cache_plane(c, j->layer, side);
        if (p->full) {
            memcpy(full_at(c, p, t, 0), j->full[side] + i * C, (size_t)C * sizeof(float));
            continue;
        }
        for (int64_t kh = 0; kh < c->K; kh++)
            pack_head(c, (struct token_head){p, j->layer, side, t, kh},
                      j->x[side] + i * C + kh * c->d);
    }
}

void rt_cache_pack(struct rt_cache *c, struct pool *pool, int64_t layer, int64_t at,
                   int64_t n, const float *k, const float *k_pre, const float *v)
{
    struct pack_job j = {.c = c, .layer = layer, .at = at, .full = {k, v}};
    j.x[KV_K] = c->spec.key_stage == KEY_PRE_ROPE ? k_pre : k;
    j.x[KV_V] = v;
    pool_run(n > 1 ? pool : NULL, n, pack_token, &j);
}

void rt_cache_keep(struct rt_cache *c, int64_t layer, int64_t at, int64_t n, const float *k,
                   const float *v)
{
    const size_t row = (size_t)(c->K * c->d);
    for (enum kv_side side = KV_K; side <= KV_V; side++)
        for (int64_t i = 0; i < n; i++) {
            const float *x = (side == KV_K ? k : v) + (size_t)i * row;
            const int64_t t = at + i;
            if (t < c->sink)
                memcpy(kept_f32(c, c->first, c->sink, layer, side, t, 0), x,
                       row * sizeof(float));
            if (c->recent)
                memcpy(kept_f32(c, c->ring, c->recent, layer, side, t % c->recent, 0), x,
                       row * sizeof(float));
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

static void unpack_head(const struct rt_cache *c, struct token_head e, float *x)
{
    const struct rt_plane *p = e.plane;
    const struct rt_channels ch = rt_cache_channels(c, e.layer, e.side, e.kh);
    uint8_t codes[MAX_HEAD], row[MAX_HEAD];
    bitpack_unpack_row(codes, get_codes(c, e, row), c->d, p->bits);
    for (int64_t g = 0; g < p->groups; g++) {
        const int64_t begin = g * p->group;
        const int64_t n = c->d - begin < p->group ? c->d - begin : p->group;
        int64_t to_m;
        const uint16_t *pair = pair_at(c, e, g, &to_m);
        c->kern->kv_dequantize(x + begin, codes + begin, f16_to_f32(pair[0]),
                               f16_to_f32(pair[to_m]), ch.s + begin, ch.delta + begin, n);
    }
    if (e.side == KV_K && c->spec.key_stage == KEY_PRE_ROPE)
        rotate(c, x, e.t);
}

void rt_cache_tile(const struct rt_cache *c, int64_t layer, enum kv_side side, int64_t kh,
                   int64_t at, int64_t n, float *tile, const float **row)
{
    struct rt_plane *p = rt_cache_plane(c, layer, side);
    for (int64_t i = 0; i < n; i++) {
        if (p->full) {
            row[i] = full_at(c, p, at + i, kh);
            continue;
        }
        unpack_head(c, (struct token_head){p, layer, side, at + i, kh}, tile + i * c->d);
        row[i] = tile + i * c->d;
    }
}

const float *rt_cache_full(const struct rt_cache *c, int64_t layer, enum kv_side side,
                           int64_t kh, int64_t t, int64_t i)
{
    if (t < c->sink)
        return kept_f32(c, c->first, c->sink, layer, side, t, kh);
    if (t + c->recent >= i) /* t > i - window */
        return kept_f32(c, c->ring, c->recent, layer, side, t % c->recent, kh);
    return NULL;
}

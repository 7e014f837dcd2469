/* SPDX-License-Identifier: MIT
 *
 * The quantized KV cache: codes and F16 pairs (h, m) by layer, token and head.
 *
 *   x^ = s (m + h code) + delta,  s and delta per channel, h and m per token and group
 *
 * A plane (keys or values of a layer) is stored token by token, or interleaved if both
 * planes of the layer have 4 bits in groups of whole 32-bit words. A word holds channels 8
 * i .. 8 i + 7 of one token, the lowest channel in the lowest bits. Interleaved, each kv
 * head has its own region for all `max` tokens:
 *
 *   keys    strips of RT_KEYS = 16 tokens; a vector of the kernels is one word of 16 tokens
 *           strip 0: | word 0 of t0 t1 .. t15 | word 1 of t0 .. t15 | ... word d/8 - 1 |
 *           strip 1: | word 0 of t16 .. t31   | word 1 of t16 .. t31| ...
 *           the last strip holds the tokens that are left and is narrower
 *
 *   values  group by group; a vector is consecutive words of one token, or of several
 *           group 0: | t0: words 0 .. group/8 - 1 | t1: words 0 .. | ... t(max-1) |
 *           group 1: | t0: ...
 *
 *   pairs   group 0: | h of t0 .. t(max-1) | m of t0 .. t(max-1) | group 1: | h .. | m .. |
 *
 * Beside the packed tokens, `first` keeps the F32 values of the sink and `ring` those of
 * the last window - 1 tokens. */
#include "convert/format/bitpack.h"
#include "convert/runtime/rt_priv.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <string.h>

#define MAX_HEAD 4096 /* arch_check's bound on head_dim */

/* --- memory ------------------------------------------------------------------------- */

/* Allocates the product of n dims times unit bytes and counts it; nothing if that is 0. */
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

/* Pre-rope keys must be rotated after they are dequantized, which the kernels of the
 * interleaved layout do not do. */
static bool fits_interleaving(const struct rt_cache *c, const struct rt_plane *p)
{
    return p->bits == 4 && p->group % 8 == 0 && c->d % p->group == 0 &&
           c->spec.key_stage == KEY_POST_ROPE;
}

/* Allocates the planes of every layer; *packed: any of them is quantized. */
static enum err open_planes(struct rt_cache *c, bool *packed)
{
    *packed = false;
    TRY(mem_calloc(&c->planes, 2 * (size_t)c->layers, sizeof(*c->planes)));
    TRY(mem_calloc(&c->interleaved, (size_t)c->layers, sizeof(*c->interleaved)));
    for (int64_t i = 0; i < c->layers; i++) {
        struct rt_plane *const k = rt_cache_plane(c, i, KV_K);
        struct rt_plane *const v = rt_cache_plane(c, i, KV_V);
        TRY(open_plane(c, k, kv_format(&c->spec, i, KV_K)));
        TRY(open_plane(c, v, kv_format(&c->spec, i, KV_V)));
        c->interleaved[i] = fits_interleaving(c, k) && fits_interleaving(c, v);
        *packed |= !k->full || !v->full;
    }
    return OK;
}

static int64_t clamp_tokens(int64_t n, int64_t max)
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
    c->recent = spec->past_only ? clamp_tokens(spec->window - 1, max) : 0;
    c->sink = clamp_tokens(spec->sink, max);
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

/* Returns the F32 copy of a head in `memory` (ring or first), with `tokens` per plane. */
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

/* --- the interleaved layout --------------------------------------------------------- */

/* Returns the codes of a head's first token. */
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

/* Returns the byte offset, from the head's first, of word i of token t. */
static int64_t word_at(const struct rt_cache *c, const struct rt_plane *p,
                       enum kv_side side, int64_t t, int64_t i)
{
    const int64_t words = p->group / 8, strip = t / RT_KEYS * RT_KEYS;
    if (side == KV_V)
        return 4 * ((i / words * c->max + t) * words + i % words);
    return strip * p->code_bytes + 4 * (i * rt_cache_width(c, t) + t - strip);
}

/* --- one head of one token ---------------------------------------------------------- */

/* One head of one token, and the plane that stores it. */
struct token_head {
    struct rt_plane *plane;
    int64_t layer;
    enum kv_side side;
    int64_t t, kh;
};

/* Stores the head's packed codes, a row of code_bytes. */
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

/* Returns the head's packed codes, gathered into `row` if they are interleaved. */
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

/* Returns the address of group g's h; m is *to_m elements further. */
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
        const struct rt_channels of = {ch.s + begin, ch.delta + begin};
        c->kern->kv->quantize(codes + begin, pair, pair + to_m, x + begin, of, end - begin,
                              p->bits);
    }
    bitpack_row(row, codes, c->d, p->bits);
    put_codes(c, e, row);
}

struct pack_job {
    struct rt_cache *c;
    const struct rt_new_kv *t;
    const float *x[2], *full[2]; /* [n][C]: input of the quantizer, of a full plane */
};

static void pack_token(void *ctx, int64_t i, int thread)
{
    const struct pack_job *j = ctx;
    struct rt_cache *c = j->c;
    const int64_t C = c->K * c->d, layer = j->t->layer, t = j->t->at + i;
    for (enum kv_side side = KV_K; side <= KV_V; side++) {
        struct rt_plane *p = rt_cache_plane(c, layer, side);
        if (p->full) {
            memcpy(full_at(c, p, t, 0), j->full[side] + i * C, (size_t)C * sizeof(float));
            continue;
        }
        for (int64_t kh = 0; kh < c->K; kh++)
            pack_head(c, (struct token_head){p, layer, side, t, kh},
                      j->x[side] + i * C + kh * c->d);
    }
}

void rt_cache_pack(struct rt_cache *c, struct pool *pool, const struct rt_new_kv *t)
{
    struct pack_job j = {.c = c, .t = t, .full = {t->k, t->v}};
    j.x[KV_K] = c->spec.key_stage == KEY_PRE_ROPE ? t->k_pre : t->k;
    j.x[KV_V] = t->v;
    pool_run(t->n > 1 ? pool : NULL, t->n, pack_token, &j);
}

/* Copies one token's row [C] to where full precision is kept, if anywhere. */
static void keep_row(struct rt_cache *c, int64_t layer, enum kv_side side, int64_t t,
                     const float *x)
{
    const size_t bytes = (size_t)(c->K * c->d) * sizeof(float);
    if (t < c->sink)
        memcpy(kept_f32(c, c->first, c->sink, layer, side, t, 0), x, bytes);
    if (c->recent)
        memcpy(kept_f32(c, c->ring, c->recent, layer, side, t % c->recent, 0), x, bytes);
}

void rt_cache_keep(struct rt_cache *c, const struct rt_new_kv *t)
{
    const int64_t C = c->K * c->d;
    for (int64_t i = 0; i < t->n; i++) {
        keep_row(c, t->layer, KV_K, t->at + i, t->k + i * C);
        keep_row(c, t->layer, KV_V, t->at + i, t->v + i * C);
    }
}

/* --- reading ------------------------------------------------------------------------ */

/* Applies rope at position t to one head. */
static void rotate(const struct rt_cache *c, float *x, int64_t layer, int64_t t)
{
    const struct arch *m = artifact_arch(c->a);
    const int64_t half = arch_rotary_dim(m) / 2;
    const int64_t at = t * arch_rope_columns(m) + arch_rope_column(m, layer);
    const float *co = c->cos + at, *si = c->sin + at;
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * co[i] - b * si[i];
        x[half + i] = b * co[i] + a * si[i];
    }
}

/* Values of an interleaved layer: a group's codes lie together. */
static void unpack_interleaved(const struct rt_cache *c, struct token_head e, float *x)
{
    const struct rt_plane *p = e.plane;
    const struct rt_channels ch = rt_cache_channels(c, e.layer, e.side, e.kh);
    const uint8_t *codes = codes_of(c, p, e.kh);
    for (int64_t g = 0, i = 0, to_m; g < p->groups; g++, i += p->group) {
        const uint16_t *pair = pair_at(c, e, g, &to_m);
        c->kern->kv->unpack_values(x + i, codes + word_at(c, p, e.side, e.t, i / 8),
                                   f16_to_f32(pair[0]), f16_to_f32(pair[to_m]),
                                   (struct rt_channels){ch.s + i, ch.delta + i}, p->group);
    }
}

static void unpack_head(const struct rt_cache *c, struct token_head e, float *x)
{
    const struct rt_plane *p = e.plane;
    const struct rt_channels ch = rt_cache_channels(c, e.layer, e.side, e.kh);
    if (c->interleaved[e.layer] && e.side == KV_V) {
        unpack_interleaved(c, e, x);
        return;
    }
    uint8_t codes[MAX_HEAD], row[MAX_HEAD];
    bitpack_unpack_row(codes, get_codes(c, e, row), c->d, p->bits);
    for (int64_t g = 0; g < p->groups; g++) {
        const int64_t begin = g * p->group;
        const int64_t n = c->d - begin < p->group ? c->d - begin : p->group;
        int64_t to_m;
        const uint16_t *pair = pair_at(c, e, g, &to_m);
        const struct rt_channels of = {ch.s + begin, ch.delta + begin};
        c->kern->kv_dequantize(x + begin, codes + begin, f16_to_f32(pair[0]),
                               f16_to_f32(pair[to_m]), of, n);
    }
    if (e.side == KV_K && c->spec.key_stage == KEY_PRE_ROPE &&
        !layer_set_has(&artifact_arch(c->a)->no_rope, e.layer))
        rotate(c, x, e.layer, e.t);
}

void rt_cache_tile(const struct rt_cache *c, struct rt_span s, float *tile,
                   const float **row)
{
    struct rt_plane *p = rt_cache_plane(c, s.layer, s.side);
    for (int64_t i = 0; i < s.n; i++) {
        if (p->full) {
            row[i] = full_at(c, p, s.at + i, s.kh);
            continue;
        }
        unpack_head(c, (struct token_head){p, s.layer, s.side, s.at + i, s.kh},
                    tile + i * c->d);
        row[i] = tile + i * c->d;
    }
}

const float *rt_cache_full(const struct rt_cache *c, int64_t layer, enum kv_side side,
                           int64_t kh, int64_t t, int64_t i)
{
    if (t < c->sink)
        return kept_f32(c, c->first, c->sink, layer, side, t, kh);
    if (t + c->recent >= i) /* among the last window - 1 before i */
        return kept_f32(c, c->ring, c->recent, layer, side, t % c->recent, kh);
    return NULL;
}

/* SPDX-License-Identifier: MIT
 *
 * Inside the runtime: its parts and what they hand to each other. Private to
 * convert/runtime. Alphabet: T tokens in the cache, n tokens of a chunk, D model width,
 * H query heads, K kv heads, d head width, C = K * d. */
#ifndef WKVQ_RT_PRIV_H
#define WKVQ_RT_PRIV_H

#include "convert/runtime/rt_kernels.h"
#include "convert/runtime/runtime.h"

/* These bytes will be read soon. */
static inline void rt_prefetch(const void *p, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + i);
}

/* --- rt_linear.c -------------------------------------------------------------------- */

/* Scratch of every thread for the widest input. */
struct rt_linear {
    struct pool *pool;
    const struct rt_kernels *kern;
    int64_t widest, most_groups;
    float *interleaved, *fixed;       /* x of one token for dot_nibbles, rows_nibbles */
    const struct packed_linear *next; /* run after this one, NULL: not known */
    void *scratch;                    /* threads * thread_bytes */
    size_t thread_bytes;
};

enum err rt_linear_open(struct rt_linear *l, struct pool *pool, const struct artifact *a);
void rt_linear_close(struct rt_linear *l);
/* y_i [n][out_i] = x [n][in] W_i^T + bias_i for up to 3 projections of one input. */
void rt_linear_run(struct rt_linear *l, float *const *y,
                   const struct packed_linear *const *p, int count, const float *x,
                   int64_t n);
/* y [n][rows] = x [n][cols] W^T of a plain matrix. */
void rt_linear_plain(struct rt_linear *l, float *y, const struct host_mat *w,
                     const float *x, int64_t n);

/* --- rt_cache.c --------------------------------------------------------------------- */

/* All tokens' keys, or values, of one layer. */
struct rt_plane {
    int bits; /* 16: full holds them */
    int64_t group, groups /* of a head */;
    int64_t code_bytes /* of a head */; /* of one token */
    uint8_t *codes;                     /* [max][K][code_bytes] */
    uint16_t *pairs;                    /* [max][K][groups][2] h, m */
    float *full;                        /* [max][C] */
};

/* Keys and values of all layers. Every token is packed when it arrives; tokens that are
 * still to be seen in full precision (window, sink) are kept beside it in F32. Keys in F32
 * are rotated ones; packed keys are as key_stage says. */
struct rt_cache {
    const struct artifact *a;
    const struct rt_kernels *kern;
    const float *cos, *sin; /* [max][d/2], borrowed */
    struct kv_spec spec;
    int64_t layers, max, K, d;
    int64_t recent, sink;    /* tokens kept in F32: window - 1, and first ones */
    struct rt_plane *planes; /* [layers][2]: K, V */
    bool *interleaved;       /* [layers]: codes lie as vectors meet them, below */
    float *ring;             /* [layers][2][recent][C], token t at t % recent */
    float *first;            /* [layers][2][sink][C] */
    float *marked;           /* the ring of rt_cache_mark, NULL before */
    uint64_t bytes;          /* allocated for all of it */
};

static inline struct rt_plane *rt_cache_plane(const struct rt_cache *c, int64_t layer,
                                              enum kv_side side)
{
    return &c->planes[2 * layer + side];
}

/* With lanes (both of a layer at 4 bits, in groups of whole 32-bit words) codes and pairs
 * are [K][max] of tokens, and pairs are [groups][2][max] of a head. Eight codes are a word;
 * keys lie by RT_KEYS tokens, [d / 8 words][tokens], so that a vector's lanes are tokens;
 * the last ones are fewer. Values are [groups][max][group / 8 words]: lanes are channels.
 */
const uint8_t *rt_cache_codes(const struct rt_cache *c, int64_t layer, enum kv_side side,
                              int64_t kh);
const uint16_t *rt_cache_pairs(const struct rt_cache *c, int64_t layer, enum kv_side side,
                               int64_t kh);
/* Tokens that lie together with token t: RT_KEYS, or fewer at the end. */
int64_t rt_cache_width(const struct rt_cache *c, int64_t t);
struct rt_channels {
    const float *s, *delta;
};
/* s and delta of head kh. */
struct rt_channels rt_cache_channels(const struct rt_cache *c, int64_t layer,
                                     enum kv_side side, int64_t kh);

enum err rt_cache_open(struct rt_cache *c, const struct artifact *a,
                       const struct rt_kernels *kern, const struct kv_spec *spec,
                       int64_t max);
void rt_cache_close(struct rt_cache *c);
/* Only the ring forgets: later tokens overwrite it, while packed ones have a place each. */
enum err rt_cache_mark(struct rt_cache *c);
void rt_cache_rewind(struct rt_cache *c);
/* Pack tokens [at, at + n) of a layer. k: rotated, k_pre: before that, v: [n][C]. */
void rt_cache_pack(struct rt_cache *c, struct pool *pool, int64_t layer, int64_t at,
                   int64_t n, const float *k, const float *k_pre, const float *v);
/* Keep what stays in full precision after these tokens: once attention has read what the
 * ring held before. */
void rt_cache_keep(struct rt_cache *c, int64_t layer, int64_t at, int64_t n, const float *k,
                   const float *v);
/* x^ of tokens [at, at + n) for head kh: row[i] points to d floats, in tile [n][d] or in
 * the cache itself. */
void rt_cache_tile(const struct rt_cache *c, int64_t layer, enum kv_side side, int64_t kh,
                   int64_t at, int64_t n, float *tile, const float **row);
/* F32 copy of token t for a query at position i, of T tokens in the cache; NULL where the
 * query sees the packed one. */
const float *rt_cache_full(const struct rt_cache *c, int64_t layer, enum kv_side side,
                           int64_t kh, int64_t t, int64_t i);

/* --- rt_attn.c ---------------------------------------------------------------------- */

/* A chunk's attention in one layer. */
struct rt_attn {
    const struct rt_cache *cache;
    const struct rt_kernels *kern;
    int64_t layer, past, n, H;
    const float *q, *k, *v; /* [n][H*d], [n][C]: rotated, full precision */
    float *out;             /* [n][H*d] */
};

/* Scratch that grows with the chunk. */
struct rt_attn_scratch {
    float *part;
    size_t part_n;
    float *tiles; /* [threads][thread_floats] */
    int64_t thread_floats;
};

/* One kv head's queries [first, end) over packed tokens [from, to), side all of them see
 * as packed: maximum, sum and weighted values go to part + (query H + head) part_step, as
 * rt_attn.c keeps them. Only for a layer with lanes. */
struct rt_attn_packed {
    const struct rt_attn *a;
    int64_t kh, first, end, from, to;
    float *part;
    int64_t part_step;
};
void rt_attn_packed(const struct rt_attn_packed *j, float *scratch);
/* Packed tokens [at, end) of head kh will be met soon: asks for the first tile. */
void rt_attn_prefetch(const struct rt_attn *a, int64_t kh, int64_t at, int64_t end);
/* Floats of scratch for so many (query, head) pairs in any layer; 0 where none has lanes.
 */
int64_t rt_attn_packed_floats(const struct rt_cache *c, int64_t rows);

enum err rt_attn_run(const struct rt_attn *a, struct rt_attn_scratch *s, struct pool *pool);
void rt_attn_close(struct rt_attn_scratch *s);

/* --- rt_forward.c ------------------------------------------------------------------- */

/* Small vectors of a block in F32; NULL: none. Biases belong to the linears. */
struct rt_norms {
    const float *norm1, *norm2, *q_norm, *k_norm;
};

/* Activations of a chunk of `room` tokens. */
struct rt_acts {
    int64_t room;
    float *x, *norm;      /* [n][D] */
    float *q, *o;         /* [n][H*d] */
    float *k, *k_pre, *v; /* [n][C] */
    float *gate, *up;     /* [n][F] */
};

struct runtime {
    const struct artifact *a;
    const struct arch *arch;
    struct pool *pool;
    const struct rt_kernels *kern;
    int64_t max, length, marked;
    struct rt_linear linear;
    struct rt_cache cache;
    struct rt_attn_scratch attn;
    struct rt_acts acts;
    struct rt_norms *norms;
    const float *final_norm;
    float *vectors;   /* all of the above */
    float *cos, *sin; /* [max][d/2] */
    void (*watch)(void *ctx, int64_t layer, float *x, int64_t n);
    void *watch_ctx;
};

/* Hidden states of n tokens through all blocks, into acts.x. */
enum err rt_forward(struct runtime *r, const int32_t *ids, int64_t n);
/* logits [rows][V] of the last rows of acts.x. */
void rt_logits(struct runtime *r, float *logits, int64_t n, int64_t rows);
void rt_acts_free(struct rt_acts *a);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Inside the runtime: the structs and calls its files share. Private to convert/runtime.
 *
 *   runtime.c -> rt_forward.c -> rt_linear.c  projections from packed weights
 *                             -> rt_cache.c   quantized keys and values
 *                             -> rt_attn.c    attention, and rt_attn_packed.c inside it
 *
 * Alphabet: T tokens in the cache, n tokens of a chunk, D model width, H query heads, K kv
 * heads, d head width, C = K d, F width of the MLP. Everything is F32 on the host unless
 * noted. x^ is the value that a code stands for. */
#ifndef WKVQ_RT_PRIV_H
#define WKVQ_RT_PRIV_H

#include "convert/runtime/rt_kernels.h"
#include "convert/runtime/runtime.h"

/* Prefetches the cache lines of [p, p + bytes). */
static inline void rt_prefetch(const void *p, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)p + i);
}

/* --- rt_linear.c -------------------------------------------------------------------- */

/* Tokens' x in 16-bit integers (rt_kernels.h), and sums of a panel's rows. `room` tokens
 * fit. */
struct rt_rounded {
    int64_t room;
    float *sums; /* [threads][room][RT_PANEL] */
    int16_t *x;  /* [rt_padded(in) / RT_PAD_COLUMNS][n][RT_PAD_COLUMNS] */
    float *unit; /* [rt_padded(in) / RT_PAD_COLUMNS][n] */
};

/* Scratch for products, sized for the widest projection. */
struct rt_linear {
    struct pool *pool;
    const struct rt_kernels *kern;
    int64_t widest, most_groups; /* columns (padded), and groups per row */
    float *interleaved, *fixed;  /* one token's x for dot_nibbles, for rows_nibbles */
    bool int16;                  /* several tokens' x are rounded to 16-bit integers */
    struct rt_rounded rounded;
    const struct packed_linear *next; /* runs after this one and is prefetched; or NULL */
    void *scratch;                    /* [threads][thread_bytes] */
    size_t thread_bytes;
};

/* Borrows pool and a. Errors: ERR_MEMORY; close in any case. */
enum err rt_linear_open(struct rt_linear *l, struct pool *pool, const struct artifact *a);
void rt_linear_close(struct rt_linear *l);
/* Makes room for products of n tokens. ERR_MEMORY. */
enum err rt_linear_reserve(struct rt_linear *l, int64_t n);
/* y_i [n][out_i] = x [n][in] W_i^T + bias_i for count <= 3 projections of one input; n is
 * at most what was reserved, or 1. */
void rt_linear_run(struct rt_linear *l, float *const *y,
                   const struct packed_linear *const *p, int count, const float *x,
                   int64_t n);

/* --- rt_cache.c --------------------------------------------------------------------- */

/* Keys, or values, of one layer for all tokens. Either `full` or the packed form is
 * allocated. rt_cache.c draws the interleaved layout; the plain one is token by token. */
struct rt_plane {
    int bits;           /* 2..8; 16: full holds F32 */
    int64_t group;      /* channels per group, */
    int64_t groups;     /* groups per head, */
    int64_t code_bytes; /* bytes of codes per head: all of one token */
    uint8_t *codes;     /* plain: [max][K][code_bytes] */
    uint16_t *pairs;    /* F16 h, m; plain: [max][K][groups][2] */
    float *full;        /* [max][C] */
};

/* Keys and values of all layers. Every token is packed when it arrives. Tokens that a query
 * still sees in full precision (kv.window, kv.sink) also have an F32 copy. Keys in F32 are
 * after rope; packed keys are as key_stage says. */
struct rt_cache {
    const struct artifact *a; /* borrowed: s and delta */
    const struct rt_kernels *kern;
    const float *cos, *sin; /* [max][r/2], borrowed */
    struct kv_spec spec;
    int64_t layers, max, K, d;
    int64_t recent, sink;    /* tokens kept in F32: the last window - 1, and the first */
    struct rt_plane *planes; /* [layers][2]: K, V */
    bool *interleaved;       /* [layers]: codes are stored in the order of vectors */
    float *ring;             /* [layers][2][recent][C], token t at t % recent */
    float *first;            /* [layers][2][sink][C] */
    float *marked;           /* copy of the ring made by rt_cache_mark, or NULL */
    uint64_t bytes;          /* allocated in all */
};

static inline struct rt_plane *rt_cache_plane(const struct rt_cache *c, int64_t layer,
                                              enum kv_side side)
{
    return &c->planes[2 * layer + side];
}

/* Borrows a and kern. max: capacity in tokens. Errors: ERR_MEMORY; close in any case. */
enum err rt_cache_open(struct rt_cache *c, const struct artifact *a,
                       const struct rt_kernels *kern, const struct kv_spec *spec,
                       int64_t max);
void rt_cache_close(struct rt_cache *c);
/* Saves, restores the state at a length. Only the ring is copied: later tokens overwrite
 * it, while every packed token has a place of its own. */
enum err rt_cache_mark(struct rt_cache *c);
void rt_cache_rewind(struct rt_cache *c);

/* Keys and values of new tokens [at, at + n) in one layer. */
struct rt_new_kv {
    int64_t layer, at, n;
    const float *k, *k_pre, *v; /* [n][C]: after rope, before it, values */
};
/* Packs the tokens. */
void rt_cache_pack(struct rt_cache *c, struct pool *pool, const struct rt_new_kv *t);
/* Copies what stays in full precision; after attention, which reads the ring as it was. */
void rt_cache_keep(struct rt_cache *c, const struct rt_new_kv *t);

/* Tokens [at, at + n) of one kv head's keys or values. */
struct rt_span {
    int64_t layer;
    enum kv_side side;
    int64_t kh, at, n;
};
/* Dequantizes a span: row[i] points to the d floats of token at + i, either in
 * tile [n][d] or in the cache itself. */
void rt_cache_tile(const struct rt_cache *c, struct rt_span s, float *tile,
                   const float **row);
/* Returns the F32 copy of token t that a query at position i sees, or NULL if the query
 * sees the packed one. */
const float *rt_cache_full(const struct rt_cache *c, int64_t layer, enum kv_side side,
                           int64_t kh, int64_t t, int64_t i);

/* Returns s and delta of head kh. */
struct rt_channels rt_cache_channels(const struct rt_cache *c, int64_t layer,
                                     enum kv_side side, int64_t kh);
/* For an interleaved layer only: codes and pairs of head kh from token 0 on, and how many
 * tokens share the strip of token t (RT_KEYS, or fewer in the last one). */
const uint8_t *rt_cache_codes(const struct rt_cache *c, int64_t layer, enum kv_side side,
                              int64_t kh);
const uint16_t *rt_cache_pairs(const struct rt_cache *c, int64_t layer, enum kv_side side,
                               int64_t kh);
int64_t rt_cache_width(const struct rt_cache *c, int64_t t);

/* --- rt_attn.c ---------------------------------------------------------------------- */

/* Attention of a chunk in one layer. */
struct rt_attn {
    const struct rt_cache *cache;
    const struct rt_kernels *kern;
    int64_t layer, past, n, H; /* past: tokens before the chunk */
    float scale;               /* of the scores q . k */
    int64_t reach;             /* tokens that a query sees, itself included; 0: all */
    const float *q, *k, *v;    /* [n][H*d], [n][C]: after rope, full precision */
    float *out;                /* [n][H*d] */
};

/* Returns the first token of the text that query t of the chunk sees. */
static inline int64_t rt_attn_first_seen(const struct rt_attn *a, int64_t t)
{
    const int64_t first = a->past + t + 1 - a->reach;
    return a->reach && first > 0 ? first : 0;
}

/* Keys and values of one head in F32, tokens [at, at + n) of the text. */
struct rt_tile {
    int64_t at, n;
    const float *k[RT_TILE], *v[RT_TILE]; /* [d] each, */
    bool packed_keys; /* or the keys of an interleaved layer's cache; at is then a multiple
                       * of RT_KEYS, and k is not read */
};

/* Scratch that grows with the chunk. */
struct rt_attn_scratch {
    float *partial; /* [n][H][splits][partial_floats] */
    size_t partial_count;
    float *tiles; /* [threads][thread_floats] */
    int64_t thread_floats;
};

/* Errors: ERR_MEMORY. */
enum err rt_attn_run(const struct rt_attn *a, struct rt_attn_scratch *s, struct pool *pool);
void rt_attn_close(struct rt_attn_scratch *s);

/* --- rt_attn_packed.c --------------------------------------------------------------- */

/* Queries [first, end) of kv head kh against tokens [from, to), all of which they see
 * packed; for an interleaved layer only. The result of (query, head) is the partial softmax
 * that rt_attn.c describes, at partial + (query H + head) partial_step. */
struct rt_attn_packed {
    const struct rt_attn *a;
    int64_t kh, first, end, from, to;
    float *partial;
    int64_t partial_step;
};
void rt_attn_packed(const struct rt_attn_packed *j, float *scratch);
/* h, m [groups][RT_TILE] = those of tokens [at, at + RT_TILE) of head kh in F32, as far as
 * the cache goes; for an interleaved layer only. */
void rt_attn_pairs(float *h, float *m, const struct rt_attn *a, enum kv_side side,
                   int64_t kh, int64_t at);
/* Prefetches the first tile of packed tokens [at, end) of head kh. */
void rt_attn_prefetch(const struct rt_attn *a, int64_t kh, int64_t at, int64_t end);
/* Returns the floats of scratch for `rows` (query, head) pairs in any layer; 0 if no layer
 * is interleaved. */
int64_t rt_attn_packed_floats(const struct rt_cache *c, int64_t rows);

/* --- rt_attn_block.c ---------------------------------------------------------------- */

/* Queries [first, end) of kv head kh. Their partial softmaxes are as in rt_attn_packed. */
struct rt_attn_block {
    const struct rt_attn *a;
    int64_t kh, first, end;
    float *partial;
    int64_t partial_step;
};
/* Tiles are added between begin and end, which load and store the partial softmaxes. Every
 * query sees all of a tile's tokens that its reach and the order of the text allow. */
void rt_attn_block_begin(const struct rt_attn_block *j, float *scratch);
void rt_attn_block_tile(const struct rt_attn_block *j, const struct rt_tile *tile,
                        float *scratch);
void rt_attn_block_end(const struct rt_attn_block *j, float *scratch);
/* Returns the floats of scratch for `rows` (query, head) pairs. */
int64_t rt_attn_block_floats(int64_t d, int64_t rows);

/* --- rt_forward.c ------------------------------------------------------------------- */

/* Norm weights of a decoder block, by enum norm_gain, and the router [E][D]; NULL where the
 * architecture has none. */
struct rt_norms {
    const float *norm[N_BLOCK_GAINS];
    const float *router;
};

/* What a mixture of experts needs for a chunk of tokens. */
struct rt_experts {
    float *p, *share; /* [n][E]: the router's probabilities, the weights of the chosen */
    float *x, *y,
        *sum;       /* [n][D]: one expert's inputs and outputs, and the sum over experts */
    int64_t *token; /* [n] of that expert */
};

/* Activations of a chunk of up to `room` tokens. */
struct rt_acts {
    int64_t room;
    float *x, *norm;      /* [n][D]: the residual stream; its norm, and block outputs */
    float *q, *o;         /* [n][H*d] */
    float *k, *k_pre, *v; /* [n][C] */
    float *gate, *up;     /* [n][F] */
    struct rt_experts experts;
};

struct runtime {
    const struct artifact *a;
    const struct arch *arch;
    struct pool *pool;
    const struct rt_kernels *kern;
    int64_t max, length, marked; /* tokens: capacity, in the cache, at the mark */
    struct rt_linear linear;
    struct rt_cache cache;
    struct rt_attn_scratch attn;
    struct rt_acts acts;
    int act_bits;            /* of projections' inputs, 2..8; 0: they are not rounded */
    struct rt_norms *norms;  /* [layers] */
    const float *final_norm; /* [D] */
    float *vectors;          /* memory of all norms */
    float *cos, *sin;        /* [max][r/2] */
    void (*watch)(void *ctx, int64_t layer, float *x, int64_t n);
    void *watch_ctx;
};

/* acts.gate = act(acts.gate) acts.up of n tokens, rounded as inputs of projections are. */
void rt_gate(struct runtime *r, int64_t n);
/* acts.norm [n][D] = the weighted sum of a layer's experts for x [n][D], which may be acts.norm. */
void rt_experts_run(struct runtime *r, int64_t layer, const float *x, int64_t n);
/* Runs n tokens through all blocks; their hidden states are in acts.x. Errors: ERR_MEMORY,
 * ERR_FORMAT for an id outside the vocabulary. */
enum err rt_forward(struct runtime *r, const int32_t *ids, int64_t n);
/* logits [rows][V] of the last rows of acts.x [n][D]. */
void rt_logits(struct runtime *r, float *logits, int64_t n, int64_t rows);
void rt_acts_free(struct rt_acts *a);

#endif

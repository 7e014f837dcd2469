/* SPDX-License-Identifier: MIT
 *
 * Attention forward in one pass over the keys (online softmax: Milakov, Gimelshein 2018;
 * Dao et al. 2022). Nothing of size T x T exists.
 *
 * Per block of queries, and for each block of keys in order:
 *
 *   S    = scale log2(e) Q K^T             scores in base 2, mixed tiles per pair and form
 *   max' = max(max, columns of S)
 *   grow = 2^(max - max')                  what the earlier sums shrink by
 *   P    = 2^(S - max')
 *   sum  = sum grow + columns of P
 *   O    = O grow + P V
 *
 * and at the end o = O / sum, lse = max / log2(e) + log(sum). kernels/cpu/attn.h draws the
 * tiles. */
#include "kernels/cpu/attn.h"

#include <math.h>

/* The score of a pair that must not be seen: below all others, so its weight is 0, but
 * finite, so that no difference of infinities arises. */
#define HIDDEN -1e30f
/* The maximum before any pair is seen. Above HIDDEN, so that a query without a pair in the
 * first tiles adds weights of 0. */
#define NONE_SEEN -1e29f

struct fwd {
    struct attn_job a;
    const struct tensor *o, *lse;
};

/* A thread's working memory. */
struct fwd_work {
    elem *K[N_FORMS], *Vt[N_FORMS]; /* every block of the kv head: [TILE][dp], [dp][TILE] */
    elem *rows;                     /* [TILE][dp] */
    uint32_t *Qt;                   /* [dp / DEPTH][TILE] */
    uint32_t *operands;             /* [TILE / DEPTH][dp] */
    float *S, *Sq;                  /* [TILE][TILE] */
    uint32_t *P[N_FORMS];           /* [TILE / DEPTH][TILE] */
    float *Ot;                      /* [dp][TILE] */
    float *O;                       /* [TILE][dp] */
    float *max, *sum, *grow, *ones; /* [TILE]: of scores; of weights; Ot's factors */
};

static struct fwd_work fwd_carve(const struct attn_job *a, struct arena *r)
{
    const int64_t block = TILE * a->dp / DEPTH;
    struct fwd_work w = {0};
    for (int f = 0; f < N_FORMS; f++) {
        const int64_t n = f < a->n_forms ? a->n_blocks * block : 0;
        w.K[f] = take(r, n);
        w.Vt[f] = take(r, n);
        w.P[f] = take(r, TILE / DEPTH * TILE);
    }
    w.rows = take(r, block);
    w.Qt = take(r, block);
    w.operands = take(r, block);
    w.S = take(r, TILE * TILE);
    w.Sq = take(r, TILE * TILE);
    w.Ot = take(r, TILE * a->dp);
    w.O = take(r, TILE * a->dp);
    w.max = take(r, TILE);
    w.sum = take(r, TILE);
    w.grow = take(r, TILE);
    w.ones = take(r, TILE);
    return w;
}

static void pack_keys(const struct attn_job *a, struct fwd_work *w, int64_t kv)
{
    for (int f = 0; f < N_FORMS; f++)
        for (int64_t b = 0; a->k[f] && b < a->n_blocks; b++) {
            pack_rows(w->K[f] + b * TILE * a->dp, a->k[f], b * TILE, kv, a->dp);
            pack_rows(w->rows, a->v[f], b * TILE, kv, a->dp);
            pack_operands(w->operands, w->rows, a->dp);
            pack_transpose(w->Vt[f] + b * TILE * a->dp, w->operands, a->dp);
        }
}

static void hide_future(float *S)
{
    for (int64_t j = 0; j < TILE; j++)
        for (int64_t i = 0; i < TILE; i += VL) {
            float *at = S + j * TILE + i;
            vf_store(at, vf_select(hidden_lanes(i, j), vf_set1(HIDDEN), vf_load(at)));
        }
}

static void hide_past(const struct attn_job *a, float *S, int64_t i0, int64_t j0)
{
    for (int64_t j = 0; j < TILE; j++)
        for (int64_t i = 0; i < TILE; i += VL) {
            float *at = S + j * TILE + i;
            vf_store(at, vf_select(reaching_lanes(a, i0 + i, j0 + j), vf_load(at),
                                   vf_set1(HIDDEN)));
        }
}

static vf column_max(const float *S, vf max)
{
    vf m[4] = {max, max, max, max};
    for (int64_t j = 0; j < TILE; j += 4)
        for (int r = 0; r < 4; r++)
            m[r] = vf_max(vf_load(S + (j + r) * TILE), m[r]);
    return vf_max(vf_max(m[0], m[1]), vf_max(m[2], m[3]));
}

/* One vector of queries of a tile: its columns of S, and where its weights go. */
struct column {
    const float *S;
    uint32_t *P, *Pq; /* weights for keys in full precision; quantized, if mixed */
    int64_t i, j0;
};

INLINE void put_weights(const struct attn_job *a, const struct column *k, int64_t j, vf p0,
                        vf p1, bool mixed)
{
    const int64_t at = j / DEPTH * TILE;
    if (!mixed) {
        put_operands(k->P + at, p0, p1);
        return;
    }
    const vm m0 = full_lanes(a, k->i, k->j0 + j), m1 = full_lanes(a, k->i, k->j0 + j + 1);
    const vf zero = vf_set1(0);
    put_operands(k->P + at, vf_select(m0, p0, zero), vf_select(m1, p1, zero));
    put_operands(k->Pq + at, vf_select(m0, zero, p0), vf_select(m1, zero, p1));
}

/* Stores P = 2^(c (S - max)) of one vector of queries and returns its sum over the tile's
 * keys. c = scale log2(e); c_max = c max. */
INLINE vf column_weights(const struct attn_job *a, const struct column *k, vf c, vf c_max,
                         bool mixed)
{
    vf sum0 = vf_set1(0), sum1 = vf_set1(0);
    const vf minus = vf_sub(vf_set1(0), c_max);
    for (int64_t j = 0; j < TILE; j += 2) {
        const vf p0 = exp2_of(vf_fma(vf_load(k->S + j * TILE), c, minus));
        const vf p1 = exp2_of(vf_fma(vf_load(k->S + (j + 1) * TILE), c, minus));
        sum0 = vf_add(sum0, p0);
        sum1 = vf_add(sum1, p1);
        put_weights(a, k, j, p0, p1, mixed);
        if (DEPTH == 1)
            put_weights(a, k, j + 1, p1, p1, mixed);
    }
    return vf_add(sum0, sum1);
}

static void softmax_tile(const struct attn_job *a, struct fwd_work *w, int64_t i0,
                         int64_t j0, bool mixed)
{
    const vf c = vf_set1((float)((double)a->scale * LOG2E));
    for (int64_t i = 0; i < TILE; i += VL) {
        const struct column k = {w->S + i, w->P[FULL] + i, w->P[QUANTIZED] + i, i0 + i, j0};
        const vf old = vf_load(w->max + i), max = column_max(k.S, old);
        const vf grow = exp2_of(vf_mul(vf_sub(old, max), c));
        const vf sum = mixed ? column_weights(a, &k, c, vf_mul(max, c), true)
                             : column_weights(a, &k, c, vf_mul(max, c), false);
        vf_store(w->max + i, max);
        vf_store(w->grow + i, grow);
        vf_store(w->sum + i, vf_fma(vf_load(w->sum + i), grow, sum));
    }
}

static void fwd_tile(const struct fwd *f, struct fwd_work *w, int64_t qb, int64_t kb)
{
    const struct attn_job *a = &f->a;
    const int64_t dp = a->dp, at = kb * TILE * dp;
    const int seen = forms_seen(a, qb, kb);
    const enum form first = seen & SEES_FULL ? FULL : QUANTIZED;
    tile_product(w->S, TILE, TILE, TILE, w->K[first] + at, dp, w->Qt, TILE, dp, NULL);
    if (seen == SEES_BOTH) {
        tile_product(w->Sq, TILE, TILE, TILE, w->K[QUANTIZED] + at, dp, w->Qt, TILE, dp,
                     NULL);
        select_forms(a, w->S, w->Sq, qb * TILE, kb * TILE);
    }
    if (kb == qb)
        hide_future(w->S);
    if (leaves_reach(a, qb, kb))
        hide_past(a, w->S, qb * TILE, kb * TILE);
    softmax_tile(a, w, qb * TILE, kb * TILE, seen == SEES_BOTH);
    tile_product(w->Ot, TILE, dp, TILE, w->Vt[first] + at, TILE, w->P[FULL], TILE, TILE,
                 w->grow);
    if (seen == SEES_BOTH)
        tile_product(w->Ot, TILE, dp, TILE, w->Vt[QUANTIZED] + at, TILE, w->P[QUANTIZED],
                     TILE, TILE, w->ones);
}

static void fwd_finish(const struct fwd *f, struct fwd_work *w, int64_t h, int64_t qb)
{
    const struct attn_job *a = &f->a;
    float *lse = (float *)f->lse->data + h * a->T + qb * TILE;
    const int64_t rows = least(TILE, a->T - qb * TILE);
    transpose_words((uint32_t *)w->O, a->dp, (const uint32_t *)w->Ot, TILE, a->dp, TILE);
    for (int64_t i = 0; i < rows; i++) {
        void *o_i = cpu_at(f->o, (qb * TILE + i) * f->o->ld + h * a->d);
        const vf inverse = vf_set1(1.0f / w->sum[i]);
        for (int64_t c = 0; c < a->d; c += VL)
            act_put(o_i, cpu_bf16(f->o), c, a->d,
                    vf_mul(vf_load(w->O + i * a->dp + c), inverse));
        lse[i] = w->max[i] * a->scale + logf(w->sum[i]);
    }
}

/* All blocks of queries that one split owns, for head h. */
static void fwd_head(const struct fwd *f, struct fwd_work *w, int64_t h, int64_t split)
{
    const struct attn_job *a = &f->a;
    for (int64_t qb = split; qb < a->n_blocks; qb += a->n_splits) {
        pack_rows(w->rows, a->q, qb * TILE, h, a->dp);
        pack_operands_of_transpose(w->Qt, w->rows, a->dp);
        memset(w->Ot, 0, (size_t)(TILE * a->dp) * sizeof(*w->Ot));
        for (int64_t i = 0; i < TILE; i++) {
            w->max[i] = NONE_SEEN;
            w->sum[i] = 0;
        }
        for (int64_t kb = 0; kb <= qb; kb++)
            if (!out_of_reach(a, qb, kb))
                fwd_tile(f, w, qb, kb);
        fwd_finish(f, w, h, qb);
    }
}

static void fwd_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct fwd *f = ctx;
    const struct attn_job *a = &f->a;
    struct arena r = thread_arena(a, thread);
    struct fwd_work w = fwd_carve(a, &r);
    const int64_t kv = chunk / a->n_splits, rep = a->H / a->K;
    for (int i = 0; i < TILE; i++)
        w.ones[i] = 1;
    pack_keys(a, &w, kv);
    for (int64_t h = kv * rep; h < (kv + 1) * rep; h++)
        fwd_head(f, &w, h, chunk % a->n_splits);
}

static size_t fwd_thread_bytes(const struct attn_job *a)
{
    struct arena count = {0};
    fwd_carve(a, &count);
    return count.used;
}

/* The forward works in the same slot as the backward, but has no sums. */
int64_t ATTN_NAME(cpu_attn_bytes)(const struct attn_shape *s, int threads)
{
#if ATTN_PAIRS
    if (s->act != DT_BF16)
        return ISA_NAME(cpu_attn_bytes)(s, threads);
#endif
    const struct attn_job a = attn_job_sized(s);
    const size_t fwd = fwd_thread_bytes(&a) * (size_t)threads;
    const struct bwd_bytes bwd = ATTN_NAME(cpu_attn_bwd_bytes)(s, threads);
    return (int64_t)((fwd > bwd.work ? fwd : bwd.work) + bwd.sums);
}

void ATTN_NAME(cpu_attn)(struct dev *d, const struct tensor *o, const struct tensor *lse,
                         const struct attn_inputs *in)
{
#if ATTN_PAIRS
    if (!cpu_bf16(in->q)) {
        ISA_NAME(cpu_attn)(d, o, lse, in);
        return;
    }
#endif
    const int threads = pool_threads(d->pool);
    struct fwd f = {.a = attn_job_of(in), .o = o, .lse = lse};
    f.a.n_splits = attn_splits(f.a.K, f.a.n_blocks, threads, 8);
    f.a.thread_bytes = fwd_thread_bytes(&f.a);
    f.a.scratch = cpu_scratch(d, SLOT_A, f.a.thread_bytes * (size_t)threads);
    if (f.a.scratch)
        pool_run(d->pool, f.a.K * f.a.n_splits, fwd_chunk, &f);
}

void ATTN_NAME(cpu_fill_attn)(struct dev_ops *o)
{
    o->attn_bytes = ATTN_NAME(cpu_attn_bytes);
    o->attn = ATTN_NAME(cpu_attn);
    o->attn_bwd = ATTN_NAME(cpu_attn_bwd);
}

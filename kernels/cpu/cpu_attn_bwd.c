/* SPDX-License-Identifier: MIT
 *
 * Attention backward, tile by tile. The forward keeps o and lse = log sum exp(S); P is
 * computed again from them instead of being stored (Dao et al. 2022). With dO = dL/do:
 *
 *   P_ij  = exp(S_ij - lse_i)                D_i   = sum_c dO_ic o_ic
 *   dP_ij = dO_i . v'_j                      dS_ij = P_ij (dP_ij - D_i)
 *
 *   dv'_j = sum_i P_ij dO_i           dk'_j = scale sum_i dS_ij q_i
 *   dq_i  = scale sum_j dS_ij k'_j
 *
 * k' and v' are the form that query i sees of key j. For each pair only that form gets a
 * gradient, so in a mixed tile P and dS are stored twice, each with zeros at the pairs of
 * the other form.
 *
 * Five products per tile and form (kernels/cpu/attn_tile.h); A by rows, B as operands:
 *
 *   S^T  [key][query] = K   Q^T       dV [key][d]   += P^T   dO
 *   dP^T [key][query] = V   dO^T      dK [key][d]   += dS^T  Q
 *                                     dQ^T [d][query] += K^T  dS
 *
 * Who writes what: a unit of work (kv head, split) owns the blocks of keys s, s +
 * n_splits, ... and all gradients dK, dV of them. Every split also contributes to dQ, so
 * each sums into a buffer of its own:
 *
 *   dQt [split][head][block of queries][dp][TILE]
 *
 * and query_chunk() adds the splits' buffers in ascending order. All sums have a fixed
 * order, whatever the threads do. */
#include "kernels/cpu/attn.h"

struct bwd {
    struct attn_job a;
    const struct tensor *dq, *dk[N_FORMS], *dv[N_FORMS], *dout, *o, *lse;
    float *dQt; /* [splits][H][blocks][dp][TILE] */
};

/* One block of queries of one head, packed for the products. */
struct queries {
    uint32_t *Qt, *dOt; /* [dp / DEPTH][TILE] */
    uint32_t *Q, *dO;   /* [TILE / DEPTH][dp] */
    float *lse, *D;     /* [TILE]; lse is times log2(e), for exp2 */
};

/* A thread's working memory. */
struct bwd_work {
    char *queries; /* struct queries of all blocks of the heads that share the kv head */
    elem *rows;    /* [TILE][dp] */
    uint32_t *operands;               /* [TILE / DEPTH][dp] */
    elem *K[N_FORMS], *V[N_FORMS];    /* [TILE][dp] */
    elem *Kt[N_FORMS];                /* [dp][TILE] */
    float *dK[N_FORMS], *dV[N_FORMS]; /* [TILE][dp] */
    float *S[N_FORMS], *dP[N_FORMS];  /* [TILE][TILE] */
    elem *Pt[N_FORMS], *dSt[N_FORMS]; /* [TILE][TILE] */
    uint32_t *dS[N_FORMS];            /* [TILE / DEPTH][TILE] */
    float *ones;                      /* [TILE or dp] */
};

static size_t query_bytes(const struct attn_job *a)
{
    struct arena r = {0};
    take(&r, 4 * TILE * a->dp / DEPTH + 2 * TILE);
    return r.used;
}

static struct queries queries_of(const struct attn_job *a, const struct bwd_work *w,
                                 int64_t h, int64_t qb)
{
    const int64_t block = TILE * a->dp / DEPTH, n = h % (a->H / a->K) * a->n_blocks + qb;
    struct arena r = {w->queries + (size_t)n * query_bytes(a), 0};
    struct queries q;
    q.Qt = take(&r, block);
    q.dOt = take(&r, block);
    q.Q = take(&r, block);
    q.dO = take(&r, block);
    q.lse = take(&r, TILE);
    q.D = take(&r, TILE);
    return q;
}

static struct bwd_work bwd_carve(const struct attn_job *a, struct arena *r)
{
    const int64_t block = TILE * a->dp / DEPTH, square = TILE * TILE;
    struct bwd_work w = {0};
    w.queries = take(r, (int64_t)query_bytes(a) / 4 * a->n_blocks * (a->H / a->K));
    w.rows = take(r, block);
    w.operands = take(r, block);
    for (int f = 0; f < N_FORMS; f++) {
        w.K[f] = take(r, block);
        w.V[f] = take(r, block);
        w.Kt[f] = take(r, block);
        w.dK[f] = take(r, TILE * a->dp);
        w.dV[f] = take(r, TILE * a->dp);
        w.S[f] = take(r, square);
        w.dP[f] = take(r, square);
        w.Pt[f] = take(r, square / DEPTH);
        w.dSt[f] = take(r, square / DEPTH);
        /* With one element per word both layouts are the same bytes. */
        w.dS[f] = DEPTH == 1 ? (uint32_t *)w.dSt[f] : take(r, square / DEPTH);
    }
    w.ones = take(r, a->dp > TILE ? a->dp : TILE);
    return w;
}

/* D_i = dout_i . o_i; 0 for queries past the last token. */
static void row_dots(const struct bwd *b, float *D, int64_t h, int64_t qb)
{
    const struct attn_job *a = &b->a;
    const bool bf16 = cpu_bf16(b->o);
    for (int64_t i = 0; i < TILE; i++) {
        const int64_t t = qb * TILE + i;
        vf sum = vf_set1(0);
        for (int64_t c = 0; t < a->T && c < a->d; c += VL) {
            const void *o_t = cpu_at(b->o, t * b->o->ld + h * a->d);
            const void *do_t = cpu_at(b->dout, t * b->dout->ld + h * a->d);
            sum = vf_fma(act_get(o_t, bf16, c, a->d), act_get(do_t, bf16, c, a->d), sum);
        }
        D[i] = vf_sum(sum);
    }
}

static void pack_queries(const struct bwd *b, struct bwd_work *w, int64_t h, int64_t qb)
{
    const struct attn_job *a = &b->a;
    const struct queries q = queries_of(a, w, h, qb);
    const float *lse = (const float *)b->lse->data + h * a->T;
    pack_rows(w->rows, a->q, qb * TILE, h, a->dp);
    pack_operands_of_transpose(q.Qt, w->rows, a->dp);
    pack_operands(q.Q, w->rows, a->dp);
    pack_rows(w->rows, b->dout, qb * TILE, h, a->dp);
    pack_operands_of_transpose(q.dOt, w->rows, a->dp);
    pack_operands(q.dO, w->rows, a->dp);
    row_dots(b, q.D, h, qb);
    for (int64_t i = 0; i < TILE; i++) {
        const int64_t t = qb * TILE + i;
        q.lse[i] = t < a->T ? (float)((double)lse[t] * LOG2E) : 0;
    }
}

static void pack_keys(const struct attn_job *a, struct bwd_work *w, int64_t kv, int64_t kb)
{
    for (int f = 0; f < N_FORMS && a->k[f]; f++) {
        pack_rows(w->K[f], a->k[f], kb * TILE, kv, a->dp);
        pack_rows(w->V[f], a->v[f], kb * TILE, kv, a->dp);
        pack_operands(w->operands, w->K[f], a->dp);
        pack_transpose(w->Kt[f], w->operands, a->dp);
        memset(w->dK[f], 0, (size_t)(TILE * a->dp) * sizeof(float));
        memset(w->dV[f], 0, (size_t)(TILE * a->dp) * sizeof(float));
    }
}

/* Stores P and dS of one key and one vector of queries, by rows. */
INLINE void put_rows(struct bwd_work *w, int f, int64_t at, vf p, vf dS)
{
    put_elems(w->Pt[f] + at, p);
    put_elems(w->dSt[f] + at, dS);
}

/* The same for keys j and j + 1; dS also as operands, which pair two rows. */
INLINE void put_pair(struct bwd_work *w, int f, int64_t j, int64_t i, const vf *p,
                     const vf *dS)
{
    put_rows(w, f, j * TILE + i, p[0], dS[0]);
    put_rows(w, f, (j + 1) * TILE + i, p[1], dS[1]);
    if (DEPTH == 2)
        put_operands(w->dS[f] + j / 2 * TILE + i, dS[0], dS[1]);
}

/* P and dS of one vector of queries, for all keys of the tile. f is the form that S and dP
 * were computed with; with `mixed`, pairs of the quantized form are split off. */
INLINE void column_grads(const struct attn_job *a, struct bwd_work *w,
                         const struct queries *q, enum form f, int64_t i0, int64_t j0,
                         int64_t i, bool mixed)
{
    const vf c = vf_set1((float)((double)a->scale * LOG2E)), zero = vf_set1(0);
    const vf D = vf_load(q->D + i), minus = vf_sub(zero, vf_load(q->lse + i));
    const bool leaves = leaves_reach(a, i0 / TILE, j0 / TILE);
    for (int64_t j = 0; j < TILE; j += 2) {
        vf p[2], dS[2];
        vm full[2];
        for (int k = 0; k < 2; k++) {
            const int64_t at = (j + k) * TILE + i;
            p[k] = exp2_of(vf_fma(vf_load(w->S[f] + at), c, minus));
            if (i0 == j0)
                p[k] = vf_select(hidden_lanes(i, j + k), zero, p[k]);
            if (leaves)
                p[k] = vf_select(reaching_lanes(a, i0 + i, j0 + j + k), p[k], zero);
            dS[k] = vf_mul(p[k], vf_sub(vf_load(w->dP[f] + at), D));
            if (mixed)
                full[k] = full_lanes(a, i0 + i, j0 + j + k);
        }
        if (mixed) {
            vf pq[2], dSq[2];
            for (int k = 0; k < 2; k++) {
                pq[k] = vf_select(full[k], zero, p[k]);
                dSq[k] = vf_select(full[k], zero, dS[k]);
                p[k] = vf_select(full[k], p[k], zero);
                dS[k] = vf_select(full[k], dS[k], zero);
            }
            put_pair(w, QUANTIZED, j, i, pq, dSq);
        }
        put_pair(w, f, j, i, p, dS);
    }
}

/* S^T = K Q^T and dP^T = V dO^T, with form f of keys and values. */
static void score_tile(const struct attn_job *a, struct bwd_work *w,
                       const struct queries *q, enum form f)
{
    tile_product(w->S[f], TILE, TILE, TILE, w->K[f], a->dp, q->Qt, TILE, a->dp, NULL);
    tile_product(w->dP[f], TILE, TILE, TILE, w->V[f], a->dp, q->dOt, TILE, a->dp, NULL);
}

/* Adds the tile to dV, dK and dQ^T. first: dQ^T has no value yet. */
static void grad_tile(const struct attn_job *a, struct bwd_work *w, const struct queries *q,
                      enum form f, float *dQt, bool first)
{
    const int64_t dp = a->dp;
    tile_product(w->dV[f], dp, TILE, dp, w->Pt[f], TILE, q->dO, dp, TILE, w->ones);
    tile_product(w->dK[f], dp, TILE, dp, w->dSt[f], TILE, q->Q, dp, TILE, w->ones);
    tile_product(dQt, TILE, dp, TILE, w->Kt[f], TILE, w->dS[f], TILE, TILE,
                 first ? NULL : w->ones);
}

static float *dq_part(const struct bwd *b, int64_t split, int64_t h, int64_t qb)
{
    const struct attn_job *a = &b->a;
    return b->dQt + ((split * a->H + h) * a->n_blocks + qb) * a->dp * TILE;
}

static void bwd_tile(const struct bwd *b, struct bwd_work *w, int64_t h, int64_t qb,
                     int64_t kb)
{
    const struct attn_job *a = &b->a;
    const struct queries q = queries_of(a, w, h, qb);
    const int64_t split = kb % a->n_splits, i0 = qb * TILE, j0 = kb * TILE;
    const int seen = forms_seen(a, qb, kb);
    const bool mixed = seen == SEES_BOTH;
    const enum form f = seen & SEES_FULL ? FULL : QUANTIZED;
    float *dQt = dq_part(b, split, h, qb);
    if (out_of_reach(a, qb, kb)) {
        if (kb == split)
            memset(dQt, 0, (size_t)(a->dp * TILE) * sizeof(*dQt));
        return;
    }
    score_tile(a, w, &q, f);
    if (mixed) {
        score_tile(a, w, &q, QUANTIZED);
        select_forms(a, w->S[f], w->S[QUANTIZED], i0, j0);
        select_forms(a, w->dP[f], w->dP[QUANTIZED], i0, j0);
    }
    for (int64_t i = 0; i < TILE; i += VL) {
        if (mixed)
            column_grads(a, w, &q, f, i0, j0, i, true);
        else
            column_grads(a, w, &q, f, i0, j0, i, false);
    }
    grad_tile(a, w, &q, f, dQt, kb == split);
    if (mixed)
        grad_tile(a, w, &q, QUANTIZED, dQt, false);
}

/* Writes a block of a result: x[t0 + i, h] = factor from[i], from [TILE][dp]. */
static void put_block(const struct attn_job *a, const struct tensor *x, int64_t t0,
                      int64_t h, const float *from, float factor)
{
    for (int64_t i = 0; i < TILE && t0 + i < a->T; i++) {
        void *x_t = cpu_at(x, (t0 + i) * x->ld + h * a->d);
        for (int64_t c = 0; c < a->d; c += VL)
            act_put(x_t, cpu_bf16(x), c, a->d,
                    vf_mul(vf_load(from + i * a->dp + c), vf_set1(factor)));
    }
}

static void bwd_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct bwd *b = ctx;
    const struct attn_job *a = &b->a;
    struct arena r = thread_arena(a, thread);
    struct bwd_work w = bwd_carve(a, &r);
    const int64_t kv = chunk / a->n_splits, split = chunk % a->n_splits, rep = a->H / a->K;
    for (int64_t i = 0; i < TILE || i < a->dp; i++)
        w.ones[i] = 1;
    for (int64_t h = kv * rep; h < (kv + 1) * rep; h++)
        for (int64_t qb = split; qb < a->n_blocks; qb++)
            pack_queries(b, &w, h, qb);
    for (int64_t kb = split; kb < a->n_blocks; kb += a->n_splits) {
        pack_keys(a, &w, kv, kb);
        for (int64_t h = kv * rep; h < (kv + 1) * rep; h++)
            for (int64_t qb = kb; qb < a->n_blocks; qb++)
                bwd_tile(b, &w, h, qb, kb);
        for (int f = 0; f < N_FORMS && a->k[f]; f++) {
            put_block(a, b->dk[f], kb * TILE, kv, w.dK[f], a->scale);
            put_block(a, b->dv[f], kb * TILE, kv, w.dV[f], 1);
        }
    }
}

/* dq of one block of one head: the sum over the splits that have keys before it. */
static void query_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct bwd *b = ctx;
    const struct attn_job *a = &b->a;
    struct arena r = thread_arena(a, thread);
    float *sum = take(&r, a->dp * TILE), *rows = take(&r, a->dp * TILE);
    const int64_t h = chunk / a->n_blocks, qb = chunk % a->n_blocks;
    memcpy(sum, dq_part(b, 0, h, qb), (size_t)(a->dp * TILE) * sizeof(*sum));
    for (int64_t s = 1; s < a->n_splits && s <= qb; s++) {
        const float *part = dq_part(b, s, h, qb);
        for (int64_t i = 0; i < a->dp * TILE; i += VL)
            vf_store(sum + i, vf_add(vf_load(sum + i), vf_load(part + i)));
    }
    transpose_words((uint32_t *)rows, a->dp, (const uint32_t *)sum, TILE, a->dp, TILE);
    put_block(a, b->dq, qb * TILE, h, rows, a->scale);
}

/* Sets the job's splits and the bytes of a thread, and returns the bytes of both slots. */
static struct bwd_bytes bwd_cut(struct attn_job *a, int threads)
{
    struct arena count = {0};
    a->n_splits = least(attn_splits(a->K, a->n_blocks, threads, 4), MAX_SPLITS);
    bwd_carve(a, &count);
    a->thread_bytes = count.used;
    const size_t parts = (size_t)(a->n_splits * a->H * a->n_blocks);
    return (struct bwd_bytes){.work = count.used * (size_t)threads,
                              .sums = parts * (size_t)(a->dp * TILE) * sizeof(float)};
}

struct bwd_bytes ATTN_NAME(cpu_attn_bwd_bytes)(const struct attn_shape *s, int threads)
{
    struct attn_job a = attn_job_sized(s);
    return bwd_cut(&a, threads);
}

void ATTN_NAME(cpu_attn_bwd)(struct dev *d, const struct attn_grads *grads,
                             const struct tensor *dout, const struct tensor *o,
                             const struct tensor *lse, const struct attn_inputs *in)
{
#if ATTN_PAIRS
    if (!cpu_bf16(in->q)) {
        ISA_NAME(cpu_attn_bwd)(d, grads, dout, o, lse, in);
        return;
    }
#endif
    struct bwd b = {.a = attn_job_of(in),
                    .dq = grads->dq,
                    .dk = {grads->dk, grads->dkq},
                    .dv = {grads->dv, grads->dvq},
                    .dout = dout,
                    .o = o,
                    .lse = lse};
    const struct bwd_bytes bytes = bwd_cut(&b.a, pool_threads(d->pool));
    b.a.scratch = cpu_scratch(d, SLOT_A, bytes.work);
    b.dQt = cpu_scratch(d, SLOT_B, bytes.sums);
    if (!b.a.scratch || !b.dQt)
        return;
    pool_run(d->pool, b.a.K * b.a.n_splits, bwd_chunk, &b);
    pool_run(d->pool, b.a.H * b.a.n_blocks, query_chunk, &b);
}

/* SPDX-License-Identifier: MIT
 *
 * What the forward and the backward of attention share.
 *
 * Both walk over tiles of TILE keys by TILE queries and hold scores transposed, S^T: a
 * row is a key and the lanes are queries.
 *
 *            queries i0 .. i0+63             all T x T pairs, causal
 *          +----------------------+         qb = 0    1    2    3
 *   key j0 | S_i0,j0  S_i1,j0 ... |    kb = 0  [ m ][ Q ][ Q ][ Q ]
 *      j1  | S_i0,j1  S_i1,j1 ... |         1       [ m ][ Q ][ Q ]
 *      ... |                      |         2            [ m ][ Q ]
 *          +----------------------+         3                 [ m ]
 *
 *   Q: all pairs see the quantized form      m: on the diagonal, both forms are mixed
 *
 * Maximum, sum and factors of a query are therefore computed lane by lane, and P^T and dS^T
 * come out in the layout that the next products read.
 *
 * Each key exists in full precision and quantized; the mask decides per pair (i, j). Far
 * from the diagonal a tile sees one form only. A mixed tile computes its scores in both
 * forms and selects per lane (select_forms()).
 *
 * A unit of work is one kv head and one of n_splits sets of blocks: split s owns blocks s,
 * s + n_splits, ... Only that unit writes their results, so no atomics are needed, and the
 * order of every sum is fixed. */
#ifndef WKVQ_ATTN_H
#define WKVQ_ATTN_H

#include "kernels/attn_memory.h"
#include "kernels/cpu/attn_tile.h"

/* The two forms of a key and its value. */
enum form { FULL, QUANTIZED, N_FORMS };

struct attn_job {
    const struct tensor *q, *k[N_FORMS], *v[N_FORMS];
    struct attn_mask mask;
    int64_t reach; /* tokens that a query sees; INT64_MAX: all */
    int64_t T, H, K, d, dp, n_blocks, n_splits;
    int n_forms; /* that keys and values have */
    float scale;
    char *scratch; /* [threads][thread_bytes] */
    size_t thread_bytes;
};

/* Limit for the backward, whose working memory grows with the number of splits. */
#define MAX_SPLITS 8

#define LOG2E 1.44269504088896340736

INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Returns the number of splits that gives every thread about the same amount of work. */
INLINE int64_t attn_splits(int64_t K, int64_t n_blocks, int threads, int per_thread)
{
    if (threads == 1)
        return 1;
    int64_t n = (per_thread * threads + K - 1) / K;
    while (K * n % threads)
        n++;
    return least(n, n_blocks);
}

/* A job of which only the sizes are known: what its working memory follows from. */
INLINE struct attn_job attn_job_sized(const struct attn_shape *s)
{
    return (struct attn_job){.T = s->T,
                             .H = s->H,
                             .K = s->K,
                             .d = s->d,
                             .dp = (s->d + PAD - 1) / PAD * PAD,
                             .n_blocks = (s->T + TILE - 1) / TILE,
                             .n_forms = N_FORMS};
}

INLINE struct attn_job attn_job_of(const struct attn_inputs *in)
{
    struct attn_job j = attn_job_sized(&(struct attn_shape){
        .T = in->q->dim[0], .H = in->q->dim[1], .K = in->k->dim[1], .d = in->q->dim[2]});
    j.q = in->q;
    j.k[FULL] = in->k, j.k[QUANTIZED] = in->kq;
    j.v[FULL] = in->v, j.v[QUANTIZED] = in->vq;
    j.reach = in->reach ? in->reach : INT64_MAX;
    j.scale = in->scale;
    j.n_forms = in->kq ? N_FORMS : 1;
    if (in->kq)
        j.mask = *in->mask;
    return j;
}

/* Query i >= j sees key j in full precision exactly if i is below the returned number. */
INLINE int64_t full_below(const struct attn_job *a, int64_t j)
{
    const struct attn_mask *m = &a->mask;
    if (!a->k[QUANTIZED] || j < m->sink)
        return INT64_MAX;
    if (m->block > 1)
        j = j / m->block * m->block + m->block - 1;
    const int64_t own = m->chunk > 1 ? (j / m->chunk + 1) * m->chunk : 0;
    return own > j + m->window ? own : j + m->window;
}

/* Which forms of block kb's keys the queries of block qb see: a set of bits 1 << form. */
INLINE int forms_seen(const struct attn_job *a, int64_t qb, int64_t kb)
{
    const int64_t last_q = least((qb + 1) * TILE, a->T) - 1;
    const int64_t last_k = least((kb + 1) * TILE - 1, last_q);
    int seen = 0;
    for (int64_t j = kb * TILE; j <= last_k; j++) {
        const int64_t first_q = j > qb * TILE ? j : qb * TILE, below = full_below(a, j);
        seen |= (below > first_q) << FULL | (below <= last_q) << QUANTIZED;
    }
    return seen;
}

#define SEES_FULL (1 << FULL)
#define SEES_BOTH (1 << FULL | 1 << QUANTIZED)

/* The numbers of queries i, i + 1, ... as floats, exact below 2^24. */
INLINE vf query_numbers(int64_t i)
{
    return vf_add(vf_iota(), vf_set1((float)i));
}

INLINE float key_number(int64_t j)
{
    return j < 1 << 24 ? (float)j : 0x1p24f;
}

/* Lanes whose query precedes key j and must not see it. */
INLINE vm hidden_lanes(int64_t i, int64_t j)
{
    return vf_lt(query_numbers(i), vf_set1(key_number(j)));
}

/* Lanes whose query sees key j, or no longer reaches back to it. */
INLINE vm reaching_lanes(const struct attn_job *a, int64_t i, int64_t j)
{
    const int64_t end = a->reach < INT64_MAX - j ? j + a->reach : INT64_MAX;
    return vf_lt(query_numbers(i), vf_set1(key_number(end)));
}

/* True if some pair, or every pair, of a tile is out of reach. */
INLINE bool leaves_reach(const struct attn_job *a, int64_t qb, int64_t kb)
{
    return (qb - kb + 1) * TILE - 1 >= a->reach;
}

INLINE bool out_of_reach(const struct attn_job *a, int64_t qb, int64_t kb)
{
    return (qb - kb - 1) * TILE + 1 >= a->reach;
}

INLINE vm full_lanes(const struct attn_job *a, int64_t i, int64_t j)
{
    return vf_lt(query_numbers(i), vf_set1(key_number(full_below(a, j))));
}

/* For a mixed tile: S keeps its pairs in full precision and takes the others from Sq. */
INLINE void select_forms(const struct attn_job *a, float *S, const float *Sq, int64_t i0,
                         int64_t j0)
{
    for (int64_t j = 0; j < TILE; j++)
        for (int64_t i = 0; i < TILE; i += VL) {
            float *at = S + j * TILE + i;
            vf_store(at, vf_select(full_lanes(a, i0 + i, j0 + j), vf_load(at),
                                   vf_load(Sq + j * TILE + i)));
        }
}

/* A thread's working memory, handed out front to back. With base NULL, take() only counts
 * the bytes. */
struct arena {
    char *base;
    size_t used;
};

/* The next n words of 4 bytes, aligned. */
INLINE void *take(struct arena *r, int64_t n)
{
    void *p = r->base ? r->base + r->used : NULL;
    r->used += (size_t)(n + 15) / 16 * 64;
    return p;
}

INLINE struct arena thread_arena(const struct attn_job *a, int thread)
{
    return (struct arena){a->scratch + (size_t)thread * a->thread_bytes, 0};
}

#if ATTN_PAIRS /* the F32 kernels: for inputs that are not BF16 */
int64_t ISA_NAME(cpu_attn_bytes)(const struct attn_shape *s, int threads);
void ISA_NAME(cpu_attn)(struct dev *d, const struct tensor *o, const struct tensor *lse,
                        const struct attn_inputs *in);
void ISA_NAME(cpu_attn_bwd)(struct dev *d, const struct attn_grads *grads,
                            const struct tensor *dout, const struct tensor *o,
                            const struct tensor *lse, const struct attn_inputs *in);
#endif
/* Bytes of the backward: the threads' working memory in SLOT_A and the sums in SLOT_B. */
struct bwd_bytes {
    size_t work, sums;
};
struct bwd_bytes ATTN_NAME(cpu_attn_bwd_bytes)(const struct attn_shape *s, int threads);
int64_t ATTN_NAME(cpu_attn_bytes)(const struct attn_shape *s, int threads);
void ATTN_NAME(cpu_attn)(struct dev *d, const struct tensor *o, const struct tensor *lse,
                         const struct attn_inputs *in);
void ATTN_NAME(cpu_attn_bwd)(struct dev *d, const struct attn_grads *grads,
                             const struct tensor *dout, const struct tensor *o,
                             const struct tensor *lse, const struct attn_inputs *in);

#endif

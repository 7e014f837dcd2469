/* SPDX-License-Identifier: MIT
 *
 * Attention in parts: the past by cuDNN, which knows plain causal attention only, and the recent
 * keys element by element. With window w and s sinks, let kq' be kq with its first s rows from k:
 *
 *             keys ->        past: plain, q[w:] over kq'[:T - w]
 *           +-----------+    recent: the w last keys of each query, in full precision
 *   query   | r         |
 *     |     | p r       |    lse = log(exp(lse_past) + sum_j exp(s_j)),  s_j = scale q . k_j
 *     v     | p p r     |    o   = exp(lse_past - lse) o_past + sum_j exp(s_j - lse) v_j
 *           | p p p r   |
 *           +-----------+
 *
 * The backward of the past is given the o and lse of the whole row, and is right as it is. The
 * recent keys add P_j = exp(s_j - lse) and dS_j = P_j (dout . v_j - dout . o) to dq, dk and dv.
 * tests/kernels/split_dev.c is the same on the host.
 *
 * One warp has a query, or a key, of one head; each lane has four channels. */
#include "kernels/cuda/attn_tiles.h"
#include "kernels/cuda/lib/cudnn.h"

extern "C" {
#include "kernels/attn_memory.h"
}

namespace CUDA_NS
{

/* The emulation has plans at once. */
#if defined(__CUDACC__)
constexpr int64_t LEAST_TOKENS = CUDNN_LEAST_TOKENS;
#else
constexpr int64_t LEAST_TOKENS = 1;
#endif

struct parts {
    const struct attn_inputs *in;
    int64_t T, H, K, d;
    int64_t w, past, sink; /* past = T - w: queries that have one, and its keys */
    plan_shape shape;
    void *at[N_PLAN_TENSORS]; /* the plan's operands */
    const plan *of;
};

/* What the kernels see. */
struct parts_args {
    view q, k, v, o, dout, dq, dk, dv, dkq, dvq; /* [T][heads d] */
    GLOBAL(float) lse;                           /* [H][T] */
    GLOBAL(float) past_lse;                      /* [H][past] */
    GLOBAL(float) P, dS;                         /* [H][T][w], of recent pairs */
    int64_t T, H, K, d, w, past, sink;
    float scale;
};

/* The warp's number in the launch, and its lane's first channel. */
__device__ __forceinline__ int64_t warp_number()
{
    return (int64_t)blockIdx.x * (BLOCK / WARP_SIZE) + threadIdx.x / WARP_SIZE;
}

__device__ __forceinline__ int first_channel()
{
    return (int)threadIdx.x % WARP_SIZE * 4;
}

/* The lane's channels of a head: none past d. */
__device__ __forceinline__ quad channels(const parts_args &a, const view &x, int64_t t,
                                         int64_t head)
{
    const int c = first_channel();
    return get4(x, t * x.ld + head * a.d + c, c < a.d ? 4 : 0);
}

__device__ __forceinline__ void put_channels(const parts_args &a, const view &x, int64_t t,
                                             int64_t head, const quad &q)
{
    const int c = first_channel();
    put4(x, t * x.ld + head * a.d + c, c < a.d ? 4 : 0, q);
}

/* a . b over the whole head; every lane gets it. */
__device__ __forceinline__ float head_dot(const quad &a, const quad &b)
{
    float sum = 0;
    for (int c = 0; c < 4; c++)
        sum = fmaf(a.v[c], b.v[c], sum);
    return warp_reduce(sum, add_op());
}

/* to += factor x */
__device__ __forceinline__ void add_scaled(quad *to, float factor, const quad &x)
{
    for (int c = 0; c < 4; c++)
        to->v[c] = fmaf(factor, x.v[c], to->v[c]);
}

__device__ __forceinline__ int64_t first_recent(const parts_args &a, int64_t t)
{
    return t >= a.w ? t - a.w + 1 : 0;
}

/* y = the first `sink` rows of exact, then those of quantized. */
__global__ void past_keys_kernel(view y, view exact, view quantized, int64_t rows,
                                 int64_t cols, int64_t sink)
{
    const int64_t step = (int64_t)gridDim.x * BLOCK, quads = rows * cols / 4;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < quads; i += step) {
        const int64_t t = i * 4 / cols, c = i * 4 % cols;
        const view &x = t < sink ? exact : quantized;
        put4(y, t * y.ld + c, 4, get4(x, t * x.ld + c, 4));
    }
}

/* past_lse = the rows of lse that have a past. */
__global__ void past_lse_kernel(parts_args a)
{
    const int64_t step = (int64_t)gridDim.x * BLOCK, n = a.H * a.past;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < n; i += step)
        a.past_lse[i] = a.lse[i / a.past * a.T + a.w + i % a.past];
}

/* Adds the recent keys of query t of head h to o and lse. */
__global__ void recent_kernel(parts_args a)
{
    const int64_t i = warp_number(), t = i / a.H, h = i % a.H, kv = h / (a.H / a.K);
    if (t >= a.T)
        return;
    const bool has_past = t >= a.w;
    const quad q = channels(a, a.q, t, h);
    quad acc = {{0, 0, 0, 0}};
    float max = -INFINITY, sum = 0;
    if (has_past) {
        acc = channels(a, a.o, t, h);
        max = a.past_lse[h * a.past + t - a.w];
        sum = 1;
    }
    for (int64_t j = first_recent(a, t); j <= t; j++) {
        const float s = a.scale * head_dot(q, channels(a, a.k, j, kv));
        const float larger = fmaxf(max, s), shrink = exp_of(max - larger),
                    e = exp_of(s - larger);
        for (int c = 0; c < 4; c++)
            acc.v[c] *= shrink;
        add_scaled(&acc, e, channels(a, a.v, j, kv));
        sum = sum * shrink + e;
        max = larger;
    }
    for (int c = 0; c < 4; c++)
        acc.v[c] /= sum;
    put_channels(a, a.o, t, h, acc);
    if (threadIdx.x % WARP_SIZE == 0)
        a.lse[h * a.T + t] = max + logf(sum);
}

/* P and dS of query t's recent pairs of head h, and their part of dq. */
__global__ void recent_query_kernel(parts_args a)
{
    const int64_t i = warp_number(), t = i / a.H, h = i % a.H, kv = h / (a.H / a.K);
    if (t >= a.T)
        return;
    const quad q = channels(a, a.q, t, h), dout = channels(a, a.dout, t, h);
    const float D = head_dot(dout, channels(a, a.o, t, h)), lse = a.lse[h * a.T + t];
    quad dq = {{0, 0, 0, 0}};
    if (t >= a.w)
        dq = channels(a, a.dq, t, h);
    for (int64_t j = first_recent(a, t); j <= t; j++) {
        const quad k = channels(a, a.k, j, kv);
        const float P = exp_of(a.scale * head_dot(q, k) - lse);
        const float dS = P * (head_dot(dout, channels(a, a.v, j, kv)) - D);
        const int64_t at = (h * a.T + t) * a.w + t - j;
        add_scaled(&dq, a.scale * dS, k);
        if (threadIdx.x % WARP_SIZE == 0) {
            a.P[at] = P;
            a.dS[at] = dS;
        }
    }
    put_channels(a, a.dq, t, h, dq);
}

/* dk and dv of key j: from the queries that see it as a recent key, and, for a sink, from the past,
 * whose gradients come in dkq and dvq. */
__global__ void recent_key_kernel(parts_args a)
{
    const int64_t i = warp_number(), j = i / a.K, kv = i % a.K, rep = a.H / a.K;
    if (j >= a.T)
        return;
    const quad none = {{0, 0, 0, 0}};
    const int64_t end = j + a.w < a.T ? j + a.w : a.T;
    quad dk = none, dv = none;
    if (j < a.sink) {
        dk = channels(a, a.dkq, j, kv);
        dv = channels(a, a.dvq, j, kv);
    }
    for (int64_t h = kv * rep; h < (kv + 1) * rep; h++)
        for (int64_t t = j; t < end; t++) {
            const int64_t at = (h * a.T + t) * a.w + t - j;
            add_scaled(&dk, a.scale * a.dS[at], channels(a, a.q, t, h));
            add_scaled(&dv, a.P[at], channels(a, a.dout, t, h));
        }
    put_channels(a, a.dk, j, kv, dk);
    put_channels(a, a.dv, j, kv, dv);
    if (j < a.sink || j >= a.past) {
        put_channels(a, a.dkq, j, kv, none);
        put_channels(a, a.dvq, j, kv, none);
    }
}

/* --- on the host --------------------------------------------------------------------- */

/* Whether cuDNN may have a plan for the past of this attention. */
static bool has_parts(struct dev *d, const struct attn_inputs *in, parts *p)
{
    const struct attn_mask *m = in->kq ? in->mask : nullptr;
    *p = {};
    p->in = in;
    p->T = in->q->dim[0];
    p->H = in->q->dim[1];
    p->K = in->k->dim[1];
    p->d = in->q->dim[2];
    p->w = m ? m->window : 0;
    p->past = p->T - p->w;
    p->sink = !m ? 0 : m->sink < p->past ? m->sink : p->past;
    return gpu_of(d)->dnn && !in->varies && in->q->dtype == DT_BF16 && p->d % 8 == 0 &&
           p->T >= LEAST_TOKENS && p->past > 0 && p->w <= CUDNN_MOST_WINDOW &&
           (!in->reach || in->reach >= p->T) && (!m || (m->chunk <= 1 && m->block <= 1));
}

/* Rows from `first` on as an operand of the plan; false if they are not aligned for it. */
static bool give(parts *p, plan_tensor t, const struct tensor *x, int64_t first)
{
    p->shape.ld[t] = x->ld;
    p->at[t] = (uint16_t *)x->data + first * x->ld;
    return heads_of(x).wide;
}

/* Device memory that is handed out front to back; a NULL base only counts. */
struct carving {
    char *base;
    size_t used;
};

static void *carve(carving *c, int64_t n, size_t element)
{
    char *p = c->base ? c->base + c->used : nullptr;
    c->used += ((size_t)n * element + 255) / 256 * 256;
    return p;
}

/* Working memory. */
struct parts_memory {
    uint16_t *k, *v; /* [past, K, d], with sinks */
    float *past_lse; /* [H][past] */
    float *D;        /* [H][past] } of the backward */
    float *P, *dS;   /* [H][T][w] } */
};

static parts_memory carve_all(const parts *p, carving *c)
{
    parts_memory m = {};
    const int64_t keys = p->sink ? p->past * p->K * p->d : 0;
    const int64_t backward = p->shape.backward;
    m.k = (uint16_t *)carve(c, keys, sizeof(*m.k));
    m.v = (uint16_t *)carve(c, keys, sizeof(*m.v));
    m.past_lse = (float *)carve(c, p->H * p->past, sizeof(float));
    m.D = (float *)carve(c, backward * p->H * p->past, sizeof(float));
    m.P = (float *)carve(c, backward * p->H * p->T * p->w, sizeof(float));
    m.dS = (float *)carve(c, backward * p->H * p->T * p->w, sizeof(float));
    return m;
}

static bool find_plan(struct dev *d, parts *p)
{
    p->of = dnn_plan(d, &p->shape);
    return p->of;
}

/* False after dev_fail(). */
static bool take_memory(struct dev *d, const parts *p, parts_memory *m)
{
    carving c = {nullptr, 0};
    carve_all(p, &c);
    c.base = (char *)scratch(d, SLOT_A, c.used, DNN_MEMORY);
    c.used = 0;
    if (c.base)
        *m = carve_all(p, &c);
    return c.base;
}

static parts_args args_of(const parts *p, const struct tensor *o, const struct tensor *lse,
                          const parts_memory *m)
{
    parts_args a = {};
    a.q = view_of(p->in->q);
    a.k = view_of(p->in->k);
    a.v = view_of(p->in->v);
    a.o = view_of(o);
    a.lse = (float *)lse->data;
    a.past_lse = m->past_lse;
    a.P = m->P;
    a.dS = m->dS;
    a.T = p->T;
    a.H = p->H;
    a.K = p->K;
    a.d = p->d;
    a.w = p->w;
    a.past = p->past;
    a.sink = p->sink;
    a.scale = p->in->scale;
    return a;
}

static unsigned warps(int64_t n)
{
    return blocks_all(n, BLOCK / WARP_SIZE);
}

/* The keys and values of the past in working memory, with the sinks in full precision. */
static void join_sinks(struct dev *d, parts *p, const parts_memory *m)
{
    const struct tensor k = tensor_3d(m->k, DT_BF16, p->past, p->K, p->d),
                        v = tensor_3d(m->v, DT_BF16, p->past, p->K, p->d);
    const unsigned blocks = blocks_for(p->past * p->K * p->d / 4, BLOCK);
    CUDA_LAUNCH(past_keys_kernel, blocks, BLOCK, 0, gpu_of(d)->stream, view_of(&k),
                view_of(p->in->k), view_of(p->in->kq), p->past, p->K * p->d, p->sink);
    CUDA_LAUNCH(past_keys_kernel, blocks, BLOCK, 0, gpu_of(d)->stream, view_of(&v),
                view_of(p->in->v), view_of(p->in->vq), p->past, p->K * p->d, p->sink);
    p->at[PLAN_K] = m->k;
    p->at[PLAN_V] = m->v;
}

/* The plan's operands that the forward and the backward have in common. */
static bool give_inputs(parts *p, const struct tensor *o, const struct tensor *lse)
{
    const struct tensor *k = p->in->kq ? p->in->kq : p->in->k,
                        *v = p->in->kq ? p->in->vq : p->in->v;
    p->shape.n = p->past;
    p->shape.H = p->H;
    p->shape.K = p->K;
    p->shape.d = p->d;
    const bool aligned = give(p, PLAN_Q, p->in->q, p->w) && give(p, PLAN_K, k, 0) &&
                         give(p, PLAN_V, v, 0) && give(p, PLAN_O, o, p->w) &&
                         (uintptr_t)lse->data % 16 == 0;
    if (p->sink)
        p->shape.ld[PLAN_K] = p->shape.ld[PLAN_V] = p->K * p->d;
    return aligned;
}

bool parts_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                const struct attn_inputs *in)
{
    parts p;
    parts_memory m;
    if (!has_parts(d, in, &p) || !give_inputs(&p, o, lse) || !find_plan(d, &p))
        return d->failed;
    if (!take_memory(d, &p, &m))
        return true;
    if (p.sink)
        join_sinks(d, &p, &m);
    p.at[PLAN_LSE] = p.w ? m.past_lse : (float *)lse->data;
    if (dnn_run(d, p.of, p.at, in->scale) && p.w)
        CUDA_LAUNCH(recent_kernel, warps(p.T * p.H), BLOCK, 0, gpu_of(d)->stream,
                    args_of(&p, o, lse, &m));
    launched(d, "attn");
    return true;
}

static bool give_grads(parts *p, const struct attn_grads *g, const struct tensor *dout)
{
    p->shape.backward = 1;
    return give(p, PLAN_DO, dout, p->w) && give(p, PLAN_DQ, g->dq, p->w) &&
           give(p, PLAN_DK, g->dkq ? g->dkq : g->dk, 0) &&
           give(p, PLAN_DV, g->dvq ? g->dvq : g->dv, 0);
}

/* Adds the recent keys' gradients to the past's. */
static void recent_grads(struct dev *d, const parts *p, const struct attn_grads *g,
                         const struct tensor *dout, parts_args a)
{
    const cudaStream_t st = gpu_of(d)->stream;
    a.dout = view_of(dout);
    a.dq = view_of(g->dq);
    a.dk = view_of(g->dk);
    a.dv = view_of(g->dv);
    a.dkq = view_of(g->dkq);
    a.dvq = view_of(g->dvq);
    if (p->w)
        CUDA_LAUNCH(recent_query_kernel, warps(p->T * p->H), BLOCK, 0, st, a);
    CUDA_LAUNCH(recent_key_kernel, warps(p->T * p->K), BLOCK, 0, st, a);
}

bool parts_attn_bwd(struct dev *d, const struct attn_grads *grads,
                    const struct tensor *dout, const struct tensor *o,
                    const struct tensor *lse, const struct attn_inputs *in)
{
    parts p;
    parts_memory m;
    if (!has_parts(d, in, &p) || !cudnn_takes(p.T, p.H, p.K, p.d) ||
        !give_inputs(&p, o, lse) || !give_grads(&p, grads, dout) || !find_plan(d, &p))
        return d->failed;
    if (!take_memory(d, &p, &m))
        return true;
    const parts_args a = args_of(&p, o, lse, &m);
    if (p.sink)
        join_sinks(d, &p, &m);
    if (p.w)
        CUDA_LAUNCH(past_lse_kernel, blocks_for(p.H * p.past, BLOCK), BLOCK, 0,
                    gpu_of(d)->stream, a);
    p.at[PLAN_LSE] = p.w ? m.past_lse : (float *)lse->data;
    p.at[PLAN_D] = m.D;
    if (dnn_run(d, p.of, p.at, in->scale) && in->kq)
        recent_grads(d, &p, grads, dout, a);
    launched(d, "attn_bwd");
    return true;
}

} // namespace CUDA_NS

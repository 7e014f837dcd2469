/* SPDX-License-Identifier: MIT
 *
 * Operations of a model's blocks, forward and backward. Bytes and flops are the floors of
 * docs/performance.md. */
#include "tools/bench/bench_ops.h"

#include "calib/cost.h"
#include "kernels/dev_experts.h"

#include <math.h>

static enum err run_copy(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->w) + bench_bytes(&b->wq);
    return dev_copy(b->dev, &b->wq, &b->w);
}

static enum err run_rmsnorm(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->x) + bench_bytes(&b->h) + 2 * bench_bytes(&b->y);
    const struct rmsnorm_inputs in = {
        .x = &b->x, .add = &b->dy, .g = &b->gain, .eps = 1e-5f};
    return dev_rmsnorm(b->dev, &b->y, &b->s, &b->h, &in);
}

static enum err run_rmsnorm_bwd(struct bench_ops *b)
{
    b->bytes = 3 * bench_bytes(&b->h) + bench_bytes(&b->dy);
    const struct rmsnorm_grads grads = {.dx = &b->h, .accumulate = true};
    return dev_rmsnorm_bwd(b->dev, &grads, &b->dy, &b->x, &b->s, &b->gain);
}

static enum err run_add(struct bench_ops *b)
{
    b->bytes = 2 * bench_bytes(&b->h) + bench_bytes(&b->dy);
    return dev_add(b->dev, &b->h, &b->x, &b->dy);
}

/* Values keep their size over any number of runs. */
static enum err run_scale(struct bench_ops *b)
{
    b->bytes = 2 * bench_bytes(&b->y);
    return dev_scale(b->dev, &b->y, -1);
}

static enum err run_rope(struct bench_ops *b)
{
    const struct tensor q = bench_heads(&b->qkv, 0, b->arch.n_heads, b->arch.head_dim);
    b->bytes = 2 * bench_bytes(&q) + bench_bytes(&b->cos) + bench_bytes(&b->sin);
    return dev_rope(b->dev, &q, &b->cos, &b->sin, false);
}

/* A matrix that is its own inverse, so values keep their size. */
static enum err run_hadamard(struct bench_ops *b)
{
    const struct tensor q = bench_heads(&b->qkv, 0, b->arch.n_heads, b->arch.head_dim);
    b->bytes = 2 * bench_bytes(&q);
    return dev_hadamard(b->dev, &q);
}

static enum err run_silu(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->gu) + bench_bytes(&b->m);
    return dev_gate(b->dev, GATE_SILU, &b->m, &b->gu);
}

static enum err run_silu_bwd(struct bench_ops *b)
{
    b->bytes = 2 * bench_bytes(&b->gu) + bench_bytes(&b->dm);
    return dev_gate_bwd(b->dev, GATE_SILU, &b->dgu, &b->dm, &b->gu);
}

/* Operands of attention with a quantized past. */
struct attention {
    struct tensor q, k, v;
    struct attn_mask mask;
    struct attn_inputs in; /* of the members above */
};

static void take_attention(struct attention *x, const struct bench_ops *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    x->q = bench_heads(&b->qkv, 0, H, d);
    x->k = bench_heads(&b->qkv, H, K, d);
    x->v = bench_heads(&b->qkv, H + K, K, d);
    x->mask = (struct attn_mask){.window = 1};
    x->in = (struct attn_inputs){.q = &x->q,
                                 .k = &x->k,
                                 .v = &x->v,
                                 .kq = &b->kq,
                                 .vq = &b->vq,
                                 .mask = &x->mask,
                                 .scale = 1 / sqrtf((float)d)};
}

static enum err run_attn(struct bench_ops *b)
{
    struct attention x;
    take_attention(&x, b);
    b->flops = cost_attention_flops(&b->arch, b->T);
    return dev_attn(b->dev, &b->o, &b->lse, &x.in);
}

static enum err run_attn_bwd(struct bench_ops *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    struct attention x;
    take_attention(&x, b);
    const struct tensor dq = bench_heads(&b->dqkv, 0, H, d),
                        dk = bench_heads(&b->dqkv, H, K, d);
    const struct tensor dv = bench_heads(&b->dqkv, H + K, K, d);
    const struct attn_grads grads = {
        .dq = &dq, .dk = &dk, .dv = &dv, .dkq = &b->dkq, .dvq = &b->dvq};
    b->flops = COST_ATTENTION_BACKWARD * cost_attention_flops(&b->arch, b->T);
    return dev_attn_bwd(b->dev, &grads, &b->d_o, &b->o, &b->lse, &x.in);
}

/* Returns the flops of a product of [T,2F] with a weight. */
static double product_flops(const struct bench_ops *b)
{
    return 4.0 * (double)b->T * (double)b->arch.d_ff * (double)b->arch.d_model;
}

static enum err run_gemm_nt(struct bench_ops *b)
{
    b->flops = product_flops(b);
    return dev_gemm(b->dev, GEMM_NT, &b->gu, &b->y, &b->wact, false);
}

static enum err run_gemm_nn(struct bench_ops *b)
{
    b->flops = product_flops(b);
    return dev_gemm(b->dev, GEMM_NN, &b->y, &b->gu, &b->wact, false);
}

/* The product of gemm_nn with a residual sum. */
static enum err run_gemm_add(struct bench_ops *b)
{
    b->flops = product_flops(b);
    return dev_gemm_add(b->dev, GEMM_NN, &b->h, &b->x, &b->gu, &b->wact, &b->y);
}

static enum err run_gemm_tn(struct bench_ops *b)
{
    b->flops = product_flops(b);
    return dev_gemm(b->dev, GEMM_TN, &b->dw, &b->gu, &b->y, false);
}

static enum err run_bias(struct bench_ops *b)
{
    b->bytes = 2 * bench_bytes(&b->dgu) + bench_bytes(&b->bias);
    return dev_bias(b->dev, &b->dgu, &b->bias);
}

/* Each row of y is the weighted sum of BENCH_EXPERTS rows of dy. */
static enum err run_gather(struct bench_ops *b)
{
    b->bytes = (BENCH_EXPERTS + 1) * bench_bytes(&b->y);
    return dev_gather(b->dev, &b->y, &b->dy, &b->index, &b->share);
}

static enum err run_gather_dot(struct bench_ops *b)
{
    b->bytes = (BENCH_EXPERTS + 1) * bench_bytes(&b->y);
    return dev_gather_dot(b->dev, &b->dshare, &b->dy, &b->y, &b->index);
}

const struct bench_op bench_ops_model[] = {
    {"gemm_nt", run_gemm_nt},
    {"gemm_nn", run_gemm_nn},
    {"gemm_add", run_gemm_add},
    {"gemm_tn", run_gemm_tn},
    {"attn", run_attn},
    {"attn_bwd", run_attn_bwd},
    {"copy", run_copy},
    {"bias", run_bias},
    {"rmsnorm", run_rmsnorm},
    {"rmsnorm_bwd", run_rmsnorm_bwd},
    {"add", run_add},
    {"scale", run_scale},
    {"rope", run_rope},
    {"hadamard", run_hadamard},
    {"gate", run_silu},
    {"gate_bwd", run_silu_bwd},
    {"gather", run_gather},
    {"gather_dot", run_gather_dot},
    {NULL, NULL},
};

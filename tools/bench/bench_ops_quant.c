/* SPDX-License-Identifier: MIT
 *
 * Fake quantizers of weights and of the cache, and what learns in them. */
#include "tools/bench/bench_ops.h"

#include "kernels/dev_engine.h"

#define BITS 4

static struct weight_quant weight_of(const struct bench_ops *b)
{
    return (struct weight_quant){
        .w = &b->stored, .a = &b->a, .b = &b->b, .bits = BITS, .group_size = BENCH_GROUP};
}

static enum err run_fake_quant_weights(struct bench_ops *b)
{
    const struct weight_quant p = weight_of(b);
    b->bytes = bench_bytes(&b->stored) + bench_bytes(&b->wq) + 2 * bench_bytes(&b->a) +
               bench_bytes(&b->scales) + bench_bytes(&b->zeros);
    return dev_fake_quant_weights(b->dev, &b->wq, &b->scales, &b->zeros, &p);
}

static enum err run_fake_quant_weights_bwd(struct bench_ops *b)
{
    const struct weight_quant p = weight_of(b);
    b->bytes = bench_bytes(&b->stored) + bench_bytes(&b->dw) + 4 * bench_bytes(&b->a);
    return dev_fake_quant_weights_bwd(b->dev, &b->da, &b->db, &b->dw, &p);
}

static enum err run_fake_quant_stored(struct bench_ops *b)
{
    const struct weight_quant p = weight_of(b);
    b->bytes = bench_bytes(&b->stored) + bench_bytes(&b->wq) + bench_bytes(&b->scales) +
               bench_bytes(&b->zeros);
    return dev_fake_quant_stored(b->dev, &b->wq, &b->scales, &b->zeros, &p);
}

static enum err run_fake_quant_kv(struct bench_ops *b)
{
    const struct tensor k =
        bench_heads(&b->qkv, b->arch.n_heads, b->arch.n_kv, b->arch.head_dim);
    const struct kv_quant p = {
        .x = &k, .s = &b->ks, .shift = &b->kd, .bits = BITS, .group_size = BENCH_GROUP};
    b->bytes = 2 * bench_bytes(&b->kq);
    return dev_fake_quant_kv(b->dev, &b->kq, &p);
}

static enum err run_fake_quant_kv_bwd(struct bench_ops *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const struct tensor k = bench_heads(&b->qkv, H, K, d),
                        dk = bench_heads(&b->dqkv, H, K, d);
    const struct kv_quant p = {
        .x = &k, .s = &b->ks, .shift = &b->kd, .bits = BITS, .group_size = BENCH_GROUP};
    b->bytes = 4 * bench_bytes(&b->kq);
    return dev_fake_quant_kv_bwd(
        b->dev,
        &(struct kv_grads){
            .dx = &dk, .dls = &b->dks, .dshift = &b->dkd, .accumulate = true},
        &b->dkq, &p);
}

static enum err run_fake_quant_kv_channel(struct bench_ops *b)
{
    const struct tensor k =
        bench_heads(&b->qkv, b->arch.n_heads, b->arch.n_kv, b->arch.head_dim);
    b->bytes = 2 * bench_bytes(&b->kq);
    return dev_fake_quant_kv_channel(b->dev, &b->kq, &k, BITS, BENCH_GROUP);
}

static enum err run_minmax(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->kq);
    return dev_col_minmax(b->dev, &b->dks, &b->dkd, &b->kq);
}

static enum err run_exp(struct bench_ops *b)
{
    b->bytes = 2 * bench_bytes(&b->ks);
    return dev_exp(b->dev, &b->dks, &b->kd);
}

static enum err run_offset_step(struct bench_ops *b)
{
    struct weight_quant p = weight_of(b);
    p.v = &b->v;
    b->bytes = bench_bytes(&b->stored) + bench_bytes(&b->dw) + 2 * bench_bytes(&b->v) +
               bench_bytes(&b->scales) + bench_bytes(&b->zeros);
    return dev_offset_step(b->dev, &b->dw, &b->scales, &b->zeros, &p, 1e-3f);
}

static enum err run_fake_quant_kv_channel_bwd(struct bench_ops *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const struct tensor k = bench_heads(&b->qkv, H, K, d),
                        dk = bench_heads(&b->dqkv, H, K, d);
    b->bytes = 4 * bench_bytes(&b->kq);
    return dev_fake_quant_kv_channel_bwd(b->dev, &dk, &b->dkq, &k, BITS, BENCH_GROUP, true);
}

/* Keys in llama.cpp's cache. */
static struct engine_quant engine_of(const struct bench_ops *b, const struct tensor *k)
{
    return (struct engine_quant){
        .x = k, .s = &b->ks, .shift = &b->kd, .target = TARGET_Q4_0, .side = KV_K};
}

static enum err run_fake_quant_engine(struct bench_ops *b)
{
    const struct tensor k =
        bench_heads(&b->qkv, b->arch.n_heads, b->arch.n_kv, b->arch.head_dim);
    const struct engine_quant p = engine_of(b, &k);
    b->bytes = 2 * bench_bytes(&b->kq);
    return dev_fake_quant_engine(b->dev, &b->kq, &p);
}

static enum err run_fake_quant_engine_bwd(struct bench_ops *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const struct tensor k = bench_heads(&b->qkv, H, K, d),
                        dk = bench_heads(&b->dqkv, H, K, d);
    const struct engine_quant p = engine_of(b, &k);
    b->bytes = 4 * bench_bytes(&b->kq);
    return dev_fake_quant_engine_bwd(
        b->dev,
        &(struct kv_grads){
            .dx = &dk, .dls = &b->dks, .dshift = &b->dkd, .accumulate = true},
        &b->dkq, &p);
}

const struct bench_op bench_ops_quant[] = {
    {"fake_quant_weights", run_fake_quant_weights},
    {"fake_quant_stored", run_fake_quant_stored},
    {"fake_quant_weights_bwd", run_fake_quant_weights_bwd},
    {"offset_step", run_offset_step},
    {"fake_quant_kv", run_fake_quant_kv},
    {"fake_quant_kv_bwd", run_fake_quant_kv_bwd},
    {"fake_quant_kv_channel", run_fake_quant_kv_channel},
    {"fake_quant_kv_channel_bwd", run_fake_quant_kv_channel_bwd},
    {"col_minmax", run_minmax},
    {"exp", run_exp},
    {NULL, NULL},
};

const struct bench_op bench_ops_engine[] = {
    {"fake_quant_engine", run_fake_quant_engine},
    {"fake_quant_engine_bwd", run_fake_quant_engine_bwd},
    {NULL, NULL},
};

/* SPDX-License-Identifier: MIT
 *
 * Fake quantization of keys per channel, in blocks of tokens, and its gradient. A thread
 * takes one channel of one block of tokens; neighbouring threads take neighbouring
 * channels. The tokens after the last whole block are copied. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

struct kv_channel {
    view x, y, g; /* y: xq or dx; g: dxq, in backward */
    int64_t T, C, tokens;
    int bits;
    bool accumulate;
};

struct channel_block {
    int64_t c, t0, t1, at_min, at_max; /* the first token with the minimum, the maximum */
    float h, m;
    bool whole;
};

/* Block i of tokens of this thread's channel. False if there is no such channel. */
__device__ static bool block_of(const kv_channel &p, int64_t i, channel_block *b)
{
    b->c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (b->c >= p.C)
        return false;
    b->t0 = b->at_min = b->at_max = i * p.tokens;
    b->whole = b->t0 + p.tokens <= p.T;
    b->t1 = b->whole ? b->t0 + p.tokens : p.T;
    float mn = INFINITY, mx = -INFINITY;
    for (int64_t t = b->t0; t < b->t1 && b->whole; t++) {
        const float v = get(p.x, t * p.x.ld + b->c);
        if (v < mn) {
            mn = v;
            b->at_min = t;
        }
        if (v > mx) {
            mx = v;
            b->at_max = t;
        }
    }
    b->h = b->whole ? f16_to_f32(quant_kv_scale(mn, mx, p.bits)) : 0;
    b->m = b->whole ? f16_to_f32(quant_kv_min(mn)) : 0;
    return true;
}

__global__ void fake_quant_kv_channel_kernel(kv_channel p)
{
    channel_block b;
    for (int64_t i = blockIdx.y; i * p.tokens < p.T; i += gridDim.y) {
        if (!block_of(p, i, &b))
            return;
        for (int64_t t = b.t0; t < b.t1; t++) {
            const float v = get(p.x, t * p.x.ld + b.c);
            put(p.y, t * p.y.ld + b.c,
                b.whole
                    ? quant_kv_out(quant_kv_code(v, b.h, b.m, p.bits), b.h, b.m, 1.0f, 0.0f)
                    : v);
        }
    }
}

/* dL/dh / Q of a block, with dL/dh = sum_t g_t (q_t - (x_t - m) / h); 0 where h is 0 or
 * clamped. h = (mx - mn) / Q, so the maximum gets it and the minimum its negative. */
__device__ static float path_of(const kv_channel &p, const channel_block &b)
{
    float dh = 0;
    if (!(b.h > 0) || !(b.h < QUANT_SCALE_MAX))
        return 0;
    for (int64_t t = b.t0; t < b.t1; t++) {
        const float v = get(p.x, t * p.x.ld + b.c);
        dh += get(p.g, t * p.g.ld + b.c) *
              ((float)quant_kv_code(v, b.h, b.m, p.bits) - (v - b.m) / b.h);
    }
    return dh / (float)((1 << p.bits) - 1);
}

/* dx = g, plus the path through h at the first maximum and the first minimum. s = 1 and
 * shift = 0, so x~ is x. In the tokens after the last whole block, h is 0 and dx is g. */
__global__ void fake_quant_kv_channel_bwd_kernel(kv_channel p)
{
    channel_block b;
    for (int64_t i = blockIdx.y; i * p.tokens < p.T; i += gridDim.y) {
        if (!block_of(p, i, &b))
            return;
        const float path = path_of(p, b);
        for (int64_t t = b.t0; t < b.t1; t++) {
            const int64_t to = t * p.y.ld + b.c;
            const float g = get(p.g, t * p.g.ld + b.c) + (t == b.at_max ? path : 0) -
                            (t == b.at_min ? path : 0);
            put(p.y, to, g + (p.accumulate ? get(p.y, to) : 0));
        }
    }
}

static kv_channel kv_channel_of(const struct tensor *y, const struct tensor *x, int bits,
                                int64_t tokens)
{
    kv_channel p = {};
    p.x = view_of(x);
    p.y = view_of(y);
    p.T = x->dim[0];
    p.C = x->dim[1] * x->dim[2];
    p.tokens = tokens;
    p.bits = bits;
    return p;
}

static dim3 grid_of(const kv_channel &p)
{
    return dim3(blocks_all(p.C, BLOCK), blocks_for((p.T + p.tokens - 1) / p.tokens, 1));
}

static void cuda_fake_quant_kv_channel(struct dev *d, const struct tensor *xq,
                                       const struct tensor *x, int bits, int64_t tokens)
{
    const kv_channel p = kv_channel_of(xq, x, bits, tokens);
    CUDA_LAUNCH(fake_quant_kv_channel_kernel, grid_of(p), BLOCK, 0, gpu_of(d)->stream, p);
    launched(d, "fake_quant_kv_channel");
}

static void cuda_fake_quant_kv_channel_bwd(struct dev *d, const struct tensor *dx,
                                           const struct tensor *dxq, const struct tensor *x,
                                           int bits, int64_t tokens, bool accumulate)
{
    kv_channel p = kv_channel_of(dx, x, bits, tokens);
    p.g = view_of(dxq);
    p.accumulate = accumulate;
    CUDA_LAUNCH(fake_quant_kv_channel_bwd_kernel, grid_of(p), BLOCK, 0, gpu_of(d)->stream,
                p);
    launched(d, "fake_quant_kv_channel_bwd");
}

void fill_channel(struct dev_ops *o)
{
    o->fake_quant_kv_channel = cuda_fake_quant_kv_channel;
    o->fake_quant_kv_channel_bwd = cuda_fake_quant_kv_channel_bwd;
}

} // namespace CUDA_NS

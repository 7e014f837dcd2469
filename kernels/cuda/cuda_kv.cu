/* SPDX-License-Identifier: MIT
 *
 * Fake quantization of keys and values, and its gradient; kernels/ref/ref_quant.c states
 * the formulas. One warp per group of channels inside a head; lane l holds channels l, l
 * + 32, ...
 *
 * The backward needs sums over all tokens for each channel. They are formed in two
 * stages, in a fixed order: a warp walks over TOKENS tokens with its sums in registers
 * and writes them to part [tile][2][C]; kv_sum_kernel() then adds the tiles of a
 * channel. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

constexpr int TOKENS = 16, LANE_CHANNELS = 8, MAX_GROUP = LANE_CHANNELS * WARP_SIZE;

struct kv {
    view x;
    GLOBAL(const float) s, shift; /* NULL: 1 and 0 */
    int64_t T, C, d, G, head_groups;
    int bits;
    __device__ float s_at(int64_t c) const
    {
        return s ? s[c] : 1.0f;
    }
    __device__ float shift_at(int64_t c) const
    {
        return shift ? shift[c] : 0.0f;
    }
    __device__ float in(int64_t t, int64_t c) const
    {
        return quant_kv_in(get(x, t * x.ld + c), s_at(c), shift_at(c));
    }
};

/* A value, and the first channel of the group that has it. */
struct extreme {
    float v;
    int at;
};

struct kvgroup {
    float h, m;
    int at_min, at_max; /* channels within the group */
};

/* The extreme over all lanes. Of equal values the lowest channel wins, so that every device
 * gives the path through h to the same channel. */
template <bool MAX> __device__ static extreme warp_extreme(extreme e)
{
    for (int o = WARP_SIZE / 2; o; o /= 2) {
        const extreme f = {__shfl_xor_sync(FULL_WARP, e.v, o),
                           __shfl_xor_sync(FULL_WARP, e.at, o)};
        if ((MAX ? f.v > e.v : f.v < e.v) || (f.v == e.v && f.at < e.at))
            e = f;
    }
    return e;
}

/* Scale, minimum and extremes of a group of n channels. xt[i] is x~ of channel lane + 32
 * i. */
__device__ static kvgroup measure(const float *xt, int n, int bits)
{
    const int lane = (int)(threadIdx.x % WARP_SIZE);
    extreme mn = {INFINITY, n}, mx = {-INFINITY, n};
    UNROLL
    for (int i = 0; i < LANE_CHANNELS; i++) {
        const int c = lane + i * WARP_SIZE;
        if (c < n && xt[i] < mn.v)
            mn = {xt[i], c};
        if (c < n && xt[i] > mx.v)
            mx = {xt[i], c};
    }
    mn = warp_extreme<false>(mn);
    mx = warp_extreme<true>(mx);
    return kvgroup{f16_to_f32(quant_kv_scale(mn.v, mx.v, bits)),
                   f16_to_f32(quant_kv_min(mn.v)), mn.at, mx.at};
}

/* First channel and number of channels of this warp's group. False if there is none. */
__device__ static bool warp_group(const kv &p, int64_t *begin, int *n)
{
    const int64_t i = (int64_t)blockIdx.x * (BLOCK / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    const int64_t head = i / p.head_groups, at = (i - head * p.head_groups) * p.G;
    *begin = head * p.d + at;
    *n = (int)(p.d - at < p.G ? p.d - at : p.G);
    return *begin < p.C;
}

/* xt[i] = x~ of channel lane + 32 i of the group, in registers for all that follows; 0 past
 * the end. */
__device__ static void load(const kv &p, int64_t t, int64_t begin, int n, float *xt)
{
    const int lane = (int)(threadIdx.x % WARP_SIZE);
    UNROLL
    for (int i = 0; i < LANE_CHANNELS; i++)
        xt[i] = lane + i * WARP_SIZE < n ? p.in(t, begin + lane + i * WARP_SIZE) : 0;
}

__global__ void fake_quant_kv_kernel(kv p, view xq)
{
    int64_t begin;
    int n;
    if (!warp_group(p, &begin, &n))
        return;
    const int lane = (int)(threadIdx.x % WARP_SIZE);
    for (int64_t t = blockIdx.y; t < p.T; t += gridDim.y) {
        float xt[LANE_CHANNELS];
        load(p, t, begin, n, xt);
        const kvgroup k = measure(xt, n, p.bits);
        UNROLL
        for (int i = 0; i < LANE_CHANNELS; i++) {
            const int64_t c = begin + lane + i * WARP_SIZE;
            if (lane + i * WARP_SIZE < n)
                put(xq, t * xq.ld + c,
                    quant_kv_out(quant_kv_code(xt[i], k.h, k.m, p.bits), k.h, k.m,
                                 p.s_at(c), p.shift_at(c)));
        }
    }
}

/* For groups of more channels than a warp holds: one block per group, which reads it
 * twice. */
__global__ void fake_quant_kv_wide_kernel(kv p, view xq)
{
    const int64_t groups = p.C / p.d * p.head_groups;
    for (int64_t i = blockIdx.x; i < p.T * groups; i += gridDim.x) {
        const int64_t t = i / groups, head = i % groups / p.head_groups,
                      at = i % p.head_groups * p.G, begin = head * p.d + at,
                      end = begin + (p.d - at < p.G ? p.d - at : p.G);
        float mn = INFINITY, mx = -INFINITY;
        for (int64_t c = begin + threadIdx.x; c < end; c += BLOCK) {
            mn = min_op()(mn, p.in(t, c));
            mx = max_op()(mx, p.in(t, c));
        }
        mn = block_reduce(mn, min_op());
        mx = block_reduce(mx, max_op());
        const float h = f16_to_f32(quant_kv_scale(mn, mx, p.bits)),
                    m = f16_to_f32(quant_kv_min(mn));
        for (int64_t c = begin + threadIdx.x; c < end; c += BLOCK)
            put(xq, t * xq.ld + c,
                quant_kv_out(quant_kv_code(p.in(t, c), h, m, p.bits), h, m, p.s_at(c),
                             p.shift_at(c)));
    }
}

struct kv_grad {
    view dx, dxq;
    GLOBAL(float) part; /* [tile][2][C]: dls, dshift; NULL to skip */
    bool accumulate;
};

/* Gradients of one group of one token. Adds to dls and dshift, this lane's sums. With e = s
 * g and g~ = dL/dx~:
 *   dL/dh = sum e (q - (x~ - m) / h)      g~ = e, at the extremes e +- dL/dh / Q
 *   dx = g~ / s      dlog s += e (m + h q) - g~ x~      dshift += g - g~ / s
 * h = 0 (a constant group) and a clamped h pass nothing on through h. */
__device__ static void token_grad(const kv &p, const kv_grad &o, int64_t t, int64_t begin,
                                  int n, float *dls, float *dshift)
{
    const int lane = (int)(threadIdx.x % WARP_SIZE);
    float xt[LANE_CHANNELS], g[LANE_CHANNELS], dh = 0;
    load(p, t, begin, n, xt);
    const kvgroup k = measure(xt, n, p.bits);
    UNROLL
    for (int i = 0; i < LANE_CHANNELS; i++) {
        const int64_t c = begin + lane + i * WARP_SIZE;
        g[i] = lane + i * WARP_SIZE < n ? get(o.dxq, t * o.dxq.ld + c) : 0;
        if (lane + i * WARP_SIZE < n && k.h > 0)
            dh += p.s_at(c) * g[i] *
                  ((float)quant_kv_code(xt[i], k.h, k.m, p.bits) - (xt[i] - k.m) / k.h);
    }
    dh = warp_reduce(dh, add_op()) / (float)((1 << p.bits) - 1);
    if (!(k.h < QUANT_SCALE_MAX)) /* h is clamped */
        dh = 0;
    UNROLL
    for (int i = 0; i < LANE_CHANNELS; i++) {
        const int at = lane + i * WARP_SIZE;
        const int64_t c = begin + at, to = t * o.dx.ld + c;
        if (at >= n)
            continue;
        const float s = p.s_at(c), q = (float)quant_kv_code(xt[i], k.h, k.m, p.bits);
        const float e = s * g[i],
                    gt = e + (at == k.at_max ? dh : 0) - (at == k.at_min ? dh : 0);
        put(o.dx, to, gt / s + (o.accumulate ? get(o.dx, to) : 0));
        dls[i] += e * (k.m + k.h * q) - gt * xt[i];
        dshift[i] += g[i] - gt / s;
    }
}

__global__ void fake_quant_kv_bwd_kernel(kv p, kv_grad o)
{
    int64_t begin;
    int n;
    if (!warp_group(p, &begin, &n))
        return;
    const int lane = (int)(threadIdx.x % WARP_SIZE);
    const int64_t tiles = (p.T + TOKENS - 1) / TOKENS;
    for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        float dls[LANE_CHANNELS] = {0}, dshift[LANE_CHANNELS] = {0};
        for (int64_t t = tile * TOKENS; t < p.T && t < (tile + 1) * TOKENS; t++)
            token_grad(p, o, t, begin, n, dls, dshift);
        UNROLL
        for (int i = 0; i < LANE_CHANNELS; i++)
            if (o.part && lane + i * WARP_SIZE < n) {
                const int64_t c = begin + lane + i * WARP_SIZE;
                o.part[2 * tile * p.C + c] = dls[i];
                o.part[(2 * tile + 1) * p.C + c] = dshift[i];
            }
    }
}

/* The second stage: adds the tiles of a channel in ascending order. */
__global__ void kv_sum_kernel(GLOBAL(float) dls, GLOBAL(float) dshift,
                              GLOBAL(const float) part, int64_t tiles, int64_t C)
{
    const int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C)
        return;
    float a = 0, b = 0;
    for (int64_t i = 0; i < tiles; i++) {
        a += part[2 * i * C + c];
        b += part[(2 * i + 1) * C + c];
    }
    dls[c] += a;
    dshift[c] += b;
}

static kv kv_of(const struct kv_quant *q)
{
    kv p = {};
    p.x = view_of(q->x);
    p.s = q->s ? (const float *)q->s->data : nullptr;
    p.shift = q->shift ? (const float *)q->shift->data : nullptr;
    p.T = q->x->dim[0];
    p.d = q->x->dim[2];
    p.C = q->x->dim[1] * p.d;
    p.G = kv_group(p.d, q->group_size);
    p.head_groups = (p.d + p.G - 1) / p.G;
    p.bits = q->bits;
    return p;
}

static unsigned warps_grid(const kv &p)
{
    return blocks_all(p.C / p.d * p.head_groups, BLOCK / WARP_SIZE);
}

static void cuda_fake_quant_kv(struct dev *d, const struct tensor *xq,
                               const struct kv_quant *q)
{
    const kv p = kv_of(q);
    const dim3 grid(warps_grid(p), blocks_for(p.T, 1));
    const cudaStream_t st = gpu_of(d)->stream;
    if (p.G > MAX_GROUP)
        CUDA_LAUNCH(fake_quant_kv_wide_kernel,
                    blocks_for(p.T * (p.C / p.d * p.head_groups), 1), BLOCK, 0, st, p,
                    view_of(xq));
    else
        CUDA_LAUNCH(fake_quant_kv_kernel, grid, BLOCK, 0, st, p, view_of(xq));
    launched(d, "fake_quant_kv");
}

static void cuda_fake_quant_kv_bwd(struct dev *d, const struct kv_grads *grads,
                                   const struct tensor *dxq, const struct kv_quant *q)
{
    const kv p = kv_of(q);
    if (p.G > MAX_GROUP) {
        dev_fail(d, ERR_SUPPORT, "gradient of groups of %lld channels, at most %d",
                 (long long)p.G, MAX_GROUP);
        return;
    }
    const int64_t tiles = (p.T + TOKENS - 1) / TOKENS;
    float *part = nullptr;
    if (grads->dls)
        part = (float *)scratch(d, SLOT_A, (size_t)(2 * tiles * p.C) * sizeof(float));
    if (grads->dls && !part)
        return;
    const dim3 grid(warps_grid(p), blocks_for(tiles, 1));
    const kv_grad o = {view_of(grads->dx), view_of(dxq), part, grads->accumulate};
    const cudaStream_t st = gpu_of(d)->stream;
    CUDA_LAUNCH(fake_quant_kv_bwd_kernel, grid, BLOCK, 0, st, p, o);
    if (grads->dls)
        CUDA_LAUNCH(kv_sum_kernel, blocks_all(p.C, BLOCK), BLOCK, 0, st,
                    (float *)grads->dls->data, (float *)grads->dshift->data, part, tiles,
                    p.C);
    launched(d, "fake_quant_kv_bwd");
}

void fill_kv(struct dev_ops *o)
{
    o->fake_quant_kv = cuda_fake_quant_kv;
    o->fake_quant_kv_bwd = cuda_fake_quant_kv_bwd;
}

} // namespace CUDA_NS

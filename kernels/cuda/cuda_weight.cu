/* SPDX-License-Identifier: MIT
 *
 * Fake quantization of weights: learnable clipping, its gradient, and stored scales,
 * bit-equal to kernels/tensor/quant.h. One warp per group; a lane takes four neighbouring
 * columns at a time. kernels/ref/ref_quant.c states the formulas. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

/* Operands and groups. */
struct weights {
    view w, wq, v; /* v.p NULL: offsets are 0 */
    GLOBAL(uint16_t) scales;
    GLOBAL(uint8_t) zeros;
    GLOBAL(const float) a, b; /* NULL: no clipping */
    int64_t scales_ld, zeros_ld, a_ld, b_ld;
    int64_t rows, cols, G, groups;
    int bits, scale_bits;
};

/* One group: columns [begin, end) of row r. */
struct wgroup {
    int64_t r, g, begin, end;
    float min, max, gamma, beta, lo, hi, h;
    uint16_t scale;
    uint8_t z;
};

/* sigma(x[i]) with the reference's rounding; 1 if x is NULL. */
__device__ static float clip_factor(GLOBAL(const float) x, int64_t i)
{
    return x ? (float)(1 / (1 + exp(-(double)x[i]))) : 1.0f;
}

/* Finds the group of this warp, and the first column of this lane. False if there is
 * none. */
__device__ static bool warp_group(const weights &p, wgroup *k, int64_t *first)
{
    const int64_t i = (int64_t)blockIdx.x * (BLOCK / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= p.rows * p.groups)
        return false;
    k->r = i / p.groups;
    k->g = i - k->r * p.groups;
    k->begin = k->g * p.G;
    k->end = k->begin + p.G < p.cols ? k->begin + p.G : p.cols;
    *first = k->begin + (int64_t)(threadIdx.x % WARP_SIZE) * 4;
    return true;
}

/* Columns, at most 4, that a lane at column c has. */
__device__ static int left(const wgroup &k, int64_t c)
{
    return k.end - c < 4 ? (int)(k.end - c) : 4;
}

/* Computes range, scale and zero of the group. All lanes take part and get the result. */
__device__ static void measure(const weights &p, wgroup *k, int64_t first)
{
    float mn = 0, mx = 0;
    for (int64_t c = first; c < k->end; c += 4 * WARP_SIZE) {
        const quad q = get4(p.w, k->r * p.w.ld + c, left(*k, c));
        for (int i = 0; i < 4; i++) {
            mn = q.v[i] < mn ? q.v[i] : mn;
            mx = q.v[i] > mx ? q.v[i] : mx;
        }
    }
    k->min = warp_reduce(mn, min_op());
    k->max = warp_reduce(mx, max_op());
    k->gamma = clip_factor(p.a, k->r * p.a_ld + k->g);
    k->beta = clip_factor(p.b, k->r * p.b_ld + k->g);
    k->lo = k->beta * k->min;
    k->hi = k->gamma * k->max;
    k->scale = quant_weight_scale(k->lo, k->hi, p.bits, p.scale_bits);
    k->h = f16_to_f32(k->scale);
    k->z = quant_weight_zero(k->lo, k->h, p.bits);
}

/* Rounding offsets of n columns from c on. */
__device__ static quad offsets(const weights &p, const wgroup &k, int64_t c, int n)
{
    if (p.v.p)
        return get4(p.v, k.r * p.v.ld + c, n);
    return quad();
}

/* w^ = (q - z) h for this lane's columns, by quant.h's functions for one value. */
__device__ static void apply(const weights &p, const wgroup &k, int64_t first)
{
    for (int64_t c = first; c < k.end; c += 4 * WARP_SIZE) {
        const int n = left(k, c);
        const quad v = offsets(p, k, c, n);
        quad q = get4(p.w, k.r * p.w.ld + c, n);
        for (int i = 0; i < 4; i++)
            q.v[i] = quant_weight_value(
                quant_weight_code_offset(q.v[i], v.v[i], k.h, k.z, p.bits), k.z, k.h);
        put4(p.wq, k.r * p.wq.ld + c, n, q);
    }
}

__global__ void fake_quant_weights_kernel(weights p)
{
    wgroup k;
    int64_t first;
    if (!warp_group(p, &k, &first))
        return;
    measure(p, &k, first);
    if (threadIdx.x % WARP_SIZE == 0) {
        p.scales[k.r * p.scales_ld + k.g] = k.scale;
        p.zeros[k.r * p.zeros_ld + k.g] = k.z;
    }
    if (p.wq.p)
        apply(p, k, first);
}

/* Reads the stored scale and zero of the group. */
__device__ static void read_stored(const weights &p, wgroup *k)
{
    k->h = f16_to_f32(p.scales[k->r * p.scales_ld + k->g]);
    k->z = p.zeros[k->r * p.zeros_ld + k->g];
}

__global__ void fake_quant_stored_kernel(weights p)
{
    wgroup k;
    int64_t first;
    if (!warp_group(p, &k, &first))
        return;
    read_stored(p, &k);
    apply(p, k, first);
}

/* Sums over the group, with g = dL/dw^, u = w / h and r = round(u + v):
 *   *dh = sum g (r - u), or g (clamped code - z) where r + z is outside 0..Q, at fixed z
 *   *dz = -h sum g over the codes outside
 * Lanes add their columns first; warp_reduce() then adds the lanes in a fixed order. */
__device__ static void group_grads(const weights &p, const view &dwq, const wgroup &k,
                                   int64_t first, float *dh, float *dz)
{
    const float Q = (float)((1 << p.bits) - 1), z = (float)k.z;
    float sum_h = 0, sum_z = 0;
    for (int64_t c = first; c < k.end; c += 4 * WARP_SIZE) {
        const int n = left(k, c);
        const quad w = get4(p.w, k.r * p.w.ld + c, n), g = get4(dwq, k.r * dwq.ld + c, n);
        const quad v = offsets(p, k, c, n);
        for (int i = 0; i < 4; i++) {
            const float u = w.v[i] / k.h, round = rintf(u + v.v[i]), q = round + z;
            const bool outside = q > Q || q < 0;
            sum_h += g.v[i] * (outside ? (q > Q ? Q : 0) - z : round - u);
            sum_z -= outside ? g.v[i] * k.h : 0;
        }
    }
    *dh = warp_reduce(sum_h, add_op());
    *dz = warp_reduce(sum_z, add_op());
}

/* Chain rule from h and z to the clipping parameters, as in docs/method.md: dz/dh = lo /
 * h^2, dz/dlo = -1 / h, dh/dhi = 1 / Q = -dh/dlo, each 0 where its result is clamped;
 * dhi/da = max gamma (1 - gamma), dlo/db = min beta (1 - beta). One lane does this in
 * f64. */
__global__ void fake_quant_weights_bwd_kernel(weights p, view dwq, GLOBAL(float) da,
                                              int64_t da_ld, GLOBAL(float) db,
                                              int64_t db_ld)
{
    wgroup k;
    int64_t first;
    if (!warp_group(p, &k, &first))
        return;
    measure(p, &k, first);
    float sum_h, sum_z;
    group_grads(p, dwq, k, first, &sum_h, &sum_z);
    if (threadIdx.x % WARP_SIZE)
        return;
    const float Q = (float)((1 << p.bits) - 1),
                raw = (k.hi - k.lo) / Q; /* h before clamp and rounding */
    const double h = (double)k.h, dz = (double)sum_z;
    double dh = (double)sum_h, dlo = 0, dhi = 0;
    if (rintf(-k.lo / k.h) <= Q) { /* z is not clamped */
        dh += dz * (double)k.lo / (h * h);
        dlo -= dz / h;
    }
    if (raw >= QUANT_TINY && raw <= QUANT_SCALE_MAX) {
        dhi += dh / (double)Q;
        dlo -= dh / (double)Q;
    }
    const double gamma = (double)k.gamma, beta = (double)k.beta;
    da[k.r * da_ld + k.g] = (float)(dhi * (double)k.max * gamma * (1 - gamma));
    db[k.r * db_ld + k.g] = (float)(dlo * (double)k.min * beta * (1 - beta));
}

/* v -= rate sign(dL/dw^), clamped to [-1/2, 1/2] (SignRound, Cheng et al. 2023). */
__global__ void round_step_kernel(weights p, view dwq, float rate)
{
    wgroup k;
    int64_t first;
    if (!warp_group(p, &k, &first))
        return;
    read_stored(p, &k);
    for (int64_t c = first; c < k.end; c += 4 * WARP_SIZE) {
        const int n = left(k, c);
        const quad w = get4(p.w, k.r * p.w.ld + c, n), g = get4(dwq, k.r * dwq.ld + c, n);
        quad v = get4(p.v, k.r * p.v.ld + c, n);
        for (int i = 0; i < 4; i++)
            v.v[i] =
                quant_weight_offset_step(v.v[i], g.v[i], w.v[i], k.h, k.z, rate, p.bits);
        put4(p.v, k.r * p.v.ld + c, n, v);
    }
}

static weights weights_of(const struct weight_quant *q, const struct tensor *wq,
                          const struct tensor *scales, const struct tensor *zeros)
{
    weights p = {};
    p.w = view_of(q->w);
    p.wq = view_of(wq);
    p.v = view_of(q->v);
    p.rows = q->w->dim[0];
    p.cols = q->w->dim[1];
    p.G = q->group_size ? q->group_size : p.cols;
    p.groups = (p.cols + p.G - 1) / p.G;
    p.bits = q->bits;
    p.scale_bits = q->scale_bits;
    const bool aligned =
        p.G % 4 == 0 || p.groups == 1; /* groups start at a multiple of four */
    p.w.wide = p.w.wide && aligned;
    p.wq.wide = p.wq.wide && aligned;
    p.v.wide = p.v.wide && aligned;
    if (scales) {
        p.scales = (uint16_t *)scales->data;
        p.scales_ld = scales->ld;
        p.zeros = (uint8_t *)zeros->data;
        p.zeros_ld = zeros->ld;
    }
    if (q->a) {
        p.a = (const float *)q->a->data;
        p.a_ld = q->a->ld;
        p.b = (const float *)q->b->data;
        p.b_ld = q->b->ld;
    }
    return p;
}

/* One warp for every group. */
static unsigned grid_of(const weights &p)
{
    return blocks_all(p.rows * p.groups, BLOCK / WARP_SIZE);
}

static void cuda_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                    const struct tensor *scales, const struct tensor *zeros,
                                    const struct weight_quant *q)
{
    const weights p = weights_of(q, wq, scales, zeros);
    CUDA_LAUNCH(fake_quant_weights_kernel, grid_of(p), BLOCK, 0, gpu_of(d)->stream, p);
    launched(d, "fake_quant_weights");
}

static void cuda_fake_quant_stored(struct dev *d, const struct tensor *wq,
                                   const struct tensor *scales, const struct tensor *zeros,
                                   const struct weight_quant *q)
{
    const weights p = weights_of(q, wq, scales, zeros);
    CUDA_LAUNCH(fake_quant_stored_kernel, grid_of(p), BLOCK, 0, gpu_of(d)->stream, p);
    launched(d, "fake_quant_stored");
}

static void cuda_fake_quant_weights_bwd(struct dev *d, const struct tensor *da,
                                        const struct tensor *db, const struct tensor *dwq,
                                        const struct weight_quant *q)
{
    const weights p = weights_of(q, nullptr, nullptr, nullptr);
    view g = view_of(dwq);
    g.wide = g.wide && (p.G % 4 == 0 || p.groups == 1);
    CUDA_LAUNCH(fake_quant_weights_bwd_kernel, grid_of(p), BLOCK, 0, gpu_of(d)->stream, p,
                g, (float *)da->data, da->ld, (float *)db->data, db->ld);
    launched(d, "fake_quant_weights_bwd");
}

static void cuda_round_step(struct dev *d, const struct tensor *dwq,
                            const struct tensor *scales, const struct tensor *zeros,
                            const struct weight_quant *q, float rate)
{
    const weights p = weights_of(q, nullptr, scales, zeros);
    view g = view_of(dwq);
    g.wide = g.wide && (p.G % 4 == 0 || p.groups == 1);
    CUDA_LAUNCH(round_step_kernel, grid_of(p), BLOCK, 0, gpu_of(d)->stream, p, g, rate);
    launched(d, "round_step");
}

void fill_weight(struct dev_ops *o)
{
    o->fake_quant_weights = cuda_fake_quant_weights;
    o->fake_quant_stored = cuda_fake_quant_stored;
    o->fake_quant_weights_bwd = cuda_fake_quant_weights_bwd;
    o->round_step = cuda_round_step;
}

} // namespace CUDA_NS

/* SPDX-License-Identifier: MIT
 *
 * Fake quantization of weights: learnable clipping, its gradient, and stored scales,
 * bit-equal to kernels/tensor/quant.h. kernels/ref/ref_quant.c states the formulas.
 *
 * A warp takes 128 columns of a group at a time, as 32 quads of four neighbours. One lane per
 * quad would leave every lane with the work that there is once a group, so short groups have
 * 4 lanes with 8 quads each, and a warp has 8 groups. Sums are added as if each quad had a lane
 * of its own, hence in the same order with any number of lanes. */
#include "kernels/cuda/cuda.h"
#include "kernels/tensor/rounder.h"

#include <limits.h>

namespace CUDA_NS
{

/* Operands and groups. */
struct weights {
    view w, wq, v; /* wq.p NULL: no values wanted; v.p NULL: offsets are 0 */
    bool f16;      /* w is F16, which its view takes for BF16 */
    GLOBAL(uint16_t) scales;
    GLOBAL(uint8_t) zeros;
    GLOBAL(const float) a, b; /* NULL: no clipping */
    int64_t scales_ld, zeros_ld, a_ld, b_ld;
    int64_t cols, G, groups, all; /* groups of a row, and of all rows */
    int bits, scale_bits;
};

/* --- layouts -------------------------------------------------------------------------- */

/* A row of any type and alignment. */
struct any_row {
    view x;
    int64_t at;
    __device__ any_row(const view &x, int64_t r) : x(x), at(r * x.ld)
    {
    }
    __device__ quad get(int64_t c, int n) const
    {
        return get4(x, at + c, n);
    }
    __device__ void put(int64_t c, int n, const quad &q) const
    {
        put4(x, at + c, n, q);
    }
};

/* As get4(), of F16. */
__device__ __forceinline__ static quad get4_f16(const view &x, int64_t i, int n)
{
    GLOBAL(const uint16_t) half = (const uint16_t *)x.p;
    quad q = {{0, 0, 0, 0}};
    if (n < 4 || !x.wide) {
        for (int k = 0; k < 4; k++)
            if (k < n)
                q.v[k] = from_f16(half[i + k]);
    } else {
        const uint2 u = load_wide<uint2>((const uint16_t *)x.p + i);
        q.v[0] = from_f16((uint16_t)u.x);
        q.v[1] = from_f16((uint16_t)(u.x >> 16));
        q.v[2] = from_f16((uint16_t)u.y);
        q.v[3] = from_f16((uint16_t)(u.y >> 16));
    }
    return q;
}

/* A row of weights of any type and alignment. */
struct any_weights {
    any_row row;
    bool f16;
    __device__ any_weights(const weights &p, int64_t r) : row(p.w, r), f16(p.f16)
    {
    }
    __device__ quad get(int64_t c, int n) const
    {
        return f16 ? get4_f16(row.x, row.at + c, n) : row.get(c, n);
    }
};

/* A row of whole, aligned quads, BF16 or F32. */
template <bool BF16> struct quad_row {
    view x;
    __device__ quad_row(const view &of, int64_t r)
        : x{(char *)of.p + r * of.ld * (BF16 ? 2 : 4), 0, BF16, true}
    {
    }
    __device__ quad get(int c, int) const
    {
        return get4(x, c, 4);
    }
    __device__ void put(int c, int, const quad &q) const
    {
        put4(x, c, 4, q);
    }
};

/* The types of weights. HALF: of 16 bits. */
struct f32_weights {
    static constexpr bool HALF = false, F16 = false;
};
struct bf16_weights {
    static constexpr bool HALF = true, F16 = false;
};
struct f16_weights {
    static constexpr bool HALF = true, F16 = true;
};

/* A row of weights in whole, aligned quads, whose type is known. */
template <class T> struct quad_weights {
    quad_row<T::HALF> row;
    __device__ quad_weights(const weights &p, int64_t r) : row(p.w, r)
    {
    }
    __device__ quad get(int c, int n) const
    {
        return T::F16 ? get4_f16(row.x, c, 4) : row.get(c, n);
    }
};

/* What a kernel may assume: nothing, or short groups in whole quads, and the types of w and wq. */
struct any_layout {
    static constexpr int LANES = WARP_SIZE;
    typedef int64_t column;
    typedef any_row row, wq_row;
    typedef any_weights source_row;
};
template <class W, bool BF16> struct quad_layout {
    static constexpr int LANES = 4;
    typedef int column;
    typedef quad_row<false> row;
    typedef quad_row<BF16> wq_row;
    typedef quad_weights<W> source_row;
};

/* The longest short group: its lanes take four turns. */
constexpr int64_t SHORT_GROUP = 512;

/* --- a group -------------------------------------------------------------------------- */

/* A group's grid: w^ = h clamp(round(w / h), least, most), where least = -z, most = Q - z. */
struct wgrid {
    float h, inverse, least, most;
};

/* One group. This lane has quads from column `first` on. */
template <class L> struct wgroup {
    int64_t r;
    typename L::column g, first, end;
    bool writes; /* this lane writes what there is once a group */
    float min, max, gamma, beta, lo, hi;
    uint16_t scale;
    uint8_t z;
    wgrid grid;
};

/* Finds the group of this lane. Lanes past the last group have one without columns, because all
 * lanes of a warp must reach the reductions. */
template <class L> __device__ static wgroup<L> own_group(const weights &p)
{
    const uint64_t i = (uint64_t)blockIdx.x * (BLOCK / L::LANES) + threadIdx.x / L::LANES;
    const bool exists = i < (uint64_t)p.all;
    const uint64_t at = exists ? i : 0, row = at / (uint64_t)p.groups;
    const int lane = threadIdx.x % L::LANES;
    wgroup<L> k;
    k.r = (int64_t)row;
    k.g = (typename L::column)(at - row * (uint64_t)p.groups);
    const typename L::column begin = k.g * (typename L::column)p.G,
                             left = (typename L::column)p.cols - begin;
    k.first = begin + 4 * lane;
    k.end = begin + (left < p.G ? left : (typename L::column)p.G);
    k.end = exists ? k.end : begin;
    k.writes = exists && lane == 0;
    return k;
}

/* Calls f(c, n, j) for every quad of this lane: n columns from c on. j counts the quads of a
 * turn. */
template <class L, class F>
__device__ __forceinline__ static void each_quad_of(const wgroup<L> &k, F f)
{
    for (typename L::column first = k.first; first < k.end; first += 4 * WARP_SIZE)
        UNROLL
    for (int j = 0; j < WARP_SIZE / L::LANES; j++) {
        const typename L::column c = first + 4 * L::LANES * j;
        if (c < k.end)
            f(c, k.end - c < 4 ? (int)(k.end - c) : 4, j);
    }
}

/* As warp_reduce(), over the lanes of a group. All lanes of the warp must call it. */
template <class L, class Op> __device__ static float group_reduce(float v, Op op)
{
    for (int o = L::LANES / 2; o; o /= 2)
        v = op(v, __shfl_xor_sync(FULL_WARP, v, o));
    return v;
}

/* Adds a group's sums, part[j] for the quads j of this lane's turns. */
template <class L> __device__ static float add_quads(float *part)
{
    UNROLL
    for (int half = WARP_SIZE / L::LANES / 2; half; half /= 2)
        UNROLL
    for (int j = 0; j < half; j++)
        part[j] += part[j + half];
    return group_reduce<L>(part[0], add_op());
}

/* gamma = sigma(a) and beta = sigma(b) with the reference's rounding, in f64: odd lanes
 * compute one, even lanes the other. */
template <class L> __device__ static void clip_factors(const weights &p, wgroup<L> *k)
{
    k->gamma = k->beta = 1;
    if (!p.a)
        return;
    const bool odd = threadIdx.x % 2;
    const double x =
        odd ? (double)p.b[k->r * p.b_ld + k->g] : (double)p.a[k->r * p.a_ld + k->g];
    const float own = (float)(1 / (1 + exp(-x)));
    const float other = __shfl_xor_sync(FULL_WARP, own, 1);
    k->gamma = odd ? other : own;
    k->beta = odd ? own : other;
}

/* least is computed as an integer, so that it is +0 where z is 0. */
__device__ static wgrid grid_of(float h, uint8_t z, int bits)
{
    return wgrid{h, 1 / h, (float)-(int)z, (float)((1 << bits) - 1 - z)};
}

/* Computes range, scale and zero of the group. All lanes take part and get the result. */
template <class L> __device__ static void measure(const weights &p, wgroup<L> *k)
{
    const typename L::source_row w(p, k->r);
    float mn = 0, mx = 0;
    each_quad_of(*k, [&](typename L::column c, int n, int) {
        const quad q = w.get(c, n);
        for (int i = 0; i < 4; i++) {
            mn = fminf(mn, q.v[i]);
            mx = fmaxf(mx, q.v[i]);
        }
    });
    k->min = group_reduce<L>(mn, min_op()) + 0.0f; /* fminf() may choose -0 */
    k->max = group_reduce<L>(mx, max_op()) + 0.0f;
    clip_factors(p, k);
    k->lo = k->beta * k->min;
    k->hi = k->gamma * k->max;
    k->scale = quant_weight_scale(k->lo, k->hi, p.bits, p.scale_bits);
    const float h = f16_to_f32(k->scale);
    k->z = quant_weight_zero(k->lo, h, p.bits);
    k->grid = grid_of(h, k->z, p.bits);
}

/* Reads the stored scale and zero of the group. */
template <class L> __device__ static void read_stored(const weights &p, wgroup<L> *k)
{
    const float h = f16_to_f32(p.scales[k->r * p.scales_ld + k->g]);
    k->grid = grid_of(h, p.zeros[k->r * p.zeros_ld + k->g], p.bits);
}

/* --- an element ----------------------------------------------------------------------- */

/* The bits of w / h (docs/decisions.md, "A quotient by fp16 needs one correction"). Values
 * whose product with 1 / h could overflow are clamped: their codes are clamped in any case. */
__device__ static float quotient(float w, const wgrid &g)
{
    const float x = fminf(fmaxf(w, -0x1p100f), 0x1p100f);
    const float q = x * g.inverse;
    return fmaf(fmaf(-q, g.h, x), g.inverse, q);
}

/* round(x), where it lies in the range of codes. Farther away it may be another
 * number outside of that range. */
__device__ static float rounded(float x)
{
    return x + ROUNDER - ROUNDER;
}

__device__ static float clamped(float code, const wgrid &g)
{
    return fminf(fmaxf(code, g.least), g.most);
}

/* Rounding offsets of n columns from c on. */
template <class L>
__device__ static quad offsets(const weights &p, const wgroup<L> &k, typename L::column c,
                               int n)
{
    if (p.v.p)
        return typename L::row(p.v, k.r).get(c, n);
    return quad();
}

/* --- kernels -------------------------------------------------------------------------- */

template <class L, class F> __global__ void weight_kernel(F f)
{
    f.template run<L>();
}

/* Writes w^ of this lane's columns. */
template <class L> __device__ static void apply(const weights &p, const wgroup<L> &k)
{
    const typename L::source_row w(p, k.r);
    const typename L::wq_row wq(p.wq, k.r);
    each_quad_of(k, [&](typename L::column c, int n, int) {
        const quad v = offsets(p, k, c, n);
        quad q = w.get(c, n);
        for (int i = 0; i < 4; i++)
            q.v[i] = clamped(rounded(quotient(q.v[i], k.grid) + v.v[i]), k.grid) * k.grid.h;
        wq.put(c, n, q);
    });
}

struct clip_weights {
    static constexpr bool VALUES = true;
    weights p;
    template <class L> __device__ void run() const
    {
        wgroup<L> k = own_group<L>(p);
        measure(p, &k);
        if (k.writes) {
            p.scales[k.r * p.scales_ld + k.g] = k.scale;
            p.zeros[k.r * p.zeros_ld + k.g] = k.z;
        }
        if (p.wq.p)
            apply(p, k);
    }
};

struct stored_weights {
    static constexpr bool VALUES = true;
    weights p;
    template <class L> __device__ void run() const
    {
        wgroup<L> k = own_group<L>(p);
        read_stored(p, &k);
        apply(p, k);
    }
};

/* Chain rule from h and z to the clipping parameters, as in docs/method.md: dz/dh = lo /
 * h^2, dz/dlo = -1 / h, dh/dhi = 1 / Q = -dh/dlo, each 0 where its result is clamped;
 * dhi/da = max gamma (1 - gamma), dlo/db = min beta (1 - beta). In f64. */
template <class L>
__device__ static void clip_grads(const wgroup<L> &k, int bits, float sum_h, float sum_z,
                                  float *da, float *db)
{
    const float Q = (float)((1 << bits) - 1),
                raw = (k.hi - k.lo) / Q; /* h before clamp and rounding */
    const double h = (double)k.grid.h, dz = (double)sum_z;
    double dh = (double)sum_h, dlo = 0, dhi = 0;
    if (rintf(-k.lo / k.grid.h) <= Q) { /* z is not clamped */
        dh += dz * (double)k.lo / (h * h);
        dlo -= dz / h;
    }
    if (raw >= QUANT_TINY && raw <= QUANT_SCALE_MAX) {
        dhi += dh / (double)Q;
        dlo -= dh / (double)Q;
    }
    const double gamma = (double)k.gamma, beta = (double)k.beta;
    *da = (float)(dhi * (double)k.max * gamma * (1 - gamma));
    *db = (float)(dlo * (double)k.min * beta * (1 - beta));
}

struct clip_weights_bwd {
    static constexpr bool VALUES = false;
    weights p;
    view dwq;
    GLOBAL(float) da, db;
    int64_t da_ld, db_ld;

    /* Sums over the group, with g = dL/dw^, u = w / h and r = round(u + v):
     *   *dh = sum g (r - u), or g (clamped code - z) where r + z is outside 0..Q, at fixed z
     *   *dz = -h sum g over the codes outside */
    template <class L> __device__ void sums(const wgroup<L> &k, float *dh, float *dz) const
    {
        const typename L::source_row w(p, k.r);
        const typename L::row dwq_r(dwq, k.r);
        float sum_h[WARP_SIZE / L::LANES] = {}, sum_z[WARP_SIZE / L::LANES] = {};
        each_quad_of(k, [&](typename L::column c, int n, int j) {
            const quad x = w.get(c, n), g = dwq_r.get(c, n), v = offsets(p, k, c, n);
            for (int i = 0; i < 4; i++) {
                const float u = quotient(x.v[i], k.grid), round = rounded(u + v.v[i]),
                            kept = clamped(round, k.grid);
                const bool outside = kept != round;
                sum_h[j] += g.v[i] * (outside ? kept : round - u);
                sum_z[j] -= outside ? g.v[i] * k.grid.h : 0;
            }
        });
        *dh = add_quads<L>(sum_h);
        *dz = add_quads<L>(sum_z);
    }

    template <class L> __device__ void run() const
    {
        wgroup<L> k = own_group<L>(p);
        float sum_h, sum_z, dgamma, dbeta;
        measure(p, &k);
        sums(k, &sum_h, &sum_z);
        if (!k.writes)
            return;
        clip_grads(k, p.bits, sum_h, sum_z, &dgamma, &dbeta);
        da[k.r * da_ld + k.g] = dgamma;
        db[k.r * db_ld + k.g] = dbeta;
    }
};

/* v -= rate sign(dL/dw^), clamped to [-1/2, 1/2] (SignRound, Cheng et al. 2023), as
 * quant_offset_step(). */
struct step_offsets {
    static constexpr bool VALUES = false;
    weights p;
    view dwq;
    float rate;
    template <class L> __device__ void run() const
    {
        wgroup<L> k = own_group<L>(p);
        read_stored(p, &k);
        const typename L::source_row w(p, k.r);
        const typename L::row dwq_r(dwq, k.r), v_r(p.v, k.r);
        each_quad_of(k, [&](typename L::column c, int n, int) {
            const quad x = w.get(c, n), g = dwq_r.get(c, n);
            quad v = v_r.get(c, n);
            for (int i = 0; i < 4; i++) {
                const float round = rounded(quotient(x.v[i], k.grid) + v.v[i]);
                const float step = clamped(round, k.grid) == round ? rate : 0;
                v.v[i] += g.v[i] > 0 ? -step : g.v[i] < 0 ? step : 0;
                v.v[i] = quant_clamp(v.v[i], -0.5f, 0.5f);
            }
            v_r.put(c, n, v);
        });
    }
};

/* Returns true if x's quads are aligned in each group. */
static bool whole_quads(const view &x, const weights &p)
{
    return x.wide && (p.G % 4 == 0 || p.groups == 1);
}

static weights weights_of(const struct weight_quant *q, const struct tensor *wq,
                          const struct tensor *scales, const struct tensor *zeros)
{
    weights p = {};
    p.cols = q->w->dim[1];
    p.G = q->group_size ? q->group_size : p.cols;
    p.groups = (p.cols + p.G - 1) / p.G;
    p.all = q->w->dim[0] * p.groups;
    p.bits = q->bits;
    p.scale_bits = q->scale_bits;
    struct tensor w = *q->w;
    p.f16 = w.dtype == DT_F16;
    w.dtype = p.f16 ? DT_BF16 : w.dtype;
    view *const views[] = {&p.w, &p.wq, &p.v};
    const struct tensor *const tensors[] = {&w, wq, q->v};
    for (int i = 0; i < 3; i++) {
        *views[i] = view_of(tensors[i]);
        views[i]->wide = whole_quads(*views[i], p);
    }
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

/* The gradient of the weights, as the kernels read it. */
static view grad_of(const struct tensor *dwq, const weights &p)
{
    view g = view_of(dwq);
    g.wide = whole_quads(g, p);
    return g;
}

/* Returns true if each tensor given has whole quads in short groups, so that quad_layout
 * fits. */
static bool is_quads(const weights &p, const view *also)
{
    const view *const views[] = {&p.w, &p.wq, &p.v, also};
    bool fits = p.cols % 4 == 0 && p.cols <= INT_MAX / 2 && p.G <= SHORT_GROUP;
    for (const view *x : views)
        fits = fits && (!x || !x->p || x->wide);
    return fits;
}

template <class L, class F>
static void launch_groups(struct dev *d, const char *what, const F &f)
{
    CUDA_LAUNCH((weight_kernel<L, F>), blocks_all(f.p.all, BLOCK / L::LANES), BLOCK, 0,
                gpu_of(d)->stream, f);
    launched(d, what);
}

template <class W, class F>
static void launch_quads(struct dev *d, const char *what, const F &f)
{
    if constexpr (F::VALUES)
        if (f.p.wq.bf16)
            return launch_groups<quad_layout<W, true>>(d, what, f);
    launch_groups<quad_layout<W, false>>(d, what, f);
}

/* also: what f reads besides its weights, or NULL. */
template <class F>
static void run_groups(struct dev *d, const char *what, const F &f, const view *also)
{
    if (!is_quads(f.p, also))
        return launch_groups<any_layout>(d, what, f);
    if (f.p.f16)
        return launch_quads<f16_weights>(d, what, f);
    if (f.p.w.bf16)
        return launch_quads<bf16_weights>(d, what, f);
    launch_quads<f32_weights>(d, what, f);
}

static void cuda_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                    const struct tensor *scales, const struct tensor *zeros,
                                    const struct weight_quant *q)
{
    const clip_weights f = {weights_of(q, wq, scales, zeros)};
    run_groups(d, "fake_quant_weights", f, nullptr);
}

static void cuda_fake_quant_stored(struct dev *d, const struct tensor *wq,
                                   const struct tensor *scales, const struct tensor *zeros,
                                   const struct weight_quant *q)
{
    const stored_weights f = {weights_of(q, wq, scales, zeros)};
    run_groups(d, "fake_quant_stored", f, nullptr);
}

static void cuda_fake_quant_weights_bwd(struct dev *d, const struct tensor *da,
                                        const struct tensor *db, const struct tensor *dwq,
                                        const struct weight_quant *q)
{
    const weights p = weights_of(q, nullptr, nullptr, nullptr);
    const clip_weights_bwd f = {
        p, grad_of(dwq, p), (float *)da->data, (float *)db->data, da->ld, db->ld};
    run_groups(d, "fake_quant_weights_bwd", f, &f.dwq);
}

static void cuda_offset_step(struct dev *d, const struct tensor *dwq,
                             const struct tensor *scales, const struct tensor *zeros,
                             const struct weight_quant *q, float rate)
{
    const weights p = weights_of(q, nullptr, scales, zeros);
    const step_offsets f = {p, grad_of(dwq, p), rate};
    run_groups(d, "offset_step", f, &f.dwq);
}

void fill_weight(struct dev_ops *o)
{
    o->fake_quant_weights = cuda_fake_quant_weights;
    o->fake_quant_stored = cuda_fake_quant_stored;
    o->fake_quant_weights_bwd = cuda_fake_quant_weights_bwd;
    o->offset_step = cuda_offset_step;
}

} // namespace CUDA_NS

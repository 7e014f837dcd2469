/* SPDX-License-Identifier: MIT
 *
 * Operations on elements: copy and conversion, bias, add, scale, rotary embedding, gated
 * SiLU, exp. A thread takes eight neighbouring elements of a row, or four. Also the rows of a
 * mixture of experts. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

/* --- pieces of a row ------------------------------------------------------------------ */

/* N neighbouring elements. */
template <int N> struct elements {
    float v[N];
};

/* True if there is no tensor, or its rows have accesses of 16 bytes at each multiple of eight
 * elements. */
static bool in_octs(const view &x)
{
    return !x.p || (x.ld % (x.bf16 ? 8 : 4) == 0 && (uintptr_t)x.p % 16 == 0);
}

/* Eight BF16 elements from i on. */
__device__ static elements<8> get_half8(const view &x, int64_t i)
{
    const uint4 u = load_wide<uint4>((const uint16_t *)x.p + i);
    const unsigned pair[4] = {u.x, u.y, u.z, u.w};
    elements<8> q;
    for (int k = 0; k < 8; k++)
        q.v[k] = f32_from_bits(k % 2 ? pair[k / 2] & 0xffff0000u : pair[k / 2] << 16);
    return q;
}

__device__ static void put_half8(const view &x, int64_t i, const elements<8> &q)
{
    unsigned pair[4];
    for (int k = 0; k < 4; k++)
        pair[k] = to_bf16(q.v[2 * k]) | (unsigned)to_bf16(q.v[2 * k + 1]) << 16;
    uint4 u;
    u.x = pair[0];
    u.y = pair[1];
    u.z = pair[2];
    u.w = pair[3];
    store_wide((uint16_t *)x.p + i, u);
}

/* Access n <= 4 elements as get4() and put4(), or all of eight where in_octs() allows it. */
template <int N>
__device__ __forceinline__ elements<N> get_some(const view &x, int64_t i, int n)
{
    if constexpr (N == 8)
        if (x.bf16)
            return get_half8(x, i);
    elements<N> q;
    for (int part = 0; part < N; part += 4) {
        const quad four = get4(x, i + part, N == 8 ? 4 : n);
        for (int k = 0; k < 4; k++)
            q.v[part + k] = four.v[k];
    }
    return q;
}

template <int N>
__device__ __forceinline__ void put_some(const view &x, int64_t i, int n,
                                         const elements<N> &q)
{
    if constexpr (N == 8)
        if (x.bf16)
            return put_half8(x, i, q);
    for (int part = 0; part < N; part += 4) {
        quad four;
        for (int k = 0; k < 4; k++)
            four.v[k] = q.v[part + k];
        put4(x, i + part, N == 8 ? 4 : n, four);
    }
}

/* Calls f.run<N>(r, c, n) for pieces of n <= N columns of every row. */
template <int N, class F> __global__ void each_piece(F f, int64_t rows, int64_t cols)
{
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y)
        for (int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N; c < cols;
             c += (int64_t)gridDim.x * blockDim.x * N)
            f.template run<N>(r, c, cols - c < N ? (int)(cols - c) : N);
}

template <int N, class F>
static void launch_pieces(struct dev *d, const F &f, int64_t rows, int64_t cols)
{
    const int64_t warps = (cols + N * WARP_SIZE - 1) / (N * WARP_SIZE);
    const unsigned threads =
        warps < BLOCK / WARP_SIZE ? (unsigned)warps * WARP_SIZE : BLOCK;
    const dim3 grid(blocks_for(cols, N * (int64_t)threads), blocks_for(rows, 1));
    CUDA_LAUNCH((each_piece<N, F>), grid, threads, 0, gpu_of(d)->stream, f, rows, cols);
}

/* Eight columns a thread, so that BF16 is accessed in 16 bytes, where all tensors allow it
 * (F::octs); else four. */
template <class F>
static void run_pieces(struct dev *d, const char *what, const F &f, int64_t rows,
                       int64_t cols)
{
    if (cols % 8 == 0 && f.octs())
        launch_pieces<8>(d, f, rows, cols);
    else
        launch_pieces<4>(d, f, rows, cols);
    launched(d, what);
}

struct copy_piece {
    view y, x;
    bool octs() const
    {
        return in_octs(y) && in_octs(x);
    }
    template <int N> __device__ void run(int64_t r, int64_t c, int n) const
    {
        put_some<N>(y, r * y.ld + c, n, get_some<N>(x, r * x.ld + c, n));
    }
};

/* y = x, of F16. */
struct half_piece {
    view y, x;
    bool octs() const
    {
        return in_octs(y) && x.ld % 8 == 0 && (uintptr_t)x.p % 16 == 0;
    }
    template <int N> __device__ void run(int64_t r, int64_t c, int n) const
    {
        const uint16_t *from = (const uint16_t *)x.p + r * x.ld + c;
        elements<N> q = {};
        if constexpr (N == 8) {
            const uint4 u = load_wide<uint4>(from);
            const unsigned pair[4] = {u.x, u.y, u.z, u.w};
            for (int k = 0; k < 8; k++)
                q.v[k] = from_f16((uint16_t)(pair[k / 2] >> k % 2 * 16));
        } else {
            GLOBAL(const uint16_t) half = from;
            for (int k = 0; k < n; k++)
                q.v[k] = from_f16(half[k]);
        }
        put_some<N>(y, r * y.ld + c, n, q);
    }
};

/* --- operations ----------------------------------------------------------------------- */

static bool contiguous(const struct tensor *x)
{
    return x->n_dims == 1 || x->dim[0] == 1 || x->ld == tensor_width(x);
}

/* Bytes that do not change are copied by the driver. */
static void cuda_copy(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    if (y->dtype == x->dtype && contiguous(x) && contiguous(y)) {
        const size_t bytes = (size_t)tensor_count(x) * dtype_bytes(x->dtype);
        went_well(d,
                  cudaMemcpyAsync(y->data, x->data, bytes, cudaMemcpyDeviceToDevice,
                                  gpu_of(d)->stream),
                  "copy");
        return;
    }
    const int64_t rows = tensor_n_rows(x), cols = tensor_width(x);
    if (x->dtype == DT_F16)
        run_pieces(d, "copy", half_piece{view_of(y), view_of(x)}, rows, cols);
    else
        run_pieces(d, "copy", copy_piece{view_of(y), view_of(x)}, rows, cols);
}

/* y = a + b. With ld 0, one row of b is added to every row. */
struct add_piece {
    view y, a, b;
    bool octs() const
    {
        return in_octs(y) && in_octs(a) && in_octs(b);
    }
    template <int N> __device__ void run(int64_t r, int64_t c, int n) const
    {
        elements<N> q = get_some<N>(a, r * a.ld + c, n);
        const elements<N> p = get_some<N>(b, r * b.ld + c, n);
        for (int k = 0; k < N; k++)
            q.v[k] += p.v[k];
        put_some<N>(y, r * y.ld + c, n, q);
    }
};

static void cuda_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                     const struct tensor *b)
{
    run_pieces(d, "add", add_piece{view_of(y), view_of(a), view_of(b)}, y->dim[0],
               y->dim[1]);
}

static void cuda_bias(struct dev *d, const struct tensor *y, const struct tensor *b)
{
    view v = view_of(b);
    v.ld = 0;
    v.wide = (uintptr_t)b->data % 16 == 0;
    run_pieces(d, "bias", add_piece{view_of(y), view_of(y), v}, y->dim[0], y->dim[1]);
}

struct scale_piece {
    view y;
    float factor;
    bool octs() const
    {
        return in_octs(y);
    }
    template <int N> __device__ void run(int64_t r, int64_t c, int n) const
    {
        elements<N> q = get_some<N>(y, r * y.ld + c, n);
        for (int k = 0; k < N; k++)
            q.v[k] *= factor;
        put_some<N>(y, r * y.ld + c, n, q);
    }
};

static void cuda_scale(struct dev *d, const struct tensor *y, float factor)
{
    run_pieces(d, "scale", scale_piece{view_of(y), factor}, y->dim[0], y->dim[1]);
}

__device__ static float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

/* z and z' of act(g) = g sigma(z). g is clamped so that its powers stay finite. */
__device__ static float gate_arg(enum gate_act act, float g)
{
    const float x = fminf(GELU_MAX, fmaxf(-GELU_MAX, g));
    return act == GATE_SILU ? g : x * ((float)GELU_A + (float)GELU_B * (x * x));
}

__device__ static float gate_slope(enum gate_act act, float g)
{
    const float x = fminf(GELU_MAX, fmaxf(-GELU_MAX, g));
    return act == GATE_SILU ? 1 : (float)GELU_A + 3 * (float)GELU_B * (x * x);
}

/* A row of gu is F values of g, then F of u. If F is no multiple of 4, a piece of u is not
 * aligned and is accessed element by element. */
struct gate_rows {
    view g, u;
    gate_rows(const struct tensor *gu, int64_t F) : g(view_of(gu)), u(g)
    {
        u.p = (char *)u.p + F * (u.bf16 ? 2 : 4);
        u.wide = g.wide && F % 4 == 0;
    }
    bool octs() const
    {
        return in_octs(g) && in_octs(u);
    }
};

/* y = g sigma(z) u. */
struct gate_piece {
    view y;
    gate_rows in;
    enum gate_act act;
    bool octs() const
    {
        return in_octs(y) && in.octs();
    }
    template <int N> __device__ void run(int64_t r, int64_t c, int n) const
    {
        elements<N> g = get_some<N>(in.g, r * in.g.ld + c, n);
        const elements<N> u = get_some<N>(in.u, r * in.u.ld + c, n);
        for (int k = 0; k < N; k++)
            g.v[k] = g.v[k] * sigmoid(gate_arg(act, g.v[k])) * u.v[k];
        put_some<N>(y, r * y.ld + c, n, g);
    }
};

static void cuda_gate(struct dev *d, enum gate_act act, const struct tensor *y,
                      const struct tensor *gu)
{
    const gate_piece f = {view_of(y), gate_rows(gu, y->dim[1]), act};
    run_pieces(d, "gate", f, y->dim[0], y->dim[1]);
}

/* dg = dy u sigma(z) (1 + g z' (1 - sigma(z))), du = dy g sigma(z). A thread reads g and u
 * before it writes their gradients, so dgu may be gu. */
struct gate_bwd_piece {
    view dy;
    gate_rows in, out;
    enum gate_act act;
    bool octs() const
    {
        return in_octs(dy) && in.octs() && out.octs();
    }
    template <int N> __device__ void run(int64_t r, int64_t c, int n) const
    {
        elements<N> g = get_some<N>(in.g, r * in.g.ld + c, n),
                    u = get_some<N>(in.u, r * in.u.ld + c, n);
        const elements<N> dq = get_some<N>(dy, r * dy.ld + c, n);
        for (int k = 0; k < N; k++) {
            const float x = g.v[k], sig = sigmoid(gate_arg(act, x));
            const float slope = x * gate_slope(act, x);
            g.v[k] = dq.v[k] * u.v[k] * sig * (1 + slope * (1 - sig));
            u.v[k] = dq.v[k] * x * sig;
        }
        put_some<N>(out.g, r * out.g.ld + c, n, g);
        put_some<N>(out.u, r * out.u.ld + c, n, u);
    }
};

static void cuda_gate_bwd(struct dev *d, enum gate_act act, const struct tensor *dgu,
                          const struct tensor *dy, const struct tensor *gu)
{
    const int64_t F = dy->dim[1];
    const gate_bwd_piece f = {view_of(dy), gate_rows(gu, F), gate_rows(dgu, F), act};
    run_pieces(d, "gate_bwd", f, dy->dim[0], F);
}

/* Rotates the pairs (x[k], x[k + r/2]) of every head by the token's angle (Su et al. 2021),
 * in the layout of Hugging Face's checkpoints. sign -1 rotates back. A row is a token;
 * column c of H * r/2 is one pair of one head. */
struct rope_pairs {
    view x, cs, sn;
    int64_t half, d;
    float sign;
    /* Eight pairs are then of one head. */
    bool octs() const
    {
        return in_octs(x) && in_octs(cs) && in_octs(sn) && half % 8 == 0 && d % 8 == 0;
    }
    template <int N> __device__ void run(int64_t r, int64_t c0, int n) const
    {
        if constexpr (N == 8)
            rotate8(r, (uint64_t)c0);
        else
            for (int64_t c = c0; c < c0 + n; c++)
                rotate(r, c);
    }
    __device__ void rotate(int64_t r, int64_t c) const
    {
        const int64_t h = c / half, k = c - h * half, at = r * x.ld + h * d + k;
        const float x1 = get(x, at), x2 = get(x, at + half);
        const float co = get(cs, r * cs.ld + k), si = sign * get(sn, r * sn.ld + k);
        put(x, at, x1 * co - x2 * si);
        put(x, at + half, x2 * co + x1 * si);
    }
    __device__ void rotate8(int64_t r, uint64_t c) const
    {
        const uint64_t h = c / (uint64_t)half, k = c - h * (uint64_t)half;
        const int64_t at = r * x.ld + (int64_t)h * d + (int64_t)k;
        elements<8> x1 = get_some<8>(x, at, 8), x2 = get_some<8>(x, at + half, 8);
        const elements<8> co = get_some<8>(cs, r * cs.ld + (int64_t)k, 8),
                          si = get_some<8>(sn, r * sn.ld + (int64_t)k, 8);
        for (int i = 0; i < 8; i++) {
            const float a = x1.v[i], b = x2.v[i], s = sign * si.v[i];
            x1.v[i] = a * co.v[i] - b * s;
            x2.v[i] = b * co.v[i] + a * s;
        }
        put_some<8>(x, at, 8, x1);
        put_some<8>(x, at + half, 8, x2);
    }
};

static void cuda_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                      const struct tensor *sin, bool inverse)
{
    const int64_t half = cos->dim[1];
    const rope_pairs f = {view_of(x), view_of(cos), view_of(sin),
                          half,       x->dim[2],    inverse ? -1.0f : 1.0f};
    run_pieces(d, "rope", f, x->dim[0], x->dim[1] * half);
}

struct exp_piece {
    view s, ls;
    bool octs() const
    {
        return in_octs(s) && in_octs(ls);
    }
    template <int N> __device__ void run(int64_t, int64_t c, int n) const
    {
        elements<N> q = get_some<N>(ls, c, n);
        for (int k = 0; k < N; k++)
            q.v[k] = expf(q.v[k]);
        put_some<N>(s, c, n, q);
    }
};

/* The operation needs equal counts, not equal shapes. */
static void cuda_exp(struct dev *d, const struct tensor *s, const struct tensor *ls)
{
    run_pieces(d, "exp", exp_piece{view_of(s), view_of(ls)}, 1, tensor_count(ls));
}

/* The rows of x that belong to row r of y, or of its gradient: index[r J + j], j < J. */
struct gathered {
    view x;
    GLOBAL(const int32_t) index;
    int64_t J;
    __device__ int64_t row(int64_t r, int64_t j) const
    {
        return index[r * J + j] * x.ld;
    }
};

/* y[r] = sum_j weight[r,j] x[index[r,j]]. weight NULL: 1. */
struct gather_piece {
    view y;
    gathered g;
    GLOBAL(const float) weight;
    bool octs() const
    {
        return in_octs(y) && in_octs(g.x);
    }
    template <int N> __device__ void run(int64_t r, int64_t c, int n) const
    {
        elements<N> sum = {};
        for (int64_t j = 0; j < g.J; j++) {
            const elements<N> q = get_some<N>(g.x, g.row(r, j) + c, n);
            const float w = weight ? (float)weight[r * g.J + j] : 1.0f;
            for (int k = 0; k < N; k++)
                sum.v[k] = fmaf(w, q.v[k], sum.v[k]);
        }
        put_some<N>(y, r * y.ld + c, n, sum);
    }
};

static gathered rows_at(const struct tensor *x, const struct tensor *index)
{
    return gathered{view_of(x), (const int32_t *)index->data, index->dim[1]};
}

static void cuda_gather(struct dev *d, const struct tensor *y, const struct tensor *x,
                        const struct tensor *index, const struct tensor *weight)
{
    const gather_piece f = {view_of(y), rows_at(x, index),
                            weight ? (const float *)weight->data : nullptr};
    run_pieces(d, "gather", f, y->dim[0], y->dim[1]);
}

/* dw[r,j] = sum_c dy[r,c] x[index[r,j],c]. A warp takes a pair (r, j). */
__global__ void gather_dot_kernel(GLOBAL(float) dw, view dy, gathered g, int64_t n,
                                  int64_t cols)
{
    const int64_t i = (int64_t)blockIdx.x * (BLOCK / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= n)
        return;
    const int64_t r = i / g.J, at = g.row(r, i - r * g.J);
    float sum = 0;
    for (int64_t c = threadIdx.x % WARP_SIZE; c < cols; c += WARP_SIZE)
        sum = fmaf(get(dy, r * dy.ld + c), get(g.x, at + c), sum);
    sum = warp_reduce(sum, add_op());
    if (threadIdx.x % WARP_SIZE == 0)
        dw[i] = sum;
}

static void cuda_gather_dot(struct dev *d, const struct tensor *dw, const struct tensor *dy,
                            const struct tensor *x, const struct tensor *index)
{
    const int64_t n = tensor_count(dw);
    CUDA_LAUNCH(gather_dot_kernel, blocks_all(n, BLOCK / WARP_SIZE), BLOCK, 0,
                gpu_of(d)->stream, (float *)dw->data, view_of(dy), rows_at(x, index), n,
                dy->dim[1]);
    launched(d, "gather_dot");
}

void fill_elem(struct dev_ops *o)
{
    o->gather = cuda_gather;
    o->gather_dot = cuda_gather_dot;
    o->copy = cuda_copy;
    o->add = cuda_add;
    o->scale = cuda_scale;
    o->bias = cuda_bias;
    o->gate = cuda_gate;
    o->gate_bwd = cuda_gate_bwd;
    o->rope = cuda_rope;
    o->exp = cuda_exp;
}

} // namespace CUDA_NS

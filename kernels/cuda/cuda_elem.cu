/* SPDX-License-Identifier: MIT
 *
 * Operations on elements: copy and conversion, bias, add, scale, rotary embedding, gated
 * SiLU, exp. A thread takes four neighbouring elements of a row. Also the rows of a mixture of
 * experts. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

/* Calls f(r, c, n) for pieces of n <= 4 columns of every row. */
template <class F> __global__ void each_quad(F f, int64_t rows, int64_t cols)
{
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y)
        for (int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; c < cols;
             c += (int64_t)gridDim.x * blockDim.x * 4)
            f(r, c, cols - c < 4 ? (int)(cols - c) : 4);
}

template <class F>
static void run_quads(struct dev *d, const char *what, F f, int64_t rows, int64_t cols)
{
    const dim3 grid(blocks_for(cols, 4 * BLOCK), blocks_for(rows, 1));
    CUDA_LAUNCH(each_quad<F>, grid, BLOCK, 0, gpu_of(d)->stream, f, rows, cols);
    launched(d, what);
}

struct copy_quad {
    view y, x;
    __device__ void operator()(int64_t r, int64_t c, int n) const
    {
        put4(y, r * y.ld + c, n, get4(x, r * x.ld + c, n));
    }
};

static bool contiguous(const struct tensor *x)
{
    return x->n_dims == 1 || x->dim[0] == 1 || x->ld == width_of(x);
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
    run_quads(d, "copy", copy_quad{view_of(y), view_of(x)}, rows_of(x), width_of(x));
}

/* y = a + b. With ld 0, one row of b is added to every row. */
struct add_quad {
    view y, a, b;
    __device__ void operator()(int64_t r, int64_t c, int n) const
    {
        quad q = get4(a, r * a.ld + c, n);
        const quad p = get4(b, r * b.ld + c, n);
        for (int k = 0; k < 4; k++)
            q.v[k] += p.v[k];
        put4(y, r * y.ld + c, n, q);
    }
};

static void cuda_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                     const struct tensor *b)
{
    run_quads(d, "add", add_quad{view_of(y), view_of(a), view_of(b)}, y->dim[0], y->dim[1]);
}

static void cuda_bias(struct dev *d, const struct tensor *y, const struct tensor *b)
{
    view v = view_of(b);
    v.ld = 0;
    v.wide = (uintptr_t)b->data % 16 == 0;
    run_quads(d, "bias", add_quad{view_of(y), view_of(y), v}, y->dim[0], y->dim[1]);
}

struct scale_quad {
    view y;
    float factor;
    __device__ void operator()(int64_t r, int64_t c, int n) const
    {
        quad q = get4(y, r * y.ld + c, n);
        for (int k = 0; k < 4; k++)
            q.v[k] *= factor;
        put4(y, r * y.ld + c, n, q);
    }
};

static void cuda_scale(struct dev *d, const struct tensor *y, float factor)
{
    run_quads(d, "scale", scale_quad{view_of(y), factor}, y->dim[0], y->dim[1]);
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

/* y = g sigma(z) u. A row of gu is F values of g, then F of u. If F is no multiple of 4, a
 * quad of u is not aligned and is read element by element. */
struct gate_quad {
    view y, gu;
    int64_t F;
    enum gate_act act;
    __device__ void operator()(int64_t r, int64_t c, int n) const
    {
        quad g = get4(gu, r * gu.ld + c, n);
        const quad u = F % 4 ? quad_at(r, F + c, n) : get4(gu, r * gu.ld + F + c, n);
        for (int k = 0; k < 4; k++)
            g.v[k] = g.v[k] * sigmoid(gate_arg(act, g.v[k])) * u.v[k];
        put4(y, r * y.ld + c, n, g);
    }
    __device__ quad quad_at(int64_t r, int64_t c, int n) const
    {
        view narrow = gu;
        narrow.wide = false;
        return get4(narrow, r * gu.ld + c, n);
    }
};

static void cuda_gate(struct dev *d, enum gate_act act, const struct tensor *y,
                      const struct tensor *gu)
{
    run_quads(d, "gate", gate_quad{view_of(y), view_of(gu), y->dim[1], act}, y->dim[0],
              y->dim[1]);
}

/* dg = dy u sigma(z) (1 + g z' (1 - sigma(z))), du = dy g sigma(z). A thread reads g and u
 * before it writes their gradients, so dgu may be gu. */
struct gate_bwd_quad {
    view dgu, dy;
    gate_quad fwd; /* its gu */
    __device__ void operator()(int64_t r, int64_t c, int n) const
    {
        const view &gu = fwd.gu;
        const int64_t F = fwd.F;
        quad g = get4(gu, r * gu.ld + c, n), u = fwd.quad_at(r, F + c, n);
        const quad dq = get4(dy, r * dy.ld + c, n);
        for (int k = 0; k < 4; k++) {
            const float x = g.v[k], sig = sigmoid(gate_arg(fwd.act, x));
            const float slope = x * gate_slope(fwd.act, x);
            g.v[k] = dq.v[k] * u.v[k] * sig * (1 + slope * (1 - sig));
            u.v[k] = dq.v[k] * x * sig;
        }
        view up = dgu;
        up.wide = dgu.wide && F % 4 == 0;
        put4(dgu, r * dgu.ld + c, n, g);
        put4(up, r * dgu.ld + F + c, n, u);
    }
};

static void cuda_gate_bwd(struct dev *d, enum gate_act act, const struct tensor *dgu,
                          const struct tensor *dy, const struct tensor *gu)
{
    const gate_bwd_quad f = {
        view_of(dgu), view_of(dy), {view_of(dy), view_of(gu), dy->dim[1], act}};
    run_quads(d, "gate_bwd", f, dy->dim[0], dy->dim[1]);
}

/* Rotates the pairs (x[k], x[k + r/2]) of every head by the token's angle (Su et al. 2021),
 * in the layout of Hugging Face's checkpoints. sign -1 rotates back. A row is a token;
 * column c of H * r/2 is one pair of one head. */
struct rope_pairs {
    view x;
    const float *cs, *sn;
    int64_t cs_ld, sn_ld, half, d;
    float sign;
    __device__ void operator()(int64_t r, int64_t c0, int n) const
    {
        for (int64_t c = c0; c < c0 + n; c++) {
            const int64_t h = c / half, k = c - h * half, at = r * x.ld + h * d + k;
            const float x1 = get(x, at), x2 = get(x, at + half);
            const float co = cs[r * cs_ld + k], si = sign * sn[r * sn_ld + k];
            put(x, at, x1 * co - x2 * si);
            put(x, at + half, x2 * co + x1 * si);
        }
    }
};

static void cuda_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                      const struct tensor *sin, bool inverse)
{
    const int64_t half = cos->dim[1];
    const rope_pairs f = {view_of(x),
                          (const float *)cos->data,
                          (const float *)sin->data,
                          cos->ld,
                          sin->ld,
                          half,
                          x->dim[2],
                          inverse ? -1.0f : 1.0f};
    run_quads(d, "rope", f, x->dim[0], x->dim[1] * half);
}

struct exp_quad {
    view s, ls;
    __device__ void operator()(int64_t, int64_t c, int n) const
    {
        quad q = get4(ls, c, n);
        for (int k = 0; k < 4; k++)
            q.v[k] = expf(q.v[k]);
        put4(s, c, n, q);
    }
};

/* The operation needs equal counts, not equal shapes. */
static void cuda_exp(struct dev *d, const struct tensor *s, const struct tensor *ls)
{
    run_quads(d, "exp", exp_quad{view_of(s), view_of(ls)}, 1, tensor_count(ls));
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
struct gather_quad {
    view y;
    gathered g;
    GLOBAL(const float) weight;
    __device__ void operator()(int64_t r, int64_t c, int n) const
    {
        quad sum = {{0, 0, 0, 0}};
        for (int64_t j = 0; j < g.J; j++) {
            const quad q = get4(g.x, g.row(r, j) + c, n);
            const float w = weight ? (float)weight[r * g.J + j] : 1.0f;
            for (int k = 0; k < 4; k++)
                sum.v[k] = fmaf(w, q.v[k], sum.v[k]);
        }
        put4(y, r * y.ld + c, n, sum);
    }
};

static gathered rows_at(const struct tensor *x, const struct tensor *index)
{
    return gathered{view_of(x), (const int32_t *)index->data, index->dim[1]};
}

static void cuda_gather(struct dev *d, const struct tensor *y, const struct tensor *x,
                        const struct tensor *index, const struct tensor *weight)
{
    const gather_quad f = {view_of(y), rows_at(x, index),
                           weight ? (const float *)weight->data : nullptr};
    run_quads(d, "gather", f, y->dim[0], y->dim[1]);
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

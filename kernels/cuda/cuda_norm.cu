/* SPDX-License-Identifier: MIT
 *
 * RMSNorm and its gradient: one block per row, or one warp for short rows (the norms of q
 * and k). The Hadamard rotation: one warp per head. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

/* Rows of C elements: of a matrix, or the heads of a [T,H,d] view. */
struct rows_view {
    view x;
    int64_t heads, C;
    __device__ int64_t at(int64_t r) const
    {
        return heads == 1 ? r * x.ld : r / heads * x.ld + r % heads * C;
    }
};

static rows_view norm_rows(const struct tensor *x)
{
    rows_view v = {view_of(x), x && x->n_dims == 3 ? x->dim[1] : 1,
                   x ? x->dim[x->n_dims - 1] : 0};
    v.x.wide = v.x.wide && (v.heads == 1 || v.C % 4 == 0);
    return v;
}

/* Sums over a row, which belongs to a block or to a warp. */
template <bool WARPS> __device__ float row_sum(float v)
{
    return WARPS ? warp_reduce(v, add_op()) : block_reduce(v, add_op());
}

/* Calls f(row, first column, step) for every row of this thread; a thread handles four
 * columns every `step` columns. All threads of a block (warp) make the same number of
 * steps. */
template <bool WARPS, class F> __global__ void each_row(F f, int64_t rows)
{
    constexpr int SIZE = WARPS ? WARP_SIZE : BLOCK, PER_BLOCK = BLOCK / SIZE;
    const int64_t step = (int64_t)gridDim.x * PER_BLOCK;
    for (int64_t r = (int64_t)blockIdx.x * PER_BLOCK + threadIdx.x / SIZE; r < rows;
         r += step)
        f.template run<WARPS>(r, (int64_t)(threadIdx.x % SIZE) * 4, SIZE * 4);
}

template <class F>
static void run_rows(struct dev *d, const char *what, F f, int64_t rows, int64_t C)
{
    const cudaStream_t st = gpu_of(d)->stream;
    if (C <= 256) {
        const unsigned grid = blocks_for(rows, BLOCK / WARP_SIZE);
        CUDA_LAUNCH((each_row<true, F>), grid, BLOCK, 0, st, f, rows);
    } else {
        const unsigned grid = blocks_for(rows, 1);
        CUDA_LAUNCH((each_row<false, F>), grid, BLOCK, 0, st, f, rows);
    }
    launched(d, what);
}

__device__ static int left(int64_t C, int64_t c)
{
    return C - c < 4 ? (int)(C - c) : 4;
}

/* y = x s g with s = 1 / sqrt(mean x^2 + eps), where x + add, stored in h, replaces x if
 * there is an add. A thread's four columns are read twice: registers could not hold a row
 * of any length. */
struct norm_row {
    rows_view y, h, x, add;
    GLOBAL(float) s;
    view g;
    float eps;
    template <bool WARPS> __device__ void run(int64_t r, int64_t first, int64_t step) const
    {
        const int64_t C = x.C;
        const rows_view &from = add.x.p ? h : x;
        float sum = 0;
        for (int64_t c = first; c < C; c += step) {
            const int n = left(C, c);
            quad q = get4(x.x, x.at(r) + c, n);
            if (add.x.p) {
                const quad a = get4(add.x, add.at(r) + c, n);
                for (int k = 0; k < 4; k++)
                    q.v[k] += a.v[k];
                put4(h.x, h.at(r) + c, n, q);
            }
            for (int k = 0; k < 4; k++)
                sum = fmaf(q.v[k], q.v[k], sum);
        }
        const float s_r = 1 / sqrtf(row_sum<WARPS>(sum) / (float)C + eps);
        if (first == 0)
            s[r] = s_r;
        for (int64_t c = first; c < C;
             c += step) { /* a thread reads what it wrote itself */
            const int n = left(C, c);
            quad q = get4(from.x, from.at(r) + c, n);
            const quad w = get4(g, c, n);
            for (int k = 0; k < 4; k++)
                q.v[k] = q.v[k] * s_r * w.v[k];
            put4(y.x, y.at(r) + c, n, q);
        }
    }
};

static void cuda_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                         const struct tensor *h, const struct rmsnorm_inputs *in)
{
    const norm_row f = {
        norm_rows(y),     norm_rows(h),   norm_rows(in->x), norm_rows(in->add),
        (float *)s->data, view_of(in->g), in->eps};
    run_rows(d, "rmsnorm", f, tensor_count(s), f.x.C);
}

/* dx = s (g dy - x s^2 mean(g dy x)). The second term is the path through s. */
struct norm_bwd_row {
    rows_view dx, copy, dy, x;
    GLOBAL(const float) s;
    view g;
    bool accumulate;
    template <bool WARPS> __device__ void run(int64_t r, int64_t first, int64_t step) const
    {
        const int64_t C = x.C;
        float dot = 0;
        for (int64_t c = first; c < C; c += step) {
            const int n = left(C, c);
            const quad w = get4(g, c, n), q = get4(dy.x, dy.at(r) + c, n),
                       v = get4(x.x, x.at(r) + c, n);
            for (int k = 0; k < 4; k++)
                dot = fmaf(w.v[k] * q.v[k], v.v[k], dot);
        }
        const float s_r = s[r], mean = s_r * s_r * (row_sum<WARPS>(dot) / (float)C);
        for (int64_t c = first; c < C; c += step) {
            const int n = left(C, c);
            const quad w = get4(g, c, n), q = get4(dy.x, dy.at(r) + c, n),
                       v = get4(x.x, x.at(r) + c, n);
            quad out = {{0, 0, 0, 0}};
            if (accumulate)
                out = get4(dx.x, dx.at(r) + c, n);
            for (int k = 0; k < 4; k++)
                out.v[k] += s_r * (w.v[k] * q.v[k] - mean * v.v[k]);
            put4(dx.x, dx.at(r) + c, n, out);
            if (copy.x.p)
                put4(copy.x, copy.at(r) + c, n, out);
        }
    }
};

static void cuda_rmsnorm_bwd(struct dev *d, const struct rmsnorm_grads *grads,
                             const struct tensor *dy, const struct tensor *x,
                             const struct tensor *s, const struct tensor *g)
{
    const norm_bwd_row f = {norm_rows(grads->dx), norm_rows(grads->copy), norm_rows(dy),
                            norm_rows(x),         (const float *)s->data, view_of(g),
                            grads->accumulate};
    run_rows(d, "rmsnorm_bwd", f, tensor_count(s), f.x.C);
}

/* v[k] is element k WARP_SIZE + lane of a head. Butterflies with strides below WARP_SIZE
 * use shuffles, longer ones stay in the lane. Lanes past the end of a short head only
 * take part in the shuffles. */
template <int K> __global__ void hadamard_kernel(rows_view x, int64_t rows, float scale)
{
    const int lane = threadIdx.x % WARP_SIZE;
    const int n = (int)x.C, width = n < WARP_SIZE ? n : WARP_SIZE;
    const int64_t per_block = BLOCK / WARP_SIZE, step = gridDim.x * per_block;
    for (int64_t r = blockIdx.x * per_block + threadIdx.x / WARP_SIZE; r < rows;
         r += step) {
        const int64_t at = x.at(r) + lane;
        float v[K];
        UNROLL
        for (int k = 0; k < K; k++)
            v[k] = lane < n ? get(x.x, at + k * WARP_SIZE) : 0;
        UNROLL
        for (int half = 1; half < K; half *= 2)
            UNROLL
        for (int k = 0; k < K; k++)
            if (!(k & half)) {
                const float a = v[k], b = v[k + half];
                v[k] = a + b;
                v[k + half] = a - b;
            }
        for (int half = 1; half < width; half *= 2)
            UNROLL
        for (int k = 0; k < K; k++) {
            const float other = __shfl_xor_sync(FULL_WARP, v[k], half);
            v[k] = lane & half ? other - v[k] : v[k] + other;
        }
        UNROLL
        for (int k = 0; k < K; k++)
            if (lane < n)
                put(x.x, at + k * WARP_SIZE, v[k] * scale);
    }
}

template <int K> static void run_hadamard(struct dev *d, const rows_view &x, int64_t rows)
{
    const unsigned grid = blocks_for(rows, BLOCK / WARP_SIZE);
    CUDA_LAUNCH((hadamard_kernel<K>), grid, BLOCK, 0, gpu_of(d)->stream, x, rows,
                hadamard_scale(x.C));
    launched(d, "hadamard");
}

static void cuda_hadamard(struct dev *d, const struct tensor *t)
{
    const rows_view x = norm_rows(t);
    const int64_t rows = t->dim[0] * t->dim[1];
    static_assert(HADAMARD_MAX == 16 * WARP_SIZE, "the cases below");
    switch (x.C / WARP_SIZE) {
    case 16:
        return run_hadamard<16>(d, x, rows);
    case 8:
        return run_hadamard<8>(d, x, rows);
    case 4:
        return run_hadamard<4>(d, x, rows);
    case 2:
        return run_hadamard<2>(d, x, rows);
    default:
        return run_hadamard<1>(d, x, rows);
    }
}

void fill_norm(struct dev_ops *o)
{
    o->rmsnorm = cuda_rmsnorm;
    o->rmsnorm_bwd = cuda_rmsnorm_bwd;
    o->hadamard = cuda_hadamard;
}

} // namespace CUDA_NS

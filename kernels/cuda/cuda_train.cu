/* SPDX-License-Identifier: MIT
 *
 * Losses, AdamW, the test for finite values, cross entropy, and the range of columns.
 * Sums over a whole tensor are formed in two stages, in a fixed order. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

constexpr unsigned SUM_BLOCKS = 1024; /* at most, of a first stage */
constexpr int64_t MINMAX_ROWS = 64;   /* of a thread of a first stage */

struct loss_args {
    view y, t, dy; /* dy.p NULL: loss only */
    int64_t rows, cols;
    float k; /* weight / elements */
    bool mse, accumulate;
};

/* Loss and gradient of four neighbouring elements: |e| and k sign(e), or e^2 and 2 k e. */
__device__ static double loss_quad(const loss_args &a, int64_t r, int64_t c)
{
    const int n = a.cols - c < 4 ? (int)(a.cols - c) : 4;
    quad e = get4(a.y, r * a.y.ld + c, n), out = {{0, 0, 0, 0}};
    const quad t = get4(a.t, r * a.t.ld + c, n);
    if (a.dy.p && a.accumulate)
        out = get4(a.dy, r * a.dy.ld + c, n);
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        const float v = e.v[i] - t.v[i];
        sum += a.mse ? (double)v * (double)v : (double)fabsf(v);
        /* NaN and infinity must reach the gradient. */
        out.v[i] += a.mse         ? 2 * a.k * v
                    : isfinite(v) ? a.k * (float)((v > 0) - (v < 0))
                                  : a.k * v;
    }
    if (a.dy.p)
        put4(a.dy, r * a.dy.ld + c, n, out);
    return sum;
}

/* First stage: part[b] is the sum of block b. Which elements a block takes follows from the
 * shape alone, so the sum has one order. */
__global__ void loss_kernel(loss_args a, GLOBAL(double) part)
{
    const int64_t quads = (a.cols + 3) / 4, n = a.rows * quads;
    double sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * BLOCK)
        sum += loss_quad(a, i / quads, i % quads * 4);
    sum = block_reduce(sum, add_op());
    if (threadIdx.x == 0)
        part[blockIdx.x] = sum;
}

/* Second stage, one block: *out = k times the sum of part[0..n). Sets *bad, unless NULL, if that is
 * not finite. */
__global__ void sum_kernel(GLOBAL(double) out, GLOBAL(const double) part, int n, double k,
                           GLOBAL(int32_t) bad)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < n; i += BLOCK)
        sum += part[i];
    sum = block_reduce(sum, add_op());
    if (threadIdx.x == 0) {
        *out = k * sum;
        if (bad && !isfinite(k * sum))
            *bad = 1;
    }
}

/* part: memory for SUM_BLOCKS partial sums. */
static void queue_loss(struct dev *d, double *loss, int32_t *bad, double *part,
                       const struct tensor *dy, const struct loss_inputs *in)
{
    const int64_t R = in->y->dim[0], C = in->y->dim[1];
    const double k = (double)in->weight / ((double)R * (double)C);
    const loss_args a = {view_of(in->y), view_of(in->t),       view_of(dy),   R, C,
                         (float)k,       in->kind == LOSS_MSE, in->accumulate};
    const unsigned blocks = blocks_for(R * ((C + 3) / 4), BLOCK, SUM_BLOCKS);
    const cudaStream_t st = gpu_of(d)->stream;
    CUDA_LAUNCH(loss_kernel, blocks, BLOCK, 0, st, a, part);
    CUDA_LAUNCH(sum_kernel, 1, BLOCK, 0, st, loss, part, (int)blocks, k, bad);
    launched(d, "loss");
}

static double cuda_loss(struct dev *d, const struct tensor *dy,
                        const struct loss_inputs *in)
{
    double *part = (double *)scratch(d, SLOT_A, (SUM_BLOCKS + 1) * sizeof(double));
    double loss = 0;
    if (!part)
        return 0;
    queue_loss(d, part + SUM_BLOCKS, nullptr, part, dy, in);
    fetch(d, &loss, part + SUM_BLOCKS, sizeof(loss));
    return loss;
}

static void cuda_loss_to(struct dev *d, double *loss, int32_t *bad, const struct tensor *dy,
                         const struct loss_inputs *in)
{
    double *part = (double *)scratch(d, SLOT_A, (SUM_BLOCKS + 1) * sizeof(double));
    if (part)
        queue_loss(d, loss, bad, part, dy, in);
}

struct adamw_args {
    view p, g, m, v;
    int64_t n;
    float b1, b2, eps, decay;
    adamw_rates own;
    const int32_t *unless;
    const adamw_rates *rates; /* NULL: own */
};

/* AdamW (Loshchilov, Hutter 2019) on four elements. The decay does not pass through the moments. */
__global__ void adamw_kernel(adamw_args a)
{
    const int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * 4;
    if (i >= a.n || (a.unless && *a.unless))
        return;
    const int n = a.n - i < 4 ? (int)(a.n - i) : 4;
    const adamw_rates r = a.rates ? *a.rates : a.own;
    quad p = get4(a.p, i, n), m = get4(a.m, i, n), v = get4(a.v, i, n);
    const quad g = get4(a.g, i, n);
    for (int k = 0; k < 4; k++) {
        m.v[k] = a.b1 * m.v[k] + (1 - a.b1) * g.v[k];
        v.v[k] = a.b2 * v.v[k] + (1 - a.b2) * g.v[k] * g.v[k];
        const float step = m.v[k] / r.fix1 / (sqrtf(v.v[k] / r.fix2) + a.eps);
        p.v[k] -= r.lr * (step + a.decay * p.v[k]);
    }
    put4(a.p, i, n, p);
    put4(a.m, i, n, m);
    put4(a.v, i, n, v);
}

static void cuda_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                       const struct tensor *m, const struct tensor *v,
                       const struct adamw *o)
{
    const int64_t n = tensor_count(p);
    const adamw_args a = {
        view_of(p), view_of(g), view_of(m),      view_of(v),         n,         o->beta1,
        o->beta2,   o->eps,     o->weight_decay, dev_adamw_rates(o), o->unless, o->rates};
    CUDA_LAUNCH(adamw_kernel, blocks_all(n, 4 * BLOCK), BLOCK, 0, gpu_of(d)->stream, a);
    launched(d, "adamw");
}

/* All threads that find such a value write the same 1, so the race is harmless. */
__global__ void finite_kernel(int *found, view x, int64_t rows, int64_t cols)
{
    const int64_t quads = (cols + 3) / 4;
    bool bad = false;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < rows * quads;
         i += (int64_t)gridDim.x * BLOCK) {
        const int64_t r = i / quads, c = i % quads * 4;
        const quad q = get4(x, r * x.ld + c, cols - c < 4 ? (int)(cols - c) : 4);
        for (int k = 0; k < 4; k++)
            bad = bad || (f32_bits(q.v[k]) & 0x7f800000u) == 0x7f800000u;
    }
    if (bad)
        *found = 1;
}

static void cuda_find_bad(struct dev *d, int32_t *found, const struct tensor *x)
{
    const int64_t rows = tensor_n_rows(x), cols = tensor_width(x);
    CUDA_LAUNCH(finite_kernel, blocks_for(rows * ((cols + 3) / 4), BLOCK, SUM_BLOCKS),
                BLOCK, 0, gpu_of(d)->stream, found, view_of(x), rows, cols);
    launched(d, "all_finite");
}

static bool cuda_all_finite(struct dev *d, const struct tensor *x)
{
    int *found = (int *)scratch(d, SLOT_RESULT, sizeof(int));
    int host = 0;
    if (!found)
        return false;
    const cudaStream_t st = gpu_of(d)->stream;
    if (!went_well(d, cudaMemsetAsync(found, 0, sizeof(int), st), "all_finite"))
        return false;
    cuda_find_bad(d, found, x);
    return fetch(d, &host, found, sizeof(host)) && !host;
}

/* nll = log sum exp(x) - x[target]. The maximum is subtracted before exp, so that large
 * logits do not overflow. One block per row. */
__global__ void cross_entropy_kernel(GLOBAL(float) nll, view x,
                                     GLOBAL(const int32_t) target, int64_t rows,
                                     int64_t cols)
{
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        float max = -INFINITY, sum = 0;
        for (int64_t c = threadIdx.x; c < cols; c += BLOCK)
            max = fmaxf(max, get(x, r * x.ld + c));
        max = block_reduce(max, max_op());
        for (int64_t c = threadIdx.x; c < cols; c += BLOCK)
            sum += expf(get(x, r * x.ld + c) - max);
        sum = block_reduce(sum, add_op());
        if (threadIdx.x == 0)
            nll[r] = max + logf(sum) - get(x, r * x.ld + target[r]);
    }
}

static void cuda_cross_entropy(struct dev *d, const struct tensor *nll,
                               const struct tensor *x, const struct tensor *target)
{
    CUDA_LAUNCH(cross_entropy_kernel, blocks_for(x->dim[0], 1), BLOCK, 0, gpu_of(d)->stream,
                (float *)nll->data, view_of(x), (const int32_t *)target->data, x->dim[0],
                x->dim[1]);
    launched(d, "cross_entropy");
}

/* First stage: minimum and maximum of MINMAX_ROWS rows, in part [chunk][2][cols]. A thread
 * takes a column, so neighbouring threads read neighbouring addresses. */
__global__ void minmax_kernel(GLOBAL(float) part, view x, int64_t rows, int64_t cols)
{
    const int64_t c = (int64_t)blockIdx.x * BLOCK + threadIdx.x,
                  chunks = (rows + MINMAX_ROWS - 1) / MINMAX_ROWS;
    if (c >= cols)
        return;
    for (int64_t k = blockIdx.y; k < chunks; k += gridDim.y) {
        float mn = INFINITY, mx = -INFINITY;
        for (int64_t r = k * MINMAX_ROWS; r < rows && r < (k + 1) * MINMAX_ROWS; r++) {
            const float v = get(x, r * x.ld + c);
            mn = v < mn ? v : mn;
            mx = v > mx ? v : mx;
        }
        part[2 * k * cols + c] = mn;
        part[(2 * k + 1) * cols + c] = mx;
    }
}

/* Second stage: merges the chunks into what mn and mx hold from earlier samples. */
__global__ void minmax_merge_kernel(GLOBAL(float) mn, GLOBAL(float) mx,
                                    GLOBAL(const float) part, int64_t chunks, int64_t cols)
{
    const int64_t c = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (c >= cols)
        return;
    float lo = mn[c], hi = mx[c];
    for (int64_t k = 0; k < chunks; k++) {
        const float a = part[2 * k * cols + c], b = part[(2 * k + 1) * cols + c];
        lo = a < lo ? a : lo;
        hi = b > hi ? b : hi;
    }
    mn[c] = lo;
    mx[c] = hi;
}

static void cuda_col_minmax(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                            const struct tensor *x)
{
    const int64_t rows = x->dim[0], cols = tensor_width(x),
                  chunks = (rows + MINMAX_ROWS - 1) / MINMAX_ROWS;
    float *part = (float *)scratch(d, SLOT_A, (size_t)(2 * chunks * cols) * sizeof(float));
    if (!part)
        return;
    const cudaStream_t st = gpu_of(d)->stream;
    const dim3 grid(blocks_all(cols, BLOCK), blocks_for(chunks, 1));
    CUDA_LAUNCH(minmax_kernel, grid, BLOCK, 0, st, part, view_of(x), rows, cols);
    CUDA_LAUNCH(minmax_merge_kernel, grid.x, BLOCK, 0, st, (float *)mn->data,
                (float *)mx->data, part, chunks, cols);
    launched(d, "col_minmax");
}

void fill_train(struct dev_ops *o)
{
    o->loss = cuda_loss;
    o->loss_to = cuda_loss_to;
    o->find_bad = cuda_find_bad;
    o->adamw = cuda_adamw;
    o->all_finite = cuda_all_finite;
    o->cross_entropy = cuda_cross_entropy;
    o->col_minmax = cuda_col_minmax;
}

} // namespace CUDA_NS

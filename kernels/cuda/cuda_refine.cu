/* SPDX-License-Identifier: MIT
 *
 * End-to-end refinement. A warp takes a group of a weight's row; a block takes a row of
 * logits, or a strip of columns of the norm's gradient. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

constexpr int64_t GAIN_ROWS = 64; /* of a thread of the first stage */

struct stored {
    view w;
    GLOBAL(const uint8_t) codes, zeros;
    GLOBAL(const uint16_t) scales;
    int64_t codes_ld, zeros_ld, scales_ld;
    int64_t rows, cols, G, groups;
    bool packed; /* two codes a byte */
};

__device__ static uint8_t code_at(const stored &p, int64_t r, int64_t c)
{
    GLOBAL(const uint8_t) row = p.codes + r * p.codes_ld;
    if (!p.packed)
        return row[c];
    return c % 2 ? row[c / 2] >> 4 : row[c / 2] & 15;
}

/* w^ = (code - zero) h, by quant.h's function for one value. */
__global__ void dequantize_kernel(stored p)
{
    const int64_t i = (int64_t)blockIdx.x * (BLOCK / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= p.rows * p.groups)
        return;
    const int64_t r = i / p.groups, g = i - r * p.groups, begin = g * p.G;
    const int64_t end = begin + p.G < p.cols ? begin + p.G : p.cols;
    const float h = f16_to_f32(p.scales[r * p.scales_ld + g]);
    const uint8_t z = p.zeros[r * p.zeros_ld + g];
    for (int64_t c = begin + (int64_t)(threadIdx.x % WARP_SIZE); c < end; c += WARP_SIZE)
        put(p.w, r * p.w.ld + c, quant_weight_value(code_at(p, r, c), z, h));
}

static void cuda_dequantize(struct dev *d, const struct tensor *w,
                            const struct tensor *codes, const struct tensor *scales,
                            const struct tensor *zeros, int64_t group_size)
{
    const int64_t C = w->dim[1], G = weight_group(C, group_size);
    const stored p = {view_of(w),
                      (const uint8_t *)codes->data,
                      (const uint8_t *)zeros->data,
                      (const uint16_t *)scales->data,
                      codes->ld,
                      zeros->ld,
                      scales->ld,
                      w->dim[0],
                      C,
                      G,
                      (C + G - 1) / G,
                      codes->dim[1] != C};
    CUDA_LAUNCH(dequantize_kernel, blocks_all(p.rows * p.groups, BLOCK / WARP_SIZE), BLOCK,
                0, gpu_of(d)->stream, p);
    launched(d, "dequantize");
}

/* h = fp16(clamp(h0 exp(u))): u is a relative step, so h stays positive. */
__global__ void scale_steps_kernel(GLOBAL(uint16_t) scales, GLOBAL(const uint16_t) base,
                                   GLOBAL(const float) u, int64_t n, int significant)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n)
        scales[i] = quant_scale_step(base[i], u[i], significant);
}

static void cuda_scale_steps(struct dev *d, const struct tensor *scales,
                             const struct tensor *base, const struct tensor *u,
                             int significant)
{
    const int64_t n = tensor_count(u);
    CUDA_LAUNCH(scale_steps_kernel, blocks_all(n, BLOCK), BLOCK, 0, gpu_of(d)->stream,
                (uint16_t *)scales->data, (const uint16_t *)base->data,
                (const float *)u->data, n, significant);
    launched(d, "scale_steps");
}

/* A thread takes the codes of one byte, so that no two threads write to one. */
__global__ void code_step_kernel(GLOBAL(uint8_t) codes, int64_t codes_ld, uint16_t *offsets,
                                 int64_t offsets_ld, view grad, int64_t rows, int64_t cols,
                                 int a_byte, int bits, float step)
{
    const int64_t n = (cols + a_byte - 1) / a_byte;
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= rows * n)
        return;
    const int64_t r = i / n, byte = i - r * n;
    GLOBAL(uint8_t) at = codes + (r * codes_ld + byte);
    int now = 0;
    for (int k = 0; k < a_byte; k++) {
        const int64_t c = byte * a_byte + k;
        int code = a_byte == 1 ? *at : *at >> 4 * k & 15;
        if (c < cols)
            code =
                quant_code_step(code, &offsets[r * offsets_ld + c],
                                quant_signed_step(get(grad, r * grad.ld + c), step), bits);
        now |= code << 4 * k;
    }
    *at = (uint8_t)now;
}

static void cuda_code_step(struct dev *d, const struct tensor *codes,
                           const struct tensor *offsets, const struct tensor *grad,
                           int bits, float step)
{
    const int64_t C = grad->dim[1], rows = grad->dim[0];
    const int a_byte = codes->dim[1] == C ? 1 : 2;
    CUDA_LAUNCH(code_step_kernel, blocks_all(rows * ((C + a_byte - 1) / a_byte), BLOCK),
                BLOCK, 0, gpu_of(d)->stream, (uint8_t *)codes->data, codes->ld,
                (uint16_t *)offsets->data, offsets->ld, view_of(grad), rows, C, a_byte,
                bits, step);
    launched(d, "code_step");
}

/* out[r,g] += sum of a b over a group: with a = dL/dw^ and b = w^ the gradient of log h,
 * because w^ = (code - zero) h. */
__global__ void group_dot_kernel(GLOBAL(float) out, int64_t out_ld, view a, view b,
                                 int64_t rows, int64_t cols, int64_t G, int64_t groups)
{
    const int64_t i = (int64_t)blockIdx.x * (BLOCK / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= rows * groups)
        return;
    const int64_t r = i / groups, g = i - r * groups, begin = g * G;
    const int64_t end = begin + G < cols ? begin + G : cols;
    float sum = 0;
    for (int64_t c = begin + (int64_t)(threadIdx.x % WARP_SIZE); c < end; c += WARP_SIZE)
        sum += get(a, r * a.ld + c) * get(b, r * b.ld + c);
    sum = warp_reduce(sum, add_op());
    if (threadIdx.x % WARP_SIZE == 0)
        out[r * out_ld + g] += sum;
}

static void cuda_group_dot(struct dev *d, const struct tensor *out, const struct tensor *a,
                           const struct tensor *b, int64_t group_size)
{
    const int64_t C = a->dim[1], G = weight_group(C, group_size);
    const int64_t groups = (C + G - 1) / G;
    CUDA_LAUNCH(group_dot_kernel, blocks_all(a->dim[0] * groups, BLOCK / WARP_SIZE), BLOCK,
                0, gpu_of(d)->stream, (float *)out->data, out->ld, view_of(a), view_of(b),
                a->dim[0], C, G, groups);
    launched(d, "group_dot");
}

/* Rows of heads: H of C elements at each step of ld. */
struct gain_args {
    view dy, x;
    GLOBAL(const float) s;
    int64_t H, C, rows;
};

/* dg[c] = sum_r dy x s, because y = x s g. First stage: part [chunk][C], sums of GAIN_ROWS
 * rows. A fixed split gives a fixed order of the sum; atomics would not. */
__global__ void gain_kernel(GLOBAL(float) part, gain_args a)
{
    const int64_t c = (int64_t)blockIdx.x * BLOCK + threadIdx.x,
                  chunks = (a.rows + GAIN_ROWS - 1) / GAIN_ROWS;
    if (c >= a.C)
        return;
    for (int64_t k = blockIdx.y; k < chunks; k += gridDim.y) {
        float sum = 0;
        for (int64_t r = k * GAIN_ROWS; r < a.rows && r < (k + 1) * GAIN_ROWS; r++) {
            const int64_t t = r / a.H, head = (r - t * a.H) * a.C + c;
            sum += get(a.dy, t * a.dy.ld + head) * get(a.x, t * a.x.ld + head) * a.s[r];
        }
        part[k * a.C + c] = sum;
    }
}

/* Second stage: adds the chunks of a column in ascending order. */
__global__ void gain_merge_kernel(GLOBAL(float) dg, GLOBAL(const float) part,
                                  int64_t chunks, int64_t C)
{
    const int64_t c = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (c >= C)
        return;
    float sum = 0;
    for (int64_t k = 0; k < chunks; k++)
        sum += part[k * C + c];
    dg[c] += sum;
}

static void cuda_rmsnorm_gain_bwd(struct dev *d, const struct tensor *dg,
                                  const struct tensor *dy, const struct tensor *x,
                                  const struct tensor *s)
{
    const int64_t H = x->n_dims == 3 ? x->dim[1] : 1, C = x->dim[x->n_dims - 1];
    const gain_args a = {view_of(dy), view_of(x), (const float *)s->data,
                         H,           C,          x->dim[0] * H};
    const int64_t chunks = (a.rows + GAIN_ROWS - 1) / GAIN_ROWS;
    float *part = (float *)scratch(d, SLOT_A, (size_t)(chunks * C) * sizeof(float));
    if (!part)
        return;
    const dim3 grid(blocks_all(C, BLOCK), blocks_for(chunks, 1));
    CUDA_LAUNCH(gain_kernel, grid, BLOCK, 0, gpu_of(d)->stream, part, a);
    CUDA_LAUNCH(gain_merge_kernel, grid.x, BLOCK, 0, gpu_of(d)->stream, (float *)dg->data,
                part, chunks, C);
    launched(d, "rmsnorm_gain_bwd");
}

struct distill_args {
    GLOBAL(float) student, teacher;
    GLOBAL(const int32_t) target;
    int64_t s_ld, t_ld, rows, cols;
    float kl, ce;
    GLOBAL(double) loss; /* [2][rows] */
};

__device__ static float row_max(GLOBAL(float) x, int64_t n)
{
    float max = -INFINITY;
    for (int64_t c = threadIdx.x; c < n; c += BLOCK)
        max = fmaxf(max, x[c]);
    return block_reduce(max, max_op());
}

/* One block per row of logits. With xs, xt the logits less their maxima, es = exp(xs),
 * sum_s their sum, q = es / sum_s, and p likewise from xt:
 *   KL(p || q) = (sum et (xt - xs)) / sum_t - log sum_t + log sum_s
 *   -log q[next] = log sum_s - xs[next]
 *   gradient in s = (kl + ce) q - kl p - ce [c = next] */
__global__ void distill_kernel(distill_args a)
{
    for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
        GLOBAL(float) s = a.student + r * a.s_ld;
        GLOBAL(float) t = a.teacher + r * a.t_ld;
        const int64_t next = a.target[r];
        const float max_s = row_max(s, a.cols), max_t = row_max(t, a.cols);
        const float at = s[next] - max_s;
        __syncthreads(); /* all have read it before its thread overwrites it */
        double sum_s = 0, sum_t = 0, cross = 0;
        for (int64_t c = threadIdx.x; c < a.cols; c += BLOCK) {
            const float xs = s[c] - max_s, xt = t[c] - max_t;
            const float es = expf(xs), et = expf(xt);
            sum_s += (double)es;
            sum_t += (double)et;
            cross += (double)et * ((double)xt - (double)xs);
            s[c] = es;
            t[c] = et;
        }
        sum_s = block_reduce(sum_s, add_op());
        sum_t = block_reduce(sum_t, add_op());
        cross = block_reduce(cross, add_op());
        const float ks = (float)(((double)a.kl + (double)a.ce) / sum_s);
        const float kt = (float)((double)a.kl / sum_t);
        for (int64_t c = threadIdx.x; c < a.cols; c += BLOCK)
            s[c] = s[c] * ks - t[c] * kt - (c == next ? a.ce : 0.0f);
        if (threadIdx.x == 0) {
            a.loss[r] = cross / sum_t - log(sum_t) + log(sum_s);
            a.loss[a.rows + r] = log(sum_s) - (double)at;
        }
    }
}

/* Sums of both rows of loss [2][n] in a fixed order. */
__global__ void distill_sum_kernel(GLOBAL(double) out, GLOBAL(const double) loss, int64_t n)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += BLOCK)
        sum += loss[blockIdx.x * n + i];
    sum = block_reduce(sum, add_op());
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum;
}

static void cuda_distill(struct dev *d, double loss[2], const struct tensor *student,
                         const struct tensor *teacher, const struct tensor *target,
                         float kl, float ce)
{
    const int64_t R = student->dim[0];
    double *row = (double *)scratch(d, SLOT_A, (size_t)(2 * R + 2) * sizeof(double));
    loss[0] = loss[1] = 0;
    if (!row)
        return;
    const distill_args a = {(float *)student->data,
                            (float *)teacher->data,
                            (const int32_t *)target->data,
                            student->ld,
                            teacher->ld,
                            R,
                            student->dim[1],
                            kl,
                            ce,
                            row};
    const cudaStream_t st = gpu_of(d)->stream;
    CUDA_LAUNCH(distill_kernel, blocks_for(R, 1), BLOCK, 0, st, a);
    CUDA_LAUNCH(distill_sum_kernel, 2, BLOCK, 0, st, row + 2 * R, row, R);
    launched(d, "distill");
    fetch(d, loss, row + 2 * R, 2 * sizeof(double));
}

void fill_refine(struct dev_ops *o)
{
    o->dequantize = cuda_dequantize;
    o->scale_steps = cuda_scale_steps;
    o->code_step = cuda_code_step;
    o->group_dot = cuda_group_dot;
    o->rmsnorm_gain_bwd = cuda_rmsnorm_gain_bwd;
    o->distill = cuda_distill;
}

} // namespace CUDA_NS

/* SPDX-License-Identifier: MIT
 *
 * RMSNorm, rotary embedding and Hadamard rotation. A thread takes a row at a time; the
 * second pass over a row finds it in the L1 cache. */
#include "kernels/cpu/cpu.h"
#include "kernels/norm_rows.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/hadamard.h"

#include <math.h>

/* One call. In the backward, y is dx and add is dy. */
struct norm {
    const struct tensor *y, *s, *h, *x, *add, *g, *copy;
    float eps;
    int64_t C;
    bool accumulate;
};

/* Returns the sum of squares of row r of x. With add, h = x + add is stored and used: the
 * residual connection needs no pass over memory of its own. Two sums, because a chain of
 * dependent fused multiply-adds waits for the latency of each. */
static float square_sum(const struct norm *n, int64_t r)
{
    const int64_t C = n->C;
    const void *x_r = cpu_at(n->x, norm_at(n->x, r));
    const bool x16 = cpu_bf16(n->x);
    vf sum0 = vf_set1(0), sum1 = vf_set1(0);
    for (int64_t c = 0; c < C; c += 2 * VL) {
        vf a = act_get(x_r, x16, c, C);
        vf b = c + VL < C ? act_get(x_r, x16, c + VL, C) : vf_set1(0);
        if (n->add) {
            const void *add_r = cpu_row(n->add, r);
            float *h_r = cpu_row(n->h, r);
            a = vf_add(a, act_get(add_r, cpu_bf16(n->add), c, C));
            f32_put(h_r, c, C, a);
            if (c + VL < C) {
                b = vf_add(b, act_get(add_r, cpu_bf16(n->add), c + VL, C));
                f32_put(h_r, c + VL, C, b);
            }
        }
        sum0 = vf_fma(a, a, sum0);
        sum1 = vf_fma(b, b, sum1);
    }
    return vf_sum(vf_add(sum0, sum1));
}

/* y = x s g with s = 1 / sqrt(mean x^2 + eps) (Zhang, Sennrich 2019). No mean is
 * subtracted, unlike in LayerNorm. s is kept for the backward. */
static void rmsnorm_row(const void *ctx, int64_t r)
{
    const struct norm *n = ctx;
    const int64_t C = n->C;
    const float s_r = 1.0f / sqrtf(square_sum(n, r) / (float)C + n->eps);
    ((float *)n->s->data)[r] = s_r;
    const struct tensor *from = n->add ? n->h : n->x;
    const void *x_r = cpu_at(from, norm_at(from, r));
    void *y_r = cpu_at(n->y, norm_at(n->y, r));
    const bool x16 = cpu_bf16(from), y16 = cpu_bf16(n->y);
    for (int64_t c = 0; c < C; c += VL) {
        const vf x = vf_mul(act_get(x_r, x16, c, C), vf_set1(s_r));
        act_put(y_r, y16, c, C, vf_mul(x, f32_get(n->g->data, c, C)));
    }
}

static void cpu_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                        const struct tensor *h, const struct rmsnorm_inputs *in)
{
    const struct norm n = {.y = y,
                           .s = s,
                           .h = h,
                           .x = in->x,
                           .add = in->add,
                           .g = in->g,
                           .eps = in->eps,
                           .C = in->x->dim[in->x->n_dims - 1]};
    cpu_run_rows(d, norm_rows(in->x), 2 * n.C, rmsnorm_row, &n);
}

/* sum_c g dy x */
static float grad_dot(const struct norm *n, int64_t r)
{
    const int64_t C = n->C;
    const void *dy_r = cpu_at(n->add, norm_at(n->add, r));
    const void *x_r = cpu_at(n->x, norm_at(n->x, r));
    const bool dy16 = cpu_bf16(n->add), x16 = cpu_bf16(n->x);
    vf sum = vf_set1(0);
    for (int64_t c = 0; c < C; c += VL) {
        const vf gdy = vf_mul(f32_get(n->g->data, c, C), act_get(dy_r, dy16, c, C));
        sum = vf_fma(gdy, act_get(x_r, x16, c, C), sum);
    }
    return vf_sum(sum);
}

/* dx = s (g dy - x s^2 / C sum g dy x). The second term is the path through s, because
 * ds/dx_c = -s^3 x_c / C. */
static void rmsnorm_bwd_row(const void *ctx, int64_t r)
{
    const struct norm *n = ctx;
    const int64_t C = n->C;
    const float s_r = ((const float *)n->s->data)[r];
    const vf s = vf_set1(s_r), k = vf_set1(-s_r * s_r * grad_dot(n, r) / (float)C);
    const void *dy_r = cpu_at(n->add, norm_at(n->add, r));
    const void *x_r = cpu_at(n->x, norm_at(n->x, r));
    void *dx_r = cpu_at(n->y, norm_at(n->y, r));
    void *copy_r = n->copy ? cpu_at(n->copy, norm_at(n->copy, r)) : NULL;
    const bool dy16 = cpu_bf16(n->add), x16 = cpu_bf16(n->x), dx16 = cpu_bf16(n->y);
    const bool copy16 = copy_r && cpu_bf16(n->copy);
    for (int64_t c = 0; c < C; c += VL) {
        const vf gdy = vf_mul(f32_get(n->g->data, c, C), act_get(dy_r, dy16, c, C));
        vf dx = vf_mul(s, vf_fma(k, act_get(x_r, x16, c, C), gdy));
        if (n->accumulate)
            dx = vf_add(dx, act_get(dx_r, dx16, c, C));
        act_put(dx_r, dx16, c, C, dx);
        if (copy_r)
            act_put(copy_r, copy16, c, C, dx);
    }
}

static void cpu_rmsnorm_bwd(struct dev *d, const struct rmsnorm_grads *grads,
                            const struct tensor *dy, const struct tensor *x,
                            const struct tensor *s, const struct tensor *g)
{
    const struct norm n = {.y = grads->dx,
                           .s = s,
                           .x = x,
                           .add = dy,
                           .g = g,
                           .copy = grads->copy,
                           .C = x->dim[x->n_dims - 1],
                           .accumulate = grads->accumulate};
    cpu_run_rows(d, norm_rows(x), 2 * n.C, rmsnorm_bwd_row, &n);
}

/* x [T,H,d] is rotated in place by the angles of cos and sin [T,d/2]. */
struct rope {
    const struct tensor *x, *cos, *sin;
    bool inverse;
};

/* Rotates the pairs (x[c], x[c + r/2]) by the token's angle (Su et al. 2021). This is the
 * layout of Hugging Face's checkpoints; the original paper pairs neighbours. The inverse
 * rotation negates the sine. */
static void rope_row(const void *ctx, int64_t t)
{
    const struct rope *p = ctx;
    const int64_t H = p->x->dim[1], d = p->x->dim[2], half = p->cos->dim[1];
    const float *cos_t = cpu_row(p->cos, t), *sin_t = cpu_row(p->sin, t);
    const bool x16 = cpu_bf16(p->x);
    const vf sign = vf_set1(p->inverse ? -1.0f : 1.0f);
    for (int64_t h = 0; h < H; h++) {
        void *lo = cpu_at(p->x, t * p->x->ld + h * d);
        void *hi = cpu_at(p->x, t * p->x->ld + h * d + half);
        for (int64_t c = 0; c < half; c += VL) {
            const vf cs = f32_get(cos_t, c, half),
                     sn = vf_mul(f32_get(sin_t, c, half), sign);
            const vf x1 = act_get(lo, x16, c, half), x2 = act_get(hi, x16, c, half);
            act_put(lo, x16, c, half, vf_sub(vf_mul(x1, cs), vf_mul(x2, sn)));
            act_put(hi, x16, c, half, vf_fma(x2, cs, vf_mul(x1, sn)));
        }
    }
}

static void cpu_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                     const struct tensor *sin, bool inverse)
{
    const struct rope p = {.x = x, .cos = cos, .sin = sin, .inverse = inverse};
    cpu_run_rows(d, x->dim[0], tensor_width(x), rope_row, &p);
}

/* sign[j] is row j of the Hadamard matrix of VL. */
struct hadamard {
    const struct tensor *x;
    float sign[VL][VL];
};

/* The matrix of d is the Kronecker product of that of d / VL, applied between vectors,
 * and that of VL, applied inside each vector. The first is done by butterflies of whole
 * vectors, the second as a sum of signed rows, whose products are exact. */
static void hadamard_head(const struct hadamard *p, float *x, int64_t d)
{
    const vf scale = vf_set1(hadamard_scale(d));
    for (int64_t half = VL; half < d; half *= 2)
        for (int64_t at = 0; at < d; at += 2 * half)
            for (int64_t i = at; i < at + half; i += VL) {
                const vf a = vf_load(x + i), b = vf_load(x + i + half);
                vf_store(x + i, vf_add(a, b));
                vf_store(x + i + half, vf_sub(a, b));
            }
    for (int64_t i = 0; i < d; i += VL) {
        vf y = vf_set1(x[i]); /* row 0 is all 1 */
        for (int64_t j = 1; j < VL; j++)
            y = vf_fma(vf_set1(x[i + j]), vf_load(p->sign[j]), y);
        vf_store(x + i, vf_mul(y, scale));
    }
}

/* Heads are copied to F32 first: with BF16 in place, every butterfly would round. */
static void hadamard_row(const void *ctx, int64_t t)
{
    const struct hadamard *p = ctx;
    const int64_t H = p->x->dim[1], d = p->x->dim[2];
    const bool x16 = cpu_bf16(p->x);
    float head[HADAMARD_MAX + VL];
    for (int64_t h = 0; h < H; h++) {
        void *at = cpu_at(p->x, t * p->x->ld + h * d);
        for (int64_t c = 0; c < d; c += VL)
            vf_store(head + c, act_get(at, x16, c, d));
        if (d < VL)
            hadamard_f32(head, d);
        else
            hadamard_head(p, head, d);
        for (int64_t c = 0; c < d; c += VL)
            act_put(at, x16, c, d, vf_load(head + c));
    }
}

static void cpu_hadamard(struct dev *d, const struct tensor *x)
{
    struct hadamard p = {.x = x};
    for (int i = 0; i < VL; i++)
        for (int j = 0; j < VL; j++)
            p.sign[i][j] = hadamard_sign(i, j);
    cpu_run_rows(d, x->dim[0], tensor_width(x), hadamard_row, &p);
}

void ISA_NAME(cpu_fill_norm)(struct dev_ops *o)
{
    o->rmsnorm = cpu_rmsnorm;
    o->rmsnorm_bwd = cpu_rmsnorm_bwd;
    o->rope = cpu_rope;
    o->hadamard = cpu_hadamard;
}

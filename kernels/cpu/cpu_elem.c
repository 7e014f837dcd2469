/* SPDX-License-Identifier: MIT
 *
 * Elementwise operations, and the rows of a mixture of experts: one pass over memory each. */
#include "kernels/cpu/cpu.h"
#include "kernels/simd/simd.h"

#include <string.h>

struct elem {
    const struct tensor *y, *a, *b;
    int64_t cols;
    float factor;      /* of scale */
    enum gate_act act; /* of gates */
};

/* n elements from F16, those of x from at on. */
static void copy_half(void *y, enum dtype to, const struct tensor *x, int64_t at, int64_t n)
{
    const uint16_t *half = (const uint16_t *)x->data + at;
    if (to == DT_BF16)
        host_to_bf16(y, half, DT_F16, n);
    else
        host_to_f32(y, half, DT_F16, n);
}

static void copy_part(const void *ctx, int64_t begin, int64_t end)
{
    const struct elem *e = ctx;
    if (e->a->dtype == DT_F16) {
        copy_half(cpu_at(e->y, begin), e->y->dtype, e->a, begin, end - begin);
        return;
    }
    for (int64_t i = begin; i < end; i += VL)
        act_put(e->y->data, cpu_bf16(e->y), i, end,
                act_get(e->a->data, cpu_bf16(e->a), i, end));
}

/* Rows of one type are bytes to copy; otherwise BF16 rounds to nearest even. */
static void copy_row(const void *ctx, int64_t r)
{
    const struct elem *e = ctx;
    void *y_r = cpu_row(e->y, r);
    if (e->a->dtype == DT_F16) {
        copy_half(y_r, e->y->dtype, e->a, r * e->a->ld, e->cols);
        return;
    }
    const void *x_r = cpu_row(e->a, r);
    const bool y16 = cpu_bf16(e->y), x16 = cpu_bf16(e->a);
    if (y16 == x16) {
        memcpy(y_r, x_r, (size_t)e->cols * dtype_bytes(e->y->dtype));
        return;
    }
    for (int64_t c = 0; c < e->cols; c += VL)
        act_put(y_r, y16, c, e->cols, act_get(x_r, x16, c, e->cols));
}

static void cpu_copy(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    const struct elem e = {.y = y, .a = x, .cols = tensor_width(x)};
    if (x->n_dims == 1)
        cpu_run_flat(d, x->dim[0], copy_part, &e);
    else
        cpu_run_rows(d, x->dim[0], e.cols, copy_row, &e);
}

static void bias_row(const void *ctx, int64_t r)
{
    const struct elem *e = ctx;
    void *y_r = cpu_row(e->y, r);
    const bool y16 = cpu_bf16(e->y);
    for (int64_t c = 0; c < e->cols; c += VL) {
        const vf b = f32_get(e->b->data, c, e->cols);
        act_put(y_r, y16, c, e->cols, vf_add(act_get(y_r, y16, c, e->cols), b));
    }
}

static void cpu_bias(struct dev *d, const struct tensor *y, const struct tensor *b)
{
    const struct elem e = {.y = y, .b = b, .cols = y->dim[1]};
    cpu_run_rows(d, y->dim[0], e.cols, bias_row, &e);
}

static void add_row(const void *ctx, int64_t r)
{
    const struct elem *e = ctx;
    void *y_r = cpu_row(e->y, r);
    const void *a_r = cpu_row(e->a, r), *b_r = cpu_row(e->b, r);
    const bool y16 = cpu_bf16(e->y), a16 = cpu_bf16(e->a), b16 = cpu_bf16(e->b);
    const int64_t C = e->cols;
    for (int64_t c = 0; c < C; c += VL)
        act_put(y_r, y16, c, C, vf_add(act_get(a_r, a16, c, C), act_get(b_r, b16, c, C)));
}

static void cpu_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                    const struct tensor *b)
{
    const struct elem e = {.y = y, .a = a, .b = b, .cols = tensor_width(y)};
    cpu_run_rows(d, y->dim[0], e.cols, add_row, &e);
}

static void scale_row(const void *ctx, int64_t r)
{
    const struct elem *e = ctx;
    void *y_r = cpu_row(e->y, r);
    const bool y16 = cpu_bf16(e->y);
    const vf factor = vf_set1(e->factor);
    for (int64_t c = 0; c < e->cols; c += VL)
        act_put(y_r, y16, c, e->cols, vf_mul(act_get(y_r, y16, c, e->cols), factor));
}

static void cpu_scale(struct dev *d, const struct tensor *y, float factor)
{
    const struct elem e = {.y = y, .cols = y->dim[1], .factor = factor};
    cpu_run_rows(d, y->dim[0], e.cols, scale_row, &e);
}

static void exp_part(const void *ctx, int64_t begin, int64_t end)
{
    const struct elem *e = ctx;
    for (int64_t i = begin; i < end; i += VL)
        f32_put(e->y->data, i, end, vf_exp(f32_get(e->a->data, i, end)));
}

static void cpu_exp(struct dev *d, const struct tensor *s, const struct tensor *ls)
{
    const struct elem e = {.y = s, .a = ls};
    cpu_run_flat(d, tensor_count(s), exp_part, &e);
}

/* ctx is the address of the pointer; elements are 16 bytes. */
static void zero_part(const void *ctx, int64_t begin, int64_t end)
{
    memset((char *)*(void *const *)ctx + begin * 16, 0, (size_t)(end - begin) * 16);
}

static void cpu_zero(struct dev *d, void *dst, size_t bytes)
{
    const size_t whole = bytes / 16 * 16;
    cpu_run_flat(d, (int64_t)(bytes / 16), zero_part, &dst);
    memset((char *)dst + whole, 0, bytes - whole);
}

/* Clamps g so that its powers stay finite. */
static vf gelu_clamp(vf g)
{
    return vf_min(vf_set1(GELU_MAX), vf_max(vf_set1(-GELU_MAX), g));
}

/* z and z' of act(g) = g sigma(z). */
static vf gate_arg(enum gate_act act, vf g)
{
    const vf x = gelu_clamp(g), b = vf_set1((float)GELU_B), a = vf_set1((float)GELU_A);
    return act == GATE_SILU ? g : vf_mul(x, vf_fma(vf_mul(x, x), b, a));
}

static vf gate_slope(enum gate_act act, vf g)
{
    const vf x = gelu_clamp(g), b = vf_set1(3 * (float)GELU_B), a = vf_set1((float)GELU_A);
    return act == GATE_SILU ? vf_set1(1) : vf_fma(vf_mul(x, x), b, a);
}

/* y = g sigma(z) u. A row of gu is F values of g, the gate projection, then F of u, the up
 * projection. */
static void gate_row(const void *ctx, int64_t r)
{
    const struct elem *e = ctx;
    const int64_t F = e->cols;
    void *y_r = cpu_row(e->y, r);
    const void *g_r = cpu_row(e->a, r), *u_r = cpu_at(e->a, r * e->a->ld + F);
    const bool y16 = cpu_bf16(e->y), gu16 = cpu_bf16(e->a);
    for (int64_t f = 0; f < F; f += VL) {
        const vf g = act_get(g_r, gu16, f, F), u = act_get(u_r, gu16, f, F);
        const vf sig = vf_sigmoid(gate_arg(e->act, g));
        act_put(y_r, y16, f, F, vf_mul(vf_mul(g, sig), u));
    }
}

static void cpu_gate(struct dev *d, enum gate_act act, const struct tensor *y,
                     const struct tensor *gu)
{
    const struct elem e = {.y = y, .a = gu, .cols = y->dim[1], .act = act};
    cpu_run_rows(d, y->dim[0], 4 * e.cols, gate_row, &e);
}

/* With sigma' = sigma (1 - sigma), the derivative of g sigma(z) is sigma (1 + g z' (1 -
 * sigma)), so
 *   dg = dy u sigma(z) (1 + g z' (1 - sigma(z)))      du = dy g sigma(z)
 * Each vector is read before it is written, so dgu may be gu. */
static void gate_bwd_row(const void *ctx, int64_t r)
{
    const struct elem *e = ctx;
    const int64_t F = e->cols;
    void *dg_r = cpu_row(e->y, r), *du_r = cpu_at(e->y, r * e->y->ld + F);
    const void *dy_r = cpu_row(e->b, r);
    const void *g_r = cpu_row(e->a, r), *u_r = cpu_at(e->a, r * e->a->ld + F);
    const bool d16 = cpu_bf16(e->y), gu16 = cpu_bf16(e->a), dy16 = cpu_bf16(e->b);
    const vf one = vf_set1(1.0f);
    for (int64_t f = 0; f < F; f += VL) {
        const vf g = act_get(g_r, gu16, f, F), u = act_get(u_r, gu16, f, F);
        const vf dy = act_get(dy_r, dy16, f, F), sig = vf_sigmoid(gate_arg(e->act, g));
        const vf left = vf_sub(one, sig);
        const vf slope = vf_fma(vf_mul(g, gate_slope(e->act, g)), left, one);
        act_put(dg_r, d16, f, F, vf_mul(vf_mul(vf_mul(dy, u), sig), slope));
        act_put(du_r, d16, f, F, vf_mul(vf_mul(dy, g), sig));
    }
}

static void cpu_gate_bwd(struct dev *d, enum gate_act act, const struct tensor *dgu,
                         const struct tensor *dy, const struct tensor *gu)
{
    const struct elem e = {.y = dgu, .a = gu, .b = dy, .cols = dy->dim[1], .act = act};
    cpu_run_rows(d, dy->dim[0], 6 * e.cols, gate_bwd_row, &e);
}

/* Rows of x that belong to a row of y, or of dy. */
struct gather {
    const struct tensor *y, *x, *index;
    float *weight; /* [R,J]; NULL: 1 */
};

/* Returns the row of x that is the j-th of row r. */
static const void *gathered_row(const struct gather *g, int64_t r, int64_t j)
{
    const int32_t *index = g->index->data;
    return cpu_row(g->x, index[r * g->index->dim[1] + j]);
}

/* y[r] = sum_j weight[r,j] x[index[r,j]] */
static void gather_row(const void *ctx, int64_t r)
{
    const struct gather *g = ctx;
    const int64_t J = g->index->dim[1], C = g->y->dim[1];
    const bool y16 = cpu_bf16(g->y), x16 = cpu_bf16(g->x);
    for (int64_t c = 0; c < C; c += VL) {
        vf sum = vf_set1(0);
        for (int64_t j = 0; j < J; j++) {
            const vf w = vf_set1(g->weight ? g->weight[r * J + j] : 1);
            sum = vf_fma(w, act_get(gathered_row(g, r, j), x16, c, C), sum);
        }
        act_put(cpu_row(g->y, r), y16, c, C, sum);
    }
}

static void cpu_gather(struct dev *d, const struct tensor *y, const struct tensor *x,
                       const struct tensor *index, const struct tensor *weight)
{
    const struct gather g = {y, x, index, weight ? weight->data : NULL};
    cpu_run_rows(d, y->dim[0], index->dim[1] * y->dim[1], gather_row, &g);
}

/* weight[r,j] = sum_c y[r,c] x[index[r,j],c], where y is the gradient of a gathered row. */
static void gather_dot_row(const void *ctx, int64_t r)
{
    const struct gather *g = ctx;
    const int64_t J = g->index->dim[1], C = g->y->dim[1];
    const bool y16 = cpu_bf16(g->y), x16 = cpu_bf16(g->x);
    for (int64_t j = 0; j < J; j++) {
        const void *x = gathered_row(g, r, j), *y = cpu_row(g->y, r);
        vf sum = vf_set1(0);
        for (int64_t c = 0; c < C; c += VL)
            sum = vf_fma(act_get(y, y16, c, C), act_get(x, x16, c, C), sum);
        g->weight[r * J + j] = vf_sum(sum);
    }
}

static void cpu_gather_dot(struct dev *d, const struct tensor *dw, const struct tensor *dy,
                           const struct tensor *x, const struct tensor *index)
{
    const struct gather g = {dy, x, index, dw->data};
    cpu_run_rows(d, dy->dim[0], index->dim[1] * dy->dim[1], gather_dot_row, &g);
}

void ISA_NAME(cpu_fill_elem)(struct dev_ops *o)
{
    o->gather = cpu_gather;
    o->gather_dot = cpu_gather_dot;
    o->zero = cpu_zero;
    o->copy = cpu_copy;
    o->bias = cpu_bias;
    o->add = cpu_add;
    o->scale = cpu_scale;
    o->exp = cpu_exp;
    o->gate = cpu_gate;
    o->gate_bwd = cpu_gate_bwd;
}

void ISA_NAME(cpu_fill)(struct dev_ops *o)
{
    ISA_NAME(cpu_fill_elem)(o);
    ISA_NAME(cpu_fill_norm)(o);
    ISA_NAME(cpu_fill_weight)(o);
    ISA_NAME(cpu_fill_kv)(o);
    ISA_NAME(cpu_fill_channel)(o);
    ISA_NAME(cpu_fill_engine)(o);
    ISA_NAME(cpu_fill_train)(o);
    ISA_NAME(cpu_fill_refine)(o);
    ISA_NAME(cpu_fill_attn)(o);
}

/* SPDX-License-Identifier: MIT
 *
 * Losses, AdamW and the checks around training. Sums run in f64: over a row in the order of
 * its columns, then over rows in their order, whatever the number of threads. */
#include "kernels/cpu/cpu.h"
#include "kernels/simd/simd.h"

#include <math.h>

/* Columns that one unit of col_minmax covers: they stay in the L1 cache over all rows. */
#define MINMAX_COLS 256

struct loss {
    const struct tensor *dy, *y, *t;
    enum loss_kind kind;
    float slope; /* factor of dy: weight / n for MAE, 2 weight / n for MSE */
    bool accumulate;
    double *row_sum;
};

/* dL/dy of one difference e = y - t: k sign(e) for MAE, 2 k e for MSE, where slope holds
 * the 2. sign(0) is 0, as for the reference. */
static vf loss_slope(const struct loss *l, vf e)
{
    const vf k = vf_set1(l->slope), zero = vf_set1(0);
    if (l->kind == LOSS_MSE)
        return vf_mul(k, e);
    const vf up = vf_select(vf_lt(zero, e), k, zero);
    const vf sign = vf_select(vf_lt(e, zero), vf_sub(zero, k), up);
    return vf_select(vf_finite(e), sign, vf_mul(e, k)); /* NaN must reach the gradient */
}

/* The sum is f64 from vector to vector, so that small errors still count beside a large
 * sum. */
static void loss_row(const void *ctx, int64_t r)
{
    const struct loss *l = ctx;
    const int64_t C = l->y->dim[1];
    const void *y_r = cpu_row(l->y, r), *t_r = cpu_row(l->t, r);
    void *dy_r = l->dy ? cpu_row(l->dy, r) : NULL;
    const bool y16 = cpu_bf16(l->y), t16 = cpu_bf16(l->t);
    const bool dy16 = l->dy && cpu_bf16(l->dy);
    double sum = 0;
    for (int64_t c = 0; c < C; c += VL) {
        const vf e = vf_sub(act_get(y_r, y16, c, C), act_get(t_r, t16, c, C));
        sum += vf_sum64(l->kind == LOSS_MAE ? vf_abs(e) : vf_mul(e, e));
        if (!dy_r)
            continue;
        vf dy = loss_slope(l, e);
        if (l->accumulate)
            dy = vf_add(dy, act_get(dy_r, dy16, c, C));
        act_put(dy_r, dy16, c, C, dy);
    }
    l->row_sum[r] = sum;
}

static double cpu_loss(struct dev *d, const struct tensor *dy, const struct loss_inputs *in)
{
    const int64_t R = in->y->dim[0], C = in->y->dim[1];
    const double k = (double)in->weight / ((double)R * (double)C);
    const struct loss l = {.dy = dy,
                           .y = in->y,
                           .t = in->t,
                           .kind = in->kind,
                           .slope = (float)(in->kind == LOSS_MAE ? k : 2 * k),
                           .accumulate = in->accumulate,
                           .row_sum = cpu_scratch(d, SLOT_A, (size_t)R * sizeof(double))};
    if (!l.row_sum)
        return NAN;
    cpu_run_rows(d, R, 2 * C, loss_row, &l);
    double sum = 0;
    for (int64_t r = 0; r < R; r++)
        sum += l.row_sum[r];
    return k * sum;
}

/* One step of AdamW: pointers, and each scalar of the formulas below in all lanes. */
struct adam {
    float *p, *m, *v;
    const float *g;
    vf b1, b2, c1, c2, fix1, fix2, eps, lr, decay;
};

/* AdamW (Loshchilov, Hutter 2019) on elements [begin, end):
 *   m = b1 m + (1 - b1) g          mhat = m / (1 - b1^t)      fix1 = 1 / (1 - b1^t)
 *   v = b2 v + (1 - b2) g^2        vhat = v / (1 - b2^t)      fix2 = 1 / (1 - b2^t)
 *   p -= lr (mhat / (sqrt(vhat) + eps) + decay p)
 * with c1 = 1 - b1 and c2 = 1 - b2. */
static void adam_part(const void *ctx, int64_t begin, int64_t end)
{
    const struct adam *a = ctx;
    for (int64_t i = begin; i < end; i += VL) {
        const vf g = f32_get(a->g, i, end), p = f32_get(a->p, i, end);
        const vf m = vf_fma(a->b1, f32_get(a->m, i, end), vf_mul(a->c1, g));
        const vf v = vf_fma(a->b2, f32_get(a->v, i, end), vf_mul(vf_mul(a->c2, g), g));
        f32_put(a->m, i, end, m);
        f32_put(a->v, i, end, v);
        const vf root = vf_add(vf_sqrt(vf_mul(v, a->fix2)), a->eps);
        const vf step = vf_fma(a->decay, p, vf_div(vf_mul(m, a->fix1), root));
        f32_put(a->p, i, end, vf_sub(p, vf_mul(a->lr, step)));
    }
}

/* 1 - beta^t is small in the first steps (0.001 for beta2 = 0.999). It is therefore
 * computed in f64 and rounded once. */
static void cpu_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                      const struct tensor *m, const struct tensor *v, const struct adamw *o)
{
    const double b1 = (double)o->beta1, b2 = (double)o->beta2;
    const struct adam a = {
        .p = p->data,
        .m = m->data,
        .v = v->data,
        .g = g->data,
        .b1 = vf_set1(o->beta1),
        .b2 = vf_set1(o->beta2),
        .c1 = vf_set1((float)(1 - b1)),
        .c2 = vf_set1((float)(1 - b2)),
        .fix1 = vf_set1((float)(1 / (1 - pow(b1, (double)o->step)))),
        .fix2 = vf_set1((float)(1 / (1 - pow(b2, (double)o->step)))),
        .eps = vf_set1(o->eps),
        .lr = vf_set1(o->lr),
        .decay = vf_set1(o->weight_decay),
    };
    cpu_run_flat(d, tensor_count(p), adam_part, &a);
}

struct finite {
    const struct tensor *x;
    int64_t rows, cols;
    uint8_t *row_ok;
};

/* There is no early exit: a finite tensor, the usual case, is read to its end anyway. */
static void finite_row(const void *ctx, int64_t r)
{
    const struct finite *f = ctx;
    const void *x_r = f->rows == 1 ? f->x->data : cpu_row(f->x, r);
    const bool x16 = cpu_bf16(f->x);
    vm ok = vm_first(VL);
    for (int64_t c = 0; c < f->cols; c += VL)
        ok = vm_and(ok, vf_finite(act_get(x_r, x16, c, f->cols)));
    f->row_ok[r] = (uint8_t)vm_all(ok);
}

/* A vector is treated as rows of this length. */
#define FINITE_COLS 16384

/* Cuts a long vector into rows, so that all threads take part. The rest is shorter than a
 * row, so the recursion is one deep. */
static bool cpu_all_finite(struct dev *d, const struct tensor *x)
{
    struct tensor rows = *x;
    bool all = true;
    if (x->n_dims == 1 && x->dim[0] > FINITE_COLS) {
        const int64_t whole = x->dim[0] / FINITE_COLS, rest = x->dim[0] % FINITE_COLS;
        if (rest) {
            const struct tensor tail = tensor_rows(*x, x->dim[0] - rest, rest);
            all = cpu_all_finite(d, &tail);
        }
        rows = tensor_2d(x->data, x->dtype, whole, FINITE_COLS);
    }
    struct finite f = {
        .x = &rows, .rows = tensor_n_rows(&rows), .cols = tensor_width(&rows)};
    f.row_ok = cpu_scratch(d, SLOT_A, (size_t)f.rows);
    if (!f.row_ok)
        return false;
    cpu_run_rows(d, f.rows, f.cols, finite_row, &f);
    for (int64_t r = 0; r < f.rows; r++)
        all = all && f.row_ok[r];
    return all;
}

struct minmax {
    const struct tensor *mn, *mx, *x;
    int64_t C;
};

/* Minimum and maximum over all rows, for the columns of one unit. They start from what mn
 * and mx hold, so that calls over several samples add up. Neither depends on the order of
 * the rows. */
static void minmax_block(const void *ctx, int64_t block)
{
    const struct minmax *m = ctx;
    const int64_t begin = block * MINMAX_COLS;
    const int64_t end = begin + MINMAX_COLS < m->C ? begin + MINMAX_COLS : m->C;
    float *mn = m->mn->data, *mx = m->mx->data;
    const bool x16 = cpu_bf16(m->x);
    for (int64_t r = 0; r < m->x->dim[0]; r++) {
        const void *x_r = cpu_row(m->x, r);
        for (int64_t c = begin; c < end; c += VL) {
            const vf x = act_get(x_r, x16, c, end);
            f32_put(mn, c, end, vf_min(x, f32_get(mn, c, end)));
            f32_put(mx, c, end, vf_max(x, f32_get(mx, c, end)));
        }
    }
}

static void cpu_col_minmax(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                           const struct tensor *x)
{
    const struct minmax m = {mn, mx, x, tensor_width(x)};
    cpu_run_rows(d, (m.C + MINMAX_COLS - 1) / MINMAX_COLS, x->dim[0] * MINMAX_COLS,
                 minmax_block, &m);
}

struct entropy {
    const struct tensor *nll, *x, *target;
};

/* -log softmax(x)[target] = max + log sum_c exp(x_c - max) - x_target. With the maximum
 * subtracted, no exponential overflows and the sum is at least 1. Lanes past the end are
 * excluded from both, because a 0 there would count. */
static void entropy_row(const void *ctx, int64_t r)
{
    const struct entropy *e = ctx;
    const int64_t V = e->x->dim[1];
    const void *x_r = cpu_row(e->x, r);
    const bool x16 = cpu_bf16(e->x);
    vf max = vf_set1(-INFINITY);
    for (int64_t c = 0; c < V; c += VL)
        max = vf_select(vm_first(V - c), vf_max(max, act_get(x_r, x16, c, V)), max);
    const float top = vf_hmax(max);
    double sum = 0;
    for (int64_t c = 0; c < V; c += VL) {
        const vf p = vf_exp(vf_sub(act_get(x_r, x16, c, V), vf_set1(top)));
        sum += vf_sum64(vf_select(vm_first(V - c), p, vf_set1(0)));
    }
    const int32_t at = ((const int32_t *)e->target->data)[r];
    const float x_at = vf_sum(act_get(x_r, x16, at, at + 1));
    ((float *)e->nll->data)[r] = (float)((double)top + log(sum) - (double)x_at);
}

static void cpu_cross_entropy(struct dev *d, const struct tensor *nll,
                              const struct tensor *x, const struct tensor *target)
{
    const struct entropy e = {nll, x, target};
    cpu_run_rows(d, x->dim[0], 4 * x->dim[1], entropy_row, &e);
}

void ISA_NAME(cpu_fill_train)(struct dev_ops *o)
{
    o->loss = cpu_loss;
    o->adamw = cpu_adamw;
    o->all_finite = cpu_all_finite;
    o->col_minmax = cpu_col_minmax;
    o->cross_entropy = cpu_cross_entropy;
}

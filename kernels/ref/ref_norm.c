/* SPDX-License-Identifier: MIT
 *
 * RMSNorm (Zhang, Sennrich 2019), rows of a matrix or heads of a [T,H,d] view. */
#include "kernels/norm_rows.h"
#include "kernels/ref/ref.h"

#include <math.h>

/* s = 1 / sqrt(mean x^2 + eps), y = x s g. With add, x + add is stored in h first and
 * normalized instead: a residual connection and its norm in one operation. */
static void ref_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                        const struct tensor *h, const struct rmsnorm_inputs *in)
{
    const struct tensor *x = in->x, *add = in->add, *g = in->g;
    const int64_t C = x->dim[x->n_dims - 1];
    for (int64_t r = 0; r < norm_rows(x); r++) {
        if (add)
            for (int64_t c = 0; c < C; c++)
                ref_set(h, r * h->ld + c,
                        (double)ref_get(x, r * x->ld + c) +
                            (double)ref_get(add, r * add->ld + c));
        const struct tensor *from = add ? h : x;
        const int64_t x_r = norm_at(from, r), y_r = norm_at(y, r);
        double sum = 0;
        for (int64_t c = 0; c < C; c++) {
            const double v = (double)ref_get(from, x_r + c);
            sum += v * v;
        }
        const double s_r = 1 / sqrt(sum / (double)C + (double)in->eps);
        ref_set(s, r, s_r);
        for (int64_t c = 0; c < C; c++)
            ref_set(y, y_r + c,
                    (double)ref_get(from, x_r + c) * s_r * (double)ref_get(g, c));
    }
}

/* y = x s g with s = (mean x^2 + eps)^(-1/2), so ds/dx_c = -s^3 x_c / C and
 * dx_c = s (g_c dy_c - x_c s^2 / C sum_j g_j dy_j x_j). */
static void ref_rmsnorm_bwd(struct dev *d, const struct rmsnorm_grads *grads,
                            const struct tensor *dy, const struct tensor *x,
                            const struct tensor *s, const struct tensor *g)
{
    const struct tensor *dx = grads->dx, *copy = grads->copy;
    const int64_t C = x->dim[x->n_dims - 1];
    for (int64_t r = 0; r < norm_rows(x); r++) {
        const int64_t x_r = norm_at(x, r), dy_r = norm_at(dy, r), dx_r = norm_at(dx, r);
        double dot = 0;
        for (int64_t c = 0; c < C; c++)
            dot += (double)ref_get(g, c) * (double)ref_get(dy, dy_r + c) *
                   (double)ref_get(x, x_r + c);
        const double s_r = (double)ref_get(s, r);
        const double k = s_r * s_r * dot / (double)C;
        for (int64_t c = 0; c < C; c++) {
            ref_put(dx, dx_r + c,
                    s_r * ((double)ref_get(g, c) * (double)ref_get(dy, dy_r + c) -
                           k * (double)ref_get(x, x_r + c)),
                    grads->accumulate);
            if (copy)
                ref_set(copy, norm_at(copy, r) + c, (double)ref_get(dx, dx_r + c));
        }
    }
}

void ref_fill_norm(struct dev_ops *o)
{
    o->rmsnorm = ref_rmsnorm;
    o->rmsnorm_bwd = ref_rmsnorm_bwd;
}

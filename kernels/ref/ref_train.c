/* SPDX-License-Identifier: MIT
 *
 * Losses, AdamW (Loshchilov, Hutter 2019), and the checks around training. */
#include "kernels/ref/ref.h"

#include <math.h>

/* weight mean |e| or weight mean e^2 of e = y - t. With k = weight / (R C), the gradient in
 * y is k sign(e), sign(0) = 0, or 2 k e. A NaN or an infinity reaches the gradient, as k e, so that
 * a step with it is refused. */
static double loss_slope(const struct loss_inputs *in, double k, double e)
{
    if (in->kind == LOSS_MSE)
        return 2 * k * e;
    return isfinite(e) ? k * ((e > 0) - (e < 0)) : k * e;
}

static double ref_loss(struct dev *d, const struct tensor *dy, const struct loss_inputs *in)
{
    const struct tensor *y = in->y, *t = in->t;
    const int64_t R = y->dim[0], C = y->dim[1];
    const double k = (double)in->weight / ((double)R * (double)C);
    double sum = 0;
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++) {
            const double e =
                (double)ref_get(y, r * y->ld + c) - (double)ref_get(t, r * t->ld + c);
            sum += in->kind == LOSS_MAE ? fabs(e) : e * e;
            if (dy)
                ref_put(dy, r * dy->ld + c, loss_slope(in, k, e), in->accumulate);
        }
    return k * sum;
}

/* m and v are means of g and g^2 that decay by beta. They start at 0; the division by fix1
 * and fix2, 1 - beta^step, removes that bias. The weight decay is decoupled: it does not
 * pass through the moments. */
static void ref_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                      const struct tensor *m, const struct tensor *v, const struct adamw *o)
{
    const double b1 = (double)o->beta1, b2 = (double)o->beta2;
    const double fix1 = 1 - pow(b1, (double)o->step), fix2 = 1 - pow(b2, (double)o->step);
    for (int64_t i = 0; i < tensor_count(p); i++) {
        const double g_i = (double)ref_get(g, i), p_i = (double)ref_get(p, i);
        const double m_i = b1 * (double)ref_get(m, i) + (1 - b1) * g_i;
        const double v_i = b2 * (double)ref_get(v, i) + (1 - b2) * g_i * g_i;
        ref_set(m, i, m_i);
        ref_set(v, i, v_i);
        const double step = m_i / fix1 / (sqrt(v_i / fix2) + (double)o->eps);
        ref_set(p, i, p_i - (double)o->lr * (step + (double)o->weight_decay * p_i));
    }
}

static bool ref_all_finite(struct dev *d, const struct tensor *x)
{
    const int64_t rows = tensor_n_rows(x), cols = tensor_width(x);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            if (!isfinite(ref_get(x, r * x->ld + c)))
                return false;
    return true;
}

/* nll = log sum exp(x) - x[target], in nats. The maximum is subtracted before exp, so that
 * large logits do not overflow. */
static void ref_cross_entropy(struct dev *d, const struct tensor *nll,
                              const struct tensor *x, const struct tensor *target)
{
    for (int64_t r = 0; r < x->dim[0]; r++) {
        const int64_t x_r = r * x->ld;
        double max = -INFINITY, sum = 0;
        for (int64_t c = 0; c < x->dim[1]; c++)
            max = fmax(max, (double)ref_get(x, x_r + c));
        for (int64_t c = 0; c < x->dim[1]; c++)
            sum += exp((double)ref_get(x, x_r + c) - max);
        const int32_t c = ((const int32_t *)target->data)[r];
        ref_set(nll, r, max + log(sum) - (double)ref_get(x, x_r + c));
    }
}

void ref_fill_train(struct dev_ops *o)
{
    o->loss = ref_loss;
    o->adamw = ref_adamw;
    o->all_finite = ref_all_finite;
    o->cross_entropy = ref_cross_entropy;
}

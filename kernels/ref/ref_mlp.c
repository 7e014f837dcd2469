/* SPDX-License-Identifier: MIT
 *
 * The gated MLP's activation (Shazeer 2020, SwiGLU), and the rows of a mixture of experts. */
#include "kernels/ref/ref.h"

#include <math.h>

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* The argument of the sigmoid, and its slope. */
static double gate_arg(enum gate_act act, double g)
{
    return act == GATE_SILU ? g : g * (GELU_A + GELU_B * g * g);
}

static double gate_slope(enum gate_act act, double g)
{
    return act == GATE_SILU ? 1 : GELU_A + 3 * GELU_B * g * g;
}

static void ref_gate(struct dev *d, enum gate_act act, const struct tensor *y,
                     const struct tensor *gu)
{
    const int64_t F = y->dim[1];
    for (int64_t r = 0; r < y->dim[0]; r++)
        for (int64_t f = 0; f < F; f++) {
            const double g = (double)ref_get(gu, r * gu->ld + f);
            const double u = (double)ref_get(gu, r * gu->ld + F + f);
            ref_set(y, r * y->ld + f, g * sigmoid(gate_arg(act, g)) * u);
        }
}

/* y = act(g) u, so dg = dy u act'(g) and du = dy act(g). With act(g) = g s(z), act'(g) =
 * s(z) (1 + g z' (1 - s(z))) because s' = s (1 - s). */
static void ref_gate_bwd(struct dev *d, enum gate_act act, const struct tensor *dgu,
                         const struct tensor *dy, const struct tensor *gu)
{
    const int64_t F = dy->dim[1];
    for (int64_t r = 0; r < dy->dim[0]; r++)
        for (int64_t f = 0; f < F; f++) {
            const double g = (double)ref_get(gu, r * gu->ld + f);
            const double u = (double)ref_get(gu, r * gu->ld + F + f);
            const double dy_rf = (double)ref_get(dy, r * dy->ld + f);
            const double sig = sigmoid(gate_arg(act, g));
            const double slope = sig + g * gate_slope(act, g) * sig * (1 - sig);
            ref_set(dgu, r * dgu->ld + f, dy_rf * u * slope);
            ref_set(dgu, r * dgu->ld + F + f, dy_rf * g * sig);
        }
}

static int64_t index_at(const struct tensor *index, int64_t r, int64_t j)
{
    return ((const int32_t *)index->data)[r * index->dim[1] + j];
}

static void ref_gather(struct dev *d, const struct tensor *y, const struct tensor *x,
                       const struct tensor *index, const struct tensor *weight)
{
    const int64_t J = index->dim[1];
    for (int64_t r = 0; r < y->dim[0]; r++)
        for (int64_t c = 0; c < y->dim[1]; c++) {
            double sum = 0;
            for (int64_t j = 0; j < J; j++)
                sum += (weight ? (double)ref_get(weight, r * J + j) : 1) *
                       (double)ref_get(x, index_at(index, r, j) * x->ld + c);
            ref_set(y, r * y->ld + c, sum);
        }
}

static void ref_gather_dot(struct dev *d, const struct tensor *dw, const struct tensor *dy,
                           const struct tensor *x, const struct tensor *index)
{
    const int64_t J = index->dim[1];
    for (int64_t r = 0; r < dy->dim[0]; r++)
        for (int64_t j = 0; j < J; j++) {
            double sum = 0;
            for (int64_t c = 0; c < dy->dim[1]; c++)
                sum += (double)ref_get(dy, r * dy->ld + c) *
                       (double)ref_get(x, index_at(index, r, j) * x->ld + c);
            ref_set(dw, r * J + j, sum);
        }
}

void ref_fill_mlp(struct dev_ops *o)
{
    o->gather = ref_gather;
    o->gather_dot = ref_gather_dot;
    o->gate = ref_gate;
    o->gate_bwd = ref_gate_bwd;
}

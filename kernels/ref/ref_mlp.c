/* SPDX-License-Identifier: MIT
 *
 * The gated MLP's activation (Shazeer 2020, SwiGLU). */
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

void ref_fill_mlp(struct dev_ops *o)
{
    o->gate = ref_gate;
    o->gate_bwd = ref_gate_bwd;
}

/* SPDX-License-Identifier: MIT
 *
 * The gated MLP's activation (Shazeer 2020, SwiGLU). */
#include "kernels/ref/ref.h"

#include <math.h>

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void ref_silu_gate(struct dev *d, const struct tensor *y, const struct tensor *gu)
{
    const int64_t F = y->dim[1];
    for (int64_t r = 0; r < y->dim[0]; r++)
        for (int64_t f = 0; f < F; f++) {
            const double g = (double)ref_get(gu, r * gu->ld + f);
            const double u = (double)ref_get(gu, r * gu->ld + F + f);
            ref_set(y, r * y->ld + f, g * sigmoid(g) * u);
        }
}

/* y = silu(g) u, so dg = dy u silu'(g) and du = dy silu(g), where silu'(g) = sig(g) (1 + g
 * (1 - sig(g))) because sig' = sig (1 - sig). */
static void ref_silu_gate_bwd(struct dev *d, const struct tensor *dgu,
                              const struct tensor *dy, const struct tensor *gu)
{
    const int64_t F = dy->dim[1];
    for (int64_t r = 0; r < dy->dim[0]; r++)
        for (int64_t f = 0; f < F; f++) {
            const double g = (double)ref_get(gu, r * gu->ld + f);
            const double u = (double)ref_get(gu, r * gu->ld + F + f);
            const double dy_rf = (double)ref_get(dy, r * dy->ld + f);
            const double sig = sigmoid(g);
            ref_set(dgu, r * dgu->ld + f, dy_rf * u * sig * (1 + g * (1 - sig)));
            ref_set(dgu, r * dgu->ld + F + f, dy_rf * g * sig);
        }
}

void ref_fill_mlp(struct dev_ops *o)
{
    o->silu_gate = ref_silu_gate;
    o->silu_gate_bwd = ref_silu_gate_bwd;
}

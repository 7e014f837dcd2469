/* SPDX-License-Identifier: MIT
 *
 * Activations of gated MLPs (Shazeer 2020). With s(z) = 1 / (1 + exp(-z)), SiLU is x s(x), and
 * GELU's approximation by tanh is x s(z) with z = 2 sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks and
 * Gimpel 2016). */
#ifndef WKVQ_GATE_H
#define WKVQ_GATE_H

enum gate_act { GATE_SILU, GATE_GELU };

/* z = x (GELU_A + GELU_B x^2) */
#define GELU_A 1.5957691216057308
#define GELU_B 0.07135481627260025
/* For a larger |x|, s(z) in F32 is that of this one, and powers of x may overflow. */
#define GELU_MAX 10

#endif

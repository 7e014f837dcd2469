/* SPDX-License-Identifier: MIT
 *
 * End-to-end refinement: values of fixed codes, scales by relative steps, and the
 * gradients that reach them. */
#include "kernels/norm_rows.h"
#include "kernels/ref/ref.h"
#include "kernels/tensor/quant.h"

#include <math.h>

/* A row of two codes a byte is shorter than the weight's: that tells the layouts apart. */
static uint8_t code_at(const struct tensor *codes, int64_t cols, int64_t r, int64_t c)
{
    const uint8_t *row = (const uint8_t *)codes->data + r * codes->ld;
    if (codes->dim[1] == cols)
        return row[c];
    return c % 2 ? row[c / 2] >> 4 : row[c / 2] & 15;
}

/* w^ = (code - zero) h, by quant.h's function, so that the student has the bits that the
 * packed runtime computes with. */
static void ref_dequantize(struct dev *d, const struct tensor *w,
                           const struct tensor *codes, const struct tensor *scales,
                           const struct tensor *zeros, int64_t group_size)
{
    const int64_t C = w->dim[1], G = weight_group(C, group_size);
    for (int64_t r = 0; r < w->dim[0]; r++)
        for (int64_t c = 0; c < C; c++) {
            const uint16_t h = ((const uint16_t *)scales->data)[r * scales->ld + c / G];
            const uint8_t z = ((const uint8_t *)zeros->data)[r * zeros->ld + c / G];
            ref_set(w, r * w->ld + c,
                    (double)quant_weight_value(code_at(codes, C, r, c), z, f16_to_f32(h)));
        }
}

static void ref_scale_steps(struct dev *d, const struct tensor *scales,
                            const struct tensor *base, const struct tensor *u,
                            int significant)
{
    for (int64_t i = 0; i < tensor_count(scales); i++)
        ((uint16_t *)scales->data)[i] =
            quant_scale_step(((const uint16_t *)base->data)[i], ref_get(u, i), significant);
}

static void set_code(const struct tensor *codes, int64_t cols, int64_t r, int64_t c,
                     int code)
{
    uint8_t *row = (uint8_t *)codes->data + r * codes->ld;
    if (codes->dim[1] == cols)
        row[c] = (uint8_t)code;
    else if (c % 2)
        row[c / 2] = (uint8_t)((row[c / 2] & 15) | code << 4);
    else
        row[c / 2] = (uint8_t)((row[c / 2] & 0xf0) | code);
}

static void ref_code_step(struct dev *d, const struct tensor *codes,
                          const struct tensor *offsets, const struct tensor *grad, int bits,
                          float step)
{
    const int64_t C = grad->dim[1];
    for (int64_t r = 0; r < grad->dim[0]; r++)
        for (int64_t c = 0; c < C; c++) {
            const float x = quant_signed_step(ref_get(grad, r * grad->ld + c), step);
            uint16_t *offset = (uint16_t *)offsets->data + r * offsets->ld + c;
            set_code(codes, C, r, c,
                     quant_code_step(code_at(codes, C, r, c), offset, x, bits));
        }
}

/* With a = dL/dw^ and b = w^, this is the gradient of log h, because dw^/dlog h = w^. */
static void ref_group_dot(struct dev *d, const struct tensor *out, const struct tensor *a,
                          const struct tensor *b, int64_t group_size)
{
    const int64_t C = a->dim[1], G = weight_group(C, group_size);
    for (int64_t r = 0; r < a->dim[0]; r++)
        for (int64_t g = 0; g * G < C; g++) {
            double sum = 0;
            for (int64_t c = g * G; c < C && c < (g + 1) * G; c++)
                sum +=
                    (double)ref_get(a, r * a->ld + c) * (double)ref_get(b, r * b->ld + c);
            ref_put(out, r * out->ld + g, sum, true);
        }
}

/* y = x s g, so dL/dg_c = sum_r dy x s. */
static void ref_rmsnorm_gain_bwd(struct dev *d, const struct tensor *dg,
                                 const struct tensor *dy, const struct tensor *x,
                                 const struct tensor *s)
{
    for (int64_t c = 0; c < x->dim[x->n_dims - 1]; c++) {
        double sum = 0;
        for (int64_t r = 0; r < norm_rows(x); r++)
            sum += (double)ref_get(dy, norm_at(dy, r) + c) *
                   (double)ref_get(x, norm_at(x, r) + c) * (double)ref_get(s, r);
        ref_put(dg, c, sum, true);
    }
}

static double log_sum_exp(const struct tensor *x, int64_t r)
{
    double max = -INFINITY, sum = 0;
    for (int64_t c = 0; c < x->dim[1]; c++)
        max = fmax(max, (double)ref_get(x, r * x->ld + c));
    for (int64_t c = 0; c < x->dim[1]; c++)
        sum += exp((double)ref_get(x, r * x->ld + c) - max);
    return max + log(sum);
}

/* Over row r, with log q = s - log sum exp(s), and p from the teacher likewise: loss[0] +=
 * sum p (log p - log q), loss[1] -= log q[next]. d(log sum exp)/ds = q gives the gradient
 *   kl (q - p) + ce (q - [c = next]) */
static void ref_distill(struct dev *d, double loss[2], const struct tensor *student,
                        const struct tensor *teacher, const struct tensor *target, float kl,
                        float ce)
{
    loss[0] = loss[1] = 0;
    for (int64_t r = 0; r < student->dim[0]; r++) {
        const int32_t next = ((const int32_t *)target->data)[r];
        const double zs = log_sum_exp(student, r), zt = log_sum_exp(teacher, r);
        loss[1] += zs - (double)ref_get(student, r * student->ld + next);
        for (int64_t c = 0; c < student->dim[1]; c++) {
            const double lq = (double)ref_get(student, r * student->ld + c) - zs;
            const double lp = (double)ref_get(teacher, r * teacher->ld + c) - zt;
            const double p = exp(lp);
            loss[0] += p > 0 ? p * (lp - lq) : 0;
            ref_set(student, r * student->ld + c,
                    ((double)kl + (double)ce) * exp(lq) - (double)kl * p -
                        (c == next ? (double)ce : 0));
        }
    }
}

void ref_fill_refine(struct dev_ops *o)
{
    o->dequantize = ref_dequantize;
    o->scale_steps = ref_scale_steps;
    o->code_step = ref_code_step;
    o->group_dot = ref_group_dot;
    o->rmsnorm_gain_bwd = ref_rmsnorm_gain_bwd;
    o->distill = ref_distill;
}

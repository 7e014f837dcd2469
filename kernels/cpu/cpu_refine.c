/* SPDX-License-Identifier: MIT
 *
 * End-to-end refinement on the CPU: a row of a weight, or of logits, at a time. */
#include "kernels/cpu/cpu.h"
#include "kernels/norm_rows.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <string.h>

/* Codes that are unpacked at a time: whole vectors, and whole runs of NIBBLES. */
#define CODE_RUN 128

/* Vectors that are summed in F32 before they go to an f64 sum. A vocabulary has some 10^5
 * entries; over this few vectors an F32 sum keeps its digits. */
#define SUM_RUN 32

/* Columns of the gain's gradient that one thread takes at a time: no sum is shared, and
 * each runs over the rows in order. */
#define GAIN_COLS 64

/* w^ = (code - zero) h, from stored codes and scales. */
struct dequantize {
    const struct tensor *w, *codes, *scales, *zeros;
    int64_t G;
};

/* A row of codes. Codes of up to 4 bits may stand two a byte, the even column in the low
 * half. */
struct code_row {
    uint8_t *data;
    bool pairs;
};

static struct code_row codes_of(const struct tensor *codes, int64_t r, int64_t cols)
{
    return (struct code_row){(uint8_t *)codes->data + r * codes->ld, codes->dim[1] != cols};
}

/* to[0..n) = the codes of columns [c, c + n). */
static void codes_get(uint8_t *to, struct code_row row, int64_t c, int64_t n)
{
    int64_t i = 0;
    if (!row.pairs) {
        memcpy(to, row.data + c, (size_t)n);
        return;
    }
    for (; c % 2 == 0 && i + NIBBLES <= n; i += NIBBLES)
        nibbles_unpack(to + i, row.data + (c + i) / 2);
    for (; i < n; i++)
        to[i] = row.data[(c + i) / 2] >> (c + i) % 2 * 4 & 15;
}

/* The other way; c is even. Half a byte past the last column stays as it is. */
static void codes_put(struct code_row row, int64_t c, const uint8_t *from, int64_t n)
{
    int64_t i = 0;
    if (!row.pairs) {
        memcpy(row.data + c, from, (size_t)n);
        return;
    }
    for (; i + NIBBLES <= n; i += NIBBLES)
        nibbles_pack(row.data + (c + i) / 2, from + i);
    for (; i < n; i++) {
        uint8_t *at = &row.data[(c + i) / 2];
        const int shift = i % 2 * 4;
        *at = (uint8_t)((*at & ~(15 << shift)) | from[i] << shift);
    }
}

static void dequantize_row(const void *ctx, int64_t r)
{
    const struct dequantize *j = ctx;
    const int64_t C = j->w->dim[1];
    const bool bf16 = cpu_bf16(j->w);
    const struct code_row codes = codes_of(j->codes, r, C);
    void *row = cpu_row(j->w, r);
    uint8_t code[CODE_RUN] = {0};
    for (int64_t g = 0; g * j->G < C; g++) {
        const int64_t end = (g + 1) * j->G < C ? (g + 1) * j->G : C;
        const vf h =
            vf_set1(f16_to_f32(((const uint16_t *)j->scales->data)[r * j->scales->ld + g]));
        const vf z =
            vf_set1((float)((const uint8_t *)j->zeros->data)[r * j->zeros->ld + g]);
        for (int64_t c = g * j->G; c < end; c += CODE_RUN) {
            const int64_t n = end - c < CODE_RUN ? end - c : CODE_RUN;
            codes_get(code, codes, c, n);
            for (int64_t i = 0; i < n; i += VL)
                act_put(row, bf16, c + i, end, vf_mul(vf_sub(vf_load_u8(code + i), z), h));
        }
    }
}

static void cpu_dequantize(struct dev *d, const struct tensor *w,
                           const struct tensor *codes, const struct tensor *scales,
                           const struct tensor *zeros, int64_t group_size)
{
    const struct dequantize j = {w, codes, scales, zeros,
                                 weight_group(w->dim[1], group_size)};
    cpu_run_rows(d, w->dim[0], w->dim[1], dequantize_row, &j);
}

/* h = fp16(clamp(h0 exp(u))). A step in u is a relative step of the scale, so scales of any
 * size move alike and stay positive. */
struct steps {
    uint16_t *scales;
    const uint16_t *base;
    const float *u;
    int significant;
};

static void scale_steps_part(const void *ctx, int64_t begin, int64_t end)
{
    const struct steps *j = ctx;
    for (int64_t i = begin; i < end; i++)
        j->scales[i] = quant_scale_step(j->base[i], j->u[i], j->significant);
}

static void cpu_scale_steps(struct dev *d, const struct tensor *scales,
                            const struct tensor *base, const struct tensor *u,
                            int significant)
{
    const struct steps j = {scales->data, base->data, u->data, significant};
    cpu_run_flat(d, tensor_count(scales), scale_steps_part, &j);
}

struct code_step {
    const struct tensor *codes, *offsets, *grad;
    int bits;
    float step;
};

/* quant_code_step() of CODE_RUN codes, of which n have offsets and gradients, by the same
 * operations in the same order. A minimum or maximum would lose an offset that is NaN. */
static void step_run(uint8_t *codes, uint16_t *offset, const float *grad, int64_t n,
                     const struct code_step *j)
{
    const vf zero = vf_set1(0), one = vf_set1(1), step = vf_set1(j->step);
    const vf lo = vf_set1(-0.5f), hi = vf_set1(0.5f);
    const vf top = vf_set1((float)((1 << j->bits) - 1));
    for (int64_t c = 0; c < n; c += VL) {
        const vf g = f32_get(grad, c, n), code = vf_load_u8(codes + c);
        const vf rises = vf_select(vf_lt(g, zero), step, zero);
        const vf x = vf_select(vf_lt(zero, g), vf_sub(zero, step), rises);
        const vf o = vf_add(f16_get(offset, c, n), x);
        const vm up = vm_and(vf_lt(hi, o), vf_lt(code, top));
        const vm down = vm_and(vf_lt(o, lo), vf_lt(zero, code));
        const vf by = vf_select(up, one, vf_select(down, vf_sub(zero, one), zero));
        const vf to = vf_sub(o, by);
        const vf below = vf_select(vf_lt(hi, to), hi, to);
        f16_put(offset, c, n, vf_select(vf_lt(to, lo), lo, below));
        vf_store_u8(codes + c, vf_add(code, by));
    }
}

static void step_row(const void *ctx, int64_t r)
{
    const struct code_step *j = ctx;
    const int64_t C = j->grad->dim[1];
    const struct code_row codes = codes_of(j->codes, r, C);
    const float *grad = cpu_row(j->grad, r);
    uint16_t *offset = (uint16_t *)j->offsets->data + r * j->offsets->ld;
    uint8_t code[CODE_RUN] = {0};
    for (int64_t c = 0; c < C; c += CODE_RUN) {
        const int64_t n = C - c < CODE_RUN ? C - c : CODE_RUN;
        codes_get(code, codes, c, n);
        step_run(code, offset + c, grad + c, n, j);
        codes_put(codes, c, code, n);
    }
}

static void cpu_code_step(struct dev *d, const struct tensor *codes,
                          const struct tensor *offsets, const struct tensor *grad, int bits,
                          float step)
{
    const struct code_step j = {codes, offsets, grad, bits, step};
    cpu_run_rows(d, grad->dim[0], 3 * grad->dim[1], step_row, &j);
}

/* out[r,g] += sum of a b over a group. w^ = (code - zero) h, so dw^/dlog h = w^. With a =
 * dL/dw^ and b = w^ the sum is dL/du (docs/method.md). */
struct dot {
    const struct tensor *out, *a, *b;
    int64_t G;
};

static void group_dot_row(const void *ctx, int64_t r)
{
    const struct dot *j = ctx;
    const int64_t C = j->a->dim[1];
    const bool bf16 = cpu_bf16(j->b);
    const float *a = cpu_row(j->a, r);
    const void *b = cpu_row(j->b, r);
    float *out = cpu_row(j->out, r);
    for (int64_t g = 0; g * j->G < C; g++) {
        const int64_t end = (g + 1) * j->G < C ? (g + 1) * j->G : C;
        vf sum = vf_set1(0);
        for (int64_t c = g * j->G; c < end; c += VL)
            sum = vf_fma(f32_get(a, c, end), act_get(b, bf16, c, end), sum);
        out[g] += vf_sum(sum);
    }
}

static void cpu_group_dot(struct dev *d, const struct tensor *out, const struct tensor *a,
                          const struct tensor *b, int64_t group_size)
{
    const struct dot j = {out, a, b, weight_group(a->dim[1], group_size)};
    cpu_run_rows(d, a->dim[0], a->dim[1], group_dot_row, &j);
}

/* dg[c] += sum_r dy[r,c] x[r,c] s[r], because y = x s g. */
struct gain {
    const struct tensor *dg, *dy, *x, *s;
    int64_t C, rows;
};

/* Columns [k GAIN_COLS, ...) over all rows, in the order of the rows. */
static void gain_cols(const void *ctx, int64_t k)
{
    const struct gain *j = ctx;
    const int64_t first = k * GAIN_COLS;
    const int64_t end = first + GAIN_COLS < j->C ? first + GAIN_COLS : j->C;
    const bool dy16 = cpu_bf16(j->dy), x16 = cpu_bf16(j->x);
    float *dg = j->dg->data;
    for (int64_t c = first; c < end; c += VL) {
        vf sum = vf_set1(0);
        for (int64_t r = 0; r < j->rows; r++) {
            const vf dy = act_get(cpu_at(j->dy, norm_at(j->dy, r)), dy16, c, end);
            const vf x = act_get(cpu_at(j->x, norm_at(j->x, r)), x16, c, end);
            const vf s = vf_set1(((const float *)j->s->data)[r]);
            sum = vf_fma(vf_mul(dy, x), s, sum);
        }
        f32_put(dg, c, end, vf_add(f32_get(dg, c, end), sum));
    }
}

static void cpu_rmsnorm_gain_bwd(struct dev *d, const struct tensor *dg,
                                 const struct tensor *dy, const struct tensor *x,
                                 const struct tensor *s)
{
    const int64_t C = x->dim[x->n_dims - 1];
    const struct gain j = {dg, dy, x, s, C, norm_rows(x)};
    cpu_run_rows(d, (C + GAIN_COLS - 1) / GAIN_COLS, j.rows * GAIN_COLS, gain_cols, &j);
}

struct distill {
    const struct tensor *student, *teacher;
    const int32_t *target;
    float kl, ce;
    double *loss; /* [R][2] */
};

/* What a row of logits needs: its maximum, and sums of exponentials in f64. */
struct row_sums {
    double s, t, cross; /* sum e^s', sum e^t', sum e^t' (t' - s'), ' less the maximum */
};

static float row_max(const float *x, int64_t n)
{
    vf max = vf_set1(-INFINITY);
    int64_t c = 0;
    for (; c + VL <= n; c += VL)
        max = vf_max(vf_load(x + c), max);
    float top = vf_hmax(max);
    for (; c < n; c++)
        top = x[c] > top ? x[c] : top;
    return top;
}

/* Lanes past the end of the row as -infinity: they add nothing. */
static vf logits_at(const float *x, int64_t c, int64_t n, float max)
{
    if (n - c >= VL)
        return vf_sub(vf_load(x + c), vf_set1(max));
    const vf v = vf_sub(vf_load_n(x + c, n - c), vf_set1(max));
    return vf_select(vm_first(n - c), v, vf_set1(-INFINITY));
}

/* Replaces both rows of logits by exponentials of the logits less their maximum, and
 * returns the sums. cross is KL's numerator: sum e^t' (t' - s'). */
static struct row_sums exponentials(float *s, float *t, int64_t n)
{
    const float max_s = row_max(s, n), max_t = row_max(t, n);
    struct row_sums sums = {0};
    for (int64_t c = 0; c < n;) {
        vf sum_s = vf_set1(0), sum_t = vf_set1(0), cross = vf_set1(0);
        for (int i = 0; i < SUM_RUN && c < n; i++, c += VL) {
            const vf xs = logits_at(s, c, n, max_s), xt = logits_at(t, c, n, max_t);
            const vm inside = n - c >= VL ? vm_first(VL) : vm_first(n - c);
            const vf es = vf_select(inside, vf_exp(xs), vf_set1(0));
            const vf et = vf_select(inside, vf_exp(xt), vf_set1(0));
            const vf gap = vf_select(inside, vf_sub(xt, xs), vf_set1(0));
            sum_s = vf_add(sum_s, es);
            sum_t = vf_add(sum_t, et);
            cross = vf_fma(et, gap, cross);
            f32_put(s, c, n, es);
            f32_put(t, c, n, et);
        }
        sums.s += vf_sum64(sum_s);
        sums.t += vf_sum64(sum_t);
        sums.cross += vf_sum64(cross);
    }
    return sums;
}

/* One row of logits. s' and t' are the logits less their maxima, Zs = sum e^s' and Zt = sum
 * e^t', so q = e^s' / Zs and p = e^t' / Zt. Then
 *   KL(p || q) = sum p (log p - log q) = (sum e^t' (t' - s')) / Zt - log Zt + log Zs
 *   -log q[next] = log Zs - s'[next]
 *   gradient in s = (kl + ce) q - kl p - ce [c = next]
 * The exponentials take the logits' place, so that the gradient needs no second exp. */
static void distill_row(const void *ctx, int64_t r)
{
    const struct distill *j = ctx;
    const int64_t V = j->student->dim[1];
    const int32_t next = j->target[r];
    float *s = cpu_row(j->student, r), *t = cpu_row(j->teacher, r);
    const float at = s[next], top = row_max(s, V);
    const struct row_sums sums = exponentials(s, t, V);
    const double zs = log(sums.s);
    j->loss[2 * r] = sums.cross / sums.t - log(sums.t) + zs;
    j->loss[2 * r + 1] = zs - ((double)at - (double)top);
    const vf ks = vf_set1((float)(((double)j->kl + (double)j->ce) / sums.s));
    const vf kt = vf_set1((float)(-(double)j->kl / sums.t));
    for (int64_t c = 0; c < V; c += VL)
        f32_put(s, c, V, vf_fma(f32_get(t, c, V), kt, vf_mul(f32_get(s, c, V), ks)));
    s[next] -= j->ce;
}

static void cpu_distill(struct dev *d, double loss[2], const struct tensor *student,
                        const struct tensor *teacher, const struct tensor *target, float kl,
                        float ce)
{
    const int64_t R = student->dim[0];
    const struct distill j = {
        student, teacher, target->data,
        kl,      ce,      cpu_scratch(d, SLOT_A, (size_t)R * 2 * sizeof(double))};
    loss[0] = loss[1] = NAN;
    if (!j.loss)
        return;
    cpu_run_rows(d, R, 4 * student->dim[1], distill_row, &j);
    loss[0] = loss[1] = 0;
    for (int64_t r = 0; r < R; r++) {
        loss[0] += j.loss[2 * r];
        loss[1] += j.loss[2 * r + 1];
    }
}

void ISA_NAME(cpu_fill_refine)(struct dev_ops *o)
{
    o->dequantize = cpu_dequantize;
    o->scale_steps = cpu_scale_steps;
    o->code_step = cpu_code_step;
    o->group_dot = cpu_group_dot;
    o->rmsnorm_gain_bwd = cpu_rmsnorm_gain_bwd;
    o->distill = cpu_distill;
}

/* SPDX-License-Identifier: MIT
 *
 * KV fake quantization, bit-equal to kernels/tensor/quant.h. Each pass over a group
 * computes x~ again, which is cheaper than storing it. kernels/ref/ref_quant.c states the
 * formulas. */
#include "kernels/cpu/cpu.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/quant.h"

/* dls and dshift are summed in f32 over this many tokens; these sums are added in f64. */
#define TOKENS 64

struct kv {
    const struct tensor *xq, *x, *s, *shift, *dx; /* xq is dxq in backward */
    float *part;                                  /* [chunks][2][K*d]: dls, dshift */
    int64_t n_heads, d, G;
    int bits;
    bool accumulate;
};

/* A group of channels of one token: range of x~, scale and minimum. */
struct group {
    float mn, mx, h, m;
};

/* A parameter of channels; `none` stands for one that is not given (s = 1, shift = 0). */
static float channel(const struct tensor *x, int64_t c, float none)
{
    return x ? ((const float *)x->data)[c] : none;
}

static vf channels(const struct tensor *x, int64_t c, int64_t end, vf none)
{
    return x ? f32_get(x->data, c, end) : none;
}

/* x~ = (x - shift) / s; lanes past the end are 0 / 1. */
static vf smoothed(const struct kv *k, const void *x_t, int64_t c, int64_t end, vf s)
{
    vf x = act_get(x_t, cpu_bf16(k->x), c, end);
    if (k->shift)
        x = vf_sub(x, f32_get(k->shift->data, c, end));
    return k->s ? vf_div(x, s) : x;
}

/* s of a vector of channels. Lanes past the end are 1, so that no lane divides by 0. */
static vf smoothing(const struct kv *k, int64_t c, int64_t end)
{
    const vf one = vf_set1(1.0f);
    return k->s ? vf_select(vm_first(end - c), channels(k->s, c, end, one), one) : one;
}

/* Measures a group. Lanes past the end take no part in the extremes, and h and m come from
 * quant.h's own functions, once per group. */
static struct group group_of(const struct kv *k, const void *x_t, int64_t begin,
                             int64_t end)
{
    vf lo = vf_set1(INFINITY), hi = vf_set1(-INFINITY);
    for (int64_t c = begin; c < end; c += VL) {
        const vf x = smoothed(k, x_t, c, end, smoothing(k, c, end));
        const vm in = vm_first(end - c);
        lo = vf_select(in, vf_min(lo, x), lo);
        hi = vf_select(in, vf_max(hi, x), hi);
    }
    struct group g = {.mn = vf_hmin(lo), .mx = vf_hmax(hi)};
    g.h = f16_to_f32(quant_kv_scale(g.mn, g.mx, k->bits));
    g.m = f16_to_f32(quant_kv_min(g.mn));
    return g;
}

/* The code of x~, as a float. h is 0 where the group is constant, or its range too small
 * for fp16: a division would then give NaN. */
static vf code(const struct group *g, vf xt, vf Q)
{
    if (!(g->h > 0))
        return vf_set1(0);
    const vf u = vf_rint(vf_div(vf_sub(xt, vf_set1(g->m)), vf_set1(g->h)));
    return vf_min(vf_max(u, vf_set1(0)), Q);
}

/* x^ = s (m + h q) + shift. Products and sums round separately, as in quant_kv_out(), so
 * there is no vf_fma() here. */
static void quantize_group(const struct kv *k, void *xq_t, const void *x_t, int64_t begin,
                           int64_t end)
{
    const struct group g = group_of(k, x_t, begin, end);
    const vf Q = vf_set1((float)((1 << k->bits) - 1)), h = vf_set1(g.h), m = vf_set1(g.m);
    const bool xq16 = cpu_bf16(k->xq);
    for (int64_t c = begin; c < end; c += VL) {
        const vf s = smoothing(k, c, end);
        const vf q = code(&g, smoothed(k, x_t, c, end, s), Q);
        const vf out = vf_mul(s, vf_add(m, vf_mul(h, q)));
        act_put(xq_t, xq16, c, end, vf_add(out, channels(k->shift, c, end, vf_set1(0))));
    }
}

static void fake_quant_kv_row(const void *ctx, int64_t t)
{
    const struct kv *k = ctx;
    const void *x_t = cpu_row(k->x, t);
    void *xq_t = cpu_row(k->xq, t);
    for (int64_t head = 0; head < k->n_heads; head++)
        for (int64_t c = 0; c < k->d; c += k->G) {
            const int64_t n = c + k->G < k->d ? k->G : k->d - c, begin = head * k->d + c;
            quantize_group(k, xq_t, x_t, begin, begin + n);
        }
}

static struct kv kv_of(const struct kv_quant *p)
{
    return (struct kv){.x = p->x,
                       .s = p->s,
                       .shift = p->shift,
                       .n_heads = p->x->dim[1],
                       .d = p->x->dim[2],
                       .G = kv_group(p->x->dim[2], p->group_size),
                       .bits = p->bits};
}

static void cpu_fake_quant_kv(struct dev *d, const struct tensor *xq,
                              const struct kv_quant *p)
{
    struct kv k = kv_of(p);
    k.xq = xq;
    cpu_run_rows(d, p->x->dim[0], 4 * tensor_width(p->x), fake_quant_kv_row, &k);
}

static float act_at(const void *row, bool bf16, int64_t c)
{
    return bf16 ? bf16_to_f32(((const uint16_t *)row)[c]) : ((const float *)row)[c];
}

/* x~ of one channel. */
static float smoothed_at(const struct kv *k, const void *x_t, int64_t c)
{
    return quant_kv_in(act_at(x_t, cpu_bf16(k->x), c), channel(k->s, c, 1),
                       channel(k->shift, c, 0));
}

/* The channel with its group's maximum or minimum, and its gradient without the path
 * through h, before rounding to the type of dx. */
struct extreme {
    int64_t c;
    float dx;
};

/* Finds the first channel whose x~ is `value`. It must run before dx is written, because
 * dx may be dxq. */
static struct extreme extreme_of(const struct kv *k, const void *x_t, int64_t t,
                                 int64_t begin, int64_t end, float value)
{
    struct extreme e = {.c = begin};
    while (e.c < end - 1 && smoothed_at(k, x_t, e.c) != value)
        e.c++;
    e.dx = act_at(cpu_row(k->xq, t), cpu_bf16(k->xq), e.c);
    if (k->accumulate)
        e.dx += act_at(cpu_row(k->dx, t), cpu_bf16(k->dx), e.c);
    return e;
}

/* Adds to an extreme's channel what its share of dL/dh contributes. With g~ larger by
 * `path`, the formulas of ref_quant.c give
 *   dx += path / s      dlog s -= path x~      dshift -= path / s */
static void add_path(const struct kv *k, const void *x_t, void *dx_t, float *dls,
                     float *dshift, struct extreme e, float path)
{
    const float s = channel(k->s, e.c, 1), dx = e.dx + path / s;
    if (cpu_bf16(k->dx))
        ((uint16_t *)dx_t)[e.c] = bf16_from_f32(dx);
    else
        ((float *)dx_t)[e.c] = dx;
    if (!dls)
        return;
    dls[e.c] -= path * smoothed_at(k, x_t, e.c);
    dshift[e.c] -= path / s;
}

/* Gradients of one group. With e = s g:
 *   dL/dh = sum e (q - (x~ - m) / h)
 *   other channels:  g~ = e,  so  dx = g,  dls = e (x~^ - x~),  dshift = 0
 *   the extremes:    g~ = e +- dL/dh / Q;  add_path() adds the difference */
static void group_bwd(const struct kv *k, const void *x_t, int64_t t, float *dls,
                      float *dshift, int64_t begin, int64_t end)
{
    const struct group g = group_of(k, x_t, begin, end);
    const struct extreme max = extreme_of(k, x_t, t, begin, end, g.mx);
    const struct extreme min = extreme_of(k, x_t, t, begin, end, g.mn);
    const float top = (float)((1 << k->bits) - 1);
    const vf Q = vf_set1(top), h = vf_set1(g.h), m = vf_set1(g.m);
    const bool dxq16 = cpu_bf16(k->xq), dx16 = cpu_bf16(k->dx);
    const void *dxq_t = cpu_row(k->xq, t);
    void *dx_t = cpu_row(k->dx, t);
    vf dh = vf_set1(0);
    for (int64_t c = begin; c < end; c += VL) {
        const vf s = smoothing(k, c, end), xt = smoothed(k, x_t, c, end, s);
        const vf q = code(&g, xt, Q), gq = act_get(dxq_t, dxq16, c, end), e = vf_mul(s, gq);
        if (g.h > 0)
            dh = vf_fma(e, vf_sub(q, vf_div(vf_sub(xt, m), h)), dh);
        if (dls) {
            const vf err = vf_sub(vf_add(m, vf_mul(h, q)), xt);
            f32_put(dls, c, end, vf_fma(e, err, f32_get(dls, c, end)));
        }
        act_put(dx_t, dx16, c, end,
                k->accumulate ? vf_add(gq, act_get(dx_t, dx16, c, end)) : gq);
    }
    if (!(g.h > 0) || g.h >= QUANT_SCALE_MAX)
        return;
    const float path = vf_sum(dh) / top;
    add_path(k, x_t, dx_t, dls, dshift, max, path);
    add_path(k, x_t, dx_t, dls, dshift, min, -path);
}

/* One unit of work: TOKENS tokens, with sums of its own. Which thread runs it therefore
 * changes no bit of the result. */
static void fake_quant_kv_bwd_chunk(const void *ctx, int64_t chunk)
{
    const struct kv *k = ctx;
    const int64_t C = k->n_heads * k->d, T = k->x->dim[0];
    float *dls = k->part ? k->part + 2 * chunk * C : NULL;
    float *dshift = dls ? dls + C : NULL;
    if (dls)
        memset(dls, 0, (size_t)(2 * C) * sizeof(*dls));
    for (int64_t t = chunk * TOKENS; t < T && t < (chunk + 1) * TOKENS; t++) {
        const void *x_t = cpu_row(k->x, t);
        for (int64_t head = 0; head < k->n_heads; head++)
            for (int64_t c = 0; c < k->d; c += k->G) {
                const int64_t n = c + k->G < k->d ? k->G : k->d - c,
                              begin = head * k->d + c;
                group_bwd(k, x_t, t, dls, dshift, begin, begin + n);
            }
    }
}

/* out[c] += sum over chunks of part[chunk][which][c], in ascending order */
static void sum_parts(const struct kv *k, int64_t chunks, int which, float *out)
{
    const int64_t C = k->n_heads * k->d;
    for (int64_t c = 0; c < C; c++) {
        double sum = (double)out[c];
        for (int64_t i = 0; i < chunks; i++)
            sum += (double)k->part[(2 * i + which) * C + c];
        out[c] = (float)sum;
    }
}

static void cpu_fake_quant_kv_bwd(struct dev *d, const struct kv_grads *grads,
                                  const struct tensor *dxq, const struct kv_quant *p)
{
    const int64_t chunks = (p->x->dim[0] + TOKENS - 1) / TOKENS;
    struct kv k = kv_of(p);
    k.xq = dxq;
    k.dx = grads->dx;
    k.accumulate = grads->accumulate;
    if (grads->dls) {
        k.part = cpu_scratch(d, SLOT_A, (size_t)(chunks * 2 * k.n_heads * k.d) * 4);
        if (!k.part)
            return;
    }
    cpu_run_rows(d, chunks, TOKENS * 8 * tensor_width(p->x), fake_quant_kv_bwd_chunk, &k);
    if (grads->dls) {
        sum_parts(&k, chunks, 0, grads->dls->data);
        sum_parts(&k, chunks, 1, grads->dshift->data);
    }
}

void ISA_NAME(cpu_fill_kv)(struct dev_ops *o)
{
    o->fake_quant_kv = cpu_fake_quant_kv;
    o->fake_quant_kv_bwd = cpu_fake_quant_kv_bwd;
}

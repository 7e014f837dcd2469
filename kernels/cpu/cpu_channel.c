/* SPDX-License-Identifier: MIT
 *
 * Fake quantization of keys per channel, bit-equal to kernels/tensor/quant.h. A group is
 * `tokens` values of one channel. Lanes are channels, so minimum, maximum and scale are
 * computed lane by lane. A unit of work is VL channels of one group of tokens. */
#include "kernels/cpu/cpu.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/quant.h"

struct kv_channel {
    const struct tensor *xq, *x, *dx; /* xq is dxq in backward */
    int64_t C, tokens, vectors;       /* vectors of channels in a token */
    int bits;
    bool accumulate;
};

/* One unit: tokens [t0, t1) of channels c, c + 1, ... */
struct lanes {
    int64_t t0, t1, c, end;
    vf mn, mx, h, m;
};

static vf get(const struct tensor *x, int64_t t, const struct lanes *b)
{
    return act_get(cpu_row(x, t), cpu_bf16(x), b->c, b->end);
}

static void put(const struct tensor *x, int64_t t, const struct lanes *b, vf v)
{
    act_put(cpu_row(x, t), cpu_bf16(x), b->c, b->end, v);
}

/* Measures a unit. Scales and minima come from quant.h's own functions, lane by lane: they
 * are needed once per `tokens` values. */
static struct lanes lanes_of_unit(const struct kv_channel *k, int64_t unit)
{
    const int64_t block = unit / k->vectors, c = unit % k->vectors * VL;
    struct lanes b = {.t0 = block * k->tokens, .c = c, .end = k->C};
    b.t1 = b.t0 + k->tokens;
    b.mn = b.mx = get(k->x, b.t0, &b);
    for (int64_t t = b.t0 + 1; t < b.t1; t++) {
        const vf x = get(k->x, t, &b);
        b.mn = vf_min(b.mn, x);
        b.mx = vf_max(b.mx, x);
    }
    float mn[VL], mx[VL], h[VL], m[VL];
    vf_store(mn, b.mn);
    vf_store(mx, b.mx);
    for (int l = 0; l < VL; l++) {
        h[l] = f16_to_f32(quant_kv_scale(mn[l], mx[l], k->bits));
        m[l] = f16_to_f32(quant_kv_min(mn[l]));
    }
    b.h = vf_load(h);
    b.m = vf_load(m);
    return b;
}

/* Codes as floats; 0 where h is 0. The quotient of such a lane is NaN or infinite, and the
 * selection drops it. */
static vf codes(const struct lanes *b, vf x, vf Q)
{
    const vf zero = vf_set1(0);
    const vf u = vf_rint(vf_div(vf_sub(x, b->m), b->h));
    return vf_select(vf_lt(zero, b->h), vf_min(vf_max(u, zero), Q), zero);
}

static void quantize_unit(const void *ctx, int64_t unit)
{
    const struct kv_channel *k = ctx;
    const struct lanes b = lanes_of_unit(k, unit);
    const vf Q = vf_set1((float)((1 << k->bits) - 1));
    for (int64_t t = b.t0; t < b.t1; t++) {
        const vf q = codes(&b, get(k->x, t, &b), Q);
        put(k->xq, t, &b, vf_add(b.m, vf_mul(b.h, q)));
    }
}

static int64_t units(struct kv_channel *k)
{
    k->C = tensor_width(k->x);
    k->vectors = (k->C + VL - 1) / VL;
    return k->x->dim[0] / k->tokens * k->vectors;
}

/* Tokens after the last whole group: to (+)= from. */
static void pass_rest(const struct kv_channel *k, const struct tensor *to,
                      const struct tensor *from)
{
    for (int64_t t = k->x->dim[0] / k->tokens * k->tokens; t < k->x->dim[0]; t++)
        for (int64_t c = 0; c < k->C; c += VL) {
            const struct lanes b = {.c = c, .end = k->C};
            const vf v = get(from, t, &b);
            put(to, t, &b, k->accumulate ? vf_add(get(to, t, &b), v) : v);
        }
}

static void cpu_fake_quant_kv_channel(struct dev *d, const struct tensor *xq,
                                      const struct tensor *x, int bits, int64_t tokens)
{
    struct kv_channel k = {.xq = xq, .x = x, .tokens = tokens, .bits = bits};
    const int64_t n = units(&k);
    if (n)
        cpu_run_rows(d, n, 4 * VL * tokens, quantize_unit, &k);
    pass_rest(&k, xq, x);
}

/* dL/dh / Q of each lane, with dL/dh = sum_t g_t (q_t - (x_t - m) / h); 0 where h is 0 or
 * clamped. h = (mx - mn) / Q, so the maximum gets this value and the minimum its
 * negative. */
static vf path_of(const struct kv_channel *k, const struct lanes *b)
{
    const vf top = vf_set1((float)((1 << k->bits) - 1)), zero = vf_set1(0);
    const vm learns = vm_and(vf_lt(zero, b->h), vf_lt(b->h, vf_set1(QUANT_SCALE_MAX)));
    vf dh = zero;
    for (int64_t t = b->t0; t < b->t1; t++) {
        const vf x = get(k->x, t, b);
        const vf r = vf_sub(codes(b, x, top), vf_div(vf_sub(x, b->m), b->h));
        dh = vf_fma(get(k->xq, t, b), r, dh);
    }
    return vf_select(learns, vf_div(dh, top), zero);
}

/* Returns *left in the lanes where x equals the extreme v, and clears those lanes of
 * *left, so that each channel gets it once; 0 elsewhere. */
static vf first_time(vf x, vf v, vf *left)
{
    const vf zero = vf_set1(0);
    const vm differs = vm_or(vf_lt(x, v), vf_lt(v, x));
    const vf now = vf_select(differs, zero, *left);
    *left = vf_select(differs, *left, zero);
    return now;
}

/* dx = g, plus the path through h at the extremes. With s = 1 and shift = 0, x~ is x. */
static void bwd_unit(const void *ctx, int64_t unit)
{
    const struct kv_channel *k = ctx;
    const struct lanes b = lanes_of_unit(k, unit);
    const vf path = path_of(k, &b);
    vf up = path, down = path; /* for the first token with the maximum, the minimum */
    for (int64_t t = b.t0; t < b.t1; t++) {
        const vf x = get(k->x, t, &b);
        vf g = vf_add(get(k->xq, t, &b), first_time(x, b.mx, &up));
        g = vf_sub(g, first_time(x, b.mn, &down));
        put(k->dx, t, &b, k->accumulate ? vf_add(get(k->dx, t, &b), g) : g);
    }
}

static void cpu_fake_quant_kv_channel_bwd(struct dev *d, const struct tensor *dx,
                                          const struct tensor *dxq, const struct tensor *x,
                                          int bits, int64_t tokens, bool accumulate)
{
    struct kv_channel k = {.xq = dxq,
                           .x = x,
                           .dx = dx,
                           .tokens = tokens,
                           .bits = bits,
                           .accumulate = accumulate};
    const int64_t n = units(&k);
    if (n)
        cpu_run_rows(d, n, 8 * VL * tokens, bwd_unit, &k);
    pass_rest(&k, dx, dxq);
}

void ISA_NAME(cpu_fill_channel)(struct dev_ops *o)
{
    o->fake_quant_kv_channel = cpu_fake_quant_kv_channel;
    o->fake_quant_kv_channel_bwd = cpu_fake_quant_kv_channel_bwd;
}

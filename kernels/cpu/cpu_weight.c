/* SPDX-License-Identifier: MIT
 *
 * Weight fake quantization, bit-equal to kernels/tensor/quant.h. A thread takes a row at a
 * time; the passes over a group find it in the L1 cache. kernels/ref/ref_quant.c states the
 * formulas. */
#include "kernels/cpu/cpu.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/quant.h"

/* One call. G columns are a group, C a row, and v may be NULL. In the backward and in a
 * step of the offsets, wq is dL/dw^. */
struct weight {
    const struct tensor *wq, *scales, *zeros, *w, *a, *b, *v, *da, *db;
    int bits, scale_bits;
    int64_t G, C;
    float rate;
};

/* A row of weights in the type that the checkpoint has. */
struct weight_row {
    const void *data;
    enum dtype type;
};

static struct weight_row weights_of(const struct weight *k, int64_t r)
{
    const size_t bytes = dtype_bytes(k->w->dtype);
    return (struct weight_row){(const char *)k->w->data + (size_t)(r * k->w->ld) * bytes,
                               k->w->dtype};
}

/* Elements [c, c + VL) of a row that ends at `end`. */
static inline vf weights_get(struct weight_row w, int64_t c, int64_t end)
{
    const uint16_t *half = w.data;
    if (w.type != DT_F16)
        return act_get(w.data, w.type == DT_BF16, c, end);
    return end - c >= VL ? vf_load_f16(half + c) : vf_load_f16_n(half + c, end - c);
}

/* A group's range before clipping, and its clipping factors. */
struct range {
    float min, max, beta, gamma;
};

/* sigma(x[r,g]) in f64, rounded once, as kernels/ref has it: vf_exp() would give other
 * bits, and with them other scales. 1 where nothing is clipped. */
static float sigmoid_of(const struct tensor *x, int64_t r, int64_t g)
{
    if (!x)
        return 1;
    return (float)(1 / (1 + exp(-(double)((const float *)cpu_row(x, r))[g])));
}

/* Both ends start at 0, so that 0 is always in the range and has a code. The lanes past the
 * end are 0 too and change neither. */
static struct range group_range(const struct weight *k, int64_t r, int64_t g, int64_t begin,
                                int64_t end)
{
    const struct weight_row w_r = weights_of(k, r);
    vf lo = vf_set1(0), hi = vf_set1(0);
    for (int64_t c = begin; c < end; c += VL) {
        const vf w = weights_get(w_r, c, end);
        lo = vf_min(lo, w);
        hi = vf_max(hi, w);
    }
    return (struct range){vf_hmin(lo), vf_hmax(hi), sigmoid_of(k->b, r, g),
                          sigmoid_of(k->a, r, g)};
}

/* clamp(q, 0, Q) in F32. Below 2^24 sums of integers are exact, and larger ones are clamped
 * however they round. */
static vf clamp_code(vf q, vf Q)
{
    return vf_min(vf_max(q, vf_set1(0)), Q);
}

/* Rounding offsets of row r, or NULL. */
static float *offsets_of(const struct weight *k, int64_t r)
{
    return k->v ? cpu_row(k->v, r) : NULL;
}

/* round(u + v) with u = w / h */
static vf rounded(vf u, const float *v_r, int64_t c, int64_t end)
{
    return vf_rint(v_r ? vf_add(u, f32_get(v_r, c, end)) : u);
}

/* w^ = (q - z) h for columns [begin, end). Each operation rounds as in quant.h. A product
 * with 1 / h instead of the division would now and then give a neighbouring code. */
static void quantize_group(const struct weight *k, int64_t r, int64_t begin, int64_t end,
                           float h, uint8_t z)
{
    const struct weight_row w_r = weights_of(k, r);
    const float *v_r = offsets_of(k, r);
    void *wq_r = cpu_row(k->wq, r);
    const bool wq16 = cpu_bf16(k->wq);
    const vf vh = vf_set1(h), vz = vf_set1((float)z),
             Q = vf_set1((float)((1 << k->bits) - 1));
    for (int64_t c = begin; c < end; c += VL) {
        const vf u = rounded(vf_div(weights_get(w_r, c, end), vh), v_r, c, end);
        const vf q = clamp_code(vf_add(u, vz), Q);
        act_put(wq_r, wq16, c, end, vf_mul(vf_sub(q, vz), vh));
    }
}

static void fake_quant_weights_row(const void *ctx, int64_t r)
{
    const struct weight *k = ctx;
    uint16_t *scale_r = (uint16_t *)k->scales->data + r * k->scales->ld;
    uint8_t *zero_r = (uint8_t *)k->zeros->data + r * k->zeros->ld;
    for (int64_t begin = 0, g = 0; begin < k->C; begin += k->G, g++) {
        const int64_t end = begin + k->G < k->C ? begin + k->G : k->C;
        const struct range m = group_range(k, r, g, begin, end);
        const float lo = m.beta * m.min;
        scale_r[g] = quant_weight_scale(lo, m.gamma * m.max, k->bits, k->scale_bits);
        const float h = f16_to_f32(scale_r[g]);
        zero_r[g] = quant_weight_zero(lo, h, k->bits);
        if (k->wq)
            quantize_group(k, r, begin, end, h, zero_r[g]);
    }
}

/* Calls fn for every group of row r with its stored scale and zero. */
static inline void stored_groups(const struct weight *k, int64_t r,
                                 void (*fn)(const struct weight *k, int64_t r,
                                            int64_t begin, int64_t end, float h, uint8_t z))
{
    const uint16_t *scale_r = (const uint16_t *)k->scales->data + r * k->scales->ld;
    const uint8_t *zero_r = (const uint8_t *)k->zeros->data + r * k->zeros->ld;
    for (int64_t begin = 0, g = 0; begin < k->C; begin += k->G, g++) {
        const int64_t end = begin + k->G < k->C ? begin + k->G : k->C;
        fn(k, r, begin, end, f16_to_f32(scale_r[g]), zero_r[g]);
    }
}

static void apply_row(const void *ctx, int64_t r)
{
    stored_groups(ctx, r, quantize_group);
}

static struct weight weight_of(const struct weight_quant *p)
{
    return (struct weight){.w = p->w,
                           .v = p->v,
                           .bits = p->bits,
                           .scale_bits = p->scale_bits,
                           .G = p->group_size ? p->group_size : p->w->dim[1],
                           .C = p->w->dim[1]};
}

static void cpu_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                   const struct tensor *scales, const struct tensor *zeros,
                                   const struct weight_quant *p)
{
    struct weight k = weight_of(p);
    k.wq = wq, k.scales = scales, k.zeros = zeros, k.a = p->a, k.b = p->b;
    cpu_run_rows(d, p->w->dim[0], 2 * k.C, fake_quant_weights_row, &k);
}

static void cpu_fake_quant_stored(struct dev *d, const struct tensor *wq,
                                  const struct tensor *scales, const struct tensor *zeros,
                                  const struct weight_quant *p)
{
    struct weight k = weight_of(p);
    k.wq = wq, k.scales = scales, k.zeros = zeros;
    cpu_run_rows(d, p->w->dim[0], 2 * k.C, apply_row, &k);
}

/* Sums over a group, with g = dL/dw^:
 *   *dh = sum g dw^/dh = sum g (inside ? r - u : kept - z)      at fixed z
 *   *dz = sum g dw^/dz = -h sum g over the codes that are clamped */
static void group_grads(const struct weight *k, int64_t r, int64_t begin, int64_t end,
                        float h, uint8_t z, float *dh, float *dz)
{
    const struct weight_row w_r = weights_of(k, r);
    const float *dw_r = cpu_row(k->wq, r), *v_r = offsets_of(k, r);
    const vf vh = vf_set1(h), vz = vf_set1((float)z), zero = vf_set1(0);
    const vf Q = vf_set1((float)((1 << k->bits) - 1));
    vf sum_h = zero, sum_z = zero;
    for (int64_t c = begin; c < end; c += VL) {
        const vf g = f32_get(dw_r, c, end), u = vf_div(weights_get(w_r, c, end), vh);
        const vf round = rounded(u, v_r, c, end), q = vf_add(round, vz),
                 kept = clamp_code(q, Q);
        const vm out = vm_or(vf_lt(q, zero), vf_lt(Q, q));
        sum_h = vf_fma(g, vf_select(out, vf_sub(kept, vz), vf_sub(round, u)), sum_h);
        sum_z = vf_add(sum_z, vf_select(out, g, zero));
    }
    *dh = vf_sum(sum_h);
    *dz = -h * vf_sum(sum_z);
}

/* Chain rule from the sums over a group to its clipping parameters (docs/method.md):
 *   dz/dh  = lo / h^2   dz/dlo = -1 / h     (0 if z is clamped)
 *   dh/dhi = 1 / Q      dh/dlo = -1 / Q     (0 if h is clamped)
 *   dhi/da = max gamma (1 - gamma)          dlo/db = min beta (1 - beta)
 * The path through z is added to dh before dh passes to lo and hi. */
static void fake_quant_weights_bwd_row(const void *ctx, int64_t r)
{
    const struct weight *k = ctx;
    float *da_r = cpu_row(k->da, r), *db_r = cpu_row(k->db, r);
    const double Q = (double)((1 << k->bits) - 1);
    for (int64_t begin = 0, g = 0; begin < k->C; begin += k->G, g++) {
        const int64_t end = begin + k->G < k->C ? begin + k->G : k->C;
        const struct range m = group_range(k, r, g, begin, end);
        const float lo = m.beta * m.min, hi = m.gamma * m.max, raw = (hi - lo) / (float)Q;
        const float h = f16_to_f32(quant_weight_scale(lo, hi, k->bits, k->scale_bits));
        float sum_h, sum_z;
        group_grads(k, r, begin, end, h, quant_weight_zero(lo, h, k->bits), &sum_h, &sum_z);
        /* A clamped z or h passes no gradient on. lo <= 0, so z is clamped at Q only. */
        const bool z_free = rintf(-lo / h) <= (float)Q;
        const bool h_free = raw >= QUANT_TINY && raw <= QUANT_SCALE_MAX;
        double dh = (double)sum_h, dlo = 0, dhi = 0;
        if (z_free) {
            dh += (double)sum_z * (double)lo / ((double)h * (double)h);
            dlo = -(double)sum_z / (double)h;
        }
        if (h_free) {
            dhi = dh / Q;
            dlo -= dh / Q;
        }
        da_r[g] = (float)(dhi * (double)m.max * (double)m.gamma * (1 - (double)m.gamma));
        db_r[g] = (float)(dlo * (double)m.min * (double)m.beta * (1 - (double)m.beta));
    }
}

static void cpu_fake_quant_weights_bwd(struct dev *d, const struct tensor *da,
                                       const struct tensor *db, const struct tensor *dwq,
                                       const struct weight_quant *p)
{
    struct weight k = weight_of(p);
    k.wq = dwq, k.a = p->a, k.b = p->b, k.da = da, k.db = db;
    cpu_run_rows(d, p->w->dim[0], 3 * k.C, fake_quant_weights_bwd_row, &k);
}

/* One signed step of the offsets of a group, as quant_offset_step(). */
static void step_group(const struct weight *k, int64_t r, int64_t begin, int64_t end,
                       float h, uint8_t z)
{
    const struct weight_row w_r = weights_of(k, r);
    const float *dw_r = cpu_row(k->wq, r);
    float *v_r = offsets_of(k, r);
    const vf vh = vf_set1(h), vz = vf_set1((float)z), zero = vf_set1(0);
    const vf Q = vf_set1((float)((1 << k->bits) - 1)), rate = vf_set1(k->rate);
    for (int64_t c = begin; c < end; c += VL) {
        const vf g = f32_get(dw_r, c, end), v = f32_get(v_r, c, end);
        const vf q = vf_add(rounded(vf_div(weights_get(w_r, c, end), vh), v_r, c, end), vz);
        const vm out = vm_or(vf_lt(q, zero), vf_lt(Q, q));
        const vf step = vf_select(out, zero, rate);
        vf to = vf_select(vf_lt(zero, g), vf_sub(v, step), v);
        to = vf_select(vf_lt(g, zero), vf_add(v, step), to);
        f32_put(v_r, c, end, vf_min(vf_max(to, vf_set1(-0.5f)), vf_set1(0.5f)));
    }
}

static void step_row(const void *ctx, int64_t r)
{
    stored_groups(ctx, r, step_group);
}

static void cpu_offset_step(struct dev *d, const struct tensor *dwq,
                            const struct tensor *scales, const struct tensor *zeros,
                            const struct weight_quant *p, float rate)
{
    struct weight k = weight_of(p);
    k.wq = dwq, k.scales = scales, k.zeros = zeros, k.rate = rate;
    cpu_run_rows(d, p->w->dim[0], 3 * k.C, step_row, &k);
}

void ISA_NAME(cpu_fill_weight)(struct dev_ops *o)
{
    o->fake_quant_weights = cpu_fake_quant_weights;
    o->fake_quant_stored = cpu_fake_quant_stored;
    o->fake_quant_weights_bwd = cpu_fake_quant_weights_bwd;
    o->offset_step = cpu_offset_step;
}

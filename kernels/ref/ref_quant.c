/* SPDX-License-Identifier: MIT
 *
 * Fake quantization of weights (learnable clipping) and of the KV cache. Forward values
 * are those of kernels/tensor/quant.h, one f32 operation after the other. Gradients are
 * f64, and pass straight through all rounding, of scales too.
 *
 * Weights. Per group, with Q = 2^bits - 1, gamma = sigma(a), beta = sigma(b), u = w/h and
 * r = round(u + v):
 *
 *   lo = beta min(0, min W)        hi = gamma max(0, max W)
 *   h  = (hi - lo) / Q             z  = clamp(round(-lo / h), 0, Q)
 *   w^ = (clamp(r + z, 0, Q) - z) h
 *
 *   code r + z       dw^/dh     dw^/dz         dz/dh  = lo / h^2      (0 if z is clamped)
 *   within 0..Q      r - u      0              dz/dlo = -1 / h        (0 if z is clamped)
 *   above Q          Q - z      -h             dh/dhi = 1 / Q         (0 if h is clamped)
 *   below 0          -z         -h             dh/dlo = -1 / Q        (0 if h is clamped)
 *
 * so with g = dL/dw^ summed over the group: dL/da = dL/dhi max gamma (1 - gamma), and dL/db
 * likewise with lo, min and beta.
 *
 * Cache. Per token and group, with x~ = (x - shift) / s, m = min x~, h = (max x~ - m) / Q
 * and q = clamp(round((x~ - m) / h), 0, Q): x^ = s (m + h q) + shift. Straight through,
 * x~^ has the gradient 1 in x~, plus the path through h, which only the group's extremes
 * take:
 *
 *   g~_c = s_c g_c + [c is argmax] dL/dh / Q - [c is argmin] dL/dh / Q
 *   dL/dh = sum_c s_c g_c (q_c - (x~_c - m) / h)
 *   dL/dx = g~ / s      dL/dlog s = s g x~^ - g~ x~      dL/dshift = g - g~ / s */
#include "kernels/ref/ref.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <math.h>

/* sigma(x[r,g]); 1 if x is NULL. */
static float sigmoid_at(const struct tensor *x, int64_t r, int64_t g)
{
    if (!x)
        return 1;
    return (float)(1 / (1 + exp(-(double)ref_get(x, r * x->ld + g))));
}

/* One group: columns [begin, end) of row r, its range [min, max], the clipped range [lo,
 * hi] and its scale and zero. */
struct wgroup {
    int64_t r, g, begin, end;
    float min, max, gamma, beta, lo, hi, h;
    uint16_t scale;
    uint8_t z;
};

/* Columns of a group. */
static int64_t columns_of(const struct weight_quant *p)
{
    return p->group_size ? p->group_size : p->w->dim[1];
}

static struct wgroup wgroup_at(const struct weight_quant *p, int64_t r, int64_t g)
{
    const struct tensor *w = p->w;
    const int64_t G = columns_of(p);
    struct wgroup k = {.r = r, .g = g, .begin = g * G, .end = (g + 1) * G};
    if (k.end > w->dim[1])
        k.end = w->dim[1];
    for (int64_t c = k.begin; c < k.end; c++) {
        k.min = fminf(k.min, ref_get(w, r * w->ld + c));
        k.max = fmaxf(k.max, ref_get(w, r * w->ld + c));
    }
    k.min += 0.0f; /* of 0 and -0, fminf() and fmaxf() may choose either */
    k.max += 0.0f;
    k.gamma = sigmoid_at(p->a, r, g);
    k.beta = sigmoid_at(p->b, r, g);
    k.lo = k.beta * k.min;
    k.hi = k.gamma * k.max;
    k.scale = quant_weight_scale(k.lo, k.hi, p->bits, p->scale_bits);
    k.h = f16_to_f32(k.scale);
    k.z = quant_weight_zero(k.lo, k.h, p->bits);
    return k;
}

static float offset_at(const struct tensor *v, int64_t r, int64_t c)
{
    return v ? ref_get(v, r * v->ld + c) : 0;
}

static void apply_group(const struct tensor *wq, const struct weight_quant *p, int64_t r,
                        int64_t begin, int64_t end, float h, uint8_t z)
{
    for (int64_t c = begin; c < end; c++) {
        const uint8_t q = quant_weight_code_offset(ref_get(p->w, r * p->w->ld + c),
                                                   offset_at(p->v, r, c), h, z, p->bits);
        ref_set(wq, r * wq->ld + c, (double)quant_weight_value(q, z, h));
    }
}

static void ref_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                   const struct tensor *scales, const struct tensor *zeros,
                                   const struct weight_quant *p)
{
    for (int64_t r = 0; r < p->w->dim[0]; r++)
        for (int64_t g = 0; g * columns_of(p) < p->w->dim[1]; g++) {
            const struct wgroup k = wgroup_at(p, r, g);
            ((uint16_t *)scales->data)[r * scales->ld + g] = k.scale;
            ((uint8_t *)zeros->data)[r * zeros->ld + g] = k.z;
            if (wq)
                apply_group(wq, p, r, k.begin, k.end, k.h, k.z);
        }
}

static void ref_fake_quant_stored(struct dev *d, const struct tensor *wq,
                                  const struct tensor *scales, const struct tensor *zeros,
                                  const struct weight_quant *p)
{
    const int64_t G = columns_of(p), C = p->w->dim[1];
    for (int64_t r = 0; r < p->w->dim[0]; r++)
        for (int64_t g = 0; g * G < C; g++) {
            const float h =
                f16_to_f32(((const uint16_t *)scales->data)[r * scales->ld + g]);
            const uint8_t z = ((const uint8_t *)zeros->data)[r * zeros->ld + g];
            apply_group(wq, p, r, g * G, (g + 1) * G < C ? (g + 1) * G : C, h, z);
        }
}

/* Sums dL/dh, at fixed z, and dL/dz over one group. */
static void group_grads(const struct wgroup *k, const struct tensor *dwq,
                        const struct weight_quant *p, double *dh, double *dz)
{
    const double Q = (double)((1 << p->bits) - 1), z = (double)k->z, h = (double)k->h;
    *dh = *dz = 0;
    for (int64_t c = k->begin; c < k->end; c++) {
        const float u = ref_get(p->w, k->r * p->w->ld + c) / k->h;
        const double round = (double)rintf(u + offset_at(p->v, k->r, c)),
                     g = (double)ref_get(dwq, k->r * dwq->ld + c);
        if (round + z > Q || round + z < 0) {
            *dh += g * ((round + z > Q ? Q : 0) - z);
            *dz -= g * h;
        } else {
            *dh += g * (round - (double)u);
        }
    }
}

static void ref_fake_quant_weights_bwd(struct dev *d, const struct tensor *da,
                                       const struct tensor *db, const struct tensor *dwq,
                                       const struct weight_quant *p)
{
    const float Q = (float)((1 << p->bits) - 1);
    for (int64_t r = 0; r < p->w->dim[0]; r++)
        for (int64_t g = 0; g * columns_of(p) < p->w->dim[1]; g++) {
            const struct wgroup k = wgroup_at(p, r, g);
            const float raw = (k.hi - k.lo) / Q; /* h before clamp and rounding */
            const double h = (double)k.h;
            double dh, dz, dlo = 0, dhi = 0;
            group_grads(&k, dwq, p, &dh, &dz);
            if (rintf(-k.lo / k.h) <= Q) { /* z is not clamped */
                dh += dz * (double)k.lo / (h * h);
                dlo -= dz / h;
            }
            if (raw >= QUANT_TINY && raw <= QUANT_SCALE_MAX) {
                dhi += dh / (double)Q;
                dlo -= dh / (double)Q;
            }
            const double gamma = (double)k.gamma, beta = (double)k.beta;
            ref_set(da, r * da->ld + g, dhi * (double)k.max * gamma * (1 - gamma));
            ref_set(db, r * db->ld + g, dlo * (double)k.min * beta * (1 - beta));
        }
}

static void ref_offset_step(struct dev *d, const struct tensor *dwq,
                            const struct tensor *scales, const struct tensor *zeros,
                            const struct weight_quant *p, float rate)
{
    const int64_t G = columns_of(p);
    const struct tensor *w = p->w, *v = p->v;
    for (int64_t r = 0; r < w->dim[0]; r++)
        for (int64_t c = 0; c < w->dim[1]; c++) {
            const float h =
                f16_to_f32(((const uint16_t *)scales->data)[r * scales->ld + c / G]);
            const uint8_t z = ((const uint8_t *)zeros->data)[r * zeros->ld + c / G];
            ref_set(v, r * v->ld + c,
                    (double)quant_offset_step(
                        ref_get(v, r * v->ld + c), ref_get(dwq, r * dwq->ld + c),
                        ref_get(w, r * w->ld + c), h, z, rate, p->bits));
        }
}

/* --- KV cache ------------------------------------------------------------------------ */

/* A group: channels [begin, end) of token t. Channels are counted through all heads. */
struct kvgroup {
    int64_t t, begin, end;
    int64_t at_min, at_max; /* the first channel with the minimum, the maximum of x~ */
    float h, m;
};

static float channel(const struct tensor *x, int64_t c, float none)
{
    return x ? ref_get(x, c) : none;
}

/* x~ of token t, channel c. */
static float smoothed(const struct kv_quant *p, int64_t t, int64_t c)
{
    return quant_kv_in(ref_get(p->x, t * p->x->ld + c), channel(p->s, c, 1),
                       channel(p->shift, c, 0));
}

static struct kvgroup kv_group_of(const struct kv_quant *p, int64_t t, int64_t begin,
                                  int64_t end)
{
    struct kvgroup k = {
        .t = t, .begin = begin, .end = end, .at_min = begin, .at_max = begin};
    float mn = smoothed(p, t, begin), mx = mn;
    for (int64_t c = begin + 1; c < end; c++) {
        const float xt = smoothed(p, t, c);
        if (xt < mn) {
            mn = xt;
            k.at_min = c;
        }
        if (xt > mx) {
            mx = xt;
            k.at_max = c;
        }
    }
    k.h = f16_to_f32(quant_kv_scale(mn, mx, p->bits));
    k.m = f16_to_f32(quant_kv_min(mn));
    return k;
}

/* End of the group that starts at channel c. Groups do not cross heads. */
static int64_t group_end(const struct kv_quant *p, int64_t c)
{
    const int64_t d = p->x->dim[2], head_end = c / d * d + d;
    const int64_t end = c + kv_group(d, p->group_size);
    return end < head_end ? end : head_end;
}

static void ref_fake_quant_kv(struct dev *d, const struct tensor *xq,
                              const struct kv_quant *p)
{
    for (int64_t t = 0; t < p->x->dim[0]; t++)
        for (int64_t c = 0, end; c < tensor_width(p->x); c = end) {
            end = group_end(p, c);
            const struct kvgroup k = kv_group_of(p, t, c, end);
            for (int64_t i = c; i < end; i++) {
                const uint8_t q = quant_kv_code(smoothed(p, t, i), k.h, k.m, p->bits);
                ref_set(xq, t * xq->ld + i,
                        (double)quant_kv_out(q, k.h, k.m, channel(p->s, i, 1),
                                             channel(p->shift, i, 0)));
            }
        }
}

struct kv_work {
    const struct kv_quant *p;
    const struct tensor *dx, *dxq;
    double *dls, *dshift; /* [K*d], sums over the tokens; both NULL: not wanted */
    bool accumulate;
};

/* Gradients of one group, by the formulas at the top of this file; e = s g. */
static void kv_group_grad(const struct kv_work *w, const struct kvgroup *k)
{
    const struct kv_quant *p = w->p;
    const double Q = (double)((1 << p->bits) - 1), h = (double)k->h, m = (double)k->m;
    double dh = 0;
    for (int64_t c = k->begin; c < k->end; c++) {
        const float xt = smoothed(p, k->t, c);
        const double q = (double)quant_kv_code(xt, k->h, k->m, p->bits);
        const double e =
            (double)channel(p->s, c, 1) * (double)ref_get(w->dxq, k->t * w->dxq->ld + c);
        if (h > 0)
            dh += e * (q - ((double)xt - m) / h);
    }
    if (!(k->h < QUANT_SCALE_MAX)) /* h is clamped */
        dh = 0;
    for (int64_t c = k->begin; c < k->end; c++) {
        const double s = (double)channel(p->s, c, 1);
        const double g = (double)ref_get(w->dxq, k->t * w->dxq->ld + c);
        const float xt = smoothed(p, k->t, c);
        const double q = (double)quant_kv_code(xt, k->h, k->m, p->bits);
        double gt = s * g;
        gt += c == k->at_max ? dh / Q : 0;
        gt -= c == k->at_min ? dh / Q : 0;
        ref_put(w->dx, k->t * w->dx->ld + c, gt / s, w->accumulate);
        if (w->dls) {
            w->dls[c] += s * g * (m + h * q) - gt * (double)xt;
            w->dshift[c] += g - gt / s;
        }
    }
}

static void ref_fake_quant_kv_bwd(struct dev *d, const struct kv_grads *grads,
                                  const struct tensor *dxq, const struct kv_quant *p)
{
    const int64_t C = tensor_width(p->x);
    double *sums = NULL;
    if (grads->dls && mem_calloc(&sums, 2 * (size_t)C, sizeof(*sums))) {
        dev_fail(d, ERR_MEMORY, "fake_quant_kv_bwd: no memory for %lld channels",
                 (long long)C);
        return;
    }
    const struct kv_work w = {.p = p,
                              .dx = grads->dx,
                              .dxq = dxq,
                              .dls = sums,
                              .dshift = sums ? sums + C : NULL,
                              .accumulate = grads->accumulate};
    for (int64_t t = 0; t < p->x->dim[0]; t++)
        for (int64_t c = 0, end; c < C; c = end) {
            end = group_end(p, c);
            const struct kvgroup k = kv_group_of(p, t, c, end);
            kv_group_grad(&w, &k);
        }
    for (int64_t c = 0; grads->dls && c < C; c++) {
        ref_put(grads->dls, c, w.dls[c], true);
        ref_put(grads->dshift, c, w.dshift[c], true);
    }
    mem_free(sums);
}

static void ref_col_minmax(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                           const struct tensor *x)
{
    for (int64_t r = 0; r < x->dim[0]; r++)
        for (int64_t c = 0; c < tensor_width(x); c++) {
            const float v = ref_get(x, r * x->ld + c);
            if (v < ref_get(mn, c))
                ref_set(mn, c, (double)v);
            if (v > ref_get(mx, c))
                ref_set(mx, c, (double)v);
        }
}

static void ref_exp(struct dev *d, const struct tensor *s, const struct tensor *ls)
{
    for (int64_t c = 0; c < tensor_count(ls); c++)
        ref_set(s, c, exp((double)ref_get(ls, c)));
}

void ref_fill_quant(struct dev_ops *o)
{
    o->fake_quant_weights = ref_fake_quant_weights;
    o->fake_quant_stored = ref_fake_quant_stored;
    o->fake_quant_weights_bwd = ref_fake_quant_weights_bwd;
    o->offset_step = ref_offset_step;
    o->fake_quant_kv = ref_fake_quant_kv;
    o->fake_quant_kv_bwd = ref_fake_quant_kv_bwd;
    o->col_minmax = ref_col_minmax;
    o->exp = ref_exp;
}

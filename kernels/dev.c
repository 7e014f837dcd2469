/* SPDX-License-Identifier: MIT
 *
 * The public operations: each checks the contract of kernels/dev.h and calls the table. */
#include "kernels/dev.h"

#include "kernels/base/mem.h"
#include "kernels/cuda/cuda_fill.h"
#include "kernels/dev_begin.h"
#include "kernels/norm_rows.h"
#include "kernels/tensor/hadamard.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void dev_fail(struct dev *d, enum err e, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (!d->failed)
        d->failed = err_set(e, __FILE__, __LINE__, "device %s: %s", d->ops.name, text);
}

/* The device that dev_register() has added. */
static struct {
    const char *name;
    enum err (*fill)(struct dev *d, int threads);
} registered;

void dev_register(const char *name, enum err (*fill)(struct dev *d, int threads))
{
    registered.name = name;
    registered.fill = fill;
}

static enum err fill_by_name(struct dev *d, const struct dev_settings *s)
{
    if (registered.name && !strcmp(s->name, registered.name))
        return registered.fill(d, s->threads);
    if (!strcmp(s->name, "ref"))
        return OK;
    if (!strcmp(s->name, "cpu"))
        return cpu_fill(d, s->threads);
    if (!strcmp(s->name, "cuda"))
        return cuda_fill(d, s->threads);
    FAIL(ERR_USAGE, "device '%s' is not available; this build has: cpu, ref%s", s->name,
         cuda_built() ? ", cuda" : "");
}

enum err dev_open(struct dev **out, const struct dev_settings *s)
{
    struct dev *d = NULL;
    TRY(mem_calloc(&d, 1, sizeof(*d)));
    d->preferred_act = DT_F32;
    ref_fill(d);
    const enum err err = fill_by_name(d, s);
    if (err) {
        dev_close(&d);
        return err;
    }
    *out = d;
    return OK;
}

void dev_close(struct dev **pd)
{
    struct dev *d = *pd;
    if (!d)
        return;
    dev_close_stage(d);
    if (d->ops.close)
        d->ops.close(d);
    pool_close(&d->pool);
    mem_free(d);
    *pd = NULL;
}

const char *dev_name(const struct dev *d)
{
    return d->ops.name;
}

int dev_threads(const struct dev *d)
{
    return pool_threads(d->pool);
}

const char *dev_about(const struct dev *d)
{
    return d->about;
}

enum dtype dev_preferred_act(const struct dev *d)
{
    return d->preferred_act;
}

bool dev_widens(const struct dev *d)
{
    return d->widens;
}

double dev_gemm_seconds(struct dev *d, bool reset)
{
    const double s = d->gemm_seconds;
    if (reset)
        d->gemm_seconds = 0;
    return s;
}

double dev_part_seconds(const struct dev *d, enum dev_part part)
{
    return d->part_seconds[part];
}

enum err dev_copy(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    OP_BEGIN(copy, started);
    WANT(is_act(y) && (is_act(x) || is_type(x, DT_F16)) && same_shape(y, x),
         "copy: want act y and act or F16 x of one shape");
    d->ops.copy(d, y, x);
    OP_END(DEV_COPY, started);
}

static enum err check_gemm(enum gemm_kind kind, const struct tensor *c,
                           const struct tensor *a, const struct tensor *b, bool accumulate)
{
    WANT(is_act(a) && is_act(b) && is_act(c) && is_2d(a) && is_2d(b) && is_2d(c) &&
             a->dtype == b->dtype,
         "gemm: want 2-D act tensors, a and b of one type");
    WANT(c->dtype == DT_F32 || (a->dtype == DT_BF16 && !accumulate),
         "gemm: bf16 results need bf16 operands and no accumulation");
    const bool ta = kind == GEMM_TN, tb = kind == GEMM_NT;
    const int64_t m = a->dim[ta], k = a->dim[!ta], kb = b->dim[tb], n = b->dim[!tb];
    WANT(k == kb && c->dim[0] == m && c->dim[1] == n,
         "gemm: [%" PRId64 ",%" PRId64 "] x [%" PRId64 ",%" PRId64
         "] does not give [%" PRId64 ",%" PRId64 "]",
         m, k, kb, n, c->dim[0], c->dim[1]);
    return OK;
}

enum err dev_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                  const struct tensor *a, const struct tensor *b, bool accumulate)
{
    OP_BEGIN(gemm, started);
    TRY(check_gemm(kind, c, a, b, accumulate));
    d->ops.gemm(d, kind, c, a, b, accumulate);
    OP_END(DEV_GEMM, started);
}

enum err dev_gemm_add(struct dev *d, enum gemm_kind kind, const struct tensor *y,
                      const struct tensor *x, const struct tensor *a,
                      const struct tensor *b, const struct tensor *part)
{
    OP_BEGIN(gemm, started);
    TRY(check_gemm(kind, part, a, b, false));
    WANT(is_f32(y) && is_f32(x) && is_2d(y) && is_2d(x) && same_shape(y, part) &&
             same_shape(x, part),
         "gemm_add: want y, x F32, of the product's shape");
    WANT(y->data != x->data || y->ld == x->ld, "gemm_add: y is x with another stride");
    WANT(part->data != y->data && part->data != x->data, "gemm_add: part is y or x");
    if (!d->ops.gemm_add) {
        TRY(dev_gemm(d, kind, part, a, b, false));
        return dev_add(d, y, x, part);
    }
    d->ops.gemm_add(d, kind, y, x, a, b, part);
    OP_END(DEV_GEMM, started);
}

enum err dev_bias(struct dev *d, const struct tensor *y, const struct tensor *b)
{
    OP_BEGIN(bias, started);
    WANT(is_act(y) && is_2d(y) && vec(b, y->dim[1]), "bias: want y [R,C], b [C]");
    d->ops.bias(d, y, b);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                     const struct tensor *h, const struct rmsnorm_inputs *in)
{
    OP_BEGIN(rmsnorm, started);
    const struct tensor *x = in->x, *add = in->add;
    WANT(is_act(x) && is_act(y) && (is_2d(x) || is_3d(x)) && same_shape(x, y),
         "rmsnorm: want y, x of one shape [R,C] or [T,H,d]");
    WANT(vec(s, norm_rows(x)) && vec(in->g, x->dim[x->n_dims - 1]),
         "rmsnorm: want s [R], g [C]");
    WANT(!h == !add, "rmsnorm: h and add go together");
    if (add)
        WANT(is_2d(x) && is_f32(x) && is_f32(h) && is_act(add) && same_shape(h, x) &&
                 same_shape(add, x),
             "rmsnorm: with add want x, h F32 [R,C], add [R,C]");
    WANT(in->eps >= 0, "rmsnorm: eps must not be negative");
    d->ops.rmsnorm(d, y, s, h, in);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_rmsnorm_bwd(struct dev *d, const struct rmsnorm_grads *grads,
                         const struct tensor *dy, const struct tensor *x,
                         const struct tensor *s, const struct tensor *g)
{
    OP_BEGIN(rmsnorm_bwd, started);
    const struct tensor *dx = grads->dx, *copy = grads->copy;
    WANT(is_act(dx) && is_act(dy) && is_act(x) && (is_2d(x) || is_3d(x)) &&
             same_shape(dx, x) && same_shape(dy, x),
         "rmsnorm_bwd: want dx, dy, x of one shape");
    WANT(vec(s, norm_rows(x)) && vec(g, x->dim[x->n_dims - 1]),
         "rmsnorm_bwd: want s [R], g [C]");
    WANT(!grads->accumulate || dx->data != dy->data,
         "rmsnorm_bwd: dx is dy while accumulating");
    WANT(!copy ||
             (is_f32(dx) && is_act(copy) && same_shape(copy, dx) && copy->data != dx->data),
         "rmsnorm_bwd: with a copy want dx F32, and the copy of its shape elsewhere");
    d->ops.rmsnorm_bwd(d, grads, dy, x, s, g);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                 const struct tensor *b)
{
    OP_BEGIN(add, started);
    WANT(is_act(y) && is_act(a) && is_act(b) && is_2d(y) && same_shape(y, a) &&
             same_shape(y, b),
         "add: want y, a, b [R,C]");
    d->ops.add(d, y, a, b);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_scale(struct dev *d, const struct tensor *y, float factor)
{
    OP_BEGIN(scale, started);
    WANT(is_act(y) && is_2d(y), "scale: want y [R,C]");
    d->ops.scale(d, y, factor);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                  const struct tensor *sin, bool inverse)
{
    OP_BEGIN(rope, started);
    WANT(is_act(x) && is_3d(x), "rope: want x [T,H,d]");
    WANT(is_f32(cos) && is_f32(sin) && is_2d(cos) && same_shape(cos, sin) &&
             cos->dim[0] >= x->dim[0] && cos->dim[1] <= x->dim[2] / 2,
         "rope: want cos, sin [T,r/2], r at most d");
    d->ops.rope(d, x, cos, sin, inverse);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_hadamard(struct dev *d, const struct tensor *x)
{
    OP_BEGIN(hadamard, started);
    WANT(is_act(x) && is_3d(x) && hadamard_fits(x->dim[2]),
         "hadamard: want x [T,H,d], d a power of two from 2 to %d", HADAMARD_MAX);
    d->ops.hadamard(d, x);
    OP_END(DEV_ELEMENTWISE, started);
}

/* Shapes and types of q, k, v, kq, vq, or of their gradients. */
static bool attn_fits(const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct tensor *kq,
                      const struct tensor *vq)
{
    if (!is_act(q) || !is_act(k) || !is_act(v) || !is_3d(q) || !is_3d(k) ||
        !same_shape(k, v) || !is_3d(v))
        return false;
    if (k->dtype != q->dtype || v->dtype != q->dtype || k->dim[0] != q->dim[0] ||
        k->dim[2] != q->dim[2] || q->dim[1] % k->dim[1])
        return false;
    if (!kq != !vq)
        return false;
    return !kq || (is_act(kq) && is_act(vq) && same_shape(kq, k) && same_shape(vq, k) &&
                   kq->dtype == q->dtype && vq->dtype == q->dtype);
}

static bool inputs_fit(const struct attn_inputs *in)
{
    return attn_fits(in->q, in->k, in->v, in->kq, in->vq);
}

static bool grads_fit(const struct attn_grads *g, const struct attn_inputs *in)
{
    return attn_fits(g->dq, g->dk, g->dv, g->dkq, g->dvq) && !in->kq == !g->dkq &&
           same_shape(g->dq, in->q) && same_shape(g->dk, in->k) &&
           g->dq->dtype == in->q->dtype;
}

static bool looks_like(const struct tensor *x, const struct tensor *q)
{
    return is_act(x) && same_shape(x, q) && x->dtype == q->dtype;
}

enum err dev_attn_check(const struct dev *d, int64_t head_dim)
{
    const int64_t most = d->most_head_dim;
    FAIL_IF(most && head_dim > most, ERR_SUPPORT,
            "heads of %" PRId64 " channels: attention on device %s has at most %" PRId64
            "; set run.device to cpu",
            head_dim, d->ops.name, most);
    return OK;
}

enum err dev_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                  const struct attn_inputs *in)
{
    OP_BEGIN(attn, started);
    WANT(inputs_fit(in), "attn: want q [T,H,d], k, v, kq, vq [T,K,d], one type");
    WANT(looks_like(o, in->q) && vec(lse, in->q->dim[0] * in->q->dim[1]),
         "attn: want o as q, lse [H,T]");
    WANT(!in->kq || in->mask, "attn: quantized keys need a mask");
    WANT(in->reach >= 0, "attn: a query that reaches no token");
    d->ops.attn(d, o, lse, in);
    OP_END(DEV_ATTENTION, started);
}

enum err dev_attn_bwd(struct dev *d, const struct attn_grads *grads,
                      const struct tensor *dout, const struct tensor *o,
                      const struct tensor *lse, const struct attn_inputs *in)
{
    OP_BEGIN(attn_bwd, started);
    WANT(inputs_fit(in) && grads_fit(grads, in),
         "attn_bwd: gradients must look like their counterparts");
    WANT(looks_like(o, in->q) && looks_like(dout, in->q) &&
             vec(lse, in->q->dim[0] * in->q->dim[1]),
         "attn_bwd: want o, dout as q, lse [H,T]");
    WANT(!in->kq || in->mask, "attn_bwd: quantized keys need a mask");
    WANT(in->reach >= 0, "attn_bwd: a query that reaches no token");
    WANT(!in->mask || in->mask->chunk <= 1, "attn_bwd: chunk must be <= 1");
    d->ops.attn_bwd(d, grads, dout, o, lse, in);
    OP_END(DEV_ATTENTION_BWD, started);
}

enum err dev_gate(struct dev *d, enum gate_act kind, const struct tensor *y,
                  const struct tensor *gu)
{
    OP_BEGIN(gate, started);
    WANT(is_act(y) && is_act(gu) && is_2d(y) && is_2d(gu) && gu->dim[0] == y->dim[0] &&
             gu->dim[1] == 2 * y->dim[1],
         "gate: want y [R,F], gu [R,2F]");
    d->ops.gate(d, kind, y, gu);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_gate_bwd(struct dev *d, enum gate_act kind, const struct tensor *dgu,
                      const struct tensor *dy, const struct tensor *gu)
{
    OP_BEGIN(gate_bwd, started);
    WANT(is_act(dy) && is_act(gu) && is_act(dgu) && is_2d(dy) && is_2d(gu) &&
             same_shape(dgu, gu) && gu->dim[0] == dy->dim[0] &&
             gu->dim[1] == 2 * dy->dim[1],
         "gate_bwd: want dy [R,F], dgu, gu [R,2F]");
    d->ops.gate_bwd(d, kind, dgu, dy, gu);
    OP_END(DEV_ELEMENTWISE, started);
}

/* x [N,n] with one entry for each group of p's weight. */
static bool per_group(const struct tensor *x, const struct weight_quant *p, enum dtype t)
{
    return is_matrix(x, t, p->w->dim[0], weight_groups(p->w->dim[1], p->group_size));
}

static bool weight_fits(const struct weight_quant *p)
{
    return (is_act(p->w) || is_type(p->w, DT_F16)) && is_2d(p->w) &&
           quant_bits_ok(p->bits) && p->group_size >= 0 && p->scale_bits >= 0 &&
           p->scale_bits <= QUANT_SCALE_BITS;
}

static bool offsets_fit(const struct weight_quant *p)
{
    return !p->v || (is_f32(p->v) && same_shape(p->v, p->w));
}

enum err dev_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                const struct tensor *scales, const struct tensor *zeros,
                                const struct weight_quant *p)
{
    OP_BEGIN(fake_quant_weights, started);
    WANT(weight_fits(p) && !p->a == !p->b,
         "fake_quant_weights: want w F32, F16 or BF16 [N,C], 2 to 8 bits, scales of 1 to "
         "11, a and b together");
    WANT(per_group(scales, p, DT_F16) && per_group(zeros, p, DT_U8),
         "fake_quant_weights: want scales F16, zeros U8 [N,groups]");
    WANT(!p->a || (per_group(p->a, p, DT_F32) && per_group(p->b, p, DT_F32)),
         "fake_quant_weights: want a, b F32 [N,groups]");
    WANT(!wq || (is_act(wq) && same_shape(wq, p->w)), "fake_quant_weights: want wq [N,C]");
    WANT(offsets_fit(p), "fake_quant_weights: want v F32 [N,C]");
    d->ops.fake_quant_weights(d, wq, scales, zeros, p);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_fake_quant_stored(struct dev *d, const struct tensor *wq,
                               const struct tensor *scales, const struct tensor *zeros,
                               const struct weight_quant *p)
{
    OP_BEGIN(fake_quant_stored, started);
    WANT(weight_fits(p) && is_act(wq) && same_shape(wq, p->w) &&
             per_group(scales, p, DT_F16) && per_group(zeros, p, DT_U8),
         "fake_quant_stored: want w F32, F16 or BF16, wq [N,C], scales F16, zeros U8 "
         "[N,groups]");
    WANT(offsets_fit(p), "fake_quant_stored: want v F32 [N,C]");
    d->ops.fake_quant_stored(d, wq, scales, zeros, p);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_fake_quant_weights_bwd(struct dev *d, const struct tensor *da,
                                    const struct tensor *db, const struct tensor *dwq,
                                    const struct weight_quant *p)
{
    OP_BEGIN(fake_quant_weights_bwd, started);
    WANT(weight_fits(p) && is_f32(dwq) && same_shape(dwq, p->w) &&
             per_group(p->a, p, DT_F32) && per_group(p->b, p, DT_F32) &&
             per_group(da, p, DT_F32) && per_group(db, p, DT_F32),
         "fake_quant_weights_bwd: want w F32, F16 or BF16, dwq F32 [N,C], a, b, da, db F32 "
         "[N,groups]");
    WANT(offsets_fit(p), "fake_quant_weights_bwd: want v F32 [N,C]");
    d->ops.fake_quant_weights_bwd(d, da, db, dwq, p);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_offset_step(struct dev *d, const struct tensor *dwq,
                         const struct tensor *scales, const struct tensor *zeros,
                         const struct weight_quant *p, float rate)
{
    OP_BEGIN(offset_step, started);
    WANT(weight_fits(p) && p->v && offsets_fit(p) && is_f32(dwq) && same_shape(dwq, p->w) &&
             per_group(scales, p, DT_F16) && per_group(zeros, p, DT_U8),
         "offset_step: want w F32, F16 or BF16, v, dwq F32 [N,C], scales F16, zeros U8 "
         "[N,groups]");
    d->ops.offset_step(d, dwq, scales, zeros, p, rate);
    OP_END(DEV_OPTIMIZER, started);
}

enum err dev_fake_quant_kv(struct dev *d, const struct tensor *xq, const struct kv_quant *p)
{
    OP_BEGIN(fake_quant_kv, started);
    WANT(is_act(p->x) && is_act(xq) && is_3d(p->x) && same_shape(p->x, xq) &&
             quant_bits_ok(p->bits),
         "fake_quant_kv: want xq, x [T,K,d], 2 to 8 bits");
    WANT(per_channel(p->s, p->shift, p->x),
         "fake_quant_kv: want s, shift [K*d] or neither");
    d->ops.fake_quant_kv(d, xq, p);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_fake_quant_kv_bwd(struct dev *d, const struct kv_grads *grads,
                               const struct tensor *dxq, const struct kv_quant *p)
{
    OP_BEGIN(fake_quant_kv_bwd, started);
    WANT(is_act(p->x) && is_act(grads->dx) && is_act(dxq) && is_3d(p->x) &&
             same_shape(grads->dx, p->x) && same_shape(dxq, p->x) && quant_bits_ok(p->bits),
         "fake_quant_kv_bwd: want dx, dxq, x [T,K,d], 2 to 8 bits");
    WANT(per_channel(p->s, p->shift, p->x),
         "fake_quant_kv_bwd: want s, shift [K*d] or neither");
    WANT(per_channel(grads->dls, grads->dshift, p->x),
         "fake_quant_kv_bwd: want dls, dshift [K*d] or neither");
    WANT(!grads->accumulate || grads->dx->data != dxq->data,
         "fake_quant_kv_bwd: dx is dxq while accumulating");
    d->ops.fake_quant_kv_bwd(d, grads, dxq, p);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_fake_quant_kv_channel(struct dev *d, const struct tensor *xq,
                                   const struct tensor *x, int bits, int64_t tokens)
{
    OP_BEGIN(fake_quant_kv_channel, started);
    WANT(is_act(x) && is_act(xq) && is_3d(x) && same_shape(x, xq) && quant_bits_ok(bits) &&
             tokens > 0,
         "fake_quant_kv_channel: want xq, x [T,K,d], 2 to 8 bits, tokens > 0");
    d->ops.fake_quant_kv_channel(d, xq, x, bits, tokens);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_fake_quant_kv_channel_bwd(struct dev *d, const struct tensor *dx,
                                       const struct tensor *dxq, const struct tensor *x,
                                       int bits, int64_t tokens, bool accumulate)
{
    OP_BEGIN(fake_quant_kv_channel_bwd, started);
    WANT(is_act(x) && is_act(dx) && is_act(dxq) && is_3d(x) && same_shape(dx, x) &&
             same_shape(dxq, x) && quant_bits_ok(bits) && tokens > 0,
         "fake_quant_kv_channel_bwd: want dx, dxq, x [T,K,d], 2 to 8 bits, tokens > 0");
    WANT(!accumulate || dx->data != dxq->data,
         "fake_quant_kv_channel_bwd: dx is dxq while accumulating");
    d->ops.fake_quant_kv_channel_bwd(d, dx, dxq, x, bits, tokens, accumulate);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_col_minmax(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                        const struct tensor *x)
{
    OP_BEGIN(col_minmax, started);
    WANT(is_act(x) && (is_2d(x) || is_3d(x)) && vec(mn, tensor_width(x)) &&
             vec(mx, tensor_width(x)),
         "col_minmax: want x [R,C], mn, mx [C]");
    d->ops.col_minmax(d, mn, mx, x);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_exp(struct dev *d, const struct tensor *s, const struct tensor *ls)
{
    OP_BEGIN(exp, started);
    WANT(is_f32(ls) && contiguous(ls) && vec(s, tensor_count(ls)), "exp: want s, ls [C]");
    d->ops.exp(d, s, ls);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_check_loss(const struct tensor *dy, const struct loss_inputs *in)
{
    const struct tensor *y = in->y, *t = in->t;
    WANT(is_act(y) && is_act(t) && is_2d(y) && same_shape(y, t), "loss: want y, t [R,C]");
    WANT(!dy || (is_act(dy) && same_shape(dy, y) && (!in->accumulate || is_f32(dy))),
         "loss: want dy [R,C], F32 to accumulate");
    return OK;
}

enum err dev_loss(struct dev *d, double *loss, const struct tensor *dy,
                  const struct loss_inputs *in)
{
    OP_BEGIN(loss, started);
    TRY(dev_check_loss(dy, in));
    *loss = d->ops.loss(d, dy, in);
    OP_END(DEV_LOSS, started);
}

enum err dev_all_finite(struct dev *d, bool *finite, const struct tensor *x)
{
    OP_BEGIN(all_finite, started);
    WANT(is_act(x), "all_finite: want an act tensor");
    *finite = d->ops.all_finite(d, x);
    OP_END(DEV_OPTIMIZER, started);
}

enum err dev_cross_entropy(struct dev *d, const struct tensor *nll, const struct tensor *x,
                           const struct tensor *target)
{
    OP_BEGIN(cross_entropy, started);
    WANT(is_act(x) && is_2d(x) && vec(nll, x->dim[0]) && flat(target, DT_I32, x->dim[0]),
         "cross_entropy: want x [R,V], nll [R], target I32 [R]");
    d->ops.cross_entropy(d, nll, x, target);
    OP_END(DEV_LOSS, started);
}

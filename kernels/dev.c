/* SPDX-License-Identifier: MIT
 *
 * The public operations: check the contract of kernels/dev.h, then one table call. */
#include "kernels/dev.h"

#include "kernels/base/mem.h"
#include "kernels/cuda/cuda_fill.h"
#include "kernels/dev_begin.h"
#include "kernels/tensor/hadamard.h"

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

static bool act(const struct tensor *x)
{
    return x && x->data && (x->dtype == DT_F32 || x->dtype == DT_BF16);
}

static bool f32(const struct tensor *x)
{
    return x && x->data && x->dtype == DT_F32;
}

static bool same_shape(const struct tensor *a, const struct tensor *b)
{
    if (a->n_dims != b->n_dims)
        return false;
    for (int i = 0; i < a->n_dims; i++)
        if (a->dim[i] != b->dim[i])
            return false;
    return true;
}

static bool rows_fit(const struct tensor *x)
{
    int64_t width = 1;
    for (int i = 1; i < x->n_dims; i++)
        width *= x->dim[i];
    return x->n_dims == 1 || x->dim[0] <= 1 || x->ld >= width;
}

static bool is_2d(const struct tensor *x)
{
    return x->n_dims == 2 && x->dim[0] > 0 && x->dim[1] > 0 && rows_fit(x);
}

static bool is_3d(const struct tensor *x)
{
    return x->n_dims == 3 && x->dim[0] > 0 && x->dim[1] > 0 && x->dim[2] > 0 && rows_fit(x);
}

static bool vec(const struct tensor *x, int64_t n)
{
    return f32(x) && tensor_count(x) == n;
}

/* Elements behind the first dimension. */
static int64_t row_width(const struct tensor *x)
{
    int64_t width = 1;
    for (int i = 1; i < x->n_dims; i++)
        width *= x->dim[i];
    return width;
}

/* What tests bring along. */
static struct {
    const char *name;
    enum err (*fill)(struct dev *d);
} registered;

void dev_register(const char *name, enum err (*fill)(struct dev *d))
{
    registered.name = name;
    registered.fill = fill;
}

static enum err fill_by_name(struct dev *d, const struct dev_settings *s)
{
    if (registered.name && !strcmp(s->name, registered.name))
        return registered.fill(d);
    if (!strcmp(s->name, "ref"))
        return OK;
    if (!strcmp(s->name, "cpu"))
        return cpu_fill(d, s->threads);
    if (!strcmp(s->name, "cuda"))
        return cuda_fill(d);
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

bool dev_wait_each(struct dev *d, bool on)
{
    d->wait_each = d->queues && on;
    return d->queues;
}

enum err dev_copy(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    BEGIN(copy);
    WANT(act(y) && act(x) && same_shape(y, x) && rows_fit(x) && rows_fit(y),
         "copy: want act y, x of one shape");
    d->ops.copy(d, y, x);
    END(DEV_COPY);
}

enum err dev_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                  const struct tensor *a, const struct tensor *b, bool accumulate)
{
    BEGIN(gemm);
    WANT(act(a) && act(b) && act(c) && is_2d(a) && is_2d(b) && is_2d(c) &&
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
    d->ops.gemm(d, kind, c, a, b, accumulate);
    END(DEV_GEMM);
}

enum err dev_bias(struct dev *d, const struct tensor *y, const struct tensor *b)
{
    BEGIN(bias);
    WANT(act(y) && is_2d(y) && vec(b, y->dim[1]), "bias: want y [R,C], b [C]");
    d->ops.bias(d, y, b);
    END(DEV_ELEMENTWISE);
}

/* Rows that a norm works on: T of a matrix, T*H of a 3-D view. */
static int64_t norm_rows(const struct tensor *x)
{
    return x->n_dims == 3 ? x->dim[0] * x->dim[1] : x->dim[0];
}

enum err dev_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                     const struct tensor *h, const struct tensor *x,
                     const struct tensor *add, const struct tensor *g, float eps)
{
    BEGIN(rmsnorm);
    WANT(act(x) && act(y) && (is_2d(x) || is_3d(x)) && same_shape(x, y) && rows_fit(y),
         "rmsnorm: want y, x of one shape [R,C] or [T,H,d]");
    WANT(vec(s, norm_rows(x)) && vec(g, x->dim[x->n_dims - 1]),
         "rmsnorm: want s [R], g [C]");
    WANT(!h == !add, "rmsnorm: h and add go together");
    if (add)
        WANT(is_2d(x) && f32(x) && f32(h) && act(add) && same_shape(h, x) &&
                 same_shape(add, x),
             "rmsnorm: with add want x, h F32 [R,C], add [R,C]");
    WANT(eps >= 0, "rmsnorm: eps must not be negative");
    d->ops.rmsnorm(d, y, s, h, x, add, g, eps);
    END(DEV_ELEMENTWISE);
}

enum err dev_rmsnorm_bwd(struct dev *d, const struct tensor *dx, const struct tensor *dy,
                         const struct tensor *x, const struct tensor *s,
                         const struct tensor *g, bool accumulate)
{
    BEGIN(rmsnorm_bwd);
    WANT(act(dx) && act(dy) && act(x) && (is_2d(x) || is_3d(x)) && same_shape(dx, x) &&
             same_shape(dy, x),
         "rmsnorm_bwd: want dx, dy, x of one shape");
    WANT(vec(s, norm_rows(x)) && vec(g, x->dim[x->n_dims - 1]),
         "rmsnorm_bwd: want s [R], g [C]");
    WANT(!accumulate || dx->data != dy->data, "rmsnorm_bwd: dx is dy while accumulating");
    d->ops.rmsnorm_bwd(d, dx, dy, x, s, g, accumulate);
    END(DEV_ELEMENTWISE);
}

enum err dev_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                 const struct tensor *b)
{
    BEGIN(add);
    WANT(act(y) && act(a) && act(b) && is_2d(y) && same_shape(y, a) && same_shape(y, b),
         "add: want y, a, b [R,C]");
    d->ops.add(d, y, a, b);
    END(DEV_ELEMENTWISE);
}

enum err dev_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                  const struct tensor *sin, bool inverse)
{
    BEGIN(rope);
    WANT(act(x) && is_3d(x) && x->dim[2] % 2 == 0, "rope: want x [T,H,d], d even");
    WANT(f32(cos) && f32(sin) && is_2d(cos) && same_shape(cos, sin) &&
             cos->dim[0] >= x->dim[0] && cos->dim[1] == x->dim[2] / 2,
         "rope: want cos, sin [T,d/2]");
    d->ops.rope(d, x, cos, sin, inverse);
    END(DEV_ELEMENTWISE);
}

enum err dev_hadamard(struct dev *d, const struct tensor *x)
{
    BEGIN(hadamard);
    WANT(act(x) && is_3d(x) && hadamard_fits(x->dim[2]),
         "hadamard: want x [T,H,d], d a power of two from 2 to %d", HADAMARD_MAX);
    d->ops.hadamard(d, x);
    END(DEV_ELEMENTWISE);
}

static bool attn_fits(const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct tensor *kq,
                      const struct tensor *vq)
{
    if (!act(q) || !act(k) || !act(v) || !is_3d(q) || !is_3d(k) || !same_shape(k, v) ||
        !is_3d(v))
        return false;
    if (k->dtype != q->dtype || v->dtype != q->dtype || k->dim[0] != q->dim[0] ||
        k->dim[2] != q->dim[2] || q->dim[1] % k->dim[1])
        return false;
    if (!kq != !vq)
        return false;
    return !kq || (act(kq) && act(vq) && same_shape(kq, k) && same_shape(vq, k) &&
                   kq->dtype == q->dtype && vq->dtype == q->dtype);
}

enum err dev_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                  const struct tensor *q, const struct tensor *k, const struct tensor *v,
                  const struct tensor *kq, const struct tensor *vq,
                  const struct attn_mask *mask, float scale)
{
    BEGIN(attn);
    WANT(attn_fits(q, k, v, kq, vq),
         "attn: want q [T,H,d], k, v, kq, vq [T,K,d], one type");
    WANT(act(o) && same_shape(o, q) && o->dtype == q->dtype &&
             vec(lse, q->dim[0] * q->dim[1]),
         "attn: want o as q, lse [H,T]");
    WANT(!kq || mask, "attn: quantized keys need a mask");
    d->ops.attn(d, o, lse, q, k, v, kq, vq, mask, scale);
    END(DEV_ATTENTION);
}

enum err dev_attn_bwd(struct dev *d, const struct tensor *dq, const struct tensor *dk,
                      const struct tensor *dv, const struct tensor *dkq,
                      const struct tensor *dvq, const struct tensor *dout,
                      const struct tensor *o, const struct tensor *lse,
                      const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct tensor *kq,
                      const struct tensor *vq, const struct attn_mask *mask, float scale)
{
    BEGIN(attn_bwd);
    WANT(attn_fits(q, k, v, kq, vq) && attn_fits(dq, dk, dv, dkq, dvq) && !kq == !dkq &&
             same_shape(dq, q) && same_shape(dk, k) && dq->dtype == q->dtype,
         "attn_bwd: gradients must look like their counterparts");
    WANT(act(o) && act(dout) && same_shape(o, q) && same_shape(dout, q) &&
             o->dtype == q->dtype && dout->dtype == q->dtype &&
             vec(lse, q->dim[0] * q->dim[1]),
         "attn_bwd: want o, dout as q, lse [H,T]");
    WANT(!kq || mask, "attn_bwd: quantized keys need a mask");
    WANT(!mask || mask->chunk <= 1, "attn_bwd: chunk must be <= 1");
    d->ops.attn_bwd(d, dq, dk, dv, dkq, dvq, dout, o, lse, q, k, v, kq, vq, mask, scale);
    END(DEV_ATTENTION_BWD);
}

enum err dev_silu_gate(struct dev *d, const struct tensor *y, const struct tensor *gu)
{
    BEGIN(silu_gate);
    WANT(act(y) && act(gu) && is_2d(y) && is_2d(gu) && gu->dim[0] == y->dim[0] &&
             gu->dim[1] == 2 * y->dim[1],
         "silu_gate: want y [R,F], gu [R,2F]");
    d->ops.silu_gate(d, y, gu);
    END(DEV_ELEMENTWISE);
}

enum err dev_silu_gate_bwd(struct dev *d, const struct tensor *dgu, const struct tensor *dy,
                           const struct tensor *gu)
{
    BEGIN(silu_gate_bwd);
    WANT(act(dy) && act(gu) && act(dgu) && is_2d(dy) && is_2d(gu) && same_shape(dgu, gu) &&
             gu->dim[0] == dy->dim[0] && gu->dim[1] == 2 * dy->dim[1],
         "silu_gate_bwd: want dy [R,F], dgu, gu [R,2F]");
    d->ops.silu_gate_bwd(d, dgu, dy, gu);
    END(DEV_ELEMENTWISE);
}

static bool bits_ok(int bits)
{
    return bits >= 2 && bits <= 8;
}

/* x [N,n] with one entry a group of w [N,C]. */
static bool grouped(const struct tensor *x, const struct tensor *w, int64_t group_size,
                    enum dtype t)
{
    return x && x->data && x->dtype == t && is_2d(x) && x->dim[0] == w->dim[0] &&
           x->dim[1] == weight_groups(w->dim[1], group_size);
}

/* Rounding offsets of w, or none. */
static bool offsets(const struct tensor *v, const struct tensor *w)
{
    return !v || (f32(v) && same_shape(v, w));
}

enum err dev_lwc(struct dev *d, const struct tensor *wq, const struct tensor *scales,
                 const struct tensor *zeros, const struct tensor *w, const struct tensor *a,
                 const struct tensor *b, const struct tensor *v, int bits,
                 int64_t group_size)
{
    BEGIN(lwc);
    WANT(f32(w) && is_2d(w) && bits_ok(bits) && group_size >= 0 && !a == !b,
         "lwc: want w F32 [N,C], 2 to 8 bits, a and b together");
    WANT(grouped(scales, w, group_size, DT_F16) && grouped(zeros, w, group_size, DT_U8),
         "lwc: want scales F16, zeros U8 [N,groups]");
    WANT(!a || (grouped(a, w, group_size, DT_F32) && grouped(b, w, group_size, DT_F32)),
         "lwc: want a, b F32 [N,groups]");
    WANT(!wq || (act(wq) && same_shape(wq, w)), "lwc: want wq [N,C]");
    WANT(offsets(v, w), "lwc: want v F32 [N,C]");
    d->ops.lwc(d, wq, scales, zeros, w, a, b, v, bits, group_size);
    END(DEV_FAKE_QUANT);
}

enum err dev_wq_apply(struct dev *d, const struct tensor *wq, const struct tensor *scales,
                      const struct tensor *zeros, const struct tensor *w,
                      const struct tensor *v, int bits, int64_t group_size)
{
    BEGIN(wq_apply);
    WANT(f32(w) && is_2d(w) && act(wq) && same_shape(wq, w) && bits_ok(bits) &&
             grouped(scales, w, group_size, DT_F16) && grouped(zeros, w, group_size, DT_U8),
         "wq_apply: want w F32, wq [N,C], scales F16, zeros U8 [N,groups]");
    WANT(offsets(v, w), "wq_apply: want v F32 [N,C]");
    d->ops.wq_apply(d, wq, scales, zeros, w, v, bits, group_size);
    END(DEV_FAKE_QUANT);
}

enum err dev_lwc_bwd(struct dev *d, const struct tensor *da, const struct tensor *db,
                     const struct tensor *dwq, const struct tensor *w,
                     const struct tensor *a, const struct tensor *b, const struct tensor *v,
                     int bits, int64_t group_size)
{
    BEGIN(lwc_bwd);
    WANT(f32(w) && is_2d(w) && f32(dwq) && same_shape(dwq, w) && bits_ok(bits) &&
             grouped(a, w, group_size, DT_F32) && grouped(b, w, group_size, DT_F32) &&
             grouped(da, w, group_size, DT_F32) && grouped(db, w, group_size, DT_F32),
         "lwc_bwd: want w, dwq F32 [N,C], a, b, da, db F32 [N,groups]");
    WANT(offsets(v, w), "lwc_bwd: want v F32 [N,C]");
    d->ops.lwc_bwd(d, da, db, dwq, w, a, b, v, bits, group_size);
    END(DEV_FAKE_QUANT);
}

enum err dev_round_step(struct dev *d, const struct tensor *v, const struct tensor *dwq,
                        const struct tensor *scales, const struct tensor *zeros,
                        const struct tensor *w, float rate, int bits, int64_t group_size)
{
    BEGIN(round_step);
    WANT(f32(w) && is_2d(w) && v && offsets(v, w) && f32(dwq) && same_shape(dwq, w) &&
             bits_ok(bits) && grouped(scales, w, group_size, DT_F16) &&
             grouped(zeros, w, group_size, DT_U8),
         "round_step: want v, dwq, w F32 [N,C], scales F16, zeros U8 [N,groups]");
    d->ops.round_step(d, v, dwq, scales, zeros, w, rate, bits, group_size);
    END(DEV_OPTIMIZER);
}

enum err dev_kvq(struct dev *d, const struct tensor *xq, const struct tensor *x,
                 const struct tensor *s, const struct tensor *delta, int bits,
                 int64_t group_size)
{
    BEGIN(kvq);
    WANT(act(x) && act(xq) && is_3d(x) && same_shape(x, xq) && rows_fit(xq) &&
             bits_ok(bits),
         "kvq: want xq, x [T,K,d], 2 to 8 bits");
    WANT(!s == !delta && (!s || (vec(s, row_width(x)) && vec(delta, row_width(x)))),
         "kvq: want s, delta [K*d] or neither");
    d->ops.kvq(d, xq, x, s, delta, bits, group_size);
    END(DEV_FAKE_QUANT);
}

enum err dev_kvq_bwd(struct dev *d, const struct tensor *dx, const struct tensor *dls,
                     const struct tensor *ddelta, const struct tensor *dxq,
                     const struct tensor *x, const struct tensor *s,
                     const struct tensor *delta, int bits, int64_t group_size,
                     bool accumulate)
{
    BEGIN(kvq_bwd);
    WANT(act(x) && act(dx) && act(dxq) && is_3d(x) && same_shape(dx, x) &&
             same_shape(dxq, x) && bits_ok(bits),
         "kvq_bwd: want dx, dxq, x [T,K,d], 2 to 8 bits");
    WANT(!s == !delta && (!s || (vec(s, row_width(x)) && vec(delta, row_width(x)))),
         "kvq_bwd: want s, delta [K*d] or neither");
    WANT(!dls == !ddelta && (!dls || (vec(dls, row_width(x)) && vec(ddelta, row_width(x)))),
         "kvq_bwd: want dls, ddelta [K*d] or neither");
    WANT(!accumulate || dx->data != dxq->data, "kvq_bwd: dx is dxq while accumulating");
    d->ops.kvq_bwd(d, dx, dls, ddelta, dxq, x, s, delta, bits, group_size, accumulate);
    END(DEV_FAKE_QUANT);
}

enum err dev_kvc(struct dev *d, const struct tensor *xq, const struct tensor *x, int bits,
                 int64_t tokens)
{
    BEGIN(kvc);
    WANT(act(x) && act(xq) && is_3d(x) && same_shape(x, xq) && rows_fit(xq) &&
             bits_ok(bits) && tokens > 0,
         "kvc: want xq, x [T,K,d], 2 to 8 bits, blocks of a token or more");
    d->ops.kvc(d, xq, x, bits, tokens);
    END(DEV_FAKE_QUANT);
}

enum err dev_kvc_bwd(struct dev *d, const struct tensor *dx, const struct tensor *dxq,
                     const struct tensor *x, int bits, int64_t tokens, bool accumulate)
{
    BEGIN(kvc_bwd);
    WANT(act(x) && act(dx) && act(dxq) && is_3d(x) && same_shape(dx, x) &&
             same_shape(dxq, x) && bits_ok(bits) && tokens > 0,
         "kvc_bwd: want dx, dxq, x [T,K,d], 2 to 8 bits, blocks of a token or more");
    WANT(!accumulate || dx->data != dxq->data, "kvc_bwd: dx is dxq while accumulating");
    d->ops.kvc_bwd(d, dx, dxq, x, bits, tokens, accumulate);
    END(DEV_FAKE_QUANT);
}

enum err dev_col_minmax(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                        const struct tensor *x)
{
    BEGIN(col_minmax);
    WANT(act(x) && (is_2d(x) || is_3d(x)) && vec(mn, row_width(x)) && vec(mx, row_width(x)),
         "col_minmax: want x [R,C], mn, mx [C]");
    d->ops.col_minmax(d, mn, mx, x);
    END(DEV_ELEMENTWISE);
}

enum err dev_exp(struct dev *d, const struct tensor *s, const struct tensor *ls)
{
    BEGIN(exp);
    WANT(f32(s) && f32(ls) && tensor_count(s) == tensor_count(ls), "exp: want s, ls [C]");
    d->ops.exp(d, s, ls);
    END(DEV_FAKE_QUANT);
}

enum err dev_loss(struct dev *d, double *loss, const struct tensor *dy,
                  const struct tensor *y, const struct tensor *t, enum loss_kind kind,
                  float weight, bool accumulate)
{
    BEGIN(loss);
    WANT(act(y) && act(t) && is_2d(y) && same_shape(y, t), "loss: want y, t [R,C]");
    WANT(!dy || (act(dy) && same_shape(dy, y) && (!accumulate || f32(dy))),
         "loss: want dy [R,C], F32 to accumulate");
    *loss = d->ops.loss(d, dy, y, t, kind, weight, accumulate);
    END(DEV_LOSS);
}

enum err dev_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                   const struct tensor *m, const struct tensor *v, const struct adamw *o)
{
    BEGIN(adamw);
    WANT(f32(p) && vec(g, tensor_count(p)) && vec(m, tensor_count(p)) &&
             vec(v, tensor_count(p)) && o->step >= 1,
         "adamw: want p, g, m, v F32 of one size, step >= 1");
    d->ops.adamw(d, p, g, m, v, o);
    END(DEV_OPTIMIZER);
}

enum err dev_all_finite(struct dev *d, bool *finite, const struct tensor *x)
{
    BEGIN(all_finite);
    WANT(act(x) && rows_fit(x), "all_finite: want an act tensor");
    *finite = d->ops.all_finite(d, x);
    END(DEV_OPTIMIZER);
}

enum err dev_cross_entropy(struct dev *d, const struct tensor *nll, const struct tensor *x,
                           const struct tensor *target)
{
    BEGIN(cross_entropy);
    WANT(act(x) && is_2d(x) && vec(nll, x->dim[0]) && target && target->dtype == DT_I32 &&
             tensor_count(target) == x->dim[0],
         "cross_entropy: want x [R,V], nll [R], target I32 [R]");
    d->ops.cross_entropy(d, nll, x, target);
    END(DEV_LOSS);
}

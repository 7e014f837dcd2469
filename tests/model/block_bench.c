/* SPDX-License-Identifier: MIT */
#include "tests/model/block_bench.h"

#include "kernels/base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct arch arch_of(int64_t heads, int64_t kv, int64_t d, int64_t D, int64_t F)
{
    return (struct arch){.n_layers = 1,
                         .n_heads = heads,
                         .n_kv = kv,
                         .head_dim = d,
                         .d_model = D,
                         .d_ff = F,
                         .vocab = 3,
                         .max_positions = 512,
                         .norm_eps = 1e-5f,
                         .rope_theta = 10000};
}

static void alloc_grads(struct bench *b)
{
    struct dev *d = b->d;
    const struct block_weights *w = &b->w;
    const int64_t n = b->f.arch.n_kv * b->f.arch.head_dim;
    b->g.dwqkv = dev_2d(d, DT_F32, w->wqkv.dim[0], w->wqkv.dim[1]);
    b->g.dwo = dev_2d(d, DT_F32, w->wo.dim[0], w->wo.dim[1]);
    b->g.dwgu = dev_2d(d, DT_F32, w->wgu.dim[0], w->wgu.dim[1]);
    b->g.dwdown = dev_2d(d, DT_F32, w->wdown.dim[0], w->wdown.dim[1]);
    struct tensor *const p[] = {&b->g.k_dls, &b->g.k_dshift, &b->g.v_dls, &b->g.v_dshift};
    for (int i = 0; i < 4 && b->quantized; i++)
        *p[i] = tensor_1d(dev_2d(d, DT_F32, 1, n).data, DT_F32, n);
}

static void draw_kv(struct bench *b, struct rng *r)
{
    const int64_t n = b->f.arch.n_kv * b->f.arch.head_dim;
    struct tensor *const p[] = {&b->kv.k_s, &b->kv.k_shift, &b->kv.v_s, &b->kv.v_shift};
    for (int i = 0; i < 4; i++) {
        float *v = draw(r, n, 0.2, i % 2 ? 0 : 1.2);
        *p[i] = tensor_1d(to_dev(b->d, v, n, DT_F32), DT_F32, n);
        mem_free(v);
    }
}

void bench_open(struct bench *b, const char *device, struct arch a, int64_t T,
                enum dtype act, const struct kv_spec *spec)
{
    *b = (struct bench){.d = open_dev(device), .T = T, .act = act, .quantized = spec};
    fixture_open(&b->f, a, 11);
    must(block_weights_alloc(&b->w, b->d, &a, act));
    must(block_weights_load(&b->w, &a, 0, &b->f.blocks[0]));
    must(block_acts_alloc(&b->acts, b->d, &a, T, act, spec));
    must(block_scratch_open(&b->scratch, b->d, &a, T, act));
    must(block_rope_alloc(&b->cos, &b->sin, b->d, &a, T));
    b->acts.cos = b->cos;
    b->acts.sin = b->sin;
    struct rng r;
    rng_seed(&r, 12);
    float *x = draw(&r, T * a.d_model, 1, 0), *dout = draw(&r, T * a.d_model, 1, 0);
    b->x = tensor_2d(to_dev(b->d, x, T * a.d_model, DT_F32), DT_F32, T, a.d_model);
    b->dout = tensor_2d(to_dev(b->d, dout, T * a.d_model, DT_F32), DT_F32, T, a.d_model);
    b->out = dev_2d(b->d, DT_F32, T, a.d_model);
    mem_free(x);
    mem_free(dout);
    if (spec) {
        b->kv.spec = *spec;
        draw_kv(b, &r);
    }
    alloc_grads(b);
}

void bench_close(struct bench *b)
{
    const struct block_grads *g = &b->g;
    const struct block_kv *kv = &b->kv;
    void *const all[] = {b->cos.data,   b->x.data,        b->out.data,   b->dout.data,
                         g->dwqkv.data, g->dwo.data,      g->dwgu.data,  g->dwdown.data,
                         g->k_dls.data, g->k_dshift.data, g->v_dls.data, g->v_dshift.data,
                         kv->k_s.data,  kv->k_shift.data, kv->v_s.data,  kv->v_shift.data};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        dev_free(b->d, all[i]);
    block_weights_free(&b->w);
    block_acts_free(&b->acts);
    block_scratch_close(&b->scratch);
    fixture_close(&b->f);
    dev_close(&b->d);
}

void forward(struct bench *b)
{
    must(block_forward(&b->acts, b->scratch, &b->f.arch, &b->w,
                       b->quantized ? &b->kv : NULL, &b->out, &b->x));
}

/* --- finite differences ------------------------------------------------------------- */

/* sum of out * dout: its gradient is what backward gives from dout. */
static double objective(struct bench *b, const float *dout)
{
    forward(b);
    float *out = to_host(b->d, &b->out);
    double sum = 0;
    for (int64_t i = 0; i < tensor_count(&b->out); i++)
        sum += (double)out[i] * (double)dout[i];
    mem_free(out);
    return sum;
}

static void upload(struct bench *b, const struct tensor *p, const float *at, const float *u,
                   float step)
{
    const int64_t n = tensor_count(p);
    float *moved = NULL;
    must(mem_alloc(&moved, (size_t)n, sizeof(*moved)));
    for (int64_t i = 0; i < n; i++)
        moved[i] = at[i] + step * u[i];
    must(dev_upload(b->d, p->data, moved, (size_t)n * sizeof(*moved)));
    mem_free(moved);
}

/* The slope of the objective along random directions of p is <gradient, direction>. Steps
 * of 2e-3 leave 4e-6 of truncation and some 1e-4 of F32 noise in sums of a few hundred
 * terms. */
static void check_slope(struct bench *b, const char *what, const struct tensor *p,
                        const struct tensor *grad, const float *dout, struct rng *r)
{
    const float step = 2e-3f;
    const int64_t n = tensor_count(p);
    float *at = to_host(b->d, p), *g = to_host(b->d, grad);
    for (int k = 0; k < 4; k++) {
        float *u = draw(r, n, 1, 0);
        double want = 0, size = 0;
        for (int64_t i = 0; i < n; i++) {
            want += (double)g[i] * (double)u[i];
            size += (double)g[i] * (double)g[i];
        }
        upload(b, p, at, u, step);
        const double up = objective(b, dout);
        upload(b, p, at, u, -step);
        const double slope = (up - objective(b, dout)) / (2 * (double)step);
        check_error(what, fabs(slope - want) / sqrt(size), 2e-3);
        mem_free(u);
    }
    upload(b, p, at, at, 0);
    mem_free(at);
    mem_free(g);
}

void check_slopes(struct arch a, int64_t T)
{
    struct bench b;
    struct rng r;
    rng_seed(&r, 13);
    bench_open(&b, "ref", a, T, DT_F32, NULL);
    float *dout = to_host(b.d, &b.dout);
    const struct tensor dx = dev_2d(b.d, DT_F32, T, a.d_model);
    forward(&b);
    must(block_backward(&b.acts, b.scratch, &a, &b.w, &dx, &b.dout));
    check_slope(&b, "dx", &b.x, &dx, dout, &r);
    forward(&b);
    must(block_backward_params(&b.acts, b.scratch, &a, &b.w, NULL, &b.g, &b.dout));
    check_slope(&b, "dwqkv", &b.w.wqkv, &b.g.dwqkv, dout, &r);
    check_slope(&b, "dwo", &b.w.wo, &b.g.dwo, dout, &r);
    check_slope(&b, "dwgu", &b.w.wgu, &b.g.dwgu, dout, &r);
    check_slope(&b, "dwdown", &b.w.wdown, &b.g.dwdown, dout, &r);
    dev_free(b.d, dx.data);
    mem_free(dout);
    bench_close(&b);
}

void same(const char *what, struct bench *x, const struct tensor *tx, struct bench *y,
          const struct tensor *ty, double bound)
{
    float *hx = to_host(x->d, tx), *hy = to_host(y->d, ty);
    check_error(what, norm_error(hx, hy, tensor_count(tx)), bound);
    mem_free(hx);
    mem_free(hy);
}

static void both_backward(struct bench *b)
{
    const struct arch *a = &b->f.arch;
    forward(b);
    if (b->quantized)
        must(
            block_backward_params(&b->acts, b->scratch, a, &b->w, &b->kv, &b->g, &b->dout));
    else
        must(block_backward(&b->acts, b->scratch, a, &b->w, &b->dout, &b->dout));
}

void compare_devices(struct arch a, int64_t T, enum dtype act, const struct kv_spec *spec,
                     double bound)
{
    struct bench x, y;
    bench_open(&x, "cpu", a, T, act, spec);
    bench_open(&y, "ref", a, T, act, spec);
    both_backward(&x);
    both_backward(&y);
    same("out", &x, &x.out, &y, &y.out, bound);
    same("dx or dh", &x, &x.dout, &y, &y.dout, bound);
    if (spec) {
        same("dwqkv", &x, &x.g.dwqkv, &y, &y.g.dwqkv, bound);
        same("dwo", &x, &x.g.dwo, &y, &y.g.dwo, bound);
        same("dwgu", &x, &x.g.dwgu, &y, &y.g.dwgu, bound);
        same("dwdown", &x, &x.g.dwdown, &y, &y.g.dwdown, bound);
        same("k_dls", &x, &x.g.k_dls, &y, &y.g.k_dls, 4 * bound);
        same("k_ddelta", &x, &x.g.k_dshift, &y, &y.g.k_dshift, 4 * bound);
        same("v_dls", &x, &x.g.v_dls, &y, &y.g.v_dls, 4 * bound);
        same("v_ddelta", &x, &x.g.v_dshift, &y, &y.g.v_dshift, 4 * bound);
    }
    bench_close(&x);
    bench_close(&y);
}

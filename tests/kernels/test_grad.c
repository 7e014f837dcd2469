/* SPDX-License-Identifier: MIT
 *
 * Every smooth backward of the reference against finite differences of its forward: with
 * L = sum r o for a random r, dL/dx_i is the five-point difference
 * (8 (L(+h) - L(-h)) - (L(+2h) - L(-2h))) / 12h, element by element.
 *
 * Step and tolerance: forward results are F32, so L carries about 2^-24 sqrt(n) ~ 1e-6 of
 * noise, which 1/h = 32 makes 5e-5; the formula's own error is h^4 / 30 of the fifth
 * derivative, 1e-7. Gradients are about 1, and 1e-3 of the largest is allowed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/rng.h"
#include "kernels/dev.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEP 0x1p-5f
#define MAX_ELEMENTS 512

static struct dev *dev;
static struct rng rng;

/* A tensor with its memory, contiguous F32. */
struct var {
    float data[MAX_ELEMENTS];
    struct tensor t;
};

static void set_dims(struct var *v, int n_dims, int64_t n0, int64_t n1, int64_t n2)
{
    v->t = n_dims == 1   ? tensor_1d(v->data, DT_F32, n0)
           : n_dims == 2 ? tensor_2d(v->data, DT_F32, n0, n1)
                         : tensor_3d(v->data, DT_F32, n0, n1, n2);
    assert_true(tensor_count(&v->t) <= MAX_ELEMENTS);
}

static void random_2d(struct var *v, int64_t n0, int64_t n1)
{
    set_dims(v, 2, n0, n1, 0);
    for (int64_t i = 0; i < n0 * n1; i++)
        v->data[i] = (float)rng_normal(&rng);
}

static void random_3d(struct var *v, int64_t n0, int64_t n1, int64_t n2)
{
    set_dims(v, 3, n0, n1, n2);
    for (int64_t i = 0; i < n0 * n1 * n2; i++)
        v->data[i] = (float)rng_normal(&rng);
}

static double weighted(const struct var *out, const struct var *r)
{
    double sum = 0;
    for (int64_t i = 0; i < tensor_count(&out->t); i++)
        sum += (double)out->data[i] * (double)r->data[i];
    return sum;
}

/* One input of an operation, its gradient as backward gives it, and L. */
static void check_gradient(const char *what, struct var *x, const struct var *dx,
                           double (*L)(void *ctx), void *ctx)
{
    const int64_t n = tensor_count(&x->t);
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)dx->data[i]));
    assert_true(largest > 0.01);
    for (int64_t i = 0; i < n; i++) {
        const float keep = x->data[i];
        double l[4];
        for (int k = 0; k < 4; k++) {
            x->data[i] = keep + STEP * (float[]){1, -1, 2, -2}[k];
            l[k] = L(ctx);
        }
        x->data[i] = keep;
        const double want = (8 * (l[0] - l[1]) - (l[2] - l[3])) / (12 * (double)STEP);
        const bool pass = fabs(want - (double)dx->data[i]) <= 1e-3 * largest;
        if (!pass)
            fail_msg("%s[%ld]: differences give %.6g, backward gives %.6g (largest %.3g)",
                     what, (long)i, want, (double)dx->data[i], largest);
    }
}

struct gemm {
    enum gemm_kind kind;
    struct var a, b, c, dc, da, db;
};

static double gemm_loss(void *ctx)
{
    struct gemm *g = ctx;
    assert_int_equal(dev_gemm(dev, g->kind, &g->c.t, &g->a.t, &g->b.t, false), OK);
    return weighted(&g->c, &g->dc);
}

/* The gradients of each kind, by the other kinds. */
static void gemm_bwd(struct gemm *g)
{
    const struct tensor *dc = &g->dc.t, *a = &g->a.t, *b = &g->b.t;
    enum err e;
    if (g->kind == GEMM_NT) { /* C = A B^T */
        e = dev_gemm(dev, GEMM_NN, &g->da.t, dc, b, false);
        assert_int_equal(dev_gemm(dev, GEMM_TN, &g->db.t, dc, a, false), OK);
    } else if (g->kind == GEMM_NN) { /* C = A B */
        e = dev_gemm(dev, GEMM_NT, &g->da.t, dc, b, false);
        assert_int_equal(dev_gemm(dev, GEMM_TN, &g->db.t, a, dc, false), OK);
    } else { /* C = A^T B */
        e = dev_gemm(dev, GEMM_NT, &g->da.t, b, dc, false);
        assert_int_equal(dev_gemm(dev, GEMM_NN, &g->db.t, a, dc, false), OK);
    }
    assert_int_equal(e, OK);
}

static void matrix_products(void **state)
{
    const int64_t M = 3, N = 4, K = 5;
    static struct gemm g;
    for (int kind = GEMM_NT; kind <= GEMM_TN; kind++) {
        g.kind = (enum gemm_kind)kind;
        const bool ta = kind == GEMM_TN, tb = kind == GEMM_NT;
        random_2d(&g.a, ta ? K : M, ta ? M : K);
        random_2d(&g.b, tb ? N : K, tb ? K : N);
        random_2d(&g.dc, M, N);
        set_dims(&g.c, 2, M, N, 0);
        set_dims(&g.da, 2, g.a.t.dim[0], g.a.t.dim[1], 0);
        set_dims(&g.db, 2, g.b.t.dim[0], g.b.t.dim[1], 0);
        gemm_bwd(&g);
        check_gradient("da", &g.a, &g.da, gemm_loss, &g);
        check_gradient("db", &g.b, &g.db, gemm_loss, &g);
    }
}

struct norm {
    struct var x, y, s, g, dy, dx;
};

static double norm_loss(void *ctx)
{
    struct norm *n = ctx;
    const struct rmsnorm_inputs in = {.x = &n->x.t, .g = &n->g.t, .eps = 1e-5f};
    assert_int_equal(dev_rmsnorm(dev, &n->y.t, &n->s.t, NULL, &in), OK);
    return weighted(&n->y, &n->dy);
}

static void check_norm(struct norm *n, int64_t rows, int64_t cols)
{
    random_2d(&n->g, 1, cols);
    n->g.t = tensor_1d(n->g.data, DT_F32, cols);
    set_dims(&n->s, 1, rows, 0, 0);
    norm_loss(n);
    const struct rmsnorm_grads grads = {.dx = &n->dx.t};
    assert_int_equal(dev_rmsnorm_bwd(dev, &grads, &n->dy.t, &n->x.t, &n->s.t, &n->g.t), OK);
    check_gradient("dx", &n->x, &n->dx, norm_loss, n);
}

static void norms(void **state)
{
    static struct norm n;
    random_2d(&n.x, 3, 7);
    random_2d(&n.dy, 3, 7);
    set_dims(&n.y, 2, 3, 7, 0);
    set_dims(&n.dx, 2, 3, 7, 0);
    check_norm(&n, 3, 7);
    random_3d(&n.x, 3, 2, 8);
    random_3d(&n.dy, 3, 2, 8);
    set_dims(&n.y, 3, 3, 2, 8);
    set_dims(&n.dx, 3, 3, 2, 8);
    check_norm(&n, 6, 8);
}

struct rope {
    struct var x, y, cos, sin, dy, dx;
    bool inverse;
};

static double rope_loss(void *ctx)
{
    struct rope *r = ctx;
    memcpy(r->y.data, r->x.data, sizeof(r->x.data));
    assert_int_equal(dev_rope(dev, &r->y.t, &r->cos.t, &r->sin.t, r->inverse), OK);
    return weighted(&r->y, &r->dy);
}

/* Of 7 channels of a head, 6 are rotated. */
static void rotations(void **state)
{
    static struct rope r;
    random_3d(&r.x, 4, 2, 7);
    random_3d(&r.dy, 4, 2, 7);
    set_dims(&r.y, 3, 4, 2, 7);
    set_dims(&r.dx, 3, 4, 2, 7);
    random_2d(&r.cos, 4, 3);
    random_2d(&r.sin, 4, 3);
    for (int i = 0; i < 12; i++) {
        r.cos.data[i] = cosf((float)i);
        r.sin.data[i] = sinf((float)i);
    }
    for (int inverse = 0; inverse < 2; inverse++) {
        r.inverse = inverse;
        memcpy(r.dx.data, r.dy.data, sizeof(r.dy.data));
        assert_int_equal(dev_rope(dev, &r.dx.t, &r.cos.t, &r.sin.t, !inverse), OK);
        check_gradient("dx", &r.x, &r.dx, rope_loss, &r);
    }
}

enum { Q, K, V, KQ, VQ, N_IN };
static const char *const in_name[N_IN] = {"dq", "dk", "dv", "dkq", "dvq"};

struct attention {
    struct var in[N_IN], d[N_IN], o, lse, dout;
    struct attn_mask mask;
    bool quantized;
};

static struct attn_inputs inputs_of(const struct attention *a)
{
    return (struct attn_inputs){.q = &a->in[Q].t,
                                .k = &a->in[K].t,
                                .v = &a->in[V].t,
                                .kq = a->quantized ? &a->in[KQ].t : NULL,
                                .vq = a->quantized ? &a->in[VQ].t : NULL,
                                .mask = &a->mask,
                                .scale = 0.4f};
}

static double attn_loss(void *ctx)
{
    struct attention *a = ctx;
    const struct attn_inputs in = inputs_of(a);
    assert_int_equal(dev_attn(dev, &a->o.t, &a->lse.t, &in), OK);
    return weighted(&a->o, &a->dout);
}

static void check_attention(struct attention *a, int64_t T, int64_t H, int64_t kv,
                            int64_t d)
{
    for (int i = 0; i < N_IN; i++) {
        random_3d(&a->in[i], T, i == Q ? H : kv, d);
        set_dims(&a->d[i], 3, T, i == Q ? H : kv, d);
    }
    random_3d(&a->dout, T, H, d);
    set_dims(&a->o, 3, T, H, d);
    set_dims(&a->lse, 2, H, T, 0);
    attn_loss(a);
    const struct attn_inputs in = inputs_of(a);
    assert_int_equal(
        dev_attn_bwd(dev,
                     &(struct attn_grads){.dq = &a->d[Q].t,
                                          .dk = &a->d[K].t,
                                          .dv = &a->d[V].t,
                                          .dkq = a->quantized ? &a->d[KQ].t : NULL,
                                          .dvq = a->quantized ? &a->d[VQ].t : NULL},
                     &a->dout.t, &a->o.t, &a->lse.t, &in),
        OK);
    /* With window 0 and no sinks, k and v have no effect: their gradients are zero. */
    const bool full = !a->quantized || a->mask.window || a->mask.sink;
    for (int i = 0; i < (a->quantized ? N_IN : KQ); i++)
        if (i == Q || i >= KQ || full)
            check_gradient(in_name[i], &a->in[i], &a->d[i], attn_loss, a);
    for (int64_t i = 0; !full && i < T * kv * d; i++)
        assert_true(a->d[K].data[i] == 0 && a->d[V].data[i] == 0);
}

static void attention_with_masks(void **state)
{
    static const struct attn_mask masks[] = {{0, 0, 0, 0}, {1, 0, 0, 0}, {3, 0, 0, 0},
                                             {1, 2, 0, 0}, {0, 1, 0, 0}, {2, 0, 1, 0},
                                             {1, 0, 0, 2}};
    static struct attention a;
    a.quantized = true;
    for (size_t i = 0; i < ARRAY_LEN(masks); i++) {
        a.mask = masks[i];
        check_attention(&a, 6, 4, 2, 4);
    }
    a.quantized = false;
    check_attention(&a, 6, 3, 1, 5);
}

struct gate {
    enum gate_act act;
    struct var gu, y, dy, dgu;
};

static double gate_loss(void *ctx)
{
    struct gate *g = ctx;
    assert_int_equal(dev_gate(dev, g->act, &g->y.t, &g->gu.t), OK);
    return weighted(&g->y, &g->dy);
}

static void gates(void **state)
{
    static struct gate g;
    random_2d(&g.gu, 4, 14);
    random_2d(&g.dy, 4, 7);
    set_dims(&g.y, 2, 4, 7, 0);
    set_dims(&g.dgu, 2, 4, 14, 0);
    for (int act = GATE_SILU; act <= GATE_GELU; act++) {
        g.act = (enum gate_act)act;
        assert_int_equal(dev_gate_bwd(dev, g.act, &g.dgu.t, &g.dy.t, &g.gu.t), OK);
        check_gradient("dgu", &g.gu, &g.dgu, gate_loss, &g);
    }
}

struct loss {
    struct var y, t, dy;
};

static double mse_loss(void *ctx)
{
    struct loss *l = ctx;
    double value = NAN;
    const struct loss_inputs in = {
        .y = &l->y.t, .t = &l->t.t, .kind = LOSS_MSE, .weight = 3.0f};
    assert_int_equal(dev_loss(dev, &value, NULL, &in), OK);
    return value;
}

static void squared_loss(void **state)
{
    static struct loss l;
    random_2d(&l.y, 3, 5);
    random_2d(&l.t, 3, 5);
    set_dims(&l.dy, 2, 3, 5, 0);
    double value = NAN;
    struct loss_inputs in = {.y = &l.y.t, .t = &l.t.t, .kind = LOSS_MSE, .weight = 3.0f};
    assert_int_equal(dev_loss(dev, &value, &l.dy.t, &in), OK);
    check_gradient("dy", &l.y, &l.dy, mse_loss, &l);
    /* Accumulation adds the same gradient once more. */
    const float once = l.dy.data[7];
    in.accumulate = true;
    assert_int_equal(dev_loss(dev, &value, &l.dy.t, &in), OK);
    assert_true(l.dy.data[7] == 2 * once);
}

static int setup(void **state)
{
    rng_seed(&rng, 11);
    return dev_open(&dev, &(struct dev_settings){"ref", 1}) != OK;
}

static int teardown(void **state)
{
    dev_close(&dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrix_products), cmocka_unit_test(norms),
        cmocka_unit_test(rotations),       cmocka_unit_test(attention_with_masks),
        cmocka_unit_test(gates),           cmocka_unit_test(squared_loss),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

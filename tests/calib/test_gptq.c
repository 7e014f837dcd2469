/* SPDX-License-Identifier: MIT
 *
 * GPTQ: codes of random layers against PyTorch's (tests/golden/gen_gptq.py; GOLDEN_GPTQ
 * names the file), and properties of the result for any layer. */
#include "calib/start/gptq.h"
#include "convert/checkpoint/safetensors.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct st_file *golden;

static const struct st_tensor *find(const char *layer, const char *key)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.%s", layer, key);
    const struct st_tensor *t = st_find(golden, name);
    if (!t)
        fail_msg("no tensor %s", name);
    return t;
}

/* One layer and what solving it on a device needs. */
struct layer {
    struct gptq_work work;
    struct gptq_input input;
    struct weight_spec spec;
    struct gptq_settings s;
    struct qlinear q;
    struct tensor w;
};

static void room(struct layer *x, struct dev *d, int64_t out, int64_t in)
{
    const int64_t wide = in > GPTQ_COLUMNS ? in : GPTQ_COLUMNS;
    x->input.n = in;
    must(mem_alloc(&x->input.h, (size_t)(in * in), sizeof(double)));
    must(mem_alloc(&x->input.order, (size_t)in, sizeof(int64_t)));
    must(mem_alloc(&x->input.dead, (size_t)in, sizeof(bool)));
    must(mem_alloc(&x->work.stage, (size_t)(out * wide), sizeof(float)));
    must(mem_alloc(&x->work.range, 2 * (size_t)out, sizeof(float)));
    x->work.dev = d;
    x->work.u = dev_2d(d, DT_F32, in, in);
    x->work.block = dev_2d(d, DT_F32, out, GPTQ_COLUMNS);
    must(qlinear_alloc(&x->q, out, in, weight_format(&x->spec, 0, 0)));
    must(qlinear_alloc_codes(&x->q));
}

static void layer_close(struct layer *x)
{
    dev_free(x->work.dev, x->work.u.data);
    dev_free(x->work.dev, x->work.block.data);
    dev_free(x->work.dev, x->w.data);
    mem_free(x->input.h);
    mem_free(x->input.order);
    mem_free(x->input.dead);
    mem_free(x->work.stage);
    mem_free(x->work.range);
    qlinear_free(&x->q);
}

/* Codes of weight w [out][in] under Hessian h [in][in]. */
static void solve(struct layer *x, struct dev *d, const float *w, const float *h,
                  int64_t out, int64_t in)
{
    float *u = NULL;
    room(x, d, out, in);
    x->w = tensor_2d(to_dev(d, w, out * in, DT_F32), DT_F32, out, in);
    for (int64_t i = 0; i < in * in; i++)
        x->input.h[i] = (double)h[i];
    must(gptq_factor(&x->input, &x->s, 1));
    must(mem_alloc(&u, (size_t)(in * in), sizeof(*u)));
    for (int64_t i = 0; i < in * in; i++)
        u[i] = (float)x->input.h[i];
    must(dev_upload(d, x->work.u.data, u, (size_t)(in * in) * sizeof(*u)));
    must(gptq_linear(&x->work, &x->q, &x->w, &x->input, &x->s));
    mem_free(u);
}

static void check_layer(struct dev *d, const char *name)
{
    struct layer x = {.s = {.damp = 0.01}};
    int64_t spec[3];
    const struct st_tensor *w = find(name, "w"), *h = find(name, "hessian");
    const struct st_tensor *codes = find(name, "codes");
    memcpy(spec, find(name, "spec")->data, sizeof(spec));
    x.spec = (struct weight_spec){WEIGHT_GPTQ, (int)spec[0], spec[1]};
    x.s.act_order = spec[2];
    const int64_t out = w->dim[0], in = w->dim[1];
    float *weight = malloc(w->bytes), *hessian = malloc(h->bytes);
    assert_true(weight && hessian);
    memcpy(weight, w->data, w->bytes);
    memcpy(hessian, h->data, h->bytes);
    solve(&x, d, weight, hessian, out, in);
    assert_memory_equal(x.q.scales, find(name, "scales")->data,
                        (size_t)(out * x.q.groups) * 2);
    assert_memory_equal(x.q.zeros, find(name, "zeros")->data, (size_t)(out * x.q.groups));
    assert_true(codes->bytes == (size_t)(out * in));
    assert_memory_equal(x.q.codes, codes->data, codes->bytes);
    free(weight);
    free(hessian);
    layer_close(&x);
}

static void test_golden(void **state)
{
    static const char *const layers[] = {"groups", "ragged", "row",
                                         "wide",   "steps",  "dead"};
    static const char *const devices[] = {"ref", "cpu"};
    for (int k = 0; k < 2; k++) {
        struct dev *d = open_dev(devices[k]);
        for (size_t i = 0; i < sizeof(layers) / sizeof(*layers); i++) {
            char name[32];
            snprintf(name, sizeof(name), "%s_plain", layers[i]);
            check_layer(d, name);
            snprintf(name, sizeof(name), "%s_order", layers[i]);
            check_layer(d, name);
        }
        dev_close(&d);
    }
}

/* trace((W - W^) H (W - W^)^T), which GPTQ minimizes. */
static double output_error(const struct qlinear *q, const float *w, const float *h,
                           int64_t group)
{
    const int64_t n = q->in;
    double sum = 0;
    float *v = malloc((size_t)(q->out * n) * sizeof(*v));
    assert_non_null(v);
    qlinear_values(v, q, NULL);
    for (int64_t r = 0; r < q->out; r++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                sum += ((double)w[r * n + i] - (double)v[r * n + i]) *
                       (double)h[i * n + j] * ((double)w[r * n + j] - (double)v[r * n + j]);
    free(v);
    return sum;
}

/* If inputs are uncorrelated, no column can correct another, and codes are the nearest. If
 * they are correlated, the output error falls. */
static void test_diagonal_and_gain(void **state)
{
    enum { OUT = 12, IN = 40, GROUP = 8 };
    struct rng r;
    struct dev *d = open_dev("cpu");
    static float diagonal[IN * IN], full[IN * IN];
    rng_seed(&r, 5);
    float *w = draw(&r, OUT * IN, 0.1, 0), *x = draw(&r, IN * IN, 1, 0.5);
    for (int i = 1; i < IN * IN; i++) /* neighbours are similar */
        x[i] += i % IN ? 0.9f * x[i - 1] : 0;
    for (int i = 0; i < IN; i++) {
        diagonal[i * IN + i] = 1 + (float)i;
        for (int j = 0; j < IN; j++)
            for (int k = 0; k < IN; k++)
                full[i * IN + j] += x[k * IN + i] * x[k * IN + j];
    }
    struct layer nearest = {.spec = {WEIGHT_GPTQ, 3, GROUP}, .s = {0, false}};
    struct layer gptq = {.spec = {WEIGHT_GPTQ, 3, GROUP}, .s = {0.01, true}};
    solve(&nearest, d, w, diagonal, OUT, IN);
    solve(&gptq, d, w, full, OUT, IN);
    for (int i = 0; i < OUT * IN; i++) {
        const int g = i / IN * (IN / GROUP) + i % IN / GROUP;
        assert_int_equal(nearest.q.codes[i],
                         quant_weight_code(w[i], f16_to_f32(nearest.q.scales[g]),
                                           nearest.q.zeros[g], 3));
    }
    const double before = output_error(&nearest.q, w, full, GROUP);
    const double after = output_error(&gptq.q, w, full, GROUP);
    print_message("output error %.3g, nearest %.3g\n", after, before);
    assert_true(after <= 0.5 * before);
    layer_close(&nearest);
    layer_close(&gptq);
    mem_free(w);
    mem_free(x);
    dev_close(&d);
}

/* The scales of the original weights (act_order) or of groups as wide as a row: those of
 * quant_weight_scale() in 3 bits, from the same weights. Zeros and codes follow them. */
static void test_scale_bits(void **state)
{
    enum { OUT = 5, IN = 40 };
    static float h[IN * IN];
    struct rng r;
    struct dev *d = open_dev("cpu");
    rng_seed(&r, 6);
    float *w = draw(&r, OUT * IN, 0.1, 0);
    for (int i = 0; i < IN; i++)
        h[i * IN + i] = 1 + (float)i;
    struct layer x = {.spec = {.method = WEIGHT_GPTQ, .bits = 4, .scale_bits = 3}};
    solve(&x, d, w, h, OUT, IN);
    for (int row = 0; row < OUT; row++) {
        float lo = 0, hi = 0;
        for (int i = 0; i < IN; i++) {
            lo = fminf(lo, w[row * IN + i]);
            hi = fmaxf(hi, w[row * IN + i]);
        }
        const uint16_t scale = quant_weight_scale(lo, hi, 4, 3);
        assert_int_equal(x.q.scales[row], scale);
        assert_int_equal(x.q.zeros[row], quant_weight_zero(lo, f16_to_f32(scale), 4));
        for (int i = 0; i < IN; i++)
            assert_int_equal(
                x.q.codes[row * IN + i],
                quant_weight_code(w[row * IN + i], f16_to_f32(scale), x.q.zeros[row], 4));
    }
    layer_close(&x);
    mem_free(w);
    dev_close(&d);
}

static void test_refused(void **state)
{
    double h[4] = {1, 4, 4, 1};
    int64_t order[2];
    bool dead[2];
    struct gptq_input x = {2, h, order, dead};
    const struct gptq_settings s = {0.01, false};
    assert_int_equal(gptq_factor(&x, &s, 1), ERR_NUMERIC);
    assert_non_null(strstr(err_text(), "weights.damp"));
    err_clear();
    h[0] = NAN;
    assert_int_equal(gptq_factor(&x, &s, 1), ERR_NUMERIC);
    assert_non_null(strstr(err_text(), "infinite or NaN"));
    err_clear();
}

enum { E = 3, ROWS = 40 };

/* x [ROWS, n] of small integers, of which F32 holds all sums of products. */
static struct tensor draw_integers(struct dev *d, struct rng *r, float *host, int64_t n)
{
    for (int64_t i = 0; i < ROWS * n; i++)
        host[i] = (float)(int64_t)rng_below(r, 7) - 3;
    return tensor_2d(to_dev(d, host, ROWS * n, DT_F32), DT_F32, ROWS, n);
}

/* h [n][n] = the products of rows first to last - 1 of x in two samples, or 1 without any. */
static void products(float *h, const float *x, int64_t n, const int64_t first[2],
                     const int64_t last[2])
{
    const bool none = first[0] == last[0] && first[1] == last[1];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            h[i * n + j] = none && i == j ? 1 : 0;
            for (int k = 0; k < 2; k++)
                for (int64_t t = first[k]; t < last[k]; t++)
                    h[i * n + j] += x[t * n + i] * x[t * n + j];
        }
}

/* Expert e's part of projection l is what GPTQ makes of it under h alone. */
static void check_expert(struct dev *d, const struct fakequant *f, const float *weight,
                         const struct calib_settings *s, int l, int64_t e, const float *h)
{
    struct layer x = {.s = s->gptq, .spec = s->weights};
    const struct qlinear *q = &f->fixed[l];
    const int64_t n = q->out / E;
    solve(&x, d, weight + e * n * q->in, h, n, q->in);
    assert_memory_equal(x.q.codes, q->codes + e * n * q->in, (size_t)(n * q->in));
    assert_memory_equal(x.q.zeros, q->zeros + e * n * q->groups, (size_t)(n * q->groups));
    assert_memory_equal(x.q.scales, q->scales + e * n * q->groups,
                        (size_t)(n * q->groups) * sizeof(*q->scales));
    layer_close(&x);
}

/* Each expert has the Hessian of its own rows; one without rows is rounded to nearest and named. */
static void test_experts(void **state)
{
    static float x[2][ROWS * 64], h[64 * 64];
    int64_t first[2][E + 1] = {{0, 25, 25, ROWS}, {0, 0, 0, ROWS}}; /* of two samples */
    struct arch a = tiny_arch(4, 1);
    struct calib_settings s = tiny_settings();
    struct fixture model;
    struct fakequant f;
    struct gptq g;
    struct block_acts acts = {0};
    struct dev *d = open_dev("cpu");
    bool unreached[ARCH_MAX_EXPERTS] = {false};
    float *weight[N_LIN];
    struct rng r;
    rng_seed(&r, 11);
    a.n_experts = E;
    s.samples = 2; /* the factor of H is 1 */
    s.weights.method = WEIGHT_GPTQ;
    s.gptq.damp = 0.01;
    fixture_open(&model, a, 47);
    must(fakequant_open(&f, d, &model.arch, &s));
    must(fakequant_load(&f, &model.blocks[0], 0));
    must(gptq_open(&g, d, &model.arch, &s));
    assert_true(a.d_model <= 64 && arch_in(&a, LIN_O) <= 64 && a.d_ff <= 64);
    acts.n1 = draw_integers(d, &r, x[0], a.d_model);
    acts.o = draw_integers(d, &r, x[0], arch_in(&a, LIN_O));
    acts.experts.x = draw_integers(d, &r, x[0], a.d_model);
    acts.m = draw_integers(d, &r, x[1], a.d_ff);
    for (int l = LIN_GATE; l <= LIN_DOWN; l++) {
        const struct tensor w = block_weights_lin(&f.master, &model.arch, l);
        weight[l] = to_host(d, &w);
    }
    must(gptq_begin(&g));
    for (int i = 0; i < 2; i++) {
        acts.experts.route.first = first[i];
        must(gptq_add(&g, &acts));
    }
    must(gptq_finish(&g, &f, unreached));
    for (int64_t e = 0; e < E; e++) {
        assert_int_equal(unreached[e], e == 1);
        for (int l = LIN_GATE; l <= LIN_DOWN; l++) {
            products(h, x[l == LIN_DOWN], arch_in(&a, l),
                     (int64_t[]){first[0][e], first[1][e]},
                     (int64_t[]){first[0][e + 1], first[1][e + 1]});
            check_expert(d, &f, weight[l], &s, l, e, h);
        }
    }
    for (int l = LIN_GATE; l <= LIN_DOWN; l++)
        mem_free(weight[l]);
    const struct tensor *const all[] = {&acts.n1, &acts.o, &acts.experts.x, &acts.m};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        dev_free(d, all[i]->data);
    gptq_close(&g);
    fakequant_close(&f);
    fixture_close(&model);
    dev_close(&d);
}

static int open_golden(void **state)
{
    const char *path = getenv("GOLDEN_GPTQ");
    return path && st_open(&golden, path) == OK ? 0 : -1;
}

static int close_golden(void **state)
{
    st_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),     cmocka_unit_test(test_diagonal_and_gain),
        cmocka_unit_test(test_scale_bits), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_experts),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}

/* SPDX-License-Identifier: MIT
 *
 * The chain of blocks: its gradients against finite differences of the loss, and the start
 * values that come from a block's own keys and values. */
#include "calib/recon.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* --- gradients ---------------------------------------------------------------------- */

struct chain {
    struct dev *dev;
    struct fixture fixture;
    struct fakequant f;
    struct recon r;
    struct tensor input, target[3]; /* [T,D] F32 */
    int64_t block;
};

static struct tensor draw_state(struct chain *c, struct rng *rng, double scale)
{
    const int64_t T = c->r.T, D = c->fixture.arch.d_model;
    float *host = draw(rng, T * D, scale, 0);
    const struct tensor x = tensor_2d(to_dev(c->dev, host, T * D, DT_F32), DT_F32, T, D);
    mem_free(host);
    return x;
}

static void chain_open(struct chain *c, int which, const struct calib_settings *s,
                       int64_t block)
{
    struct rng rng;
    rng_seed(&rng, 3);
    c->dev = open_dev("ref");
    c->block = block;
    fixture_open(&c->fixture, tiny_arch(which, 4), 21);
    must(fakequant_open(&c->f, c->dev, &c->fixture.arch, s));
    must(recon_open(&c->r, c->dev, &c->fixture.arch, s));
    must(fakequant_load(&c->f, &c->fixture.blocks[block], block));
    must(fakequant_start(&c->f, NULL, NULL, NULL, NULL, NULL));
    must(fakequant_apply(&c->f));
    c->input = draw_state(c, &rng, 1);
    for (int j = 0; j < 3; j++)
        c->target[j] = draw_state(c, &rng, 1.5);
}

static void chain_close(struct chain *c)
{
    dev_free(c->dev, c->input.data);
    for (int j = 0; j < 3; j++)
        dev_free(c->dev, c->target[j].data);
    fakequant_close(&c->f);
    recon_close(&c->r);
    fixture_close(&c->fixture);
    dev_close(&c->dev);
}

static enum err stage(void *ctx, struct tensor *t, int64_t j)
{
    *t = ((struct chain *)ctx)->target[j];
    return OK;
}

static double chain_loss(struct chain *c, bool grads)
{
    const struct recon_targets t = {c, stage, 1};
    double loss;
    must(dev_copy(c->dev, &c->r.x, &c->input));
    must(recon_loss(&c->r, &loss, &c->f, &c->fixture.source, c->block, &t, grads));
    return loss;
}

/* dL/dw of one element by central differences. ref's memory is the host's. */
static double difference(struct chain *c, const struct tensor *w, int64_t i)
{
    float *at = (float *)w->data + i;
    const float keep = *at, eps = 2e-2f;
    *at = keep + eps;
    const double up = chain_loss(c, false), top = *at;
    *at = keep - eps;
    const double down = chain_loss(c, false), bottom = *at;
    *at = keep;
    return (up - down) / (top - bottom);
}

/* The loss is smooth in the fake-quantized weights if it is the squared error and the cache
 * is unquantized, because nothing after them is rounded. Their gradient covers everything
 * from the terms of the loss to the quantized block's weights. */
static void check_weight_gradient(struct chain *c, const struct tensor *w,
                                  const struct tensor *grad)
{
    enum { PROBES = 24 };
    float want[PROBES], have[PROBES];
    const int64_t n = tensor_count(w);
    for (int64_t p = 0; p < PROBES; p++) {
        const int64_t i = p * (n - 1) / (PROBES - 1);
        have[p] = ((const float *)grad->data)[i];
        want[p] = (float)difference(c, w, i);
    }
    check_error("chain gradient", norm_error(have, want, PROBES), 3e-3);
}

static void test_chain_gradient(void **state)
{
    for (int which = 0; which < 8; which++) {
        struct chain c;
        struct calib_settings s = tiny_settings();
        s.crr_loss = LOSS_MSE;
        s.crr_blocks = 2;
        s.crr_terms = which & 1 ? TERMS_ALL : TERMS_LAST;
        s.kv.bits = 16;
        /* in the middle, and with one block after it */
        chain_open(&c, which >> 1 & 1, &s, which & 4 ? 2 : 1);
        chain_loss(&c, true);
        check_weight_gradient(&c, &c.f.wq.wqkv, &c.f.grads.dwqkv);
        check_weight_gradient(&c, &c.f.wq.wo, &c.f.grads.dwo);
        check_weight_gradient(&c, &c.f.wq.wgu, &c.f.grads.dwgu);
        check_weight_gradient(&c, &c.f.wq.wdown, &c.f.grads.dwdown);
        chain_close(&c);
    }
}

/* The loss is the same with and without gradients, and repeated runs give the same bits. */
static void test_loss_is_one_number(void **state)
{
    for (int terms = 0; terms < 2; terms++) {
        struct chain c;
        struct calib_settings s = tiny_settings();
        s.crr_blocks = 2;
        s.crr_terms = terms ? TERMS_ALL : TERMS_LAST;
        chain_open(&c, 0, &s, 1);
        const double loss = chain_loss(&c, false);
        assert_true(loss > 0 && chain_loss(&c, true) == loss);
        float *g = to_host(c.dev, &c.f.g);
        assert_true(chain_loss(&c, true) == loss);
        float *again = to_host(c.dev, &c.f.g);
        assert_memory_equal(g, again, (size_t)c.f.n * sizeof(*g));
        mem_free(g);
        mem_free(again);
        chain_close(&c);
    }
}

/* --- start values ------------------------------------------------------------------- */

/* Range of each channel of block 0's keys and values over all samples, from the model's own
 * simulation. */
static void ranges(float *mn, float *mx, const float *x, int64_t rows, int64_t C)
{
    for (int64_t c = 0; c < C; c++) {
        mn[c] = INFINITY;
        mx[c] = -INFINITY;
        for (int64_t t = 0; t < rows; t++) {
            mn[c] = fminf(mn[c], x[t * C + c]);
            mx[c] = fmaxf(mx[c], x[t * C + c]);
        }
    }
}

/* s [C] of an exponent, by its definition. */
static void smoothing(double *s, const float *mn, const float *mx, int64_t C, double alpha)
{
    double mean = 0;
    for (int64_t c = 0; c < C; c++)
        mean += alpha * log((mx[c] - mn[c]) / 2) / (double)C;
    for (int64_t c = 0; c < C; c++)
        s[c] = pow((mx[c] - mn[c]) / 2, alpha) / exp(mean);
}

/* Squared error of groups of a row that share scale and minimum. */
static double row_error(const float *x, const double *s, const float *mn, const float *mx,
                        int64_t n, int bits)
{
    float lo = INFINITY, hi = -INFINITY;
    double sum = 0;
    for (int64_t c = 0; c < n; c++) {
        const float xt = quant_kv_in(x[c], (float)s[c], (mn[c] + mx[c]) / 2);
        lo = fminf(lo, xt);
        hi = fmaxf(hi, xt);
    }
    const float h = f16_to_f32(quant_kv_scale(lo, hi, bits));
    const float m = f16_to_f32(quant_kv_min(lo));
    for (int64_t c = 0; c < n; c++) {
        const float delta = (mn[c] + mx[c]) / 2, xt = quant_kv_in(x[c], (float)s[c], delta);
        const uint8_t q = quant_kv_code(xt, h, m, bits);
        const double e = (double)quant_kv_out(q, h, m, (float)s[c], delta) - (double)x[c];
        sum += e * e;
    }
    return sum;
}

/* The exponent of 0, 1/8 .. 1 with the least error of x^. */
static double best_alpha(const float *x, int64_t rows, int64_t C, int64_t group, int bits)
{
    float mn[64] = {0}, mx[64] = {0};
    double s[64], least = INFINITY, best = 0;
    ranges(mn, mx, x, rows, C);
    for (int i = 0; i <= 8; i++) {
        double error = 0;
        smoothing(s, mn, mx, C, i / 8.0);
        for (int64_t t = 0; t < rows; t++)
            for (int64_t c = 0; c < C; c += group)
                error += row_error(x + t * C + c, s + c, mn + c, mx + c, group, bits);
        if (error < least) {
            least = error;
            best = i / 8.0;
        }
    }
    return best;
}

static void check_start(const char *what, const float *s, const float *delta,
                        const float *x, int64_t rows, int64_t C, double alpha)
{
    float mn[64] = {0}, mx[64] = {0};
    double smooth[64];
    assert_true(C <= 64);
    ranges(mn, mx, x, rows, C);
    smoothing(smooth, mn, mx, C, alpha);
    for (int64_t c = 0; c < C; c++) {
        const double width = (mx[c] - mn[c]) / 2, want = smooth[c];
        if (!(fabs(delta[c] - (mx[c] + mn[c]) / 2) <= 1e-5 * width) ||
            !(fabs(s[c] - want) <= 1e-5 * want))
            fail_msg("%s, channel %d: s %g, want %g; delta %g, want %g", what, (int)c, s[c],
                     want, delta[c], (mx[c] + mn[c]) / 2);
    }
}

/* Two bits, so that the exponents of least error differ from the paper's. */
static void check_starts(int which, enum start_values init)
{
    struct fixture f;
    struct memory_io m;
    struct calib_settings s = tiny_settings();
    int32_t tokens[64];
    s.kv_init = init;
    s.kv.bits = 2;
    fixture_open(&f, tiny_arch(which, 2), 22);
    const int64_t T = s.seqlen, C = f.arch.n_kv * f.arch.head_dim;
    float *k = NULL, *v = NULL;
    must(mem_alloc(&k, (size_t)(f.arch.n_layers * s.samples * T * C), sizeof(*k)));
    must(mem_alloc(&v, (size_t)(f.arch.n_layers * s.samples * T * C), sizeof(*v)));
    struct dev *d = open_dev("ref");
    const struct model_run run = {
        .dev = d, .arch = &f.arch, .src = &f.source, .act = DT_F32};
    tiny_tokens(tokens, &s, &f.arch);
    /* layer 0 of a sample is written to its place; layer 1 is overwritten by the next */
    for (int64_t i = 0; i < s.samples; i++)
        must(model_kv(&run, tokens + i * T, T, k + i * T * C, v + i * T * C));
    s.kv.learn = false;
    memory_io_open(&m);
    must(calib_run(d, &f.arch, &f.source, &s, tokens, 0, &m.io));
    const struct block_quant *q = &m.block[0];
    const int64_t rows = s.samples * T, group = kv_group(f.arch.head_dim, s.kv.group_size);
    double alpha[2] = {0.5, 0.5};
    if (init == INIT_SEARCH) {
        alpha[0] = best_alpha(k, rows, C, group, s.kv.bits);
        alpha[1] = best_alpha(v, rows, C, group, s.kv.bits);
        assert_true(alpha[0] != 0.5 || alpha[1] != 0.5);
    }
    check_start("keys", q->k_scale, q->k_shift, k, rows, C, alpha[0]);
    check_start("values", q->v_scale, q->v_shift, v, rows, C, alpha[1]);
    memory_io_close(&m);
    dev_close(&d);
    fixture_close(&f);
    mem_free(k);
    mem_free(v);
}

static void test_start_values(void **state)
{
    for (int which = 0; which < 2; which++) {
        check_starts(which, INIT_PAPER);
        check_starts(which, INIT_SEARCH);
    }
}

/* If all channels or one of them never change, everything stays finite and positive. */
static void test_still_channels(void **state)
{
    const float mn[] = {-1, 2, -4, 3}, mx[] = {1, 2, 4, 3}, still[] = {5, 5, 5, 5};
    struct arch a = tiny_arch(0, 1);
    struct calib_settings s = tiny_settings();
    struct fakequant f;
    struct block_quant q = {0};
    a.n_kv = 1, a.n_heads = 3, a.head_dim = 4;
    struct dev *d = open_dev("ref");
    struct fixture model;
    fixture_open(&model, a, 23);
    must(fakequant_open(&f, d, &a, &s));
    must(fakequant_load(&f, &model.blocks[0], 0));
    must(fakequant_start(&f, mn, mx, still, still, NULL));
    must(fakequant_apply(&f));
    must(fakequant_export(&f, &q));
    /* widths 1 and 4: log s = 0 and log 2, minus their mean */
    const float small = 1 / sqrtf(2), want[] = {small, small, 2 * small, small};
    for (int c = 0; c < 4; c++) {
        assert_true(fabsf(q.k_scale[c] - want[c]) <= 1e-6f);
        assert_true(q.v_scale[c] == 1 && q.v_shift[c] == 5);
    }
    assert_true(q.k_shift[1] == 2 && q.k_shift[2] == 0);
    block_quant_free(&q);
    fakequant_close(&f);
    fixture_close(&model);
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chain_gradient),
        cmocka_unit_test(test_loss_is_one_number),
        cmocka_unit_test(test_start_values),
        cmocka_unit_test(test_still_channels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

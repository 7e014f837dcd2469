/* SPDX-License-Identifier: MIT
 *
 * The backward pass against finite differences, and the estimates against explicit sums. */
#include "calib/model/model_grad.h"
#include "calib/sensitivity.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { WINDOWS = 2, T = 24 };

/* --- gradients ---------------------------------------------------------------------- */

/* dL/dW of one row and column of each projection of one block: sum_t g_to x_ti. */
struct probe {
    const struct arch *a;
    struct dev *dev;
    int64_t block, seen; /* wanted; in work */
    int64_t row, col;
    float *x[4]; /* [T][in] of the window in work */
    int64_t in[4];
    double dw[N_LIN];
};

static enum err probe_window(void *ctx, int64_t block, const struct block_acts *acts)
{
    struct probe *p = ctx;
    const struct tensor *const x[4] = {&acts->n1, &acts->o, &acts->n2, &acts->m};
    p->seen = block;
    for (int i = 0; i < 4; i++) {
        mem_free(p->x[i]);
        p->x[i] = to_host(p->dev, x[i]);
        p->in[i] = x[i]->dim[1];
    }
    return OK;
}

static void add_dw(struct probe *p, int lin, int input, const float *g, int64_t ld,
                   int64_t first)
{
    for (int64_t t = 0; t < T; t++)
        p->dw[lin] += (double)g[t * ld + first + p->row] *
                      (double)p->x[input][t * p->in[input] + p->col];
}

static enum err probe_grad(void *ctx, enum block_grad what, const struct tensor *g)
{
    struct probe *p = ctx;
    const struct arch *a = p->a;
    if (p->seen != p->block)
        return OK;
    float *host = to_host(p->dev, g);
    const int64_t ld = g->dim[1], q = arch_out(a, LIN_Q), k = arch_out(a, LIN_K);
    if (what == BLOCK_GRAD_DOWN)
        add_dw(p, LIN_DOWN, 3, host, ld, 0);
    if (what == BLOCK_GRAD_O)
        add_dw(p, LIN_O, 1, host, ld, 0);
    if (what == BLOCK_GRAD_GATE_UP) {
        add_dw(p, LIN_GATE, 2, host, ld, 0);
        add_dw(p, LIN_UP, 2, host, ld, a->d_ff);
    }
    if (what == BLOCK_GRAD_QKV) {
        add_dw(p, LIN_Q, 0, host, ld, 0);
        add_dw(p, LIN_K, 0, host, ld, q);
        add_dw(p, LIN_V, 0, host, ld, q + k);
    }
    mem_free(host);
    return OK;
}

static enum err no_block(void *ctx, int64_t block, const struct block_src *src)
{
    (void)ctx;
    (void)block;
    (void)src;
    return OK;
}

static double summed_nll(struct dev *d, const struct fixture *f, const int32_t *ids)
{
    const struct model_run r = {
        .dev = d, .arch = &f->arch, .src = &f->source, .act = DT_F32};
    float nll[WINDOWS * (T - 1)];
    double sum = 0;
    must(model_nll(&r, ids, WINDOWS, T, nll));
    for (int i = 0; i < WINDOWS * (T - 1); i++)
        sum += (double)nll[i];
    return sum;
}

/* (L(w + e) - L(w - e)) / 2e */
static double difference(struct dev *d, struct fixture *f, const int32_t *ids, float *w)
{
    const float at = *w, e = 2e-2f;
    *w = at + e;
    const double above = summed_nll(d, f, ids);
    *w = at - e;
    const double below = summed_nll(d, f, ids);
    *w = at;
    return (above - below) / (2 * (double)e);
}

static void draw_ids(int32_t *ids, const struct arch *a)
{
    struct rng r;
    rng_seed(&r, 3);
    for (int i = 0; i < WINDOWS * T; i++)
        ids[i] = (int32_t)rng_below(&r, (uint64_t)a->vocab);
}

static void check_gradients(int which)
{
    struct fixture f;
    int32_t ids[WINDOWS * T];
    double nll;
    fixture_open(&f, tiny_arch(which, 3), 21);
    struct dev *d = open_dev("cpu");
    struct probe p = {.a = &f.arch, .dev = d, .block = 1, .row = 3, .col = 5};
    const struct model_visitor v = {
        .ctx = &p, .window = probe_window, .grad = probe_grad, .block = no_block};
    draw_ids(ids, &f.arch);
    must(model_backward(&nll, d, &f.arch, &f.source,
                        &(struct model_windows){ids, WINDOWS, T}, &v));
    check_error("loss", fabs(nll * WINDOWS * (T - 1) / summed_nll(d, &f, ids) - 1), 1e-5);
    for (int l = 0; l < N_LIN; l++) {
        const struct host_mat *m = &f.blocks[1].lin[l];
        assert_int_equal(m->dtype, DT_F32);
        float *w = (float *)(uintptr_t)m->data + p.row * m->cols + p.col;
        const double want = difference(d, &f, ids, w);
        if (!(fabs(p.dw[l] - want) <= 0.02 * fabs(want) + 3e-3))
            fail_msg("%s: gradient %g, by differences %g", lin_name[l], p.dw[l], want);
    }
    for (int i = 0; i < 4; i++)
        mem_free(p.x[i]);
    dev_close(&d);
    fixture_close(&f);
}

static void test_gradients(void **state)
{
    (void)state;
    check_gradients(0);
    check_gradients(1);
    check_gradients(2);
}

/* --- estimates ---------------------------------------------------------------------- */

static const struct mix_format formats[] = {{2, 8}, {3, 8}, {4, 8}, {4, 0}, {8, 8}};
static const struct mix_format kv_formats[] = {{2, 4}, {4, 4}, {4, 8}, {8, 4}, {4, 5}};

static void measure(struct sensitivity *s, struct fixture *f, struct dev *d,
                    enum kv_method method, enum kv_rotate rotate)
{
    const struct kv_spec kv = {.method = method, .bits = 4, .rotate = rotate};
    int32_t ids[WINDOWS * T];
    draw_ids(ids, &f->arch);
    *s = (struct sensitivity){.weight_format = formats,
                              .kv_format = kv_formats,
                              .n_weight = ARRAY_LEN(formats),
                              .n_kv = ARRAY_LEN(kv_formats),
                              .scale_bits = 7,
                              .spec = kv};
    const struct model_windows text = {ids, WINDOWS, T};
    must(sensitivity_measure(s, d, &f->arch, &f->source, &text));
}

/* X and G of down in block 2. */
struct sums {
    struct dev *dev;
    int64_t block;
    float *x; /* [T][in] */
    int64_t in;
    double x2[256], g2[256], all;
};

static enum err sums_window(void *ctx, int64_t block, const struct block_acts *acts)
{
    struct sums *s = ctx;
    s->block = block;
    mem_free(s->x);
    s->x = to_host(s->dev, &acts->m);
    s->in = acts->m.dim[1];
    return OK;
}

static enum err sums_grad(void *ctx, enum block_grad what, const struct tensor *g)
{
    struct sums *s = ctx;
    if (s->block != 2 || what != BLOCK_GRAD_DOWN)
        return OK;
    float *host = to_host(s->dev, g);
    const int64_t out = g->dim[1];
    assert_true(out <= 256 && s->in <= 256);
    for (int64_t t = 0; t < T; t++)
        for (int64_t o = 0; o < out; o++) {
            const double g2 = (double)host[t * out + o] * (double)host[t * out + o];
            s->g2[o] += g2;
            s->all += g2;
            for (int64_t i = 0; i < s->in; i++)
                s->x2[i] += g2 * (double)s->x[t * s->in + i] * (double)s->x[t * s->in + i];
        }
    mem_free(host);
    return OK;
}

/* The header's formula for down of block 2 at 4 bits in groups of 8. */
static double written_out(struct fixture *f, struct dev *d)
{
    const struct host_mat *m = &f->blocks[2].lin[LIN_DOWN];
    struct sums s = {.dev = d};
    const struct model_visitor v = {
        .ctx = &s, .window = sums_window, .grad = sums_grad, .block = no_block};
    int32_t ids[WINDOWS * T];
    double nll, sum = 0;
    draw_ids(ids, &f->arch);
    must(model_backward(&nll, d, &f->arch, &f->source,
                        &(struct model_windows){ids, WINDOWS, T}, &v));
    for (int64_t o = 0; o < m->rows; o++)
        for (int64_t g = 0; g < m->cols; g += 8) {
            const float *w = (const float *)m->data + o * m->cols + g;
            const int64_t n = m->cols - g < 8 ? m->cols - g : 8;
            float lo = 0, hi = 0;
            for (int64_t i = 0; i < n; i++) {
                lo = fminf(lo, w[i]);
                hi = fmaxf(hi, w[i]);
            }
            const float h = f16_to_f32(quant_weight_scale(lo, hi, 4, 7));
            const uint8_t z = quant_weight_zero(lo, h, 4);
            for (int64_t i = 0; i < n; i++) {
                const double e = (double)w[i] - (double)quant_weight_value(
                                                    quant_weight_code(w[i], h, z, 4), z, h);
                sum += s.g2[o] * s.x2[g + i] * e * e;
            }
        }
    mem_free(s.x);
    return sum / (2.0 * WINDOWS * (T - 1) * s.all);
}

static void test_estimates(void **state)
{
    struct fixture f;
    struct sensitivity s, rotated;
    (void)state;
    fixture_open(&f, tiny_arch(0, 3), 21);
    struct dev *d = open_dev("cpu");
    measure(&s, &f, d, KV_CHANNEL_TOKEN, ROTATE_NONE);
    for (int i = 0; i < 3 * N_LIN; i++) {
        const double *e = s.weight + i * s.n_weight;
        /* one bit more divides the error by about 4; wider groups have more error */
        assert_true(e[0] > 2 * e[1] && e[1] > 2 * e[2] && e[2] > 50 * e[4] && e[4] > 0);
        assert_true(e[3] > e[2]);
    }
    for (int i = 0; i < 3 * 2; i++) {
        const double *e = s.kv + i * s.n_kv;
        assert_true(e[0] > 4 * e[1] && e[1] > 50 * e[3] && e[3] > 0 && e[2] > e[1]);
        /* groups of 5 and 3 of a head's 8 channels, none of the next head's */
        assert_true(e[4] > e[1] && e[4] < e[2]);
    }
    const double got = s.weight[(2 * N_LIN + LIN_DOWN) * s.n_weight + 2];
    check_error("down by its formula", fabs(got / written_out(&f, d) - 1), 1e-9);
    /* A rotation of keys changes the estimates of keys only. */
    measure(&rotated, &f, d, KV_CHANNEL_TOKEN, ROTATE_K);
    assert_memory_equal(s.weight, rotated.weight,
                        sizeof(double) * 3 * N_LIN * (size_t)s.n_weight);
    for (int i = 0; i < 3 * 2 * s.n_kv; i++) {
        const bool key = i / s.n_kv % 2 == KV_K;
        assert_true((s.kv[i] != rotated.kv[i]) == key);
    }
    sensitivity_free(&s);
    sensitivity_free(&rotated);
    dev_close(&d);
    fixture_close(&f);
}

/* Keys of one block, as its forward has them, and their gradients. */
struct keys {
    struct dev *dev;
    int64_t block, window;
    float *k[WINDOWS], *g[WINDOWS]; /* [T][q, k, v] */
    int64_t ld;
};

static enum err keys_window(void *ctx, int64_t block, const struct block_acts *acts)
{
    struct keys *s = ctx;
    s->block = block;
    if (block == 1)
        s->k[s->window] = to_host(s->dev, &acts->qkv);
    s->ld = acts->qkv.dim[1];
    return OK;
}

static enum err keys_grad(void *ctx, enum block_grad what, const struct tensor *g)
{
    struct keys *s = ctx;
    if (s->block == 1 && what == BLOCK_GRAD_ATTENTION)
        s->g[s->window++] = to_host(s->dev, g);
    return OK;
}

/* |g_th|^2 of the key of head h at token t. */
static double key_grad(const struct keys *s, const struct arch *a, int w, int64_t t,
                       int64_t h)
{
    const float *g = s->g[w] + t * s->ld + (a->n_heads + h) * a->head_dim;
    double sum = 0;
    for (int64_t c = 0; c < a->head_dim; c++)
        sum += (double)g[c] * (double)g[c];
    return sum;
}

/* The header's formula for keys of block 1 at 4 bits by channel, n tokens a block, with the
 * simulation's own quantizer. */
static double keys_written_out(const struct keys *s, const struct arch *a, struct dev *d,
                               int64_t n)
{
    const int64_t C = a->n_kv * a->head_dim;
    double sum = 0;
    for (int w = 0; w < WINDOWS; w++) {
        float x[T * 64], xq[T * 64];
        assert_true(C <= 64 && T % n == 0);
        for (int64_t t = 0; t < T; t++)
            memcpy(x + t * C, s->k[w] + t * s->ld + a->n_heads * a->head_dim,
                   (size_t)C * sizeof(*x));
        const struct tensor from = tensor_3d(x, DT_F32, T, a->n_kv, a->head_dim);
        const struct tensor to = tensor_3d(xq, DT_F32, T, a->n_kv, a->head_dim);
        must(dev_fake_quant_kv_channel(d, &to, &from, 4, n));
        for (int64_t t = 0; t < T; t++)
            for (int64_t c = 0; c < C; c++) {
                const double e = (double)x[t * C + c] - (double)xq[t * C + c];
                sum += key_grad(s, a, w, t, c / a->head_dim) * e * e;
            }
    }
    return sum / (2.0 * WINDOWS * (T - 1) * (double)a->head_dim);
}

/* kv.method: channel groups keys by tokens and values by channels. */
static void test_keys_by_channel(void **state)
{
    struct fixture f;
    struct sensitivity s, by_token;
    double nll;
    int32_t ids[WINDOWS * T];
    (void)state;
    fixture_open(&f, tiny_arch(0, 3), 21);
    struct dev *d = open_dev("cpu");
    struct keys k = {.dev = d};
    const struct model_visitor v = {
        .ctx = &k, .window = keys_window, .grad = keys_grad, .block = no_block};
    measure(&s, &f, d, KV_CHANNEL, ROTATE_NONE);
    measure(&by_token, &f, d, KV_TOKEN, ROTATE_NONE);
    for (int i = 0; i < 3 * 2 * s.n_kv; i++) {
        const bool key = i / s.n_kv % 2 == KV_K;
        assert_true(s.kv[i] > 0 && (s.kv[i] != by_token.kv[i]) == key);
    }
    draw_ids(ids, &f.arch);
    must(model_backward(&nll, d, &f.arch, &f.source,
                        &(struct model_windows){ids, WINDOWS, T}, &v));
    assert_int_equal(k.window, WINDOWS);
    const double got = s.kv[2 * s.n_kv + 1], want = keys_written_out(&k, &f.arch, d, 4);
    check_error("keys by channel by their formula", fabs(got / want - 1), 1e-9);
    for (int w = 0; w < WINDOWS; w++) {
        mem_free(k.k[w]);
        mem_free(k.g[w]);
    }
    sensitivity_free(&s);
    sensitivity_free(&by_token);
    dev_close(&d);
    fixture_close(&f);
}

static bool at_once(void *ctx)
{
    ++*(int *)ctx;
    return true;
}

static void test_stop(void **state)
{
    struct fixture f;
    int asked = 0;
    int32_t ids[WINDOWS * T];
    const struct kv_spec kv = {.bits = 4};
    struct sensitivity s = {.weight_format = formats,
                            .kv_format = kv_formats,
                            .n_weight = 1,
                            .n_kv = 1,
                            .spec = kv,
                            .stop = at_once,
                            .stop_ctx = &asked};
    const struct model_windows text = {ids, WINDOWS, T};
    (void)state;
    fixture_open(&f, tiny_arch(0, 2), 2);
    struct dev *d = open_dev("cpu");
    draw_ids(ids, &f.arch);
    assert_int_equal(sensitivity_measure(&s, d, &f.arch, &f.source, &text), ERR_STOPPED);
    assert_int_equal(asked, 1);
    sensitivity_free(&s);
    dev_close(&d);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_estimates),
        cmocka_unit_test(test_keys_by_channel),
        cmocka_unit_test(test_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

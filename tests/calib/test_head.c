/* SPDX-License-Identifier: MIT
 *
 * The quantized embedding and head: their scales, the source that has them, and where
 * calibration uses them. */
#include "calib/model/ends.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/clip.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { COLS = 30, GROUP = 8 };

static double squared_error(const float *w, int64_t n, float h, uint8_t z, int bits)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const double e = (double)w[i] - (double)quant_weight_value(
                                            quant_weight_code(w[i], h, z, bits), z, h);
        sum += e * e;
    }
    return sum;
}

/* The error under a pair of clipping factors. */
static double error_under(const float *w, int64_t n, struct lin_format f, float gamma,
                          float beta)
{
    float lo = 0, hi = 0;
    for (int64_t i = 0; i < n; i++) {
        lo = fminf(lo, w[i]);
        hi = fmaxf(hi, w[i]);
    }
    const uint16_t scale = quant_weight_scale(beta * lo, gamma * hi, f.bits, f.scale_bits);
    const float h = f16_to_f32(scale);
    return squared_error(w, n, h, quant_weight_zero(beta * lo, h, f.bits), f.bits);
}

/* No pair of equal factors does better than what is found, within the rounding of its F32
 * sums; few bits are clipped, many are not. */
static void test_scales(void **state)
{
    struct rng r;
    int clipped[9] = {0};
    rng_seed(&r, 31);
    for (int round = 0; round < 400; round++) {
        const struct lin_format f = {2 + round % 7, 0, round % 3 ? 0 : 7};
        const int64_t n = 1 + (int64_t)rng_below(&r, 60);
        float *w = draw(&r, n, 0.1, 0);
        const struct clip_group group = {.w = w, .n = n, .format = f};
        uint16_t scale;
        uint8_t z;
        clip_scale(&scale, &z, &group);
        const double found = squared_error(w, n, f16_to_f32(scale), z, f.bits);
        for (int i = 0; i < 12; i++) {
            const float x = 1.0f - 0.05f * (float)i;
            assert_true(found <= 1.00001 * error_under(w, n, f, x, x));
        }
        assert_true(quant_scale_fits(scale, f.scale_bits));
        clipped[f.bits] += found < error_under(w, n, f, 1, 1);
        mem_free(w);
    }
    assert_true(clipped[2] > 40 && clipped[8] < 10);
}

/* Scales and values of every group, ragged and whole rows, are those of clip_scale(), with
 * any number of threads. */
static void test_matrix(void **state)
{
    static const int64_t groups[] = {GROUP, 0, 100};
    enum { ROWS = 200 };
    struct rng r;
    struct pool *p = NULL;
    rng_seed(&r, 32);
    float *w = draw(&r, ROWS * COLS, 1, 0);
    const struct host_mat m = {w, DT_F32, ROWS, COLS, "embedding"};
    must(pool_open(&p, 3));
    for (size_t i = 0; i < ARRAY_LEN(groups); i++) {
        const struct lin_format f = {4, groups[i], 7};
        const int64_t step = groups[i] && groups[i] < COLS ? groups[i] : COLS;
        struct qlinear q = {0}, alone = {0};
        struct host_mat v;
        must(ends_quantize(&q, p, &m, f));
        must(ends_quantize(&alone, NULL, &m, f));
        must(ends_values(&v, p, &m, f));
        assert_memory_equal(q.scales, alone.scales, 2 * (size_t)(q.out * q.groups));
        assert_memory_equal(q.zeros, alone.zeros, (size_t)(q.out * q.groups));
        for (int64_t at = 0; at < ROWS * COLS; at++) {
            const int64_t row = at / COLS, c = at % COLS, g = c / step;
            const int64_t left = COLS - g * step;
            const struct clip_group group = {w + row * COLS + g * step, NULL,
                                             left < step ? left : step, f};
            uint16_t scale;
            uint8_t z;
            clip_scale(&scale, &z, &group);
            assert_int_equal(q.scales[row * q.groups + g], scale);
            assert_int_equal(q.zeros[row * q.groups + g], z);
            const float h = f16_to_f32(scale);
            assert_true(((const float *)v.data)[at] ==
                        quant_weight_value(quant_weight_code(w[at], h, z, 4), z, h));
        }
        ends_free(&v, &m);
        qlinear_free(&q);
        qlinear_free(&alone);
    }
    pool_close(&p);
    w[777] = NAN;
    struct qlinear q = {0};
    assert_int_equal(ends_quantize(&q, NULL, &m, (struct lin_format){4, 8}), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "embedding: row 25 holds a value"));
    assert_null(q.scales);
    err_clear();
    mem_free(w);
}

/* A source of quantized ends has the blocks of the other one; at 16 bits it is the same. */
static void test_source(void **state)
{
    struct fixture f;
    struct ends_source s;
    struct host_mat embed, norm, head, values;
    struct block_src have, want;
    struct weight_spec w = {.head_bits = 4, .head_group = 5};
    fixture_open(&f, tiny_arch(0, 2), 33);
    must(ends_source_open(&s, &f.source, head_format(&w), 2));
    must(s.source.ends(s.source.ctx, &embed, &norm, &head));
    must(ends_values(&values, NULL, &f.embed, head_format(&w)));
    assert_memory_equal(embed.data, values.data,
                        (size_t)(embed.rows * embed.cols) * sizeof(float));
    assert_ptr_equal(norm.data, f.final_norm.data);
    assert_int_equal(head.data == embed.data, f.head.data == f.embed.data);
    must(s.source.block(s.source.ctx, 1, &have));
    must(f.source.block(f.source.ctx, 1, &want));
    assert_memory_equal(&have, &want, sizeof(have));
    ends_free(&values, &f.embed);
    ends_source_close(&s);
    w.head_bits = 16;
    must(ends_source_open(&s, &f.source, head_format(&w), 2));
    must(s.source.ends(s.source.ctx, &embed, &norm, &head));
    assert_ptr_equal(embed.data, f.embed.data);
    assert_ptr_equal(head.data, f.head.data);
    ends_source_close(&s);
    fixture_close(&f);
}

/* The quantized stream starts at the quantized embedding, the target at the full one: GPTQ of
 * the first block sees the same inputs as in a model whose embedding has these values, but
 * another target. */
static void test_calibration(void **state)
{
    struct fixture f, g;
    struct memory_io full, head, both;
    struct calib_settings s = tiny_settings();
    s.weights.method = WEIGHT_GPTQ;
    s.gptq.damp = 0.01;
    s.epochs = 0;
    fixture_open(&f, tiny_arch(0, 2), 34);
    fixture_open(&g, tiny_arch(0, 2), 34);
    calibrate("cpu", &full, &f, &s);
    s.weights.head_bits = 3;
    s.weights.head_group = 5;
    calibrate("cpu", &head, &f, &s);
    must(ends_values(&g.embed, NULL, &f.embed, head_format(&s.weights)));
    s.weights.head_bits = 16;
    calibrate("cpu", &both, &g, &s);
    const struct qlinear *a = &full.block[0].lin[LIN_Q], *b = &head.block[0].lin[LIN_Q],
                         *c = &both.block[0].lin[LIN_Q];
    const size_t n = (size_t)(a->out * a->in);
    assert_true(memcmp(a->codes, b->codes, n) != 0);
    assert_memory_equal(b->codes, c->codes, n);
    assert_true(head.stats[0].start_loss > both.stats[0].start_loss);
    ends_free(&g.embed, &f.embed);
    memory_io_close(&full);
    memory_io_close(&head);
    memory_io_close(&both);
    fixture_close(&f);
    fixture_close(&g);
}

static void test_stopped_and_resumed(void **state)
{
    struct fixture f;
    struct memory_io whole, parts;
    struct calib_settings s = tiny_settings();
    s.weights.head_bits = 4;
    fixture_open(&f, tiny_arch(1, 3), 35);
    calibrate("cpu", &whole, &f, &s);
    stop_and_go(&parts, &f, &s, 7);
    assert_true(same_result(&parts, &whole));
    memory_io_close(&whole);
    memory_io_close(&parts);
    s.weights.head_bits = 9;
    memory_io_open(&parts);
    assert_int_equal(run_on("cpu", &parts, &f, &s), ERR_USAGE);
    assert_non_null(strstr(err_text(), "head.bits is 9"));
    err_clear();
    memory_io_close(&parts);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_matrix),
        cmocka_unit_test(test_source),
        cmocka_unit_test(test_calibration),
        cmocka_unit_test(test_stopped_and_resumed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

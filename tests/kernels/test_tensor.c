/* SPDX-License-Identifier: MIT
 *
 * Views, group counts, host conversions, and the quantizer on values worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/half.h"
#include "kernels/base/pool.h"
#include "kernels/tensor/host_finite.h"
#include "kernels/tensor/qtensor.h"
#include "kernels/tensor/quant.h"
#include "kernels/tensor/tensor.h"

#include <math.h>
#include <string.h>

static void views(void **state)
{
    float data[24];
    const struct tensor x = tensor_2d(data, DT_F32, 4, 6);
    const struct tensor c = tensor_cols(x, 2, 3);
    assert_ptr_equal(c.data, data + 2);
    assert_true(c.dim[0] == 4 && c.dim[1] == 3 && c.ld == 6);
    const struct tensor r = tensor_rows(c, 1, 2);
    assert_ptr_equal(r.data, data + 8);
    assert_true(r.dim[0] == 2 && r.ld == 6);
    const struct tensor h = tensor_heads(x, 3);
    assert_true(h.n_dims == 3 && h.dim[1] == 3 && h.dim[2] == 2 && h.ld == 6);
    assert_true(tensor_count(&h) == 24);
    const struct tensor v = tensor_rows(tensor_1d(data, DT_F32, 24), 5, 2);
    assert_ptr_equal(v.data, data + 5);
    assert_true(dtype_bytes(DT_BF16) == 2 && dtype_bytes(DT_OTHER) == 0);
    assert_string_equal(dtype_name(DT_F16), "F16");
}

static void groups(void **state)
{
    assert_true(weight_groups(128, 128) == 1 && weight_groups(129, 128) == 2);
    assert_true(weight_groups(100, 0) == 1 && weight_groups(5, 1) == 5);
    assert_true(kv_group(64, 128) == 64 && kv_group(64, 0) == 64 && kv_group(64, 16) == 16);
    struct qlinear q = {0};
    assert_int_equal(qlinear_alloc(&q, 3, 100, (struct lin_format){4, 32}), OK);
    assert_true(q.out == 3 && q.in == 100 && q.groups == 4);
    qlinear_free(&q);
    qlinear_free(&q);
    struct block_quant b = {0};
    assert_int_equal(block_quant_alloc(&b, 5), OK);
    assert_true(b.k_scale[4] == 1 && b.v_shift[4] == 0 && b.lin[LIN_Q].scales == NULL);
    block_quant_free(&b);
    block_quant_free(&b);
}

static void host_conversions(void **state)
{
    /* One byte off alignment. */
    uint8_t raw[13] = {0};
    const uint16_t half[] = {f16_from_f32(1.5f), f16_from_f32(-2.0f),
                             f16_from_f32(0x1p-24f)};
    memcpy(raw + 1, half, sizeof(half));
    float f[3];
    host_to_f32(f, raw + 1, DT_F16, 3);
    assert_true(f[0] == 1.5f && f[1] == -2.0f && f[2] == 0x1p-24f);
    uint16_t b[3];
    host_to_bf16(b, raw + 1, DT_F16, 3);
    assert_int_equal(b[1], bf16_from_f32(-2.0f));
    const float in[] = {0x1.01p0f, 3.0f, -0.0f}; /* the first is a tie: to even */
    memcpy(raw + 1, in, sizeof(in));
    host_to_bf16(b, raw + 1, DT_F32, 3);
    assert_true(b[0] == 0x3f80 && b[1] == 0x4040 && b[2] == 0x8000);
    host_to_f32(f, b, DT_BF16, 3);
    assert_true(f[0] == 1 && f[1] == 3);
}

/* Every F16 value, at an odd address: the loop's own widening is that of kernels/base/half.h. */
static void halves_to_bf16(void **state)
{
    static uint8_t raw[2 * 65536 + 1];
    static uint16_t b[65536];
    for (int i = 0; i < 65536; i++)
        memcpy(raw + 1 + 2 * i, &(uint16_t){(uint16_t)i}, 2);
    host_to_bf16(b, raw + 1, DT_F16, 65536);
    for (int i = 0; i < 65536; i++)
        assert_int_equal(b[i], bf16_from_f32(f16_to_f32((uint16_t)i)));
}

/* 4 bits, weights from -1 to 2: h = 0.2 in fp16, z = 5. */
static void weights_by_hand(void **state)
{
    const uint16_t scale = quant_weight_scale(-1, 2, 4, 0);
    const float h = f16_to_f32(scale);
    assert_int_equal(scale, 0x3266); /* 0.199951 */
    assert_int_equal(quant_weight_zero(-1, h, 4), 5);
    assert_int_equal(quant_weight_code(2, h, 5, 4), 15);
    assert_int_equal(quant_weight_code(0, h, 5, 4), 5);
    assert_int_equal(quant_weight_code(-1, h, 5, 4), 0);
    assert_int_equal(quant_weight_code(9, h, 5, 4), 15);
    assert_int_equal(quant_weight_code(-9, h, 5, 4), 0);
    assert_true(quant_weight_value(5, 5, h) == 0);
    assert_true(quant_weight_value(7, 5, h) == 2 * h);
    /* Ties to even: 0.5 h is 0, 1.5 h is 2. */
    assert_int_equal(quant_weight_code(0.5f, 1, 0, 4), 0);
    assert_int_equal(quant_weight_code(1.5f, 1, 0, 4), 2);
    assert_int_equal(quant_weight_code(2.5f, 1, 0, 4), 2);
}

/* The definition by real numbers: x in units of its last kept bit, to nearest even, and at
 * most the largest finite number of so many bits. */
static double rounded(double x, int significant)
{
    const double unit = fmax(ldexp(1, ilogb(x) - significant + 1), 0x1p-24);
    const double most = 65536 - ldexp(1, 16 - significant), y = rint(x / unit) * unit;
    return y < most ? y : most;
}

/* Over all positive fp16 numbers. 7 bits are exact in bf16, and times any zero of 4 bits in
 * fp16, as long as the product is finite. */
static void scales_rounded(void **state)
{
    for (uint16_t h = 1; h < 0x7c00; h++)
        for (int significant = 0; significant <= 11; significant++) {
            const uint16_t r = quant_scale_round(h, significant);
            const float x = f16_to_f32(h), y = f16_to_f32(r);
            const int kept = significant ? significant : 11;
            assert_true((double)y == rounded((double)x, kept));
            assert_true(y > 0 && isfinite(y));
            assert_true(quant_scale_fits(r, significant));
            assert_int_equal(quant_scale_fits(h, significant), r == h);
            if (significant != 7)
                continue;
            assert_true(bf16_to_f32(bf16_from_f32(y)) == y);
            for (int z = 0; z <= 15 && (float)z * y <= QUANT_SCALE_MAX; z++)
                assert_true(f16_to_f32(f16_from_f32((float)z * y)) == (float)z * y);
        }
    assert_int_equal(quant_scale_round(0x3c08, 7), 0x3c00); /* ties: to even */
    assert_int_equal(quant_scale_round(0x3c18, 7), 0x3c20);
    assert_int_equal(quant_scale_round(0x3ff8, 7), 0x4000); /* a carry */
    /* The scale is rounded before z follows from it. */
    assert_int_equal(quant_weight_scale(-1, 2, 4, 7), 0x3260);
}

static void degenerate_groups(void **state)
{
    const uint16_t zero = quant_weight_scale(0, 0, 4, 11);
    assert_int_equal(zero, 1); /* 2^-24 */
    assert_int_equal(quant_weight_zero(0, f16_to_f32(zero), 4), 0);
    assert_int_equal(quant_weight_code(0, f16_to_f32(zero), 0, 4), 0);
    assert_int_equal(quant_weight_scale(-1e9f, 1e9f, 2, 11), 0x7bff); /* 65504 */
    assert_int_equal(quant_weight_scale(-1e9f, 1e9f, 2, 7), 0x7bf0);  /* 65024 */
    assert_int_equal(quant_weight_scale(0, 0, 4, 1), 1);
    assert_int_equal(quant_kv_scale(3, 3, 4), 0);
    assert_int_equal(quant_kv_code(3, 0, 3, 4), 0);
    assert_int_equal(quant_kv_scale(-1e9f, 1e9f, 2), 0x7bff);
    assert_int_equal(quant_kv_min(-1e9f), 0xfbff);
    assert_int_equal(quant_kv_min(1e9f), 0x7bff);
}

/* x~ in [-1, 2] at 2 bits: h = 1, m = -1; s = 2, shift = 10. */
static void kv_by_hand(void **state)
{
    assert_true(quant_kv_in(14, 2, 10) == 2);
    const float h = f16_to_f32(quant_kv_scale(-1, 2, 2)), m = f16_to_f32(quant_kv_min(-1));
    assert_true(h == 1 && m == -1);
    assert_int_equal(quant_kv_code(2, h, m, 2), 3);
    assert_int_equal(quant_kv_code(-0.4f, h, m, 2), 1);
    assert_int_equal(quant_kv_code(7, h, m, 2), 3);
    assert_true(quant_kv_out(3, h, m, 2, 10) == 14);
    assert_true(quant_kv_out(0, h, m, 2, 10) == 8);
}

/* Every code is defined, whatever the activation or weight: NaN gives 0, infinities the ends. */
static void codes_of_nonfinite(void **state)
{
    for (int bits = QUANT_BITS_MIN; bits <= QUANT_BITS_MAX; bits++) {
        const int Q = (1 << bits) - 1;
        assert_int_equal(quant_kv_code(NAN, 1, 0, bits), 0);
        assert_int_equal(quant_kv_code(INFINITY, 1, 0, bits), Q);
        assert_int_equal(quant_kv_code(-INFINITY, 1, 0, bits), 0);
        assert_int_equal(quant_kv_code(1, NAN, 0, bits), 0);
        assert_int_equal(quant_weight_code(NAN, 1, 1, bits), 0);
        assert_int_equal(quant_weight_code(INFINITY, 1, 0, bits), Q);
        assert_int_equal(quant_weight_code_offset(NAN, 0, 1, 1, bits), 0);
        assert_int_equal(quant_weight_zero(NAN, 1, bits), 0);
        assert_int_equal(quant_kv_code(-0.0f, 1, 0, bits), 0);
        assert_int_equal(quant_kv_code(0x1p-149f, 1, 0, bits), 0);
    }
}

/* Chosen codes survive the conversion to values and back, at every fp16 scale: the
 * smallest, those with all bits set, the largest. 3 columns a group, the last group
 * ragged. */
static void codes_through_values(void **state)
{
    enum { OUT = 64, IN = 256, GROUP = 3 };
    static float w[OUT * IN], alone[OUT * IN];
    struct pool *pool = NULL;
    struct qlinear q = {0};
    assert_int_equal(qlinear_alloc(&q, OUT, IN, (struct lin_format){8, GROUP}), OK);
    assert_int_equal(qlinear_alloc_codes(&q), OK);
    for (int i = 0; i < OUT * (int)q.groups; i++) {
        q.scales[i] = (uint16_t)(1 + i * 5 % 0x7bff);
        q.zeros[i] = (uint8_t)(i * 37);
    }
    for (int i = 0; i < OUT * IN; i++)
        q.codes[i] = (uint8_t)(i * 101);
    assert_int_equal(pool_open(&pool, 3), OK);
    qlinear_values(w, &q, pool);
    qlinear_values(alone, &q, NULL);
    pool_close(&pool);
    assert_memory_equal(w, alone, sizeof(w));
    for (int r = 0; r < OUT; r++)
        for (int c = 0; c < IN; c++) {
            const int64_t g = r * q.groups + c / GROUP;
            const uint8_t code = q.codes[r * IN + c];
            const float h = f16_to_f32(q.scales[g]), of = w[r * IN + c];
            assert_true(of == quant_weight_value(code, q.zeros[g], h));
            assert_int_equal(quant_weight_code(of, h, q.zeros[g], 8), code);
        }
    qlinear_free(&q);
    assert_null(q.codes);
}

/* Every place of a vector longer than the piece that is searched at a time, at odd addresses; the
 * largest finite value is not found. */
static void nonfinite(void **state)
{
    enum { N = 4096 + 40 };
    static uint8_t room[4 * N + 1];
    static const struct {
        enum dtype t;
        uint32_t largest, bad[3]; /* NaN, infinity, minus infinity */
    } of[] = {{DT_F32, 0x7f7fffff, {0x7f800001, 0x7f800000, 0xff800000}},
              {DT_F16, 0x7bff, {0x7e01, 0x7c00, 0xfc00}},
              {DT_BF16, 0x7f7f, {0x7fc0, 0x7f80, 0xff80}}};
    static const int place[] = {0, 1, 4095, 4096, N - 1};
    for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
        const size_t unit = dtype_bytes(of[i].t);
        uint8_t *x = room + 1;
        for (int k = 0; k < N; k++)
            memcpy(x + (size_t)k * unit, &of[i].largest, unit);
        assert_int_equal(host_find_nonfinite(x, of[i].t, N), -1);
        assert_int_equal(host_check_finite("t", x, of[i].t, N, 8), OK);
        for (int k = 0; k < 15; k++) {
            uint8_t *at = x + (size_t)place[k % 5] * unit;
            memcpy(at, &of[i].bad[k / 5], unit);
            assert_int_equal(host_find_nonfinite(x, of[i].t, N), place[k % 5]);
            memcpy(at, &of[i].largest, unit);
        }
        memcpy(x + 13 * unit, &of[i].bad[1], unit);
        assert_int_equal(host_check_finite("t", x, of[i].t, N, 8), ERR_FORMAT);
        assert_string_equal(err_text(),
                            "tensor t: row 1, column 5 is inf, want a finite number");
        err_clear();
        assert_int_equal(host_check_finite("t", x, of[i].t, N, 1), ERR_FORMAT);
        assert_string_equal(err_text(),
                            "tensor t: element 13 is inf, want a finite number");
        err_clear();
    }
    assert_int_equal(host_find_nonfinite(room, DT_U8, N), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(views),
        cmocka_unit_test(groups),
        cmocka_unit_test(host_conversions),
        cmocka_unit_test(halves_to_bf16),
        cmocka_unit_test(nonfinite),
        cmocka_unit_test(weights_by_hand),
        cmocka_unit_test(scales_rounded),
        cmocka_unit_test(degenerate_groups),
        cmocka_unit_test(kv_by_hand),
        cmocka_unit_test(codes_of_nonfinite),
        cmocka_unit_test(codes_through_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

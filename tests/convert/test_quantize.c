/* SPDX-License-Identifier: MIT
 *
 * Packing codes, and rows of weights to codes, against their one-line definitions. */
#include "convert/artifact/quantize.h"
#include "convert/format/bitpack.h"
#include "kernels/base/rng.h"
#include "kernels/tensor/quant.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define N_MAX 300

/* Bit k of code i is bit i * bits + k of the stream. */
static void test_bitpack(void **state)
{
    struct rng r;
    rng_seed(&r, 1);
    for (int bits = 1; bits <= 8; bits++)
        for (int64_t n = 0; n < 70; n++) {
            uint8_t codes[72], back[72], packed[80], want[80] = {0};
            const int64_t bytes = bitpack_bytes(n, bits);
            assert_int_equal(bytes, (n * bits + 7) / 8);
            for (int64_t i = 0; i < n; i++) {
                codes[i] = (uint8_t)rng_below(&r, 1u << bits);
                for (int k = 0; k < bits; k++)
                    want[(i * bits + k) / 8] |=
                        (uint8_t)((codes[i] >> k & 1) << (i * bits + k) % 8);
            }
            memset(packed, 0xaa, sizeof(packed));
            memset(back, 0xaa, sizeof(back));
            bitpack_row(packed, codes, n, bits);
            assert_memory_equal(packed, want, (size_t)bytes);
            assert_int_equal(packed[bytes], 0xaa);
            uint8_t *last = packed + sizeof(packed) - bytes; /* nothing follows the row */
            memmove(last, packed, (size_t)bytes);
            bitpack_unpack_row(back, last, n, bits);
            assert_memory_equal(back, codes, (size_t)n);
            assert_int_equal(back[n], 0xaa);
        }
    uint8_t two[1];
    bitpack_row(two, (const uint8_t[]){3, 12}, 2, 4);
    assert_int_equal(two[0], 0xc3); /* low nibble: even column */
}

/* Random weights, some of them on rounding ties and some far outside the group's range. */
static void fill(float *w, int64_t n, float h, struct rng *r)
{
    for (int64_t i = 0; i < n; i++)
        switch (rng_below(r, 6)) {
        case 0:
            w[i] = ((float)(int)rng_below(r, 40) - 20 + 0.5f) * h;
            break;
        case 1:
            w[i] = (float)rng_normal(r) * 1e30f;
            break;
        case 2:
            w[i] = (float)rng_normal(r) * 1e-38f;
            break;
        default:
            w[i] = (float)rng_normal(r) * 8 * h;
        }
}

static void test_codes(void **state)
{
    struct rng r;
    rng_seed(&r, 2);
    for (int round = 0; round < 2000; round++) {
        const int bits = 2 + (int)rng_below(&r, 7);
        const int64_t n = 1 + (int64_t)rng_below(&r, N_MAX),
                      group = (int64_t)rng_below(&r, 140);
        const int64_t step = group ? group : n;
        uint16_t scales[N_MAX];
        uint8_t zeros[N_MAX], codes[N_MAX + 1];
        float w[N_MAX];
        for (int64_t g = 0; g < N_MAX; g++) {
            /* any positive finite fp16, subnormals too */
            scales[g] = (uint16_t)(rng_below(&r, 4) ? 0x2000 + rng_below(&r, 0x1000)
                                                    : 1 + rng_below(&r, 0x7bff));
            zeros[g] = (uint8_t)rng_below(&r, 1u << bits);
        }
        fill(w, n, f16_to_f32(scales[0]), &r);
        codes[n] = 0xaa;
        assert_true(quant_row_codes(codes, w, scales, zeros, n, bits, group));
        assert_int_equal(codes[n], 0xaa);
        for (int64_t i = 0; i < n; i++)
            assert_int_equal(codes[i], quant_weight_code(w[i], f16_to_f32(scales[i / step]),
                                                         zeros[i / step], bits));
    }
}

static void test_rtn(void **state)
{
    struct rng r;
    rng_seed(&r, 3);
    for (int round = 0; round < 2000; round++) {
        const int bits = 2 + (int)rng_below(&r, 7);
        const int64_t n = 1 + (int64_t)rng_below(&r, N_MAX),
                      group = (int64_t)rng_below(&r, 140);
        const int64_t step = group ? group : n;
        const struct lin_format f = {bits, group, (int)rng_below(&r, 12)};
        uint16_t scales[N_MAX];
        uint8_t zeros[N_MAX];
        float w[N_MAX];
        fill(w, n, 0.125f, &r);
        assert_true(quant_row_rtn(scales, zeros, w, n, f));
        for (int64_t begin = 0, g = 0; begin < n; begin += step, g++) {
            float lo = 0, hi = 0;
            for (int64_t i = begin; i < n && i < begin + step; i++) {
                lo = fminf(lo, w[i]);
                hi = fmaxf(hi, w[i]);
            }
            assert_int_equal(scales[g], quant_weight_scale(lo, hi, bits, f.scale_bits));
            assert_int_equal(zeros[g], quant_weight_zero(lo, f16_to_f32(scales[g]), bits));
        }
    }
}

static void test_not_finite(void **state)
{
    static const float bad[] = {INFINITY, -INFINITY, NAN};
    uint16_t scales[2] = {0x3c00, 0x3c00};
    uint8_t zeros[2] = {0}, codes[64];
    for (size_t b = 0; b < ARRAY_LEN(bad); b++)
        for (int i = 0; i < 40; i++) {
            float w[40] = {0};
            w[i] = bad[b];
            assert_false(quant_row_codes(codes, w, scales, zeros, 40, 4, 32));
            assert_false(quant_row_rtn(scales, zeros, w, 40, (struct lin_format){4, 32}));
            scales[0] = scales[1] = 0x3c00;
        }
}

/* A whole projection through the public entry, threads or not. */
static void test_block(void **state)
{
    enum { ROWS = 37, COLS = 70 };
    static float w[ROWS * COLS];
    static uint8_t codes[ROWS * COLS];
    struct rng r;
    rng_seed(&r, 4);
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = (float)rng_normal(&r);
    const struct weight_spec spec = {WEIGHT_RTN, 4, 32};
    const struct kv_spec kv = {.bits = 4};
    const struct arch a = {.n_kv = 1, .head_dim = 4};
    struct block_src src = {0};
    for (int l = 0; l < N_LIN; l++)
        src.lin[l] = (struct host_mat){w, DT_F32, ROWS, COLS, "w"};
    struct block_quant one, two;
    struct pool *pool = NULL;
    assert_int_equal(pool_open(&pool, 3), OK);
    assert_int_equal(quant_block_rtn(&one, &a, &src, 0, &spec, &kv), OK);
    assert_int_equal(quant_block_rtn_on(pool, &two, &a, &src, 0, &spec, &kv), OK);
    for (int l = 0; l < N_LIN; l++) {
        assert_int_equal(one.lin[l].groups, 3);
        assert_memory_equal(one.lin[l].scales, two.lin[l].scales, ROWS * 3 * 2);
        assert_memory_equal(one.lin[l].zeros, two.lin[l].zeros, ROWS * 3);
    }
    const struct qlinear *q = &one.lin[0];
    for (int i = 0; i < ROWS; i++)
        assert_true(quant_row_codes(codes + i * COLS, w + i * COLS, q->scales + 3 * i,
                                    q->zeros + 3 * i, COLS, 4, 32));
    for (int i = 0; i < ROWS * COLS; i++) {
        const int g = i / COLS * 3 + i % COLS / 32;
        const float h = f16_to_f32(one.lin[0].scales[g]);
        assert_int_equal(codes[i], quant_weight_code(w[i], h, one.lin[0].zeros[g], 4));
        const float off =
            fabsf(quant_weight_value(codes[i], one.lin[0].zeros[g], h) - w[i]);
        assert_true(off <= 1.01f * h); /* half a step, and as much for the rounded zero */
    }
    w[5 * COLS] = NAN;
    err_clear();
    struct block_quant broken = {0};
    assert_int_equal(quant_block_rtn(&broken, &a, &src, 0, &spec, &kv), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "row 5"));
    err_clear();
    block_quant_free(&one);
    block_quant_free(&two);
    pool_close(&pool);
}

/* The loop that reads checkpoints agrees with the scalar definition for all fp16 and bf16. */
static void test_widen(void **state)
{
    static uint16_t all[65536];
    static float wide[65536];
    for (int i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    host_to_f32(wide, all, DT_F16, 65536);
    for (int i = 0; i < 65536; i++)
        assert_int_equal(f32_bits(wide[i]), f32_bits(f16_to_f32((uint16_t)i)));
    host_to_f32(wide, all, DT_BF16, 65536);
    for (int i = 0; i < 65536; i++)
        assert_int_equal(f32_bits(wide[i]), (uint32_t)i << 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widen),      cmocka_unit_test(test_bitpack),
        cmocka_unit_test(test_codes),      cmocka_unit_test(test_rtn),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

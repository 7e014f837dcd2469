/* SPDX-License-Identifier: MIT
 *
 * Calibration of a mixture of experts: those that no token reaches, and what it needs. */
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Returns true if the scales and zeros of expert e are the same in both blocks. */
static bool same_expert(const struct block_quant *x, const struct block_quant *y,
                        int64_t experts, int64_t e)
{
    bool same = true;
    for (int l = LIN_GATE; l <= LIN_DOWN; l++) {
        const struct qlinear *p = &x->lin[l], *q = &y->lin[l];
        const int64_t n = p->out / experts * p->groups;
        same = same && !memcmp(p->scales + e * n, q->scales + e * n, (size_t)n * 2);
        same = same && !memcmp(p->zeros + e * n, q->zeros + e * n, (size_t)n);
    }
    return same;
}

/* Returns true if all codes of expert e are the nearest to the weights. */
static bool nearest_codes(const struct block_quant *b, const struct block_src *src,
                          int64_t experts, int64_t e)
{
    bool same = true;
    for (int l = LIN_GATE; l <= LIN_DOWN; l++) {
        const struct qlinear *q = &b->lin[l];
        const int64_t n = q->out / experts;
        assert_non_null(q->codes);
        for (int64_t r = e * n; r < (e + 1) * n; r++)
            for (int64_t c = 0; c < q->in; c++) {
                const int64_t g = r * q->groups + c / q->format.group_size;
                float w;
                host_to_f32(&w,
                            (const char *)host_mat_row(&src->lin[l], r) +
                                (size_t)c * dtype_bytes(src->lin[l].dtype),
                            src->lin[l].dtype, 1);
                same = same && q->codes[r * q->in + c] ==
                                   quant_weight_code(w, f16_to_f32(q->scales[g]),
                                                     q->zeros[g], q->format.bits);
            }
    }
    return same;
}

/* Routers of experts 2 and 3 are those of 0 and 1, so that each is as probable as the other; the
 * lower number has precedence. Experts that no token reaches are named, and those alone are as
 * rounding to nearest leaves them. */
static void test_unreached_experts(void **state)
{
    struct fixture f;
    struct memory_io m, nearest;
    struct calib_settings s = tiny_settings();
    struct arch a = tiny_arch(4, 2);
    a.n_experts = 4;
    a.n_active = 1;
    fixture_open(&f, a, 7);
    for (int64_t i = 0; i < a.n_layers; i++) {
        float *row = (float *)(uintptr_t)f.blocks[i].router.data;
        memcpy(row + 2 * a.d_model, row, 2 * (size_t)a.d_model * sizeof(*row));
    }
    s.epochs = 6;
    calibrate("ref", &m, &f, &s);
    s.weights.method = WEIGHT_RTN;
    calibrate("ref", &nearest, &f, &s);
    for (int64_t i = 0; i < a.n_layers; i++)
        for (int64_t e = 0; e < a.n_experts; e++) {
            assert_int_equal(m.stats[i].unreached[e], e >= 2);
            assert_false(nearest.stats[i].unreached[e]);
            assert_int_equal(same_expert(&m.block[i], &nearest.block[i], a.n_experts, e),
                             e >= 2);
        }
    memory_io_close(&m);
    s.weights.method = WEIGHT_GPTQ;
    s.gptq.damp = 0.01;
    calibrate("ref", &m, &f, &s);
    for (int64_t i = 0; i < a.n_layers; i++)
        for (int64_t e = 0; e < a.n_experts; e++)
            assert_int_equal(m.stats[i].unreached[e], e >= 2);
    for (int64_t e = 0; e < a.n_experts; e++)
        assert_int_equal(same_expert(&m.block[0], &nearest.block[0], a.n_experts, e),
                         e >= 2);
    memory_io_close(&m);
    /* As start values of a training without steps they name none, and the codes of such experts
     * are the nearest under the clipping of the start. */
    s.weights.round = ROUND_LEARNED;
    s.epochs = 0;
    calibrate("ref", &m, &f, &s);
    for (int64_t e = 0; e < a.n_experts; e++) {
        assert_false(m.stats[0].unreached[e]);
        assert_int_equal(nearest_codes(&m.block[0], &f.blocks[0], a.n_experts, e), e >= 2);
    }
    memory_io_close(&m);
    s.weights.round = ROUND_NEAREST;
    /* Without a step nothing says which ones tokens reach, and all keep their start values. */
    s.weights.method = WEIGHT_LWC;
    s.epochs = 0;
    calibrate("ref", &m, &f, &s);
    for (int64_t e = 0; e < a.n_experts; e++) {
        assert_false(m.stats[0].unreached[e]);
        assert_false(same_expert(&m.block[0], &nearest.block[0], a.n_experts, e));
    }
    memory_io_close(&m);
    memory_io_close(&nearest);
    fixture_close(&f);
}

/* Qwen3-30B-A3B: memory is that of all experts, work that of a token's. */
static void test_plan(void **state)
{
    struct arch a = {.family = ARCH_QWEN3_MOE,
                     .n_layers = 48,
                     .d_model = 2048,
                     .d_ff = 768,
                     .n_experts = 128,
                     .n_active = 8,
                     .n_heads = 32,
                     .n_kv = 4,
                     .head_dim = 128,
                     .vocab = 151936,
                     .max_positions = 40960,
                     .qk_norm = QK_NORM_HEAD};
    struct calib_settings s = tiny_settings();
    struct calib_plan all, few;
    const double attention = 2048.0 * 128 * (32 + 2 * 4 + 32), expert = 3.0 * 768 * 2048;
    s.seqlen = 2048, s.act = DT_BF16, s.crr_blocks = 0;
    assert_true((double)arch_block_params(&a) == attention + 128 * expert);
    assert_true((double)arch_token_params(&a) == attention + 8 * expert);
    must(calib_plan(&all, &a, &s));
    a.n_experts = 8;
    must(calib_plan(&few, &a, &s));
    assert_true(all.flops_per_step == few.flops_per_step);
    /* a master in F32, and the block in BF16 as it is quantized */
    const double more = (double)all.weights_bytes - (double)few.weights_bytes;
    assert_true(more >= 6 * 120 * expert && more <= 8.1 * 120 * expert);
    assert_true((double)all.params_bytes - (double)few.params_bytes >= 4 * 120 * expert);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_unreached_experts),
                                       cmocka_unit_test(test_plan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

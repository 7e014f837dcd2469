/* SPDX-License-Identifier: MIT
 *
 * A block's backward against finite differences of its forward (ref), and the cpu device
 * against ref, forward and backward, in both act types. test_block_golden.c compares what
 * rounding makes non-smooth with PyTorch. */
#include "kernels/base/mem.h"
#include "kernels/dev_engine.h"
#include "tests/model/block_bench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* --- finite differences ------------------------------------------------------------- */

static void slopes(void **state)
{
    struct arch a = arch_of(4, 2, 4, 12, 20); /* H*d differs from D */
    check_slopes(a, 7);
    a.qkv_bias = a.o_bias = true;
    check_slopes(a, 5);
    a.qk_norm = QK_NORM_HEAD;
    a.qkv_bias = false;
    check_slopes(a, 9);
    a.mlp_bias = true;
    check_slopes(a, 6);
    a.residual_scale = 0.3;
    a.attn_scale = 0.7;
    check_slopes(a, 6);
    a.sliding_window = 3;
    layer_set_add(&a.sliding, 0);
    check_slopes(a, 9);
    layer_set_add(&a.no_rope, 0);
    check_slopes(a, 7);
    a.norms = NORMS_BEHIND;
    check_slopes(a, 6);
    a.qk_norm = QK_NORM_ALL;
    check_slopes(a, 6);
    check_slopes(arch_of(1, 1, 2, 3, 1), 1);
}

static void backward_in_place(void **state)
{
    struct bench b;
    const struct arch a = arch_of(4, 2, 4, 12, 20);
    bench_open(&b, "ref", a, 6, DT_F32, NULL);
    const struct tensor dx = dev_2d(b.d, DT_F32, 6, a.d_model);
    forward(&b);
    must(block_backward(&b.acts, b.scratch, &a, &b.w, &dx, &b.dout));
    forward(&b);
    must(block_backward(&b.acts, b.scratch, &a, &b.w, &b.dout, &b.dout));
    float *beside = to_host(b.d, &dx), *over = to_host(b.d, &b.dout);
    assert_memory_equal(beside, over, (size_t)tensor_count(&dx) * sizeof(*over));
    mem_free(beside);
    mem_free(over);
    dev_free(b.d, dx.data);
    bench_close(&b);
}

static enum err ignore(void *ctx, enum block_grad what, const struct tensor *g)
{
    return OK;
}

/* A watched backward converts the gradient of the residual stream for each product. Otherwise the
 * norm before the MLP writes the second of these operands: the same bits. */
static void watched_backward(void **state)
{
    static const struct block_watch watch = {.grad = ignore};
    static const double scales[] = {1, 0.3};
    for (size_t i = 0; i < 2 * ARRAY_LEN(scales); i++) {
        struct bench b;
        struct arch a = arch_of(4, 2, 4, 12, 20);
        a.residual_scale = scales[i / 2];
        bench_open(&b, "cpu", a, 6, i % 2 ? DT_BF16 : DT_F32, NULL);
        const struct tensor dx = dev_2d(b.d, DT_F32, 6, a.d_model);
        forward(&b);
        must(block_backward(&b.acts, b.scratch, &a, &b.w, &dx, &b.dout));
        forward(&b);
        must(
            block_backward_watched(&b.acts, b.scratch, &a, &b.w, &b.dout, &b.dout, &watch));
        float *alone = to_host(b.d, &dx), *watched = to_host(b.d, &b.dout);
        assert_memory_equal(alone, watched, (size_t)tensor_count(&dx) * sizeof(*alone));
        mem_free(alone);
        mem_free(watched);
        dev_free(b.d, dx.data);
        bench_close(&b);
    }
}

/* --- cpu against ref ---------------------------------------------------------------- */

static void compare_kinds(enum dtype act, double bound)
{
    struct arch a = arch_of(6, 2, 16, 40, 72);
    struct kv_spec spec = {.method = KV_CHANNEL_TOKEN,
                           .bits = 8,
                           .group_size = 8,
                           .past_only = true,
                           .window = 3,
                           .sink = 2};
    compare_devices(a, 37, act, NULL, bound);
    compare_devices(a, 37, act, &spec, bound);
    struct kv_spec blocks = spec;
    blocks.method = KV_CHANNEL;
    compare_devices(a, 37, act, &blocks, bound);
    struct mix *mixed[2];
    must(mix_parse(&mixed[0], MIX_KV, "k=16, v=8:4", ERR_USAGE, "test"));
    must(mix_parse(&mixed[1], MIX_KV, "k=8:16, v=16", ERR_USAGE, "test"));
    for (int i = 0; i < 2; i++) {
        spec.mixed = blocks.mixed = mixed[i];
        compare_devices(a, 37, act, &spec, bound);
        compare_devices(a, 37, act, &blocks, bound);
    }
    spec.mixed = NULL;
    a.qkv_bias = a.o_bias = a.mlp_bias = true;
    a.qk_norm = QK_NORM_HEAD;
    spec.rotate = ROTATE_K;
    compare_devices(a, 19, act, &spec, bound);
    a.residual_scale = 0.22;
    a.attn_scale = 0.0625;
    a.sliding_window = 5;
    layer_set_add(&a.sliding, 0);
    compare_devices(a, 70, act, &spec, bound);
    layer_set_add(&a.no_rope, 0);
    spec.rotate = ROTATE_NONE;
    spec.key_stage = KEY_PRE_ROPE;
    spec.past_only = false;
    compare_devices(a, 21, act, NULL, bound);
    compare_devices(a, 21, act, &spec, bound);
    for (int i = 0; i < 2; i++) {
        spec.mixed = mixed[i];
        compare_devices(a, 21, act, &spec, bound);
        mix_free(mixed[i]);
    }
    spec.mixed = NULL;
    a.norms = NORMS_BEHIND;
    compare_devices(a, 22, act, &spec, bound);
    a.qk_norm = QK_NORM_ALL;
    compare_devices(a, 22, act, NULL, bound);
    compare_devices(a, 22, act, &spec, bound);
}

static void cpu_is_ref_in_f32(void **state)
{
    compare_kinds(DT_F32, 1e-4);
}

static void cpu_is_ref_in_bf16(void **state)
{
    compare_kinds(DT_BF16, 2e-2);
}

/* --- another engine's cache ---------------------------------------------------------- */

/* Keys and values that attention reads are those of the operation, with llama.cpp's order of
 * channels where its graph of the family has it, and a token's own are among them. */
static void engine_cache(void **state)
{
    (void)state;
    for (int family = ARCH_LLAMA; family <= ARCH_QWEN2; family++)
        for (int target = TARGET_Q4_0; target <= TARGET_Q4_1; target++) {
            struct arch a = arch_of(2, 1, 64, 40, 72);
            struct bench b;
            float own[6 * 64];
            const struct kv_spec spec = kv_target_spec((enum kv_target)target);
            a.family = (enum arch_family)family;
            bench_open(&b, "ref", a, 6, DT_F32, &spec);
            forward(&b);
            for (int side = KV_K; side <= KV_V; side++) {
                const struct tensor x = side == KV_K ? block_keys(&b.acts, &a, &spec)
                                                     : block_values(&b.acts, &a);
                const struct tensor in = tensor_heads(x, 1),
                                    to = tensor_3d(own, DT_F32, 6, 1, 64);
                const struct engine_quant p = {.x = &in,
                                               .target = spec.target,
                                               .side = (enum kv_side)side,
                                               .interleaved =
                                                   side == KV_K && family != ARCH_QWEN2};
                must(dev_fake_quant_engine(b.d, &to, &p));
                float *have = to_host(b.d, side == KV_K ? &b.acts.kq : &b.acts.vq);
                assert_memory_equal(have, own, sizeof(own));
                mem_free(have);
            }
            /* The first token sees itself only: its output is its value in the cache. */
            float *o = to_host(b.d, &b.acts.o);
            check_error("first token", norm_error(o, own, 64), 1e-6);
            mem_free(o);
            bench_close(&b);
        }
}

/* --- rotated keys ------------------------------------------------------------------- */

/* In full precision the output and every gradient stay the same; at 8 bits they stay
 * close. */
static void rotated_keys(void **state)
{
    struct arch a = arch_of(4, 2, 16, 40, 56);
    a.qk_norm = QK_NORM_HEAD;
    struct kv_spec spec = {.method = KV_CHANNEL_TOKEN, .bits = 16, .rotate = ROTATE_K};
    spec.past_only = true;
    spec.window = 1;
    for (int bits = 16; bits >= 8; bits -= 8) {
        struct bench plain, rotated;
        const double bound = bits == 16 ? 1e-5 : 0.1;
        bench_open(&plain, "ref", a, 13, DT_F32, NULL);
        spec.bits = bits;
        bench_open(&rotated, "ref", a, 13, DT_F32, &spec);
        struct bench *const both[] = {&plain, &rotated};
        for (int i = 0; i < 2; i++) {
            forward(both[i]);
            must(block_backward_params(&both[i]->acts, both[i]->scratch, &a, &both[i]->w,
                                       i ? &rotated.kv : NULL, &both[i]->g,
                                       &both[i]->dout));
        }
        same("out", &plain, &plain.out, &rotated, &rotated.out, bound);
        same("dwqkv", &plain, &plain.g.dwqkv, &rotated, &rotated.g.dwqkv, bound);
        same("dwo", &plain, &plain.g.dwo, &rotated, &rotated.g.dwo, bound);
        bench_close(&plain);
        bench_close(&rotated);
    }
}

/* --- misuse ------------------------------------------------------------------------- */

static int most_values(struct bench *b, const struct tensor *x)
{
    const int64_t rows = x->dim[0], n = x->dim[1];
    float *v = to_host(b->d, x);
    int most = 0;
    for (int64_t r = 0; r < rows; r++) {
        int distinct = 0;
        for (int64_t i = 0; i < n; i++) {
            int64_t j = 0;
            while (v[r * n + j] != v[r * n + i])
                j++;
            distinct += i == j;
        }
        most = distinct > most ? distinct : most;
    }
    mem_free(v);
    return most;
}

/* Inputs of 2 bits have 4 values a token, and o itself is unchanged. With one token, a
 * weight's gradient is the product of a column and its input, so it has 4 values a row
 * too. */
static void rounded_inputs(void **state)
{
    for (int64_t T = 1; T < 5; T += 3) {
        struct bench b;
        bench_open(&b, T == 1 ? "ref" : "cpu", arch_of(4, 2, 8, 40, 56), T, DT_F32, NULL);
        b.quantized = true;
        b.kv = (struct block_kv){.spec = {.bits = 16}, .act_bits = 2};
        forward(&b);
        const struct tensor *const in[] = {&b.acts.n1, &b.acts.n2, &b.acts.m};
        for (int i = 0; i < 3; i++)
            assert_true(most_values(&b, in[i]) <= 4);
        assert_true(most_values(&b, &b.acts.o) > 4);
        must(block_backward_params(&b.acts, b.scratch, &b.f.arch, &b.w, &b.kv, &b.g,
                                   &b.dout));
        const struct tensor *const dw[] = {&b.g.dwqkv, &b.g.dwo, &b.g.dwgu, &b.g.dwdown};
        for (int i = 0; i < 4; i++)
            assert_true((most_values(&b, dw[i]) <= 4) == (T == 1));
        bench_close(&b);
    }
}

/* Straight through: with many bits the gradients are nearly those of full precision. */
static void rounded_inputs_pass_gradients(void **state)
{
    struct bench b[2];
    for (int i = 0; i < 2; i++) {
        bench_open(&b[i], "cpu", arch_of(4, 2, 8, 40, 56), 9, DT_F32, NULL);
        b[i].quantized = true;
        b[i].kv = (struct block_kv){.spec = {.bits = 16}, .act_bits = i ? 8 : 0};
        forward(&b[i]);
        must(block_backward_params(&b[i].acts, b[i].scratch, &b[i].f.arch, &b[i].w,
                                   &b[i].kv, &b[i].g, &b[i].dout));
    }
    const struct tensor *const x[] = {&b[0].g.dwqkv, &b[0].g.dwo, &b[0].g.dwgu,
                                      &b[0].g.dwdown, &b[0].out};
    const struct tensor *const y[] = {&b[1].g.dwqkv, &b[1].g.dwo, &b[1].g.dwgu,
                                      &b[1].g.dwdown, &b[1].out};
    for (int i = 0; i < 5; i++) {
        float *full = to_host(b[0].d, x[i]), *rounded = to_host(b[1].d, y[i]);
        const double e = norm_error(rounded, full, tensor_count(x[i]));
        assert_true(e > 0);
        check_error("8 bits", e, 0.05);
        mem_free(full);
        mem_free(rounded);
    }
    bench_close(&b[0]);
    bench_close(&b[1]);
}

static void wrong_weights_are_named(void **state)
{
    struct bench b;
    const struct arch a = arch_of(4, 2, 4, 12, 20);
    bench_open(&b, "ref", a, 3, DT_F32, NULL);
    struct block_src src = b.f.blocks[0];
    src.lin[LIN_UP].rows = 21;
    assert_int_equal(block_weights_load(&b.w, &a, 0, &src), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "mlp.up_proj: shape [21, 12], want [20, 12]"));
    err_clear();
    src = b.f.blocks[0];
    src.norm[GAIN_MLP].data = NULL;
    assert_int_equal(block_weights_load(&b.w, &a, 0, &src), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "post_attention_layernorm: tensor is missing"));
    err_clear();
    b.kv.spec = (struct kv_spec){.bits = 4, .group_size = 4};
    assert_int_equal(block_forward(&b.acts, b.scratch, &a, &b.w, &b.kv, &b.out, &b.x),
                     ERR_SHAPE);
    err_clear();
    bench_close(&b);
}

static void sizes_are_told(void **state)
{
    const struct arch a = arch_of(4, 2, 4, 12, 20);
    const size_t params = (size_t)arch_block_params(&a);
    assert_true(block_weights_bytes(&a, DT_F32) >= 4 * params);
    assert_true(block_weights_bytes(&a, DT_F32) < 4 * params + 2048);
    assert_true(block_acts_bytes(&a, 9, DT_F32, true) >
                block_acts_bytes(&a, 9, DT_F32, false));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slopes),
        cmocka_unit_test(backward_in_place),
        cmocka_unit_test(watched_backward),
        cmocka_unit_test(cpu_is_ref_in_f32),
        cmocka_unit_test(cpu_is_ref_in_bf16),
        cmocka_unit_test(engine_cache),
        cmocka_unit_test(rotated_keys),
        cmocka_unit_test(rounded_inputs),
        cmocka_unit_test(rounded_inputs_pass_gradients),
        cmocka_unit_test(wrong_weights_are_named),
        cmocka_unit_test(sizes_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

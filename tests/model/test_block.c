/* SPDX-License-Identifier: MIT
 *
 * A block's backward against finite differences of its forward (ref), and the cpu device
 * against ref, forward and backward, in both act types. test_block_golden.c compares what
 * rounding makes non-smooth with PyTorch. */
#include "kernels/base/mem.h"
#include "kernels/dev_engine.h"
#include "tests/model/model_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* One block with everything it needs on a device. */
struct bench {
    struct dev *d;
    struct fixture f;
    int64_t T;
    enum dtype act;
    struct block_weights w;
    struct block_kv kv;
    bool quantized;
    struct block_acts acts;
    struct block_scratch *scratch;
    struct tensor cos, sin, x, out, dout;
    struct block_grads g;
};

static struct arch arch_of(int64_t heads, int64_t kv, int64_t d, int64_t D, int64_t F)
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

/* spec NULL: full precision. The same seed gives the same values on every device. */
static void bench_open(struct bench *b, const char *device, struct arch a, int64_t T,
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

static void bench_close(struct bench *b)
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

static void forward(struct bench *b)
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

static void check_slopes(struct arch a, int64_t T)
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

/* --- cpu against ref ---------------------------------------------------------------- */

static void same(const char *what, struct bench *x, const struct tensor *tx,
                 struct bench *y, const struct tensor *ty, double bound)
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

/* 8 bits, so that a code that differs by one because its input rounds differently is a
 * small change. */
static void compare_devices(struct arch a, int64_t T, enum dtype act,
                            const struct kv_spec *spec, double bound)
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

/* SPDX-License-Identifier: MIT
 *
 * The plan's bytes and flops, and the parts of a measured step. */
#include "calib/cost.h"
#include "calib/refine/refine.h"
#include "kernels/attn_memory.h"
#include "kernels/base/mem.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void test_streams_of_the_plan_are_those_of_the_run(void **state)
{
    for (int which = 0; which < 4; which++) {
        struct fixture f;
        struct memory_io m;
        struct calib_plan p;
        struct calib_settings s = tiny_settings();
        int32_t tokens[64];
        fixture_open(&f, tiny_arch(0, 3), 31);
        s.crr_terms = which & 1 ? TERMS_ALL : TERMS_LAST;
        s.crr_blocks = which & 2 ? 5 : 0;
        s.epochs = 1;
        must(calib_plan(&p, &f.arch, &s));
        const size_t one = (size_t)(s.samples * s.seqlen * f.arch.d_model) * sizeof(float);
        assert_int_equal(p.stream_bytes, (size_t)p.n_streams * one);
        /* the budget that just holds the streams, and one byte less */
        for (int short_of = 0; short_of < 2; short_of++) {
            struct dev *d = open_dev("cpu");
            s.memory_bytes = p.stream_bytes - (size_t)short_of;
            must(calib_plan(&p, &f.arch, &s));
            assert_int_equal(p.streams, short_of ? STREAM_DISK : STREAM_MEMORY);
            memory_io_open(&m);
            tiny_tokens(tokens, &s, &f.arch);
            must(calib_run(d, &f.arch, &f.source, &s, tokens, 0, &m.io));
            assert_int_equal(m.n_streams, p.n_streams);
            assert_int_equal(m.n_on_disk, short_of ? p.n_streams : 0);
            memory_io_close(&m);
            dev_close(&d);
        }
        fixture_close(&f);
    }
}

/* A rotation of values makes v_proj with its bias and o_proj of a block anew. */
static void test_memory_of_rotated_values(void **state)
{
    struct calib_settings s = tiny_settings();
    const struct arch a = tiny_arch(1, 6);
    struct calib_plan plain, rotated;
    (void)state;
    must(calib_plan(&plain, &a, &s));
    s.kv.rotate = ROTATE_K;
    must(calib_plan(&rotated, &a, &s));
    assert_int_equal(rotated.host_bytes, plain.host_bytes);
    s.kv.rotate = ROTATE_K | ROTATE_V;
    must(calib_plan(&rotated, &a, &s));
    assert_int_equal(rotated.host_bytes - plain.host_bytes,
                     (16 * (24 + 1) + 24 * 64) * sizeof(float));
}

/* A quantized embedding is made once in F32, beside the streams. */
static void test_memory_of_a_quantized_embedding(void **state)
{
    struct calib_settings s = tiny_settings();
    const struct arch a = tiny_arch(1, 6);
    struct calib_plan plain, quantized;
    (void)state;
    must(calib_plan(&plain, &a, &s));
    s.weights.head_bits = 8;
    must(calib_plan(&quantized, &a, &s));
    assert_int_equal(plain.host_bytes, 0);
    assert_int_equal(quantized.host_bytes, a.vocab * a.d_model * 4);
    assert_int_equal(quantized.weights_bytes, plain.weights_bytes);
}

/* Given weights: values in F32, scales of 2 bytes and zeros of 1 in the layer that has most, and
 * one projection's codes. What stays in full precision has values only. */
static void test_memory_of_given_weights(void **state)
{
    struct calib_settings s = tiny_settings();
    const struct arch a = tiny_arch(0, 6); /* D = 24, F = 40, Q = 32, K = 16 */
    struct calib_plan own, given;
    (void)state;
    must(calib_plan(&own, &a, &s));
    s.weights.method = WEIGHT_GIVEN;
    must(calib_plan(&given, &a, &s));
    const int64_t groups = (32 + 2 * 16) * 2 + 24 * 2 + 2 * 40 * 2 + 24 * 3;
    assert_int_equal(own.host_bytes, 0);
    assert_int_equal(given.host_bytes,
                     block_weights_bytes(&a, DT_F32) + 40 * 24 + 3 * (size_t)groups);
    struct mix *mixed = NULL;
    must(mix_parse(&mixed, MIX_WEIGHTS,
                   "2.q_proj=4:8, gate_proj=16, up_proj=16, down_proj=16", ERR_USAGE, ""));
    s.weights.mixed = mixed;
    must(calib_plan(&given, &a, &s));
    mix_free(mixed);
    assert_int_equal(given.host_bytes, block_weights_bytes(&a, DT_F32) + 32 * 24 +
                                           3 * (32 * 3 + 2 * 16 * 2 + 24 * 2));
}

/* What a stopped run saves is in memory once more when the next one restores it. */
static void test_memory_of_saved_blocks(void **state)
{
    const enum weight_round round[] = {ROUND_NEAREST, ROUND_LEARNED};
    struct calib_settings s = tiny_settings();
    struct calib_plan p, untrained;
    struct memory_io m;
    struct fixture f;
    (void)state;
    fixture_open(&f, tiny_arch(0, 2), 16);
    for (int i = 0; i < 2; i++) {
        size_t saved = 0;
        s.weights.round = round[i];
        memory_io_open(&m);
        for (m.stop_after = 1; !m.n_partial && !m.n_blocks; m.stop_after++) {
            m.asked = 0;
            assert_int_equal(run_on("cpu", &m, &f, &s), ERR_STOPPED);
        }
        for (int k = 0; k < m.n_partial; k++)
            saved +=
                (size_t)tensor_count(&m.partial[k].t) * dtype_bytes(m.partial[k].t.dtype);
        must(calib_plan(&p, &f.arch, &s));
        assert_true(saved > 0);
        assert_int_equal(p.saved_bytes, saved);
        memory_io_close(&m);
    }
    s.weights.method = WEIGHT_RTN, s.weights.round = ROUND_NEAREST, s.kv.learn = false;
    must(calib_plan(&untrained, &f.arch, &s));
    assert_int_equal(untrained.saved_bytes, 0);
    fixture_close(&f);
}

static int64_t on_gpu(int64_t T, int64_t H, int64_t K, int64_t d, enum dtype act)
{
    return attn_inside_bytes(&(struct attn_shape){T, H, K, d, act}, 0);
}

/* What cuDNN works in: dS of a llama-2-7b's 32 heads, 2048 tokens each. In F32, for shorter samples
 * and where it would be too much, attention has other kernels. */
static void test_memory_of_attention(void **state)
{
    const int64_t H = 32, d = 128, T = 2048, dS = 2 * H * T * T;
    const int64_t little = 1 << 16, parts = 4 * T * H * d + 8 * T * H * 17;
    const int64_t beside = parts + 4096 + little;
    (void)state;
    assert_int_equal(on_gpu(T, H, H, d, DT_BF16), dS + beside);
    assert_int_equal(on_gpu(T - 1, H, H, d, DT_BF16), dS + beside - 4 * H * d - 8 * H * 17);
    assert_int_equal(on_gpu(T, H, 8, d, DT_BF16),
                     dS + 4 * H * T * d + beside - 4 * T * 24 * d);
    assert_int_equal(on_gpu(T, H, H, d, DT_F32), 4 * T * H * d);
    assert_int_equal(on_gpu(511, H, H, d, DT_BF16), 4 * 511 * H * d);
    assert_int_equal(on_gpu(8192, H, H, d, DT_BF16), 4 * parts + 4096 + little);
}

/* On the cpu both plans count what attention takes with that many threads, and nothing else
 * differs. */
static void test_plans_count_threads(void **state)
{
    struct arch a = tiny_arch(0, 2);
    struct calib_settings s = tiny_settings();
    struct refine_settings rs = {.samples = 1, .seqlen = 200, .batch = 1, .act = DT_F32};
    const struct attn_shape shape = {200, a.n_heads, a.n_kv, a.head_dim, DT_F32};
    struct calib_plan p[2];
    struct refine_plan r[2];
    (void)state;
    s.seqlen = 200, s.act = DT_F32;
    for (int i = 0; i < 2; i++) {
        s.cpu_threads = rs.cpu_threads = i ? 64 : 1;
        must(calib_plan(&p[i], &a, &s));
        must(refine_plan(&r[i], &a, &s.weights, &s.kv, &rs, 1));
    }
    const int64_t more = attn_inside_bytes(&shape, 64) - attn_inside_bytes(&shape, 1);
    assert_true(more > 32 * attn_inside_bytes(&shape, 1));
    assert_int_equal(p[1].acts_bytes - p[0].acts_bytes, more);
    assert_int_equal(r[1].work_bytes - r[0].work_bytes, more);
}

/* The plan counts what the largest product widens, and nothing in F32. With refinement it may be
 * that of the head. */
static void test_plans_count_widened_products(void **state)
{
    struct arch a = tiny_arch(1, 3); /* q, k and v together have 96 rows */
    struct calib_settings s = tiny_settings();
    struct calib_plan p[4];
    struct refine_plan r[4];
    (void)state;
    s.seqlen = 48;
    for (int i = 0; i < 4; i++) {
        s.act = i < 2 ? DT_BF16 : DT_F32;
        s.widens = i % 2;
        const struct refine_settings rs = {
            .samples = 1, .seqlen = 48, .batch = 1, .act = s.act, .widens = s.widens};
        must(calib_plan(&p[i], &a, &s));
        must(refine_plan(&r[i], &a, &s.weights, &s.kv, &rs, 1));
    }
    const size_t qkv = (48 * 24 + 96 * 24 + 48 * 96) * 4;
    assert_int_equal(p[1].acts_bytes - p[0].acts_bytes, qkv);
    assert_int_equal(r[1].work_bytes - r[0].work_bytes, qkv);
    assert_int_equal(p[3].acts_bytes, p[2].acts_bytes);
    assert_int_equal(r[3].work_bytes, r[2].work_bytes);
    a.vocab = 100;
    for (int i = 0; i < 2; i++) {
        const struct refine_settings rs = {
            .samples = 1, .seqlen = 48, .batch = 1, .act = DT_BF16, .widens = i};
        must(refine_plan(&r[i], &a, &s.weights, &s.kv, &rs, 1));
    }
    assert_int_equal(r[1].work_bytes - r[0].work_bytes,
                     (48 * 24 + 100 * 24 + 48 * 100) * 4);
}

/* Calibration and refinement count it. */
static void test_plans_count_attention(void **state)
{
    struct arch a = tiny_arch(0, 2);
    struct calib_settings s = tiny_settings();
    struct calib_plan p[2];
    struct refine_plan r[2];
    (void)state;
    s.act = DT_BF16;
    for (int i = 0; i < 2; i++) {
        const struct refine_settings rs = {
            .samples = 1, .seqlen = 511 + i, .batch = 1, .act = DT_BF16};
        s.seqlen = 511 + i;
        must(calib_plan(&p[i], &a, &s));
        must(refine_plan(&r[i], &a, &s.weights, &s.kv, &rs, 1));
    }
    const size_t dS = 2 * 4 * 512 * 512; /* where it begins to be used */
    assert_true(p[1].acts_bytes > p[0].acts_bytes + dS);
    assert_true(p[1].acts_bytes < p[0].acts_bytes + 2 * dS);
    assert_true(r[1].work_bytes > r[0].work_bytes + dS);
    assert_true(r[1].work_bytes < r[0].work_bytes + 2 * dS);
}

static void test_memory_does_not_grow_with_blocks(void **state)
{
    struct calib_settings s = tiny_settings();
    struct arch few = tiny_arch(1, 6), many = tiny_arch(1, 60);
    struct calib_plan x, y;
    s.crr_blocks = 5;
    must(calib_plan(&x, &few, &s));
    must(calib_plan(&y, &many, &s));
    assert_int_equal(x.weights_bytes, y.weights_bytes);
    assert_int_equal(x.acts_bytes, y.acts_bytes);
    assert_int_equal(x.params_bytes, y.params_bytes);
    assert_int_equal(x.stream_bytes, y.stream_bytes);
    assert_true(y.total_flops > 10 * x.total_flops);
}

/* SmolLM2-135M at 2048 tokens with five blocks after the block in work: the linear layers
 * alone take 188 GFLOP. */
static void test_flops_of_a_known_shape(void **state)
{
    const struct arch a = {.n_layers = 30,
                           .d_model = 576,
                           .d_ff = 1536,
                           .n_heads = 9,
                           .n_kv = 3,
                           .head_dim = 64,
                           .vocab = 49152,
                           .max_positions = 8192};
    struct calib_settings s = tiny_settings();
    struct calib_plan p;
    s.seqlen = 2048, s.crr_blocks = 5;
    must(calib_plan(&p, &a, &s));
    const double P = 576 * 576 * 2.0 + 2 * 192 * 576 + 3 * 576 * 1536, T = 2048;
    const double linear = 2 * T * P * (6 + 5 + 1 + 1) - 2 * T * 576 * (576 + 2 * 192);
    const double attention = 6 * 3.5 * 2 * T * (T + 1) * 576;
    assert_true(fabs(p.flops_per_step - linear - attention) <= 1e-9 * linear);
    assert_true(fabs(linear / 1e9 - 188) <= 2);
}

/* Of a run with four epochs, the losses of 13 of 16 samples are left out five times per
 * block, through the block and as many after it as there are, up to two. */
static void test_flops_of_fewer_measured_samples(void **state)
{
    const struct arch a = tiny_arch(0, 4);
    struct calib_settings s = tiny_settings();
    struct calib_plan all, few, none;
    s.samples = 16, s.epochs = 4, s.crr_blocks = 2;
    must(calib_plan(&all, &a, &s));
    s.eval_samples = 3;
    must(calib_plan(&few, &a, &s));
    const double T = (double)s.seqlen;
    const double forward = 2 * T * (double)arch_block_params(&a) +
                           2 * T * (T + 1) * (double)(a.n_heads * a.head_dim);
    const double left_out = 13.0 * 5 * (3 + 3 + 2 + 1) * forward;
    assert_true(fabs(all.total_flops - few.total_flops - left_out) <= 1e-9 * left_out);
    s.eval_samples = 17;
    must(calib_plan(&none, &a, &s));
    assert_true(none.total_flops == all.total_flops);
}

/* GPTQ beside rounding, for the tiny model's shapes: a pass of all samples, four Hessians of them,
 * their factors, and n^2 a row. */
static void test_flops_of_gptq(void **state)
{
    const struct arch a = tiny_arch(0, 3);
    struct calib_settings s = tiny_settings();
    struct calib_plan rtn, gptq;
    const double T = (double)(s.samples * s.seqlen), D = (double)a.d_model,
                 F = (double)a.d_ff, Q = (double)(a.n_heads * a.head_dim),
                 K = (double)(a.n_kv * a.head_dim);
    (void)state;
    s.weights.method = WEIGHT_RTN;
    must(calib_plan(&rtn, &a, &s));
    s.weights.method = WEIGHT_GPTQ;
    must(calib_plan(&gptq, &a, &s));
    const double sums = 2 * T * (2 * D * D + Q * Q + F * F);
    const double factors = 2.0 / 3 * (2 * D * D * D + Q * Q * Q + F * F * F);
    const double rows = (Q + 2 * K + 2 * F) * D * D + D * Q * Q + D * F * F;
    const double more = gptq.total_flops - rtn.total_flops;
    const double pass_of_all = (double)s.samples * (cost_linear_flops(&a, s.seqlen) +
                                                    cost_attention_flops(&a, s.seqlen));
    const double want = 3 * (pass_of_all + sums + factors + rows);
    const bool pass = fabs(more - want) <= 1e-9 * gptq.total_flops;
    assert_true(pass);
}

static void test_bench_has_its_parts(void **state)
{
    struct fixture f;
    struct calib_bench b;
    struct calib_settings s = tiny_settings();
    struct dev *d = open_dev("cpu");
    fixture_open(&f, tiny_arch(1, 3), 32);
    s.seqlen = 48, s.crr_blocks = 5; /* more blocks than the model has */
    must(calib_bench_step(&b, d, &f.arch, &f.source, &s, 4, NULL));
    const double parts[] = {b.linear_gemm_s,  b.attention_fwd_s, b.attention_bwd_s,
                            b.fakequant_s,    b.loss_s,          b.optimizer_s,
                            b.norm_rope_act_s};
    double sum = b.copy_s;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        assert_true(parts[i] > 0);
        sum += parts[i];
    }
    assert_true(sum <= b.step_s);
    fixture_close(&f);
    dev_close(&d);
}

/* A source that records its calls: blocks and prefetches. */
struct watched {
    const struct model_source *from;
    bool prefetched[8], asked[8];
    int64_t calls; /* of block() */
};

static enum err watched_block(void *ctx, int64_t i, struct block_src *out)
{
    struct watched *w = ctx;
    w->asked[i] = true;
    w->calls++;
    return w->from->block(w->from->ctx, i, out);
}

static enum err watched_ends(void *ctx, struct host_mat *embed, struct host_mat *norm,
                             struct host_mat *head)
{
    const struct watched *w = ctx;
    return w->from->ends(w->from->ctx, embed, norm, head);
}

static void watched_prefetch(void *ctx, int64_t i)
{
    struct watched *w = ctx;
    /* the farthest block is new; the next was read before, but its pages may be gone */
    if (!w->asked[i])
        w->prefetched[i] = true;
}

/* A measured step has the blocks of a calibration's, of which each is loaded once: what its time
 * is divided by counts no others. */
static void test_bench_has_the_blocks_of_the_plan(void **state)
{
    const int64_t layers = 3;
    struct fixture f;
    struct calib_bench b;
    struct calib_settings s = tiny_settings();
    struct dev *d = open_dev("cpu");
    (void)state;
    fixture_open(&f, tiny_arch(0, layers), 34);
    for (int64_t k = 0; k <= layers + 1; k++) {
        struct watched w = {.from = &f.source};
        const struct model_source source = {.ctx = &w, .block = watched_block};
        s.crr_blocks = k;
        must(calib_bench_step(&b, d, &f.arch, &source, &s, 1, NULL));
        assert_int_equal(w.calls, cost_reach(&f.arch, k, 0) + 1);
    }
    fixture_close(&f);
    dev_close(&d);
}

/* Blocks that filling the streams does not read are prefetched before they are needed. */
static void test_next_weights_are_announced(void **state)
{
    struct fixture f;
    struct memory_io m;
    struct calib_settings s = tiny_settings();
    int32_t tokens[64];
    struct dev *d = open_dev("cpu");
    fixture_open(&f, tiny_arch(0, 5), 33);
    struct watched w = {.from = &f.source};
    const struct model_source source = {.ctx = &w,
                                        .block = watched_block,
                                        .ends = watched_ends,
                                        .prefetch = watched_prefetch};
    s.epochs = 1, s.crr_blocks = 2;
    memory_io_open(&m);
    tiny_tokens(tokens, &s, &f.arch);
    must(calib_run(d, &f.arch, &source, &s, tokens, 0, &m.io));
    for (int i = 0; i < 5; i++)
        assert_int_equal(w.prefetched[i], i > s.crr_blocks);
    memory_io_close(&m);
    fixture_close(&f);
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_of_the_plan_are_those_of_the_run),
        cmocka_unit_test(test_memory_of_rotated_values),
        cmocka_unit_test(test_memory_of_a_quantized_embedding),
        cmocka_unit_test(test_memory_of_given_weights),
        cmocka_unit_test(test_memory_of_saved_blocks),
        cmocka_unit_test(test_memory_of_attention),
        cmocka_unit_test(test_plans_count_attention),
        cmocka_unit_test(test_plans_count_threads),
        cmocka_unit_test(test_plans_count_widened_products),
        cmocka_unit_test(test_memory_does_not_grow_with_blocks),
        cmocka_unit_test(test_flops_of_a_known_shape),
        cmocka_unit_test(test_flops_of_fewer_measured_samples),
        cmocka_unit_test(test_flops_of_gptq),
        cmocka_unit_test(test_bench_has_its_parts),
        cmocka_unit_test(test_bench_has_the_blocks_of_the_plan),
        cmocka_unit_test(test_next_weights_are_announced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

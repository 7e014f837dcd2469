/* SPDX-License-Identifier: MIT
 *
 * The packed runtime against the simulation: token by token, in chunks, for every family
 * and every way of quantizing. */
#include "convert/runtime/rt_priv.h"
#include "kernels/base/mem.h"
#include "tests/convert/golden_artifact.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/convert/dir_fixture.h"

/* Relative to the range of the logits. Keys and values agree except for the last bits. Near
 * the edge between two codes, both sides may choose different codes, and later logits move
 * by a part of the quantization error. So most tokens must agree to BOUND, and the worst to
 * FLIP. Any mistake in the attention mask moves them by 0.1. */
#define BOUND 1e-5
#define FLIP 1e-3

static struct kv_spec kv(int bits, int64_t group, enum key_stage stage, int64_t window,
                         int64_t sink)
{
    return (struct kv_spec){KV_CHANNEL_TOKEN, bits, group, stage,      true,
                            window,           sink, true,  ROTATE_NONE};
}

/* Logits of all tokens, chunk by chunk. */
static void decode(float *logits, struct runtime *rt, const struct golden *g, int64_t chunk)
{
    runtime_reset(rt);
    for (int64_t t = 0; t < g->T; t += chunk) {
        const int64_t n = g->T - t < chunk ? g->T - t : chunk;
        ok(runtime_forward(rt, logits + t * g->V, true, g->ids + t, n));
    }
    assert_int_equal(rt->length, g->T);
}

static float *room(int64_t n)
{
    float *p;
    ok(mem_alloc(&p, (size_t)n, sizeof(*p)));
    return p;
}

struct subject {
    struct golden g;
    struct fake_state state;
    struct artifact *a;
    struct dev *dev;
    struct model_run run;
    float *have, *want; /* [T][V] */
};

static void open_subject(struct subject *s, const char *model, struct weight_spec w,
                         struct kv_spec k)
{
    const struct dev_settings settings = {.name = "ref", .threads = 1};
    *s = (struct subject){0};
    err_clear();
    ok(golden_open(&s->g, model));
    fake_state_open(&s->state, &s->g, w, k);
    ok(golden_artifact(dir, &s->g, &s->state));
    ok(artifact_open(&s->a, dir, ARTIFACT_CHECK));
    ok(dev_open(&s->dev, &settings));
    s->run = (struct model_run){.dev = s->dev,
                                .arch = hf_arch(s->g.model),
                                .src = hf_source(s->g.model),
                                .quant = &s->state.quant,
                                .act = DT_F32};
    s->have = room(s->g.T * s->g.V);
    s->want = room(s->g.T * s->g.V);
}

static void close_subject(struct subject *s)
{
    artifact_close(&s->a);
    dev_close(&s->dev);
    fake_state_close(&s->state);
    mem_free(s->have);
    mem_free(s->want);
    golden_close(&s->g);
}

static struct runtime *open_runtime(const struct subject *s, int kv_bits)
{
    struct runtime *rt = NULL;
    const struct runtime_settings settings = {
        .threads = 2, .max_tokens = s->g.T, .kv_bits = kv_bits};
    ok(runtime_open(&rt, s->a, &settings));
    return rt;
}

static double range_of(const float *x, int64_t n)
{
    float lo = x[0], hi = x[0];
    for (int64_t i = 1; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    return (double)hi - (double)lo;
}

/* How many tokens' logits agree to BOUND. */
static int64_t tokens_that_agree(const struct subject *s, double range)
{
    int64_t n = 0;
    for (int64_t t = 0; t < s->g.T; t++) {
        double worst = 0;
        for (int64_t i = t * s->g.V; i < (t + 1) * s->g.V; i++)
            worst = fmax(worst, fabs((double)s->have[i] - (double)s->want[i]));
        n += worst <= BOUND * range;
    }
    return n;
}

/* Runs both forwards at this chunk and returns whether they agree; *loss is the effect of
 * quantization itself. */
static bool forwards_agree(struct subject *s, int64_t chunk, const char *what, double *loss)
{
    struct runtime *rt = open_runtime(s, 0);
    decode(s->have, rt, &s->g, chunk);
    runtime_close(&rt);
    s->run.chunk = chunk;
    ok(model_logits(&s->run, s->g.ids, 1, s->g.T, s->want));
    const double error = golden_error(s->have, s->want, s->g.T * s->g.V);
    const int64_t agree = tokens_that_agree(s, range_of(s->want, s->g.T * s->g.V));
    *loss = golden_error(s->want, s->g.logits, s->g.T * s->g.V);
    print_message("%-32s chunk %2" PRId64 ": error %.2g of the range, %" PRId64
                  " of %" PRId64 " tokens agree (quantization %.2g)\n",
                  what, chunk, error, agree, s->g.T, *loss);
    return error <= FLIP && agree >= s->g.T / 2;
}

static void other_tokens(struct golden *g)
{
    for (int64_t t = 0; t < g->T; t++)
        g->ids[t] = (int32_t)((g->ids[t] + 7) % g->V);
}

/* An early code on the edge moves most tokens, by more than FLIP. Other texts have other
 * edges, while a mistake shows in every text. If one text differs, two others must
 * agree. */
static void compare(struct subject *s, int64_t chunk, const char *what)
{
    int32_t *ids;
    double loss, other;
    if (!forwards_agree(s, chunk, what, &loss)) {
        ok(mem_alloc(&ids, (size_t)s->g.T, sizeof(*ids)));
        memcpy(ids, s->g.ids, (size_t)s->g.T * sizeof(*ids));
        for (int i = 0; i < 2; i++) {
            other_tokens(&s->g);
            if (!forwards_agree(s, chunk, "  other tokens", &other))
                fail_msg("%s, chunk %" PRId64 ": runtime and simulation differ", what,
                         chunk);
        }
        memcpy(s->g.ids, ids, (size_t)s->g.T * sizeof(*ids));
        mem_free(ids);
    }
    /* the comparison is meaningful only if quantization has an effect */
    if (s->state.weights.bits < 8 && !(loss > 10 * FLIP))
        fail_msg("%s: quantization does not show", what);
}

static void check(const char *model, struct weight_spec w, struct kv_spec k,
                  const char *what)
{
    char text[160];
    struct subject s;
    snprintf(text, sizeof(text), "%s %s", model, what);
    open_subject(&s, model, w, k);
    compare(&s, 1, text);
    compare(&s, 5, text);
    close_subject(&s);
}

static void test_families(void **state)
{
    for (int i = 0; i < golden_count; i++)
        check(golden_name[i], (struct weight_spec){WEIGHT_RTN, 4, 16},
              kv(4, 128, KEY_POST_ROPE, 1, 0), "W4 KV4");
}

static void test_widths(void **state)
{
    check("qwen3", (struct weight_spec){WEIGHT_RTN, 3, 12}, kv(8, 4, KEY_POST_ROPE, 1, 0),
          "W3g12 KV8g4");
    check("mistral", (struct weight_spec){WEIGHT_RTN, 8, 0}, kv(2, 5, KEY_POST_ROPE, 1, 0),
          "W8 KV2g5");
    check("llama_f16", (struct weight_spec){WEIGHT_RTN, 4, 7},
          kv(3, 6, KEY_POST_ROPE, 1, 0), "W4g7 KV3g6");
    check("qwen2", (struct weight_spec){WEIGHT_RTN, 16, 0}, kv(4, 4, KEY_POST_ROPE, 1, 0),
          "W16 KV4g4");
    check("llama_bias", (struct weight_spec){WEIGHT_RTN, 4, 128},
          kv(16, 0, KEY_POST_ROPE, 1, 0), "W4 KV16");
}

/* All bit widths in the kernels, with some projections unquantized. */
static void test_mixed_weights(void **state)
{
    static const char *const text[] = {
        "q_proj=2:8, k_proj=3, v_proj=8:5, o_proj=5:0, gate_proj=6:7, up_proj=7, "
        "1.down_proj=3:32",
        "0.q_proj=16, 1.v_proj=16, down_proj=16, up_proj=5:24"};
    for (size_t i = 0; i < ARRAY_LEN(text); i++) {
        struct mix *m = NULL;
        ok(mix_parse(&m, MIX_WEIGHTS, text[i], ERR_USAGE, "mix"));
        struct weight_spec w = {WEIGHT_RTN, 4, 16};
        w.mixed = m;
        check("qwen3", w, kv(4, 128, KEY_POST_ROPE, 1, 0), text[i]);
        check("llama2_gqa", w, kv(16, 0, KEY_POST_ROPE, 1, 0), text[i]);
        mix_free(m);
    }
}

static void test_key_stage(void **state)
{
    check("qwen3", (struct weight_spec){WEIGHT_RTN, 4, 32}, kv(4, 8, KEY_PRE_ROPE, 1, 0),
          "pre-rope");
    check("llama3_rope", (struct weight_spec){WEIGHT_RTN, 4, 32},
          kv(3, 128, KEY_PRE_ROPE, 2, 1), "pre-rope");
}

/* The mix that text says, in place of one format for all. */
static void check_mixed(const char *model, struct kv_spec k, const char *text)
{
    struct mix *m;
    ok(mix_parse(&m, MIX_KV, text, ERR_USAGE, "test"));
    k.mixed = m;
    check(model, (struct weight_spec){WEIGHT_RTN, 4, 32}, k, text);
    mix_free(m);
}

/* Several layers' keys and values, each in its own format: both, one or none of them at 4
 * bits, in groups that vectors support and in others, and one of them unquantized. */
static void test_mixed(void **state)
{
    const struct kv_spec four = kv(4, 128, KEY_POST_ROPE, 1, 0);
    check_mixed("llama3_rope", four, "0.k=4:8, 0.v=4:16, 1.k=3, 1.v=4:8");
    check_mixed("llama3_rope", four, "0.k=4:16, 0.v=4:8, 1.k=4:8, 1.v=5");
    check_mixed("llama2_gqa", four, "0.k=16, 1.v=16");
    check_mixed("llama2_gqa", four, "0.k=8:5, 0.v=2:3, 1.k=16, 1.v=16");
    check_mixed("llama2_gqa", kv(16, 0, KEY_POST_ROPE, 1, 0), "1.k=5:4, 1.v=4:8");
    check_mixed("llama2_gqa", kv(4, 8, KEY_POST_ROPE, 3, 2), "0.v=16, 1.k=2, 1.v=3:16");
    check_mixed("qwen3", kv(4, 8, KEY_PRE_ROPE, 1, 0), "0.k=16, 1.k=6, 1.v=3:4");
    check_mixed("qwen3", kv(3, 8, KEY_PRE_ROPE, 2, 1), "0.v=16, 1.k=16, 1.v=4:8");
    struct kv_spec all = kv(3, 8, KEY_POST_ROPE, 1, 3);
    all.past_only = false;
    check_mixed("llama2_gqa", all, "0.k=16, 1.v=16, 1.k=4:4");
    all.rotate = ROTATE_KV;
    check_mixed("llama2_gqa", all, "0.k=4:8, 0.v=4:16, 1.v=16");
}

static struct kv_spec rotated(enum kv_rotate rotate, int bits, int64_t group)
{
    struct kv_spec k = kv(bits, group, KEY_POST_ROPE, 1, 0);
    k.rotate = rotate;
    return k;
}

static void test_rotation(void **state)
{
    const struct weight_spec w = {WEIGHT_RTN, 4, 16};
    check("llama2_gqa", w, rotated(ROTATE_V, 4, 128), "V rotated");
    check("llama2_gqa", w, rotated(ROTATE_K, 4, 128), "K rotated");
    check("qwen2", w, rotated(ROTATE_KV, 4, 4), "K and V rotated"); /* V has a bias */
    check("qwen3", w, rotated(ROTATE_KV, 3, 128), "K and V rotated");
    check("llama3_rope", (struct weight_spec){WEIGHT_RTN, 16, 0}, rotated(ROTATE_KV, 4, 8),
          "W16, K and V rotated");
}

/* A model that is rotated and not quantized equals the original. */
static void test_rotation_is_exact(void **state)
{
    static const char *const model[] = {"llama2_gqa", "qwen2", "llama3_rope"};
    for (size_t i = 0; i < ARRAY_LEN(model); i++) {
        struct subject s;
        open_subject(&s, model[i], (struct weight_spec){WEIGHT_RTN, 16, 0},
                     rotated(ROTATE_KV, 4, 128));
        assert_int_equal(artifact_kv_spec(s.a)->rotate, ROTATE_KV);
        struct block_src src;
        ok(s.run.src->block(s.run.src->ctx, 0, &src));
        const double bound = src.lin[LIN_V].dtype == DT_F32 ? BOUND : 1e-2;
        struct runtime *rt = open_runtime(&s, 16);
        decode(s.have, rt, &s.g, 1);
        const double error = golden_error(s.have, s.g.logits, s.g.T * s.g.V);
        print_message("%s: rotation moves logits by %.2g of their range\n", model[i],
                      error);
        if (!(error <= bound))
            fail_msg("%s: logits differ by %g of their range", model[i], error);
        runtime_close(&rt);
        close_subject(&s);
    }
}

static void test_rotation_refused(void **state)
{
    struct golden g;
    struct kv_spec k = rotated(ROTATE_V, 4, 128);
    ok(golden_open(&g, "mistral")); /* heads of 12 */
    assert_int_equal(hf_rotate_values(g.model, &k), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "12 channels cannot be rotated"));
    golden_close(&g);
    err_clear();
    ok(golden_open(&g, "llama2_gqa"));
    k.rotate = ROTATE_KV;
    k.key_stage = KEY_PRE_ROPE;
    assert_int_equal(hf_rotate_values(g.model, &k), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "pre_rope"));
    err_clear();
    k.rotate = ROTATE_V;
    ok(hf_rotate_values(g.model, &k));
    golden_close(&g);
}

static void test_windows(void **state)
{
    check("llama2_gqa", (struct weight_spec){WEIGHT_RTN, 4, 32},
          kv(3, 8, KEY_POST_ROPE, 3, 2), "window 3 sink 2");
    check("llama2_gqa", (struct weight_spec){WEIGHT_RTN, 4, 32},
          kv(2, 8, KEY_POST_ROPE, 9, 0), "window 9");
    check("llama2_gqa", (struct weight_spec){WEIGHT_RTN, 4, 32},
          kv(2, 8, KEY_POST_ROPE, 99, 0), "window 99");
    check("llama2_gqa", (struct weight_spec){WEIGHT_RTN, 4, 32},
          kv(2, 8, KEY_POST_ROPE, 1, 99), "sink 99");
    struct kv_spec all = kv(2, 8, KEY_POST_ROPE, 1, 0);
    all.past_only = false;
    check("llama2_gqa", (struct weight_spec){WEIGHT_RTN, 4, 32}, all, "not past only");
    all.sink = 3;
    check("llama2_gqa", (struct weight_spec){WEIGHT_RTN, 4, 32}, all,
          "not past only, sink 3");
    all.method = KV_TOKEN;
    check("qwen2", (struct weight_spec){WEIGHT_RTN, 4, 32}, all, "token-wise");
}

/* Without quantization, the runtime reproduces the golden logits. */
static void test_plain(void **state)
{
    for (int i = 0; i < golden_count; i++) {
        struct subject s;
        open_subject(&s, golden_name[i], (struct weight_spec){WEIGHT_RTN, 16, 0},
                     kv(4, 128, KEY_POST_ROPE, 1, 0));
        struct runtime *rt = open_runtime(&s, 16);
        for (int64_t chunk = 1; chunk <= s.g.T; chunk += s.g.T - 1) {
            decode(s.have, rt, &s.g, chunk);
            const double error = golden_error(s.have, s.g.logits, s.g.T * s.g.V);
            if (!(error <= BOUND))
                fail_msg("%s, chunk %" PRId64 ": logits differ by %g of their range",
                         golden_name[i], chunk, error);
        }
        runtime_close(&rt);
        close_subject(&s);
    }
}

/* K^ and V^ of the cache equal the simulation's; tokens in full precision are equal,
 * too. */
static void test_kv(void **state)
{
    struct subject s;
    open_subject(&s, "qwen3", (struct weight_spec){WEIGHT_RTN, 4, 32},
                 kv(4, 8, KEY_PRE_ROPE, 3, 2));
    const int64_t C = hf_arch(s.g.model)->n_kv * hf_arch(s.g.model)->head_dim;
    const int64_t n = s.g.T * C, layers = hf_arch(s.g.model)->n_layers;
    float *k = room(n), *v = room(n), *ks = room(n * layers), *vs = room(n * layers);
    struct runtime *rt = open_runtime(&s, 0);
    decode(s.have, rt, &s.g, 1);
    s.run.chunk = 1;
    ok(model_kv(&s.run, s.g.ids, s.g.T, ks, vs));
    for (int64_t i = 0; i < layers; i++) {
        ok(runtime_kv(rt, i, k, v));
        const int64_t packed = (s.g.T - 4) * C; /* after the sink, before the window */
        if (!(golden_error(k + 2 * C, ks + i * n + 2 * C, packed) <= 1e-5) ||
            !(golden_error(v + 2 * C, vs + i * n + 2 * C, packed) <= 1e-5))
            fail_msg("layer %" PRId64 ": the caches differ", i);
        assert_true(golden_error(k, ks + i * n, 2 * C) > 1e-3);
        assert_true(golden_error(v + n - 2 * C, vs + i * n + n - 2 * C, 2 * C) > 1e-3);
    }
    runtime_close(&rt);
    mem_free(k);
    mem_free(v);
    mem_free(ks);
    mem_free(vs);
    close_subject(&s);
}

static void test_bytes(void **state)
{
    struct subject s;
    open_subject(&s, "llama3_rope", (struct weight_spec){WEIGHT_RTN, 4, 32},
                 kv(4, 128, KEY_POST_ROPE, 1, 0));
    struct runtime *rt = open_runtime(&s, 0);
    assert_int_equal(runtime_kv_bytes(rt), artifact_kv_bytes(s.a, 1, s.g.T));
    assert_true(runtime_kv_bits(rt) == 4 + 32 / 16.0); /* groups are heads of 16 */
    runtime_close(&rt);
    close_subject(&s);
    open_subject(&s, "llama3_rope", (struct weight_spec){WEIGHT_RTN, 4, 32},
                 kv(4, 128, KEY_POST_ROPE, 3, 1));
    rt = open_runtime(&s, 0);
    const uint64_t kept = 2 * 2 * (2 + 1) * 32 * sizeof(float); /* layers, K V, tokens, C */
    assert_int_equal(runtime_kv_bytes(rt), artifact_kv_bytes(s.a, 1, s.g.T) + kept);
    runtime_close(&rt);
    close_subject(&s);
}

static void test_mixed_bytes(void **state)
{
    struct subject s;
    struct runtime *rt = NULL;
    struct mix *m;
    struct kv_spec k = kv(4, 8, KEY_POST_ROPE, 1, 0);
    const struct runtime_settings own = {.threads = 1, .max_tokens = 7, .kv_bits = 4};
    ok(mix_parse(&m, MIX_KV, "0.k=3:4, 1.v=8", ERR_USAGE, "test"));
    k.mixed = m;
    open_subject(&s, "llama3_rope", (struct weight_spec){WEIGHT_RTN, 4, 32}, k);
    rt = open_runtime(&s, 0);
    /* 2 heads of 16: codes, and pairs of 4 bytes */
    const uint64_t token =
        2 * (6 + 4 * 4) + 2 * (8 + 2 * 4) + 2 * (8 + 2 * 4) + 2 * (16 + 2 * 4);
    assert_int_equal(runtime_kv_bytes(rt), (uint64_t)s.g.T * token);
    assert_int_equal(artifact_kv_bytes(s.a, 1, s.g.T), (uint64_t)s.g.T * token);
    assert_true(fabs(runtime_kv_bits(rt) - 8.0 * (double)token / (2 * 2 * 32)) <= 1e-12);
    runtime_close(&rt);
    assert_int_equal(runtime_open(&rt, s.a, &own), ERR_USAGE);
    assert_non_null(strstr(err_text(), "mixed"));
    err_clear();
    rt = open_runtime(&s, 16);
    assert_true(runtime_kv_bits(rt) == 32);
    runtime_close(&rt);
    close_subject(&s);
    mix_free(m);
}

static void test_limits(void **state)
{
    struct subject s;
    struct runtime *rt = NULL;
    float logits[128];
    open_subject(&s, "llama1_mha", (struct weight_spec){WEIGHT_RTN, 4, 32},
                 kv(4, 128, KEY_POST_ROPE, 1, 0));
    const struct runtime_settings few = {.threads = 1, .max_tokens = 3};
    const struct runtime_settings odd = {.threads = 1, .max_tokens = 3, .kv_bits = 5};
    const struct runtime_settings many = {.threads = 1, .max_tokens = 129};
    const int32_t bad[] = {1, 72};
    ok(runtime_open(&rt, s.a, &few));
    ok(runtime_forward(rt, logits, false, s.g.ids, 2));
    assert_int_equal(runtime_forward(rt, logits, false, s.g.ids, 2), ERR_USAGE);
    err_clear();
    assert_int_equal(runtime_forward(rt, logits, false, bad + 1, 1), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "72"));
    err_clear();
    assert_int_equal(rt->length, 2); /* a refused call leaves the cache */
    ok(runtime_forward(rt, logits, false, s.g.ids + 2, 1));
    runtime_close(&rt);
    assert_int_equal(runtime_open(&rt, s.a, &odd), ERR_USAGE);
    err_clear();
    assert_int_equal(runtime_open(&rt, s.a, &many), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "max_position_embeddings"));
    assert_null(rt);
    close_subject(&s);
}

/* Only the last logits: equal to those of all; threads change nothing. */
static void test_same_bits(void **state)
{
    struct subject s;
    open_subject(&s, "llama3_rope", (struct weight_spec){WEIGHT_RTN, 4, 16},
                 kv(4, 128, KEY_POST_ROPE, 1, 0));
    struct runtime *rt = open_runtime(&s, 0), *one = NULL;
    const struct runtime_settings single = {.threads = 1, .max_tokens = s.g.T};
    ok(runtime_open(&one, s.a, &single));
    decode(s.have, rt, &s.g, 1);
    for (int64_t t = 0; t < s.g.T; t++)
        ok(runtime_forward(one, s.want + t * s.g.V, false, s.g.ids + t, 1));
    assert_memory_equal(s.have, s.want, (size_t)(s.g.T * s.g.V) * sizeof(float));
    runtime_close(&rt);
    runtime_close(&one);
    close_subject(&s);
}

/* Two continuations of one beginning; the second, from a mark, equals a separate run. */
static void check_mark(struct kv_spec k, int64_t mark)
{
    struct subject s;
    open_subject(&s, "llama2_gqa", (struct weight_spec){WEIGHT_RTN, 4, 16}, k);
    struct runtime *rt = open_runtime(&s, 0);
    const int64_t n = s.g.T - mark;
    const size_t bytes = (size_t)(n * s.g.V) * sizeof(float);
    ok(runtime_forward(rt, NULL, false, s.g.ids, mark));
    for (int64_t i = 0; i < n; i++)
        ok(runtime_forward(rt, s.want + i * s.g.V, false, s.g.ids + mark + i, 1));
    runtime_reset(rt);
    ok(runtime_forward(rt, NULL, false, s.g.ids, mark));
    ok(runtime_mark(rt));
    for (int64_t i = 0; i < n; i++) /* backwards: other tokens */
        ok(runtime_forward(rt, NULL, false, s.g.ids + s.g.T - 1 - i, 1));
    runtime_rewind(rt);
    assert_int_equal(rt->length, mark);
    for (int64_t i = 0; i < n; i++)
        ok(runtime_forward(rt, s.have + i * s.g.V, false, s.g.ids + mark + i, 1));
    assert_memory_equal(s.have, s.want, bytes);
    runtime_reset(rt);
    runtime_rewind(rt);
    assert_int_equal(rt->length, 0);
    runtime_close(&rt);
    close_subject(&s);
}

static void test_mark(void **state)
{
    check_mark(kv(4, 8, KEY_POST_ROPE, 1, 0), 6);
    check_mark(kv(4, 8, KEY_POST_ROPE, 4, 2), 6);
    check_mark(kv(4, 8, KEY_POST_ROPE, 7, 3), 2); /* the sink is not full yet */
    check_mark(kv(16, 0, KEY_POST_ROPE, 1, 0), 6);
}

static void test_sampler(void **state)
{
    static const float logits[] = {0, 2, 1, 2, -1};
    const float broken[] = {0, NAN};
    struct rng r;
    int32_t id;
    int64_t count[5] = {0};
    rng_seed(&r, 1);
    struct sampler s = {.temperature = 0, .top_p = 1};
    ok(runtime_sample(&id, &s, &r, logits, 5));
    assert_int_equal(id, 1); /* the first of equals */
    s.temperature = 1;
    for (int i = 0; i < 20000; i++) {
        ok(runtime_sample(&id, &s, &r, logits, 5));
        count[id]++;
    }
    double total = 0;
    for (int i = 0; i < 5; i++)
        total += exp((double)logits[i]);
    for (int i = 0; i < 5; i++) /* four standard deviations */
        assert_true(fabs((double)count[i] / 20000 - exp((double)logits[i]) / total) <=
                    0.015);
    s.top_k = 3;
    s.top_p = 0.5f; /* of the three left: 0.42, 0.42, 0.16 */
    for (int i = 0; i < 200; i++) {
        ok(runtime_sample(&id, &s, &r, logits, 5));
        assert_true(id == 1 || id == 3);
    }
    s.top_p = 1e-6f;
    ok(runtime_sample(&id, &s, &r, logits, 5));
    assert_int_equal(id, 1);
    assert_int_equal(runtime_sample(&id, &s, &r, broken, 2), ERR_NUMERIC);
    err_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_widths),
        cmocka_unit_test(test_mixed_weights),
        cmocka_unit_test(test_key_stage),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_rotation),
        cmocka_unit_test(test_rotation_is_exact),
        cmocka_unit_test(test_rotation_refused),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_kv),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_mixed_bytes),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_sampler),
        cmocka_unit_test(test_mark),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}

/* SPDX-License-Identifier: MIT
 *
 * Prompts: attention of many queries in blocks against the same query by query, and
 * activations of 16 bits against F32. */
#include "convert/artifact/artifact_random.h"
#include "convert/runtime/rt_priv.h"
#include "kernels/base/logsumexp.h"
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

/* Bounds, relative to the range of the logits.
 *
 * ORDER: the same sums in another order, in F32. Keys and values come from the same cache
 * and the chunk, so no code can be at an edge.
 * INT16: BF16 has 8 bits, so one rounding of an activation moves it by up to 2^-9. Integers
 * of 16 bits that share a power of two with the other 127 columns are off by at most 2^-14
 * of the largest, and in norm by a fifth of BF16 at the most. So all layers together must
 * not move logits by more than a single rounding to BF16 could.
 * KL: with logits l and l + e, KL <= max |e|^2 / 2 to second order, and the golden models'
 * logits have a range below 8. */
#define ORDER 1e-5
#define INT16 0x1p-9
#define KL (0.5 * 8 * 8 * INT16 * INT16)

#define VOCAB 64
#define PREFIX 150
#define CHUNK 40
#define FEW 4 /* queries with so few heads are attended to one by one */

static struct runtime *open_runtime(const struct artifact *a, int64_t tokens, int threads,
                                    enum dtype act)
{
    struct runtime *rt = NULL;
    const struct runtime_settings s = {
        .threads = threads, .max_tokens = tokens, .act = act};
    ok(runtime_open(&rt, a, &s));
    return rt;
}

static float *room(int64_t n)
{
    float *p;
    ok(mem_calloc(&p, (size_t)n, sizeof(*p)));
    return p;
}

/* --- attention in blocks --------------------------------------------------------------- */

static struct arch small(int64_t head, int64_t heads, int64_t reach)
{
    struct arch a = {.model_type = "llama",
                     .n_layers = 2,
                     .d_model = 72,
                     .d_ff = 200,
                     .n_heads = 2 * heads,
                     .n_kv = 2,
                     .head_dim = head,
                     .vocab = VOCAB,
                     .max_positions = 1 << 20,
                     .norm_eps = 1e-5f,
                     .rope_theta = 1e4,
                     .sliding_window = reach,
                     .bos = -1,
                     .dtype = DT_F16};
    layer_set_add(&a.sliding, 1);
    return a;
}

/* After one prefix, the first FEW tokens of a chunk of CHUNK and a chunk of FEW. */
static void check_blocks(struct arch arch, struct kv_spec kv, const char *what)
{
    const struct weight_spec w = {.method = WEIGHT_RTN, .bits = 4, .group_size = 128};
    static int32_t ids[PREFIX + CHUNK];
    struct artifact *a = NULL;
    float *have = room(CHUNK * VOCAB), *want = room(FEW * VOCAB);
    for (int i = 0; i < PREFIX + CHUNK; i++)
        ids[i] = (i * 31 + 7 + i / 9) % VOCAB;
    kv.past_only |= kv.window > 1;
    ok(artifact_random(&a, &arch, &w, &kv, 3));
    struct runtime *rt = open_runtime(a, PREFIX + CHUNK, 2, DT_F32);
    ok(runtime_forward(rt, NULL, false, ids, PREFIX));
    ok(runtime_mark(rt));
    ok(runtime_forward(rt, have, true, ids + PREFIX, CHUNK));
    runtime_rewind(rt);
    ok(runtime_forward(rt, want, true, ids + PREFIX, FEW));
    const double error = golden_error(have, want, FEW * VOCAB);
    if (!(error <= ORDER))
        fail_msg("%s: logits differ by %g of their range", what, error);
    runtime_close(&rt);
    artifact_close(&a);
    mem_free(have);
    mem_free(want);
}

static void test_blocks(void **state)
{
    struct kv_spec kv = {.method = KV_TOKEN, .bits = 4, .past_only = true, .window = 1};
    check_blocks(small(16, 3, 0), kv, "head of 16");
    check_blocks(small(40, 1, 0), kv, "one head, of 40");
    check_blocks(small(64, 2, 50), kv, "sliding window");
    check_blocks(small(16, 3, 200), kv, "sliding window of the whole past");
    kv.group_size = 8;
    check_blocks(small(32, 3, 0), kv, "groups of 8");
    kv.sink = 21;
    check_blocks(small(32, 3, 0), kv, "sink");
    check_blocks(small(32, 3, 60), kv, "sink and sliding window");
    kv.window = 13;
    check_blocks(small(32, 3, 0), kv, "sink and window");
    kv.past_only = false;
    kv.window = 1;
    check_blocks(small(32, 3, 0), kv, "sink, not past only");
    kv.sink = 0;
    check_blocks(small(32, 3, 0), kv, "not past only");
    kv.past_only = true;
    kv.bits = 3;
    check_blocks(small(24, 3, 0), kv, "3 bits");
    kv.key_stage = KEY_PRE_ROPE;
    check_blocks(small(24, 3, 70), kv, "pre-rope");
    kv.bits = 16;
    check_blocks(small(12, 3, 0), kv, "F32");
}

/* --- activations of 16 bits -------------------------------------------------------------- */

struct subject {
    struct golden g;
    struct fake_state state;
    struct artifact *a;
    float *f32, *int16; /* [T][V] */
};

static void open_subject(struct subject *s, const char *model, struct weight_spec w)
{
    const struct kv_spec kv = {KV_CHANNEL_TOKEN, 4, 8, KEY_POST_ROPE, true, 1, 0, true,
                               ROTATE_NONE};
    *s = (struct subject){0};
    err_clear();
    ok(golden_open(&s->g, model));
    fake_state_open(&s->state, &s->g, w, kv);
    ok(golden_artifact(dir, &s->g, &s->state));
    ok(artifact_open(&s->a, dir, ARTIFACT_CHECK));
    s->f32 = room(s->g.T * s->g.V);
    s->int16 = room(s->g.T * s->g.V);
}

static void close_subject(struct subject *s)
{
    artifact_close(&s->a);
    fake_state_close(&s->state);
    mem_free(s->f32);
    mem_free(s->int16);
    golden_close(&s->g);
}

/* All but the last token in one chunk, so that no key is quantized before it is read; then
 * one token of decoding. */
static struct runtime *run_text(float *logits, const struct subject *s, int threads,
                                enum dtype act)
{
    const int64_t n = s->g.T - 1;
    struct runtime *rt = open_runtime(s->a, s->g.T, threads, act);
    ok(runtime_forward(rt, logits, true, s->g.ids, n));
    ok(runtime_forward(rt, logits + n * s->g.V, false, s->g.ids + n, 1));
    return rt;
}

/* Largest divergence of a token's distribution from F32's. */
static double divergence(const struct subject *s, int64_t tokens)
{
    const int64_t n = s->g.V;
    double worst = 0;
    for (int64_t t = 0; t < tokens; t++) {
        const float *p = s->f32 + t * n, *q = s->int16 + t * n;
        const double kl = kl_divergence(p, log_sum_exp(p, n), q, log_sum_exp(q, n), n);
        worst = isnan(worst) || kl <= worst ? worst : kl; /* NaN stays */
    }
    return worst;
}

/* rounds: some projection is in a format for which activations become 16 bits. */
static void check_int16(const char *model, struct weight_spec w, bool rounds)
{
    struct subject s;
    open_subject(&s, model, w);
    const int64_t n = s.g.T - 1, count = n * s.g.V;
    struct runtime *exact = run_text(s.f32, &s, 2, DT_F32);
    struct runtime *rt = run_text(s.int16, &s, 2, DT_BF16);
    const double error = golden_error(s.int16, s.f32, count), kl = divergence(&s, n);
    const double after =
        golden_error(s.int16 + count, s.f32 + count, s.g.V); /* its past may have flipped */
    print_message("%-16s error %.2g of the range, KL %.2g, decoding after it %.2g\n", model,
                  error, kl, after);
    assert_true(error <= INT16 && kl <= KL);
    assert_true(after <= 0.05);
    if (runtime_rounds() && rounds)
        assert_true(error > 1e-7); /* it is another computation */
    else
        assert_memory_equal(s.int16, s.f32, (size_t)(s.g.T * s.g.V) * sizeof(float));
    assert_int_equal(runtime_kv_bytes(rt), runtime_kv_bytes(exact));
    runtime_close(&rt);
    runtime_close(&exact);
    close_subject(&s);
}

static void test_int16_families(void **state)
{
    for (int i = 0; i < golden_count; i++)
        check_int16(golden_name[i], (struct weight_spec){WEIGHT_RTN, 4, 16}, true);
}

static void test_int16_widths(void **state)
{
    static const char *const text[] = {
        "q_proj=2:8, k_proj=3, v_proj=8:5, o_proj=5:0, gate_proj=6:7, up_proj=7, "
        "1.down_proj=3:32",
        "0.q_proj=16, 1.v_proj=16, down_proj=16, up_proj=5:24"};
    for (size_t i = 0; i < ARRAY_LEN(text); i++) {
        struct mix *m = NULL;
        struct weight_spec w = {WEIGHT_RTN, 4, 16};
        ok(mix_parse(&m, MIX_WEIGHTS, text[i], ERR_USAGE, "mix"));
        w.mixed = m;
        check_int16("qwen3", w, true);
        check_int16("llama2_gqa", w, true);
        mix_free(m);
    }
    check_int16("qwen3", (struct weight_spec){WEIGHT_RTN, 16, 0}, false);
    check_int16("qwen2", (struct weight_spec){WEIGHT_RTN, 4, 7}, false);
}

/* Threads change nothing, and neither does what was computed before. */
static void test_same_bits(void **state)
{
    struct subject s;
    open_subject(&s, "llama3_rope", (struct weight_spec){WEIGHT_RTN, 4, 32});
    const size_t bytes = (size_t)(s.g.T * s.g.V) * sizeof(float);
    struct runtime *rt = run_text(s.int16, &s, 3, DT_BF16);
    struct runtime *one = run_text(s.f32, &s, 1, DT_BF16);
    assert_memory_equal(s.int16, s.f32, bytes);
    runtime_reset(one);
    ok(runtime_forward(one, s.f32, true, s.g.ids, s.g.T - 1));
    assert_memory_equal(s.int16, s.f32, bytes);
    runtime_close(&rt);
    runtime_close(&one);
    close_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_int16_families),
        cmocka_unit_test(test_int16_widths),
        cmocka_unit_test(test_same_bits),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}

/* SPDX-License-Identifier: MIT
 *
 * Verification passes on the writer's output. It fails on one changed nibble, scale or
 * shift with correct checksums. */
#include "convert/verify/verify.h"
#include "data/json_seal.h"
#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "kernels/tensor/quant.h"
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

/* --- damage ------------------------------------------------------------------------- */

/* Every occurrence of one checksum becomes another. */
static void replace_crc(char *text, uint32_t from, uint32_t to)
{
    char a[9], b[9];
    int n = 0;
    snprintf(a, sizeof(a), "%08" PRIx32, from);
    snprintf(b, sizeof(b), "%08" PRIx32, to);
    for (char *p = text; (p = strstr(p, a)); n++)
        memcpy(p, b, 8);
    assert_true(n > 0);
}

/* The manifest's last line is the CRC-32 of what is before it. */
static void sign_manifest(char *text, size_t n)
{
    char seal[JSON_SEAL_BYTES + 1];
    assert_true(n > JSON_SEAL_BYTES);
    json_seal(seal, bytes_crc32(0, text, n - JSON_SEAL_BYTES));
    memcpy(text + n - JSON_SEAL_BYTES, seal, JSON_SEAL_BYTES);
}

static char *in_dir(const char *name)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

/* Flip bits of byte `at` of a tensor; fix every checksum when told to. */
static void damage(const char *tensor, size_t at, uint8_t bits, bool fix)
{
    struct st_file *f;
    char *data, *manifest;
    size_t n, m;
    ok(st_open(&f, in_dir("model.safetensors")));
    const struct st_tensor *t = st_find(f, tensor), *first = st_at(f, 0);
    assert_non_null(t);
    ok(file_read_all(&data, &n, in_dir("model.safetensors"), 1 << 24));
    size_t all = 0;
    for (int64_t i = 0; i < st_count(f); i++)
        all += st_at(f, i)->bytes;
    char *bytes = data + (n - all) + (t->data - first->data);
    const uint32_t file_crc = bytes_crc32(0, data, n),
                   crc = bytes_crc32(0, bytes, t->bytes);
    bytes[at] = (char)((uint8_t)bytes[at] ^ bits);
    ok(file_read_all(&manifest, &m, in_dir("manifest.json"), 1 << 24));
    if (fix) {
        replace_crc(manifest, crc, bytes_crc32(0, bytes, t->bytes));
        replace_crc(manifest, file_crc, bytes_crc32(0, data, n));
        sign_manifest(manifest, m);
    }
    st_close(&f);
    ok(file_write_all(in_dir("model.safetensors"), data, n));
    ok(file_write_all(in_dir("manifest.json"), manifest, m));
    mem_free(data);
    mem_free(manifest);
}

/* --- runs --------------------------------------------------------------------------- */

struct subject {
    struct golden g;
    struct fake_state state;
    struct verify_settings settings;
};

static void open_weights(struct subject *s, const char *model, struct weight_spec w,
                         struct kv_spec kv)
{
    *s = (struct subject){0};
    err_clear();
    ok(golden_open(&s->g, model));
    fake_state_open(&s->state, &s->g, w, kv);
    ok(golden_artifact(dir, &s->g, &s->state));
    s->settings = (struct verify_settings){
        .against = s->g.dir,
        .state = &s->state.source,
        .ids = s->g.ids,
        .n_ids = s->g.T,
        .act = DT_F32,
        .threads = 2,
    };
}

static void open_subject(struct subject *s, const char *model, enum weight_method method,
                         int bits, struct kv_spec kv)
{
    open_weights(s, model, (struct weight_spec){method, bits, 16}, kv);
}

static void close_subject(struct subject *s)
{
    fake_state_close(&s->state);
    golden_close(&s->g);
}

static struct verify_report run(const struct subject *s)
{
    struct verify_report r;
    err_clear();
    ok(verify_run(&r, dir, &s->settings));
    return r;
}

static const struct kv_spec kv4 = {
    KV_CHANNEL_TOKEN, 4, 128, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE};

static void check_passes(const char *model, int bits, struct kv_spec kv)
{
    struct subject s;
    open_subject(&s, model, WEIGHT_LWC, bits, kv);
    struct verify_report r = run(&s);
    if (!r.passed)
        fail_msg("%s: %s", model, r.first_difference);
    assert_int_equal(r.structure, VERIFY_PASS);
    assert_int_equal(r.weights, VERIFY_PASS);
    assert_int_equal(r.logits, VERIFY_PASS);
    assert_int_equal(r.perplexity, VERIFY_PASS);
    assert_int_equal(r.weights_differing, 0);
    assert_int_equal(r.n_linears, 7 * hf_arch(s.g.model)->n_layers);
    assert_true(r.weights_compared > 7000 && r.n_tensors > 20);
    assert_int_equal(r.logit_tokens, s.g.T);
    assert_int_equal(r.ppl_tokens, s.g.T - 1);
    assert_true(fabs(r.mean_kl) <= 1e-6 && r.max_logit_diff <= 1e-3);
    assert_true(r.agree_k_cosine >= 0.9999 && r.agree_v_cosine >= 0.9999);
    assert_int_equal(r.cache_tokens, s.g.T - kv.sink - (kv.window - 1));
    /* the cache is quantized, and by the right amount */
    assert_true(r.worst_k_cosine < 0.99999 && r.worst_k_cosine > 0.7);
    assert_true(r.worst_v_cosine < 0.99999 && r.worst_v_cosine > 0.7);
    assert_true(isfinite(r.ppl_runtime) && r.ppl_gap <= 1e-3);
    assert_int_equal(r.low_heads, 0);
    close_subject(&s);
}

static void test_passes(void **state)
{
    for (int i = 0; i < golden_count; i++)
        check_passes(golden_name[i], 4, kv4);
    struct kv_spec other = kv4;
    other.key_stage = KEY_PRE_ROPE;
    other.window = 3;
    other.sink = 2;
    check_passes("qwen3", 3, other);
    check_passes("llama2_gqa", 16, other);
    other = kv4;
    other.rotate = ROTATE_KV;
    check_passes("qwen2", 4, other);
    check_passes("qwen2", 16, other); /* v_proj, its bias and o_proj are written rotated */
}

/* All four parts over a mixed artifact, with and without its state; then a state of another
 * mix. */
static void test_mixed(void **state)
{
    struct subject s;
    struct mix *m = NULL, *other = NULL;
    struct weight_spec w = {WEIGHT_RTN, 4, 16};
    ok(mix_parse(&m, MIX_WEIGHTS, "v_proj=8:5, 0.down_proj=3, q_proj=16, 1.up_proj=6:0",
                 ERR_USAGE, "mix"));
    ok(mix_parse(&other, MIX_WEIGHTS, "v_proj=8:5, 0.down_proj=3, 1.up_proj=6:0", ERR_USAGE,
                 "mix"));
    w.mixed = m;
    open_weights(&s, "qwen2", w, kv4);
    for (int without = 0; without < 3; without++) {
        if (without == 1)
            s.settings.state = NULL;
        if (without == 2)
            s.settings.against = NULL;
        const struct verify_report r = run(&s);
        if (!r.passed)
            fail_msg("%s", r.first_difference);
        assert_int_equal(r.weights, without == 2 ? VERIFY_SKIP : VERIFY_PASS);
        assert_int_equal(r.weights_unchecked, 0);
        assert_true(r.logits == VERIFY_PASS && r.perplexity == VERIFY_PASS);
    }
    struct verify_report r;
    s.settings.against = s.g.dir;
    s.settings.state = &s.state.source;
    s.state.weights.mixed = other;
    assert_int_equal(verify_run(&r, dir, &s.settings), ERR_MISMATCH);
    assert_non_null(
        strstr(err_text(), "q_proj.weight: the state has 4 bits, the artifact 16"));
    err_clear();
    s.state.weights.mixed = NULL;
    s.state.weights.bits = 16;
    assert_int_equal(verify_run(&r, dir, &s.settings), ERR_MISMATCH);
    assert_non_null(strstr(err_text(), "another shape or format"));
    close_subject(&s);
    mix_free(m);
    mix_free(other);
}

/* Without state, source or text, the remaining parts run. */
static void test_alone(void **state)
{
    struct subject s;
    open_subject(&s, "qwen2", WEIGHT_LWC, 4, kv4);
    s.settings.state = NULL;
    struct verify_report r = run(&s);
    assert_true(r.passed && r.weights == VERIFY_PASS && r.logits == VERIFY_PASS);
    s.settings.min_head_cosine = 1; /* no quantized head has it: a warning, not a failure */
    r = run(&s);
    assert_true(r.passed);
    assert_int_equal(r.low_heads,
                     2 * hf_arch(s.g.model)->n_layers * hf_arch(s.g.model)->n_kv);
    s.settings.against = NULL;
    r = run(&s);
    assert_true(r.passed && r.weights == VERIFY_SKIP && r.logits == VERIFY_PASS);
    s.settings.ids = NULL;
    r = run(&s);
    assert_true(r.passed && r.logits == VERIFY_SKIP && r.perplexity == VERIFY_SKIP);
    assert_int_equal(r.structure, VERIFY_PASS);
    close_subject(&s);
}

/* A window or sink that covers all tokens leaves none to compare, which is not a perfect cosine. A
 * text that is long enough is decoded until some are packed. */
static void test_nothing_packed(void **state)
{
    struct subject s;
    struct kv_spec far = kv4;
    double cosine[2][2] = {{0}};
    for (int sink = 0; sink < 2; sink++) {
        far.window = sink ? 1 : 100000;
        far.sink = sink ? 100000 : 0;
        open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, far);
        s.settings.layer_cosine[0] = cosine[0];
        s.settings.layer_cosine[1] = cosine[1];
        const struct verify_report r = run(&s);
        assert_true(r.passed && r.logits == VERIFY_PASS);
        assert_int_equal(r.cache_tokens, 0);
        assert_true(isnan(r.agree_k_cosine) && isnan(r.agree_v_cosine));
        assert_true(isnan(r.worst_k_cosine) && isnan(r.worst_v_cosine));
        assert_true(isnan(cosine[0][0]) && isnan(cosine[1][0]));
        close_subject(&s);
    }
    far.window = 8;
    far.sink = 0;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, far);
    s.settings.logit_tokens = 6;
    struct verify_report r = run(&s);
    assert_int_equal(r.logit_tokens, 6); /* 71 are more than four times as many */
    assert_int_equal(r.cache_tokens, 0);
    s.settings.logit_tokens = 18;
    r = run(&s);
    assert_int_equal(r.logit_tokens, 18); /* 11 of them are packed */
    assert_int_equal(r.cache_tokens, 11);
    close_subject(&s);
    far.window = 23;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, far);
    s.settings.logit_tokens = 22;
    r = run(&s);
    assert_true(s.g.T < 86 && r.passed);
    assert_int_equal(r.logit_tokens, s.g.T);
    assert_int_equal(r.cache_tokens, s.g.T - 22);
    close_subject(&s);
}

static void test_crc(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    damage("model.layers.0.mlp.up_proj.qweight", 5, 1, false);
    const struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.structure, VERIFY_FAIL);
    assert_int_equal(r.weights, VERIFY_SKIP);
    assert_non_null(strstr(r.first_difference, "CRC"));
    close_subject(&s);
}

/* One nibble of 10752 weights. */
static void test_nibble(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    damage("model.layers.1.self_attn.o_proj.qweight", 17, 0x10, true);
    struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.structure, VERIFY_PASS);
    assert_int_equal(r.weights, VERIFY_FAIL);
    assert_int_equal(r.weights_differing, 1);
    /* byte 17 of rows of 16: row 1, columns 2 and 3; the high nibble is the odd one */
    assert_non_null(
        strstr(r.first_difference, "model.layers.1.self_attn.o_proj.weight [1][3]"));
    s.settings.state = NULL; /* the source alone detects it, too */
    r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.weights_differing, 1);
    close_subject(&s);
}

/* One byte of a value that is copied unchanged. */
static void test_carried(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    damage("model.embed_tokens.weight", 9, 1, true);
    const struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.weights, VERIFY_FAIL);
    assert_int_equal(r.weights_differing, 1);
    assert_non_null(strstr(r.first_difference, "model.embed_tokens.weight"));
    close_subject(&s);
}

static void test_scale(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    damage("model.layers.0.self_attn.q_proj.scales", 0, 1, true); /* one ulp of fp16 */
    struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.weights, VERIFY_FAIL);
    assert_non_null(strstr(r.first_difference, "q_proj.weight [0]"));
    close_subject(&s);
    /* round to nearest needs no state */
    open_subject(&s, "llama1_mha", WEIGHT_RTN, 4, kv4);
    s.settings.state = NULL;
    r = run(&s);
    assert_true(r.passed);
    damage("model.layers.0.self_attn.q_proj.scales", 0, 1, true);
    r = run(&s);
    assert_false(r.passed);
    close_subject(&s);
}

/* Scales of 7 significant bits: h is exact in bf16 and z h in fp16, for every group of the
 * artifact. One with an eighth is refused. */
static void test_scale_bits(void **state)
{
    struct subject s;
    struct artifact *a;
    struct weight_spec w = {.method = WEIGHT_RTN, .bits = 4, .group_size = 16};
    w.scale_bits = 7;
    open_weights(&s, "qwen2", w, kv4);
    for (int with = 0; with < 2; with++) {
        s.settings.state = with ? &s.state.source : NULL;
        const struct verify_report r = run(&s);
        if (!r.passed)
            fail_msg("%s", r.first_difference);
        assert_int_equal(r.weights, VERIFY_PASS);
    }
    ok(artifact_open(&a, dir, true));
    assert_int_equal(artifact_weight_spec(a)->scale_bits, 7);
    for (int64_t i = 0; i < artifact_arch(a)->n_layers; i++) {
        struct block_quant q = {0};
        ok(artifact_block_quant(&q, a, i));
        for (int l = 0; l < N_LIN; l++)
            for (int64_t k = 0; k < q.lin[l].out * q.lin[l].groups; k++) {
                const float h = f16_to_f32(q.lin[l].scales[k]);
                const float zh = (float)q.lin[l].zeros[k] * h;
                assert_int_equal(quant_scale_round(q.lin[l].scales[k], 7),
                                 q.lin[l].scales[k]);
                assert_true(bf16_to_f32(bf16_from_f32(h)) == h);
                assert_true(f16_to_f32(f16_from_f32(zh)) == zh);
            }
        block_quant_free(&q);
    }
    artifact_close(&a);
    damage("model.layers.0.self_attn.q_proj.scales", 0, 1 << 3, true);
    struct verify_report r;
    assert_int_equal(verify_run(&r, dir, &s.settings), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "weights.scale_bits, 7 significant bits"));
    close_subject(&s);
    /* A state whose scales are not rounded is not written. */
    open_weights(&s, "qwen2", w, kv4);
    const struct artifact_settings settings = {.weights = w,
                                               .kv = kv4,
                                               .config_json = "{}",
                                               .provenance_json = "{}",
                                               .force = true};
    s.state.weights.scale_bits = 11;
    assert_int_equal(
        artifact_write(dir, s.g.model, s.g.dir, &s.state.source, &settings, NULL, NULL),
        ERR_MISMATCH);
    assert_non_null(strstr(err_text(), "weights.scale_bits, 7 significant bits"));
    err_clear();
    close_subject(&s);
}

/* A quantized head, tied and not: every part passes, with a state and without. A changed
 * code, scale or zero of embedding or head is found. */
static void test_head(void **state)
{
    static const char *const model[] = {"llama_tied_bf16", "llama2_gqa"};
    static const char *const tensor[] = {
        "model.embed_tokens.qweight", "model.embed_tokens.scales",
        "model.embed_tokens.zeros", "lm_head.qweight", "lm_head.scales"};
    for (int untied = 0; untied < 2; untied++) {
        struct subject s;
        struct weight_spec w = {.method = WEIGHT_LWC, .bits = 4, .group_size = 16};
        w.head_bits = 6;
        w.head_group = 12;
        open_weights(&s, model[untied], w, kv4);
        for (int without = 0; without < 3; without++) {
            s.settings.state = without ? NULL : &s.state.source;
            s.settings.against = without == 2 ? NULL : s.g.dir;
            const struct verify_report r = run(&s);
            if (!r.passed)
                fail_msg("%s: %s", model[untied], r.first_difference);
            assert_true(r.logits == VERIFY_PASS && r.perplexity == VERIFY_PASS);
            assert_int_equal(r.weights, without == 2 ? VERIFY_SKIP : VERIFY_PASS);
        }
        s.settings.against = s.g.dir;
        for (size_t i = 0; i < (untied ? ARRAY_LEN(tensor) : 3); i++) {
            ok(golden_artifact(dir, &s.g, &s.state));
            damage(tensor[i], 0, 1, true);
            const struct verify_report r = run(&s);
            assert_int_equal(r.weights, VERIFY_FAIL);
            assert_non_null(strstr(r.first_difference, i < 3 ? "embed_tokens" : "lm_head"));
        }
        close_subject(&s);
    }
}

static void test_zero(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    damage("model.layers.0.mlp.down_proj.zeros", 0, 1, true);
    const struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.weights, VERIFY_FAIL);
    close_subject(&s);
}

static void test_shift(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    damage("model.layers.1.self_attn.k_shift", 2, 0x40, true);
    struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.weights, VERIFY_FAIL);
    assert_non_null(strstr(r.first_difference, "k_shift[0]"));
    /* the runtime read it as well: its keys are no longer the simulation's */
    assert_true(r.agree_k_cosine < 0.99999);
    close_subject(&s);
}

static void test_norm(void **state)
{
    struct subject s;
    open_subject(&s, "llama_f16", WEIGHT_LWC, 4, kv4);
    damage("model.layers.1.input_layernorm.weight", 4, 1, true);
    const struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.weights, VERIFY_FAIL);
    assert_non_null(strstr(r.first_difference, "input_layernorm"));
    close_subject(&s);
}

/* A gain above 1e38 overflows in the first block of the runtime, whose next block starts from the
 * simulation's states again: what is not a number stays the worst figure. */
static void test_overflow_of_the_first_block(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    const char *name = "model.layers.0.input_layernorm.weight";
    const uint8_t *gain = hf_find(s.g.model, name)->data;
    size_t i = 0;
    while (!(gain[i + 3] == 0x3f && gain[i + 2] < 0x80)) /* in [0.5, 1) */
        i += sizeof(float);
    damage(name, i + 3, 0x40, true);
    const struct verify_report r = run(&s);
    assert_int_equal(r.structure, VERIFY_PASS);
    assert_int_equal(r.logits, VERIFY_FAIL);
    assert_true(isnan(r.worst_block_error) && isnan(r.agree_k_cosine));
    assert_int_equal(r.worst_block, 0);
    close_subject(&s);
}

static void test_not_finite(void **state)
{
    struct subject s;
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    static const uint8_t nan[] = {0, 0, 0xc0, 0x7f};
    const uint8_t *was = hf_find(s.g.model, "model.norm.weight")->data;
    for (size_t i = 0; i < sizeof(nan); i++)
        if (was[i] != nan[i])
            damage("model.norm.weight", i, was[i] ^ nan[i], true);
    const struct verify_report r = run(&s);
    assert_false(r.passed);
    assert_int_equal(r.structure, VERIFY_FAIL);
    assert_non_null(strstr(r.first_difference, "model.norm.weight"));
    close_subject(&s);
}

static void test_other_model(void **state)
{
    struct subject s;
    struct verify_report r;
    char other[600];
    open_subject(&s, "llama1_mha", WEIGHT_LWC, 4, kv4);
    snprintf(other, sizeof(other), "%s/../llama2_gqa", s.g.dir);
    s.settings.against = other;
    assert_int_equal(verify_run(&r, dir, &s.settings), ERR_MISMATCH);
    assert_non_null(strstr(err_text(), "num_hidden_layers"));
    err_clear();
    assert_int_equal(verify_run(&r, s.g.dir, &s.settings), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "manifest.json"));
    close_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_passes),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_crc),
        cmocka_unit_test(test_nibble),
        cmocka_unit_test(test_carried),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_zero),
        cmocka_unit_test(test_shift),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_overflow_of_the_first_block),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_other_model),
        cmocka_unit_test(test_scale_bits),
        cmocka_unit_test(test_nothing_packed),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}

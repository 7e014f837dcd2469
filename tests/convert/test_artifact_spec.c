/* SPDX-License-Identifier: MIT
 *
 * quantization_config: the version that each setting needs, and what a reader refuses. */
#include "convert/format/artifact_spec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const struct weight_spec w4 = {WEIGHT_LWC, 4, 128, ROUND_LEARNED};
static const struct kv_spec kv4 = {
    KV_CHANNEL_TOKEN, 4, 128, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE};

static struct mix *parsed(enum mix_of of, const char *text)
{
    struct mix *m = NULL;
    assert_int_equal(mix_parse(&m, of, text, ERR_USAGE, "test"), OK);
    return m;
}

static int64_t version_in(const json_t *o)
{
    return json_integer_value(json_object_get(o, "format_version"));
}

/* The oldest version with the same meaning. */
static void oldest_version(void **state)
{
    struct mix *m = parsed(MIX_WEIGHTS, "v_proj=8:64"), *k = parsed(MIX_KV, "k=5");
    struct weight_spec w = w4;
    struct kv_spec kv = kv4;
    for (int which = 0; which < 16; which++) {
        w.refined = which & 8;
        w.mixed = which & 1 ? m : NULL;
        kv.mixed = which & 2 ? k : NULL;
        kv.rotate = which & 4 ? ROTATE_KV : ROTATE_NONE;
        json_t *o = spec_to_json(&w, &kv);
        assert_non_null(o);
        assert_int_equal(version_in(o), which & 8 ? 4 : which & 3 ? 3 : which & 4 ? 2 : 1);
        const json_t *jw = json_object_get(o, "weights"), *jkv = json_object_get(o, "kv");
        assert_int_equal(json_object_get(jw, "mixed") != NULL, which & 1);
        assert_int_equal(json_object_get(jkv, "mixed") != NULL, which >> 1 & 1);
        assert_int_equal(json_object_get(jw, "refined") != NULL, which >> 3);
        json_decref(o);
    }
    for (int i = TARGET_Q4_0; i < N_KV_TARGETS; i++) {
        const struct kv_spec target = kv_target_spec((enum kv_target)i);
        json_t *o = spec_to_json(&w4, &target);
        assert_int_equal(version_in(o), i <= TARGET_Q4_1 ? 7 : 9);
        json_decref(o);
    }
    mix_free(m);
    mix_free(k);
}

static void there_and_back(void **state)
{
    struct mix *m = parsed(MIX_WEIGHTS, "3.down_proj=5, v_proj=8:64, 1.q_proj=16");
    struct mix *k = parsed(MIX_KV, "k=5, 0-1.v=8:32");
    struct weight_spec w = w4, back = {0};
    struct kv_spec kv = kv4, kv_back = {0};
    w.mixed = m;
    w.refined = true;
    kv.mixed = k;
    json_t *o = spec_to_json(&w, &kv);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(o, "weights"), "mixed")),
        "1.q_proj=16, v_proj=8:64, 3.down_proj=5");
    assert_int_equal(spec_from_json(&back, &kv_back, o, "test"), OK);
    for (int64_t layer = 0; layer < 5; layer++)
        for (int l = 0; l < N_LIN; l++) {
            const struct lin_format x = weight_format(&w, layer, l);
            const struct lin_format y = weight_format(&back, layer, l);
            assert_true(x.bits == y.bits && x.group_size == y.group_size);
        }
    assert_int_equal(back.scale_bits, 11); /* absent */
    json_t *again = spec_to_json(&back, &kv_back);
    assert_true(json_equal(o, again));
    json_decref(o);
    json_decref(again);
    spec_free(&back, &kv_back);
    assert_null(back.mixed);
    mix_free(m);
    mix_free(k);
}

/* Written only if fewer than 11, and without a later version. */
static void scale_bits(void **state)
{
    for (int bits = 0; bits <= 11; bits++) {
        struct weight_spec w = w4, back;
        struct kv_spec kv;
        w.scale_bits = bits;
        json_t *o = spec_to_json(&w, &kv4);
        const json_t *have = json_object_get(json_object_get(o, "weights"), "scale_bits");
        assert_int_equal(have != NULL, bits > 0 && bits < 11);
        assert_int_equal(version_in(o), 1);
        assert_int_equal(spec_from_json(&back, &kv, o, "test"), OK);
        assert_int_equal(back.scale_bits, bits ? bits : 11);
        json_decref(o);
    }
}

/* Artifacts of earlier programs have quant_method in place of format. */
static void earlier_artifacts(void **state)
{
    struct weight_spec w = {0};
    struct kv_spec kv = {0};
    json_t *o = spec_to_json(&w4, &kv4);
    assert_true(spec_is_ours(o));
    assert_int_equal(json_object_del(o, "format"), 0);
    assert_false(spec_is_ours(o));
    assert_int_equal(json_object_set_new(o, "quant_method", json_string("wkvq")), 0);
    assert_true(spec_is_ours(o));
    assert_int_equal(spec_from_json(&w, &kv, o, "test"), OK);
    assert_int_equal(w.group_size, 128);
    assert_false(spec_is_ours(NULL));
    json_decref(o);
}

/* A quantized head needs version 5, and is then converted like a projection. */
static void head(void **state)
{
    for (int bits = 0; bits <= 16; bits += bits == 8 ? 8 : 1) {
        struct weight_spec w = w4, back;
        struct kv_spec kv;
        w.head_bits = bits;
        w.head_group = 64;
        if (bits == 1)
            continue;
        const bool quantized = bits && bits < 16;
        json_t *o = spec_to_json(&w, &kv4);
        assert_int_equal(version_in(o), quantized ? 5 : 1);
        assert_int_equal(json_object_get(o, "head") != NULL, quantized);
        assert_int_equal(json_array_size(json_object_get(o, "modules_to_not_convert")),
                         !quantized);
        assert_int_equal(spec_from_json(&back, &kv, o, "test"), OK);
        assert_int_equal(head_format(&back).bits, quantized ? bits : 16);
        assert_int_equal(back.head_group, quantized ? 64 : 0);
        json_decref(o);
    }
}

/* Checks that o, with a change, is refused with e and these words, and restores it. */
static void refused(json_t *o, enum err e, const char *words)
{
    struct weight_spec w = {.bits = 77};
    struct kv_spec kv = {.bits = 77};
    err_clear();
    if (spec_from_json(&w, &kv, o, "config.json") != e || !strstr(err_text(), words))
        fail_msg("want \"%s\": %s", words, err_text());
    assert_int_equal(w.bits, 77);
    assert_int_equal(kv.bits, 77);
    err_clear();
}

static void set(json_t *o, const char *section, const char *key, json_t *value)
{
    json_t *at = *section ? json_object_get(o, section) : o;
    assert_int_equal(json_object_set_new(at, key, value), 0);
}

/* Readers before version 6 refuse the method, so it is not read from an earlier version. */
static void given_weights(void **state)
{
    struct weight_spec w = w4, back;
    struct kv_spec kv;
    w.method = WEIGHT_GIVEN;
    json_t *o = spec_to_json(&w, &kv4);
    assert_int_equal(version_in(o), 6);
    assert_int_equal(spec_from_json(&back, &kv, o, "test"), OK);
    assert_int_equal(back.method, WEIGHT_GIVEN);
    set(o, "", "format_version", json_integer(5));
    refused(o, ERR_FORMAT,
            "config.json.weights.method: given needs format_version 6, not 5");
    json_decref(o);
}

/* Readers before version 8 would leave the inputs of projections as they are. */
static void rounded_inputs(void **state)
{
    struct weight_spec w = w4, back;
    struct kv_spec kv;
    for (int bits = 2; bits <= 16; bits += bits == 8 ? 8 : 1) {
        w.act_bits = bits;
        json_t *o = spec_to_json(&w, &kv4);
        assert_int_equal(version_in(o), bits < 16 ? 8 : 1);
        assert_int_equal(json_object_get(o, "activations") != NULL, bits < 16);
        assert_int_equal(spec_from_json(&back, &kv, o, "test"), OK);
        assert_int_equal(back.act_bits, bits < 16 ? bits : 0);
        json_decref(o);
    }
    w.act_bits = 4;
    json_t *o = spec_to_json(&w, &kv4);
    set(o, "activations", "bits", json_integer(9));
    refused(o, ERR_FORMAT, "activations.bits is 9, want 2 to 8 or 16");
    set(o, "activations", "bits", json_integer(1));
    refused(o, ERR_FORMAT, "config.json.activations: bits is 1");
    set(o, "activations", "bits", json_integer(4));
    set(o, "", "format_version", json_integer(7));
    refused(o, ERR_FORMAT, "config.json.activations needs format_version 8, not 7");
    json_decref(o);
}

static void what_is_refused(void **state)
{
    json_t *o = spec_to_json(&w4, &kv4);
    set(o, "", "quant_method", json_string("awq"));
    refused(o, ERR_FORMAT, "format is \"wkvq\", want \"wkvq\" and no quant_method");
    json_object_del(o, "quant_method");
    set(o, "", "format", json_string("gguf"));
    refused(o, ERR_FORMAT, "format is \"gguf\", want \"wkvq\"");
    set(o, "", "format", json_string("wkvq"));
    set(o, "", "format_version", json_integer(10));
    refused(o, ERR_SUPPORT, "format_version is 10, this program reads up to 9");
    set(o, "", "format_version", json_integer(3));
    set(o, "weights", "refined", json_true());
    refused(o, ERR_FORMAT, "config.json.weights.refined needs format_version 4, not 3");
    set(o, "weights", "refined", json_string("yes"));
    refused(o, ERR_FORMAT, "refined");
    json_object_del(json_object_get(o, "weights"), "refined");
    set(o, "", "head", json_pack("{s:i, s:i}", "bits", 8, "group_size", 64));
    refused(o, ERR_FORMAT, "config.json.head needs format_version 5, not 3");
    set(o, "", "format_version", json_integer(5));
    set(o, "head", "bits", json_integer(9));
    refused(o, ERR_FORMAT, "head.bits is 9, want 2 to 8 or 16");
    set(o, "head", "bits", json_integer(8));
    set(o, "head", "group_size", json_integer(-1));
    refused(o, ERR_FORMAT, "config.json.head: group_size is -1");
    json_object_del(o, "head");
    set(o, "", "format_version", json_integer(2));
    set(o, "weights", "mixed", json_string("v_proj=8"));
    refused(o, ERR_FORMAT, "config.json.weights.mixed needs format_version 3, not 2");
    set(o, "", "format_version", json_integer(3));
    set(o, "weights", "mixed", json_string("v_proj=9"));
    refused(o, ERR_FORMAT, "config.json.weights.mixed: rule 'v_proj=9': want 2 to 8");
    set(o, "weights", "mixed", json_integer(8));
    refused(o, ERR_FORMAT, "mixed");
    set(o, "weights", "mixed", json_string("v_proj=8"));
    set(o, "kv", "mixed", json_string("v=8:0"));
    refused(o, ERR_FORMAT, "config.json.kv.mixed: rule 'v=8:0'");
    set(o, "kv", "mixed", json_string("v=8"));
    set(o, "weights", "scale_bits", json_integer(12));
    refused(o, ERR_FORMAT, "config.json.weights: scale_bits is 12, want 1 to 11");
    set(o, "weights", "scale_bits", json_integer(7));
    set(o, "kv", "window", json_integer(-1));
    refused(o, ERR_FORMAT, "window");
    json_decref(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(oldest_version), cmocka_unit_test(there_and_back),
        cmocka_unit_test(scale_bits),     cmocka_unit_test(earlier_artifacts),
        cmocka_unit_test(head),           cmocka_unit_test(given_weights),
        cmocka_unit_test(rounded_inputs), cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

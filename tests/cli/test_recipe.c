/* SPDX-License-Identifier: MIT
 *
 * Configuration: defaults, YAML, --set, what is refused and how, JSON and back. */
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/recipe/recipe.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char yaml_file[] = "test_recipe.tmp.yaml";

static enum err load(struct recipe *r, const char *text)
{
    recipe_free(r);
    recipe_init(r);
    err_clear();
    assert_int_equal(file_write_all(yaml_file, text, strlen(text)), OK);
    return recipe_load_yaml(r, yaml_file);
}

static void defaults_are_the_papers(void **state)
{
    struct recipe r;
    recipe_init(&r);
    const struct weight_spec w = recipe_weight_spec(&r);
    const struct kv_spec kv = recipe_kv_spec(&r);
    assert_int_equal(r.samples, 128);
    assert_int_equal(r.seqlen, 2048);
    assert_int_equal(r.epochs, 5);
    assert_int_equal(w.method, WEIGHT_LWC);
    assert_int_equal(w.bits, 4);
    assert_int_equal(w.group_size, 128);
    assert_int_equal(kv.method, KV_CHANNEL_TOKEN);
    assert_int_equal(kv.key_stage, KEY_POST_ROPE);
    assert_true(kv.past_only && kv.learn);
    assert_int_equal(kv.window, 1);
    assert_int_equal(r.crr_blocks, 5);
    assert_int_equal(r.crr_loss, LOSS_MAE);
    assert_true(r.lr_clip == 0.2 && r.lr_smooth == 0.01);
    recipe_free(&r);
}

static void reads_yaml(void **state)
{
    struct recipe r = {0};
    assert_int_equal(load(&r, "weights: {bits: 3, group_size: 0}\n"
                              "kv:\n  past_only: false\n  method: token\n"
                              "calibration:\n  data: [a.txt, b.txt]\n"
                              "optimizer: {lr_clip: 2.5e-3}\n"
                              "run: {memory: 2G, compute: bf16}\n"),
                     OK);
    assert_int_equal(r.weight_bits, 3);
    assert_int_equal(r.weight_group, 0);
    assert_false(r.past_only);
    assert_int_equal(r.kv_method, KV_TOKEN);
    assert_int_equal(r.data.n, 2);
    assert_string_equal(r.data.path[1], "b.txt");
    assert_true(r.lr_clip == 2.5e-3);
    assert_true(r.memory == (uint64_t)2 << 30);
    assert_int_equal(r.compute, COMPUTE_BF16);
    recipe_free(&r);
}

static void reference_is_the_defaults(void **state)
{
    struct recipe r = {0}, fresh;
    json_t *a, *b;
    const char *path = getenv("REFERENCE_YAML");
    if (!path)
        skip();
    recipe_init(&fresh);
    recipe_init(&r);
    assert_int_equal(recipe_load_yaml(&r, path), OK);
    assert_int_equal(recipe_json(&a, &r, false), OK);
    assert_int_equal(recipe_json(&b, &fresh, false), OK);
    assert_true(json_equal(a, b));
    json_decref(a);
    json_decref(b);
    recipe_free(&r);
}

/* The committed file equals the printed one. */
/* Every configuration beside the reference. */
static void shipped_ones_load(void **state)
{
    char pattern[1024];
    glob_t g;
    const char *path = getenv("REFERENCE_YAML");
    if (!path)
        skip();
    snprintf(pattern, sizeof(pattern), "%.*s/*.yaml", (int)(strrchr(path, '/') - path),
             path);
    assert_int_equal(glob(pattern, 0, NULL, &g), 0);
    assert_true(g.gl_pathc >= 4);
    for (size_t i = 0; i < g.gl_pathc; i++) {
        struct recipe r = {0};
        recipe_init(&r);
        const enum err err = recipe_load_yaml(&r, g.gl_pathv[i]);
        if (err)
            print_error("%s\n", err_text());
        assert_int_equal(err, OK);
        recipe_free(&r);
    }
    globfree(&g);
}
static void reference_is_printed(void **state)
{
    char *committed, *printed;
    size_t n, n_printed;
    const char *path = getenv("REFERENCE_YAML");
    FILE *f = fopen(yaml_file, "w");
    if (!path)
        skip();
    assert_non_null(f);
    recipe_print_reference(f);
    fclose(f);
    assert_int_equal(file_read_all(&committed, &n, path, 1 << 20), OK);
    assert_int_equal(file_read_all(&printed, &n_printed, yaml_file, 1 << 20), OK);
    assert_string_equal(committed, printed);
    mem_free(committed);
    mem_free(printed);
}

/* text fails with e, and the message holds each of the words. */
static void refused(const char *text, enum err e, const char *word, const char *word2)
{
    struct recipe r = {0};
    const enum err got = load(&r, text);
    if (got != e || !strstr(err_text(), word) || !strstr(err_text(), word2))
        fail_msg("%s: error %d (want %d): %s\nwant: %s ... %s", text, got, e, err_text(),
                 word, word2);
    recipe_free(&r);
}

static void refuses_with_line_and_remedy(void **state)
{
    refused("weights:\n  bits: 9\n", ERR_USAGE, "line 2", "2 to 8, or 16");
    refused("weights:\n  bits: 1\n", ERR_USAGE, "weights.bits", "2 to 8, or 16");
    refused("weights:\n  bits: '4'\n", ERR_USAGE, "line 2", "in quotes");
    refused("weights:\n  bits: [4]\n", ERR_USAGE, "line 2", "not a list");
    refused("weights:\n  bits: {a: 4}\n", ERR_USAGE, "line 2", "not further keys");
    refused("weights:\n\n  group_sise: 64\n", ERR_USAGE, "line 3",
            "did you mean 'weights.group_size'");
    refused("wieghts: {bits: 4}\n", ERR_USAGE, "line 1", "did you mean 'weights'");
    refused("weights: 4\n", ERR_USAGE, "line 1", "want keys below");
    refused("- a\n", ERR_USAGE, "line 1", "at the top");
    refused("kv: {past_only: yes}\n", ERR_USAGE, "kv.past_only", "true or false");
    refused("kv: {window: 0}\n", ERR_USAGE, "kv.window", "whole number from 1");
    refused("kv: {window: 1.5}\n", ERR_USAGE, "kv.window", "whole number from 1");
    refused("kv: {window: nan}\n", ERR_USAGE, "kv.window", "whole number from 1");
    refused("calibration: {eval_samples: -1}\n", ERR_USAGE, "calibration.eval_samples",
            "want auto, or a whole number from 0");
    refused("calibration: {eval_samples: all}\n", ERR_USAGE, "calibration.eval_samples",
            "want auto, or a whole number from 0");
    refused("optimizer: {lr_clip: inf}\n", ERR_USAGE, "lr_clip", "from 0 to 10");
    refused("optimizer: {lr_clip: -1}\n", ERR_USAGE, "lr_clip", "from 0 to 10");
    refused("refine: {lr_round: 1.0e-4}\n", ERR_USAGE, "refine.lr_round: '1.0e-4'",
            "want 0, or a number from 0.001 to 0.9: smaller steps round away");
    refused("run: {memory: 8X}\n", ERR_USAGE, "run.memory", "want auto");
    refused("run: {memory: 0}\n", ERR_USAGE, "run.memory", "want auto");
    refused("weights: {damp: -0.1}\n", ERR_USAGE, "weights.damp", "from 0 to 1");
    refused("weights: {method: awq}\n", ERR_USAGE, "weights.method", "one of rtn, lwc");
    refused("kv: {rotate: q}\n", ERR_USAGE, "kv.rotate", "one of none, v, k, kv");
    refused("run: {device: tpu}\n", ERR_USAGE, "run.device", "cpu, ref, cuda");
    refused("activations: {bits: 9}\n", ERR_USAGE, "activations.bits",
            "want 2 to 8, or 16");
    refused("calibration: {data: [[x]]}\n", ERR_USAGE, "calibration.data", "file names");
    refused("calibration: {data: {file: a}}\n", ERR_USAGE, "line 1: calibration.data",
            "'a' lacks its share");
    refused("calibration:\n  data:\n    - {share: 1}\n", ERR_USAGE,
            "line 3: calibration.data", "lacks its file name");
    refused("calibration: {data: [{file: a, share: 1, join: rows}]}\n", ERR_USAGE,
            "calibration.data", "want file and share, nothing else");
    refused("calibration: {data: [{file: a, share: half}]}\n", ERR_USAGE, "'a'",
            "share is 'half'; want a number above 0");
    refused("calibration: {data: [{file: a, share: -1}]}\n", ERR_USAGE, "'a'",
            "share is '-1'; want a number above 0");
    refused("calibration: {data: [{file: a, share: nan}]}\n", ERR_USAGE, "'a'",
            "share is 'nan'; want a number above 0");
    refused("calibration: {data: [{file: a, share: [1]}]}\n", ERR_USAGE, "'a'",
            "share is 'no number'");
    refused("calibration: {data: [{file: a, share: 1}, b]}\n", ERR_USAGE,
            "'b' has no share, but 'a' has one", "give all texts a share, or none");
    refused("calibration: {data: [a, {file: b, share: 1}]}\n", ERR_USAGE,
            "'b' has a share, but 'a' has none", "give all texts a share, or none");
    refused("calibration: {data: [{file: a, share: 0}, {file: b, share: 0}]}\n", ERR_USAGE,
            "calibration.data: 'a' has a share of 0", "or leave it out");
    refused("weights:\n  mixed: q_proj=8, v=8\n", ERR_USAGE,
            "line 2: weights.mixed: rule 'v=8'", "want q_proj, k_proj");
    refused("weights: {mixed: q_proj=8, v_proj=8}\n", ERR_USAGE, "v_proj=8", "");
    refused("weights: {mixed: [v_proj=8]}\n", ERR_USAGE, "weights.mixed", "not a list");
    refused("kv: {mixed: 'v=4:0'}\n", ERR_USAGE, "kv.mixed: rule 'v=4:0'",
            "group size from 1");
}

static void set_and_shortcuts(void **state)
{
    struct recipe r;
    static const char *const set[] = {"weights.bits=2", "kv.bits=16",
                                      "calibration.data=x.txt", "weights.bits=5"};
    static const char *const data[] = {"y.txt"};
    const struct recipe_input a = {.threads = 3,
                                   .memory = 4096,
                                   .join = "file",
                                   .bos = "never",
                                   .set = set,
                                   .n_set = 4,
                                   .data = data,
                                   .n_data = 1};
    err_clear();
    assert_int_equal(recipe_from_input(&r, &a), OK);
    assert_int_equal(r.weight_bits, 5);
    assert_int_equal(r.kv_bits, 16);
    assert_int_equal(r.threads, 3);
    assert_int_equal(r.memory, 4096);
    assert_int_equal(r.join, JOIN_FILE);
    assert_int_equal(r.bos, BOS_NEVER);
    assert_int_equal(r.data.n, 1);
    assert_string_equal(r.data.path[0], "y.txt");
    recipe_free(&r);
}

/* A preset applies first, wherever it stands. The preset of --set replaces the file's, and
 * keys override both. */
static void presets(void **state)
{
    struct recipe r = {0};
    assert_int_equal(
        load(&r, "kv: {group_size: 64}\nweights: {bits: 3}\npreset: paper-w4\n"), OK);
    assert_int_equal(r.weight_bits, 3);
    assert_int_equal(r.kv_bits, 16);
    assert_int_equal(r.kv_group, 64);
    recipe_free(&r);
    static const char *const set[] = {"activations.bits=8", "preset=paper-w4a4"};
    const struct recipe_input a = {
        .threads = -1, .config = yaml_file, .set = set, .n_set = 2};
    err_clear();
    assert_int_equal(recipe_from_input(&r, &a), OK);
    assert_int_equal(r.weight_bits, 3);
    assert_int_equal(r.kv_bits, 4);
    assert_int_equal(r.activation_bits, 8);
    assert_int_equal(r.kv_method, KV_TOKEN);
    assert_false(r.past_only);
    recipe_free(&r);
    refused("preset: paper-w4k4\n", ERR_USAGE, "line 1: preset", "mean 'paper-w4kv4'");
    refused("preset: kivi-lik\n", ERR_USAGE, "line 1: preset", "mean 'kivi-like'");
    refused("preset: [a]\n", ERR_USAGE, "preset", "want a name");
    assert_int_equal(load(&r, "preset: kivi-like\nkv: {bits: 4}\n"), OK);
    assert_int_equal(r.kv_method, KV_CHANNEL);
    assert_int_equal(r.kv_bits, 4);
    assert_int_equal(r.kv_group, 32);
    assert_int_equal(r.window, 128);
    assert_int_equal(r.weight_bits, 16);
    err_clear();
    assert_int_equal(recipe_check_runtime(&r), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "kv.method is channel"));
    recipe_free(&r);
}

static void set_refuses(void **state)
{
    struct recipe r;
    recipe_init(&r);
    err_clear();
    assert_int_equal(recipe_set(&r, "group_size", "4", "--set"), ERR_USAGE);
    assert_non_null(strstr(err_text(), "group_size"));
    err_clear();
    assert_int_equal(recipe_set(&r, "bits", "4", "--set"), ERR_USAGE);
    assert_non_null(strstr(err_text(), "did you mean"));
    err_clear();
    static const char *const set[] = {"weights.bits"};
    const struct recipe_input a = {.threads = -1, .set = set, .n_set = 1};
    recipe_free(&r);
    assert_int_equal(recipe_from_input(&r, &a), ERR_USAGE);
    assert_non_null(strstr(err_text(), "KEY=VALUE"));
    recipe_free(&r);
}

static void json_and_back(void **state)
{
    struct recipe r, back;
    json_t *a, *b;
    recipe_init(&r);
    recipe_init(&back);
    assert_int_equal(recipe_set(&r, "optimizer.lr_clip", "0.0123", ""), OK);
    assert_int_equal(recipe_set(&r, "kv.key_stage", "pre_rope", ""), OK);
    assert_int_equal(recipe_set(&r, "kv.learn", "false", ""), OK);
    assert_int_equal(recipe_set(&r, "weights.bits", "3", ""), OK);
    assert_int_equal(recipe_json(&a, &r, true), OK);
    assert_int_equal(recipe_load_json(&back, a, "manifest.json"), OK);
    assert_int_equal(recipe_json(&b, &back, true), OK);
    assert_true(json_equal(a, b));
    /* Keys that affect only speed are not part of the identity. */
    assert_null(json_object_get(json_object_get(a, "run"), "threads"));
    assert_non_null(json_object_get(json_object_get(a, "run"), "compute"));
    json_decref(b);
    json_object_set_new(json_object_get(a, "weights"), "bits", json_integer(9));
    err_clear();
    assert_int_equal(recipe_load_json(&back, a, "manifest.json"), ERR_FORMAT);
    json_decref(a);
    recipe_free(&r);
    recipe_free(&back);
}

/* Every key that affects the result is a change once it has another value, and none is before. */
static void changes(void **state)
{
    struct recipe r;
    json_t *o;
    recipe_init(&r);
    assert_int_equal(recipe_changes(&o, &r), OK);
    assert_int_equal(json_object_size(o), 0);
    json_decref(o);
    static const char *const set[][2] = {
        {"weights.bits", "3"}, {"kv.rotate", "kv"},          {"refine.lr_norms", "0.01"},
        {"crr.blocks", "0"},   {"refine.lr_round", "0.001"}, {"kv.mixed", "v=8:8"},
        {"run.threads", "3"}};
    for (size_t i = 0; i < ARRAY_LEN(set); i++)
        assert_int_equal(recipe_set(&r, set[i][0], set[i][1], ""), OK);
    assert_int_equal(recipe_changes(&o, &r), OK);
    for (size_t i = 0; i + 1 < ARRAY_LEN(set); i++)
        assert_non_null(json_object_get(o, set[i][0]));
    assert_int_equal(json_object_size(o), ARRAY_LEN(set) - 1); /* not run.threads */
    json_decref(o);
    assert_int_equal(recipe_set(&r, "refine.lr_round", "0", ""), OK);
    /* 16 of more samples is what auto does */
    assert_int_equal(recipe_set(&r, "calibration.eval_samples", "16", ""), OK);
    assert_int_equal(recipe_changes(&o, &r), OK);
    assert_null(json_object_get(o, "calibration.eval_samples"));
    json_decref(o);
    assert_int_equal(recipe_set(&r, "calibration.eval_samples", "17", ""), OK);
    assert_int_equal(recipe_changes(&o, &r), OK);
    assert_int_equal(json_integer_value(json_object_get(o, "calibration.eval_samples")),
                     17);
    json_decref(o);
    recipe_free(&r);
}

/* A number of measured samples as the identity has it; 0: it has none. */
static int64_t measured_in_identity(const char *samples, const char *measured)
{
    struct recipe r;
    json_t *a;
    recipe_init(&r);
    assert_int_equal(recipe_set(&r, "calibration.samples", samples, ""), OK);
    if (measured)
        assert_int_equal(recipe_set(&r, "calibration.eval_samples", measured, ""), OK);
    assert_int_equal(recipe_json(&a, &r, true), OK);
    const json_t *n = json_object_get(json_object_get(a, "calibration"), "eval_samples");
    const int64_t value = n ? json_integer_value(n) : 0;
    assert_true(!n || value > 0);
    assert_int_equal(recipe_settings(&r, NULL).eval_samples, value);
    json_decref(a);
    recipe_free(&r);
    return value;
}

/* The number is part of what a state belongs to. Without the key, as before it existed, all
 * samples are measured. */
static void measured_samples(void **state)
{
    struct recipe r;
    json_t *a;
    assert_int_equal(measured_in_identity("128", NULL), 16);
    assert_int_equal(measured_in_identity("128", "auto"), 16);
    assert_int_equal(measured_in_identity("128", "5"), 5);
    assert_int_equal(measured_in_identity("17", NULL), 16);
    assert_int_equal(measured_in_identity("16", NULL), 0);
    assert_int_equal(measured_in_identity("128", "0"), 0);
    assert_int_equal(measured_in_identity("128", "128"), 0);
    assert_int_equal(measured_in_identity("8", "9"), 0);
    recipe_init(&r);
    assert_int_equal(recipe_json(&a, &r, true), OK);
    json_object_del(json_object_get(a, "calibration"), "eval_samples");
    assert_int_equal(recipe_load_json(&r, a, "manifest.json"), OK);
    assert_int_equal(r.eval_samples, 0);
    json_object_set_new(json_object_get(a, "calibration"), "eval_samples", json_integer(7));
    assert_int_equal(recipe_load_json(&r, a, "manifest.json"), OK);
    assert_int_equal(r.eval_samples, 7);
    json_decref(a);
    recipe_free(&r);
}

/* Texts with shares, in YAML and on the command line. */
static void shares(void **state)
{
    struct recipe r = {0}, copy;
    char *typed;
    assert_int_equal(
        load(&r, "calibration:\n  data:\n    - {file: a.txt, share: 0.5}\n"
                 "    - file: b:1\n      share: 1e-3\n    - c.txt:0.33333333333333331\n"),
        OK);
    assert_int_equal(recipe_copy(&copy, &r), OK);
    recipe_free(&r);
    static const char *const want[] = {"a.txt:0.5", "b:1:0.001",
                                       "c.txt:0.3333333333333333"};
    assert_int_equal(copy.data.n, 3);
    assert_true(recipe_files_shared(&copy.data));
    for (int i = 0; i < 3; i++) {
        assert_int_equal(recipe_files_typed(&typed, &copy.data, i), OK);
        assert_string_equal(typed, want[i]);
        mem_free(typed);
    }
    const struct recipe_input in = {.threads = -1, .data = want, .n_data = 3};
    assert_int_equal(recipe_from_input(&r, &in), OK);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(r.data.path[i], copy.data.path[i]);
        assert_true(recipe_files_share(&r.data, i) == recipe_files_share(&copy.data, i));
    }
    recipe_free(&r);
    recipe_free(&copy);
}

/* What is no share belongs to the name, and all files have one or none has. */
static void typed_shares(void **state)
{
    struct recipe r;
    static const char *const plain[] = {"a", ":1", "b:c", "d:", "e:-1", "f:inf", "g:1x"};
    static const char *const half[] = {"a:1", "b"};
    static const char *const none[] = {"a:0", "b:0"};
    struct recipe_input in = {.threads = -1, .data = plain, .n_data = 7};
    assert_int_equal(recipe_from_input(&r, &in), OK);
    assert_false(recipe_files_shared(&r.data));
    for (int i = 0; i < 7; i++)
        assert_string_equal(r.data.path[i], plain[i]);
    recipe_free(&r);
    in.data = half, in.n_data = 2;
    err_clear();
    assert_int_equal(recipe_from_input(&r, &in), ERR_USAGE);
    assert_non_null(strstr(err_text(), "--data: 'b' has no share, but 'a' has one"));
    recipe_free(&r);
    in.data = none;
    err_clear();
    assert_int_equal(recipe_from_input(&r, &in), ERR_USAGE);
    assert_non_null(strstr(err_text(), "--data: 'a' has a share of 0"));
    recipe_free(&r);
}

/* A copy shares no memory with its original. */
static void copies(void **state)
{
    struct recipe r = {0}, copy;
    json_t *a, *b;
    assert_int_equal(load(&r, "weights: {mixed: v_proj=8, bits: 3}\n"
                              "kv: {mixed: 2.k=8}\n"
                              "calibration: {data: [a.txt, b.txt]}\n"),
                     OK);
    assert_int_equal(recipe_copy(&copy, &r), OK);
    assert_int_equal(recipe_json(&a, &r, false), OK);
    recipe_free(&r);
    assert_int_equal(recipe_json(&b, &copy, false), OK);
    assert_true(json_equal(a, b));
    assert_string_equal(copy.data.path[1], "b.txt");
    json_decref(a);
    json_decref(b);
    recipe_free(&copy);
}

/* A path as long as the message still leaves room for the line. */
static void a_long_path_keeps_its_line(void **state)
{
    struct recipe r;
    char path[600];
    memset(path, '/', sizeof(path));
    memcpy(path, ".", 1);
    strcpy(path + sizeof(path) - sizeof(yaml_file), yaml_file);
    static const char text[] = "weights:\n\n  bits: 9\n";
    err_clear();
    assert_int_equal(file_write_all(yaml_file, text, strlen(text)), OK);
    recipe_init(&r);
    assert_int_equal(recipe_load_yaml(&r, path), ERR_USAGE);
    assert_non_null(strstr(err_text(), ": line 3: weights.bits: '9': want 2 to 8"));
    recipe_free(&r);
}

/* The number of files has no limit: none is dropped silently. */
static void many_files(void **state)
{
    struct recipe r = {0};
    char *text = calloc(1, 16384);
    assert_non_null(text);
    strcpy(text, "calibration:\n  data:\n");
    for (int i = 0; i < 500; i++)
        sprintf(text + strlen(text), "    - text-%d.txt\n", i);
    assert_int_equal(load(&r, text), OK);
    assert_int_equal(r.data.n, 500);
    assert_string_equal(r.data.path[499], "text-499.txt");
    free(text);
    recipe_free(&r);
}

/* A mix as text of any length. Without rules the key is omitted, as in files from before it
 * existed. */
static void mixes(void **state)
{
    struct recipe r = {0}, back;
    json_t *a;
    char *text;
    assert_int_equal(load(&r, "weights: {mixed: '3.v_proj=8:64, down_proj=5'}\n"
                              "kv:\n  mixed: v=8\n"),
                     OK);
    const struct weight_spec w = recipe_weight_spec(&r);
    const struct kv_spec kv = recipe_kv_spec(&r);
    assert_int_equal(weight_format(&w, 3, LIN_V).bits, 8);
    assert_int_equal(weight_format(&w, 4, LIN_V).bits, 4);
    assert_int_equal(kv_format(&kv, 0, KV_V).bits, 8);
    assert_int_equal(recipe_json(&a, &r, true), OK);
    const json_t *mixed = json_object_get(json_object_get(a, "weights"), "mixed");
    assert_string_equal(json_string_value(mixed), "3.v_proj=8:64, down_proj=5");
    recipe_init(&back);
    assert_int_equal(recipe_load_json(&back, a, "manifest.json"), OK);
    for (int i = 0; i < recipe_n_keys; i++)
        if (!strcmp(recipe_key[i].name, "weights.mixed")) {
            assert_int_equal(recipe_text(&text, &back, &recipe_key[i]), OK);
            assert_string_equal(text, "3.v_proj=8:64, down_proj=5");
            mem_free(text);
        }
    json_object_set_new(json_object_get(a, "weights"), "mixed", json_string("v_proj=0"));
    err_clear();
    assert_int_equal(recipe_load_json(&back, a, "manifest.json"), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "weights.mixed: rule 'v_proj=0'"));
    json_object_set_new(json_object_get(a, "weights"), "mixed", json_integer(8));
    err_clear();
    assert_int_equal(recipe_load_json(&back, a, "manifest.json"), ERR_FORMAT);
    json_decref(a);
    assert_int_equal(recipe_set(&r, "weights.mixed", "", "--set"), OK);
    assert_null(r.weight_mix);
    assert_int_equal(recipe_json(&a, &r, true), OK);
    assert_null(json_object_get(json_object_get(a, "weights"), "mixed"));
    json_decref(a);
    recipe_free(&back);
    recipe_free(&r);
}

/* A key that is newer than states without it is written only when set. */
static void scale_bits(void **state)
{
    struct recipe r = {0}, back;
    json_t *a;
    assert_int_equal(load(&r, "weights: {bits: 4}\n"), OK);
    assert_int_equal(recipe_weight_spec(&r).scale_bits, 11);
    assert_int_equal(recipe_json(&a, &r, true), OK);
    assert_null(json_object_get(json_object_get(a, "weights"), "scale_bits"));
    recipe_init(&back);
    assert_int_equal(recipe_load_json(&back, a, "manifest.json"), OK);
    assert_int_equal(back.scale_bits, 11);
    json_decref(a);
    assert_int_equal(load(&r, "weights: {scale_bits: 7}\n"), OK);
    assert_int_equal(recipe_json(&a, &r, true), OK);
    assert_int_equal(recipe_load_json(&back, a, "manifest.json"), OK);
    assert_int_equal(recipe_weight_spec(&back).scale_bits, 7);
    json_decref(a);
    refused("weights: {scale_bits: 0}\n", ERR_USAGE, "weights.scale_bits: '0'",
            "want a whole number from 1 to 11");
    recipe_free(&back);
    recipe_free(&r);
}

static int remove_file(void **state)
{
    return unlink(yaml_file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_papers),
        cmocka_unit_test(reads_yaml),
        cmocka_unit_test(reference_is_the_defaults),
        cmocka_unit_test(shipped_ones_load),
        cmocka_unit_test(reference_is_printed),
        cmocka_unit_test(refuses_with_line_and_remedy),
        cmocka_unit_test(set_and_shortcuts),
        cmocka_unit_test(presets),
        cmocka_unit_test(set_refuses),
        cmocka_unit_test(json_and_back),
        cmocka_unit_test(changes),
        cmocka_unit_test(scale_bits),
        cmocka_unit_test(measured_samples),
        cmocka_unit_test(mixes),
        cmocka_unit_test(shares),
        cmocka_unit_test(typed_shares),
        cmocka_unit_test(copies),
        cmocka_unit_test(many_files),
        cmocka_unit_test(a_long_path_keeps_its_line),
    };
    return cmocka_run_group_tests(tests, NULL, remove_file);
}

/* SPDX-License-Identifier: MIT
 *
 * A tokenizer in several files: vocab.json with merges.txt gives the ids of tokenizer.json.
 * The files beside a tokenizer name its added tokens, its BOS and its ends. */
#include "data/json.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tests/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char dir[64];

static int make_dir(void **state)
{
    snprintf(dir, sizeof(dir), "/tmp/wkvq_files_XXXXXX");
    err_clear();
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    return scratch_remove(dir) ? 0 : -1;
}

static void check(enum err e)
{
    if (e)
        fail_msg("%s: %s", err_name(e), err_text());
}

static void put(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    check(file_write_all(path, text, strlen(text)));
}

static json_t *golden(const char *name)
{
    char path[1024];
    json_t *v = NULL;
    const char *base = getenv("GOLDEN_TOK");
    assert_non_null(base);
    snprintf(path, sizeof(path), "%s/%s", base, name);
    check(json_load_file_strict(&v, path, (size_t)1 << 30));
    return v;
}

static void copy_golden(const char *from, const char *to)
{
    char path[1024], *text = NULL;
    size_t n;
    snprintf(path, sizeof(path), "%s/%s", getenv("GOLDEN_TOK"), from);
    check(file_read_all(&text, &n, path, (size_t)1 << 30));
    snprintf(path, sizeof(path), "%s/%s", dir, to);
    check(file_write_all(path, text, n));
    mem_free(text);
}

/* vocab.json and merges.txt of a tokenizer.json, as transformers saves them. */
static void split_golden(const char *name)
{
    json_t *root = golden(name), *model = json_object_get(root, "model");
    const json_t *merges = json_object_get(model, "merges");
    char *vocab = json_text(json_object_get(model, "vocab"), JSON_COMPACT);
    char *text = calloc(1, 64 * (json_array_size(merges) + 1)), *at = text;
    assert_non_null(vocab);
    assert_non_null(text);
    at += sprintf(at, "#version: 0.2\n");
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *m = json_array_get(merges, i);
        at += json_is_string(m)
                  ? sprintf(at, "%s\n", json_string_value(m))
                  : sprintf(at, "%s %s\n", json_string_value(json_array_get(m, 0)),
                            json_string_value(json_array_get(m, 1)));
    }
    put("vocab.json", vocab);
    put("merges.txt", text);
    free(vocab);
    free(text);
    json_decref(root);
}

/* All golden texts have the ids of the cases. */
static void compare(const char *cases_name)
{
    struct tokenizer *t = NULL;
    json_t *texts = golden("texts.json"), *cases = golden(cases_name);
    const json_t *ids = json_object_get(cases, "ids");
    check(tokenizer_open(&t, dir));
    assert_string_equal(tokenizer_file(t), "vocab.json");
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i), *want = json_array_get(ids, i);
        struct token_ids have = {0};
        check(tokenizer_encode(&have, t, json_string_value(text), json_string_length(text),
                               BOS_AUTO));
        assert_int_equal(have.n, json_array_size(want));
        for (size_t k = 0; k < have.n; k++)
            assert_int_equal(have.id[k], json_integer_value(json_array_get(want, k)));
        token_ids_free(&have);
    }
    assert_int_equal(tokenizer_vocab(t),
                     json_integer_value(json_object_get(cases, "vocab")));
    assert_int_equal(tokenizer_eos(t), json_integer_value(json_object_get(cases, "eos")));
    assert_int_equal(tokenizer_bos(t), json_integer_value(json_object_get(cases, "bos")));
    tokenizer_close(&t);
    json_decref(texts);
    json_decref(cases);
}

static void vocab_and_merges_of_gpt2(void **state)
{
    split_golden("gpt2/tokenizer.json");
    put("tokenizer_config.json",
        "{\"tokenizer_class\": \"GPT2Tokenizer\", \"bos_token\": \"<|endoftext|>\", "
        "\"eos_token\": {\"__type\": \"AddedToken\", \"content\": \"<|endoftext|>\"}, "
        "\"model_max_length\": 1000000000000000019884624838656}");
    compare("gpt2/cases.json");
}

static void vocab_and_merges_of_qwen2(void **state)
{
    json_t *cases = golden("qwen2/cases.json");
    const int vocab = (int)json_integer_value(json_object_get(cases, "vocab"));
    char config[512];
    split_golden("qwen2/tokenizer.json");
    snprintf(config, sizeof(config),
             "{\"tokenizer_class\": \"Qwen2TokenizerFast\", \"eos_token\": \"<|im_end|>\", "
             "\"bos_token\": null, \"added_tokens_decoder\": {"
             "\"%d\": {\"content\": \"<|endoftext|>\", \"special\": true}, "
             "\"%d\": {\"content\": \"<|im_start|>\", \"special\": true}, "
             "\"%d\": {\"content\": \"<|im_end|>\", \"special\": true}}}",
             vocab - 3, vocab - 2, vocab - 1);
    put("tokenizer_config.json", config);
    compare("qwen2/cases.json");
    json_decref(cases);
}

/* One text of the llama kind with these files beside the tokenizer. */
static void encoded(const char *config, const char *text, size_t n, const int32_t *want)
{
    struct tokenizer *t = NULL;
    struct token_ids have = {0};
    copy_golden("spm/tokenizer.model", "tokenizer.model");
    put("tokenizer_config.json", config);
    check(tokenizer_open(&t, dir));
    check(tokenizer_encode(&have, t, text, strlen(text), BOS_AUTO));
    assert_int_equal(have.n, n);
    assert_memory_equal(have.id, want, n * sizeof(*want));
    token_ids_free(&have);
    tokenizer_close(&t);
}

static void flags_of_bos_and_eos(void **state)
{
    encoded("{}", "", 1, (int32_t[]){1});
    encoded("{\"add_bos_token\": true, \"add_eos_token\": true}", "", 2, (int32_t[]){1, 2});
    encoded("{\"add_bos_token\": false, \"add_eos_token\": true, \"eos_token\": \"<unk>\"}",
            "", 1, (int32_t[]){0});
    /* A template in tokenizer.json has precedence over the files beside it. */
    struct tokenizer *t = NULL;
    struct token_ids have = {0};
    copy_golden("llama2/tokenizer.json", "tokenizer.json");
    put("tokenizer_config.json", "{\"add_bos_token\": false}");
    check(tokenizer_open(&t, dir));
    check(tokenizer_encode(&have, t, "", 0, BOS_AUTO));
    assert_int_equal(have.n, 1);
    token_ids_free(&have);
    tokenizer_close(&t);
}

static void added_tokens_are_one_token(void **state)
{
    const char *config =
        "{\"add_bos_token\": false, \"added_tokens_decoder\": {\"1100\": {\"content\": "
        "\"<|im_start|>\", \"special\": true}, \"1101\": {\"content\": \"<|im_end|>\"}}}";
    encoded(config, "<|im_start|><|im_end|>", 2, (int32_t[]){1100, 1101});
    /* tokenizer.json keeps its own tokens; missing ones are added. */
    struct tokenizer *t = NULL;
    struct token_ids have = {0};
    char *text = NULL;
    size_t n;
    copy_golden("llama2/tokenizer.json", "tokenizer.json");
    json_t *cases = golden("llama2/cases.json");
    const int32_t id = (int32_t)json_integer_value(json_object_get(cases, "vocab"));
    char more[128];
    json_decref(cases);
    snprintf(more, sizeof(more), "{\"<|im_start|>\": %d, \"<s>\": 500}", id);
    put("tokenizer_config.json", "{}");
    put("added_tokens.json", more);
    check(tokenizer_open(&t, dir));
    check(tokenizer_encode(&have, t, "<|im_start|><s>", 15, BOS_NEVER));
    assert_int_equal(have.n, 2);
    assert_int_equal(have.id[0], id);
    assert_int_equal(have.id[1], 1);
    assert_int_equal(tokenizer_vocab(t), id + 1);
    check(tokenizer_decode(&text, &n, t, have.id, have.n, true));
    assert_string_equal(text, "<|im_start|><s>");
    mem_free(text);
    token_ids_free(&have);
    tokenizer_close(&t);
}

/* The reference library adds a token of tokenizer.json again if added_tokens_decoder has other
 * flags for it. The ids are the library's. */
static void flags_of_added_tokens_decoder_count(void **state)
{
#define FLAGS(strips, normalized)                                                          \
    "\"lstrip\": " strips ", \"rstrip\": " strips ", \"single_word\": " strips             \
    ", \"normalized\": " normalized ", \"special\": false}"
    /* clang-format off */
    static const char tokenizer[] =
        "{\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \"A\"}, "
        "\"content\": \"a\"}, \"added_tokens\": ["
        "{\"id\": 5, \"content\": \"<e>\", " FLAGS("false", "false") ", "
        "{\"id\": 6, \"content\": \"<A>\", " FLAGS("false", "false") "], "
        "\"model\": {\"type\": \"BPE\", \"unk_token\": \"<u>\", \"vocab\": {\"<u>\": 0, "
        "\"a\": 1, \"b\": 2, \" \": 3, \"A\": 4, \"<e>\": 5}, \"merges\": []}}";
    /* clang-format on */
    static const struct {
        const char *config;
        size_t n;
        int32_t id[11];
    } want[] = {{"{}", 11, {1, 3, 5, 3, 2, 5, 2, 0, 1, 0, 6}},
                {"{\"added_tokens_decoder\": {\"5\": {\"content\": \"<e>\", " FLAGS(
                     "true", "false") ", \"6\": {\"content\": \"<A>\", " FLAGS("false",
                                                                               "true") "}}",
                 9,
                 {1, 5, 2, 0, 0, 0, 2, 6, 6}},
                /* files without flags decide nothing */
                {"{\"eos_token\": \"<e>\", \"added_tokens_decoder\": {\"6\": \"<A>\"}}",
                 11,
                 {1, 3, 5, 3, 2, 5, 2, 0, 1, 0, 6}}};
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        struct tokenizer *t = NULL;
        struct token_ids have = {0};
        put("tokenizer.json", tokenizer);
        put("tokenizer_config.json", want[i].config);
        check(tokenizer_open(&t, dir));
        check(tokenizer_encode(&have, t, "a <e> b<e>b<a><A>", 17, BOS_NEVER));
        assert_int_equal(have.n, want[i].n);
        assert_memory_equal(have.id, want[i].id, have.n * sizeof(*have.id));
        token_ids_free(&have);
        tokenizer_close(&t);
    }
#undef FLAGS
}

static void several_tokens_end_a_text(void **state)
{
    static const struct {
        const char *generation;
        int32_t end, none;
    } cases[] = {{"{\"eos_token_id\": [5, 6, 1100]}", 6, 4},
                 {"{\"eos_token_id\": 7, \"temperature\": NaN}", 7, 6},
                 {"{\"eos_token_id\": -1}", 2, -1},
                 {"{\"eos_token_id\": null}", 2, 7},
                 {"{}", 2, 5}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct tokenizer *t = NULL;
        copy_golden("spm/tokenizer.model", "tokenizer.model");
        put("generation_config.json", cases[i].generation);
        check(tokenizer_open(&t, dir));
        assert_true(tokenizer_ends(t, cases[i].end));
        assert_false(tokenizer_ends(t, cases[i].none));
        assert_true(tokenizer_ends(t, 2)); /* </s>, the model's own */
        tokenizer_close(&t);
    }
}

static void ranks_end_texts_and_answers(void **state)
{
    struct tokenizer *t = NULL;
    copy_golden("ranks/tokenizer.model", "tokenizer.model");
    check(tokenizer_open(&t, dir));
    const int32_t first = tokenizer_bos(t);
    assert_string_equal(tokenizer_about(t),
                        "tokenizer.model: byte-level BPE by ranks (Llama 3)");
    assert_int_equal(tokenizer_eos(t), first + 1);
    assert_true(tokenizer_ends(t, first + 1) && tokenizer_ends(t, first + 9));
    assert_false(tokenizer_ends(t, first) || tokenizer_ends(t, first + 8));
    tokenizer_close(&t);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        CASE(vocab_and_merges_of_gpt2),
        CASE(vocab_and_merges_of_qwen2),
        CASE(flags_of_bos_and_eos),
        CASE(added_tokens_are_one_token),
        CASE(several_tokens_end_a_text),
        CASE(ranks_end_texts_and_answers),
        CASE(flags_of_added_tokens_decoder_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT
 *
 * Every kind of tokenizer, compared with the ids and texts of the reference implementations
 * for the awkward texts of tests/golden/tok (tests/golden/gen_tokenizers.py). */
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

static const char *const kinds[] = {
    "gpt2",    "smollm2",       "llama3",        "qwen2",         "prefix",
    "llama2",  "mistral",       "flags",         "bare",          "spm",
    "unigram", "ranks",         "added",         "decoder",       "gpt4o",
    "tekken",  "gpt4",          "deepseek2",     "deepseek3",     "viking",
    "falcon",  "unigram_rules", "unigram_bytes", "unigram_forms", "rules"};

struct golden {
    const char *kind;
    struct tokenizer *t;
    json_t *texts, *cases;
};

static const char *golden_dir(void)
{
    const char *dir = getenv("GOLDEN_TOK");
    assert_non_null(dir);
    return dir;
}

static void check(enum err e)
{
    if (e)
        fail_msg("%s: %s", err_name(e), err_text());
}

static json_t *load(const char *dir, const char *name)
{
    char path[1024];
    json_t *v = NULL;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    check(json_load_file_strict(&v, path, (size_t)1 << 30));
    return v;
}

static struct golden golden_open(const char *kind)
{
    char dir[1000];
    struct golden g = {.kind = kind};
    err_clear();
    snprintf(dir, sizeof(dir), "%s/%s", golden_dir(), kind);
    check(tokenizer_open(&g.t, dir));
    g.texts = load(golden_dir(), "texts.json");
    g.cases = load(dir, "cases.json");
    assert_true(json_array_size(g.texts) >= 200);
    return g;
}

static void golden_close(struct golden *g)
{
    tokenizer_close(&g->t);
    json_decref(g->texts);
    json_decref(g->cases);
}

static int64_t number(const struct golden *g, const char *key)
{
    return json_integer_value(json_object_get(g->cases, key));
}

static void print_ids(const char *name, const struct token_ids *have)
{
    print_error("%s:", name);
    for (size_t i = 0; i < have->n; i++)
        print_error(" %d", have->id[i]);
    print_error("\n");
}

static bool ids_equal(const struct token_ids *have, const json_t *want, size_t skip)
{
    bool pass = json_array_size(want) == have->n + skip;
    for (size_t i = 0; pass && i < have->n; i++)
        pass = json_integer_value(json_array_get(want, i + skip)) == have->id[i];
    return pass;
}

static void check_encode(const struct golden *g, size_t i)
{
    const json_t *text = json_array_get(g->texts, i);
    const json_t *want = json_array_get(json_object_get(g->cases, "ids"), i);
    struct token_ids have = {0};
    const enum bos_rule rules[] = {BOS_AUTO, BOS_NEVER};
    for (size_t k = 0; k < ARRAY_LEN(rules); k++) {
        check(tokenizer_encode(&have, g->t, json_string_value(text),
                               json_string_length(text), rules[k]));
        const size_t skip = rules[k] == BOS_NEVER ? (size_t)number(g, "around") : 0;
        if (!ids_equal(&have, want, skip)) {
            char *dump = json_dumps(want, 0), *shown = json_dumps(text, JSON_ENCODE_ANY);
            print_ids("have", &have);
            fail_msg("%s, text %zu %s: want %s", g->kind, i, shown, dump);
        }
        token_ids_free(&have);
    }
}

static void check_decode(const struct golden *g, size_t i, const char *key,
                         bool keep_special)
{
    const json_t *want = json_array_get(json_object_get(g->cases, key), i);
    const json_t *list = json_array_get(json_object_get(g->cases, "ids"), i);
    struct token_ids ids = {.n = json_array_size(list)};
    char *have = NULL;
    size_t n;
    if (!json_object_get(g->cases, key))
        return;
    if (json_is_null(want)) /* the text itself */
        want = json_array_get(g->texts, i);
    check(mem_alloc(&ids.id, ids.n, sizeof(*ids.id)));
    for (size_t k = 0; k < ids.n; k++)
        ids.id[k] = (int32_t)json_integer_value(json_array_get(list, k));
    check(tokenizer_decode(&have, &n, g->t, ids.id, ids.n, keep_special));
    if (n != json_string_length(want) || memcmp(have, json_string_value(want), n + 1) != 0)
        fail_msg("%s, text %zu, %s: have \"%s\", want \"%s\"", g->kind, i, key, have,
                 json_string_value(want));
    mem_free(have);
    token_ids_free(&ids);
}

static void test_golden(void **state)
{
    struct golden g = golden_open(*state);
    for (size_t i = 0; i < json_array_size(g.texts); i++) {
        check_encode(&g, i);
        check_decode(&g, i, "kept", true);
        check_decode(&g, i, "plain", false);
    }
    assert_int_equal(tokenizer_vocab(g.t), number(&g, "vocab"));
    assert_int_equal(tokenizer_bos(g.t), number(&g, "bos"));
    assert_int_equal(tokenizer_eos(g.t), number(&g, "eos"));
    golden_close(&g);
}

/* Rule by kind: how many ids of an empty text, and the first id under BOS_ALWAYS. */
static void test_bos(void **state)
{
    struct golden g = golden_open(*state);
    struct token_ids ids = {0};
    const int32_t bos = tokenizer_bos(g.t);
    check(tokenizer_encode(&ids, g.t, "", 0, BOS_NEVER));
    assert_int_equal(ids.n, 0);
    token_ids_free(&ids);
    check(tokenizer_encode(&ids, g.t, "", 0, BOS_AUTO));
    assert_int_equal(ids.n, number(&g, "around"));
    token_ids_free(&ids);
    const enum err e = tokenizer_encode(&ids, g.t, "a", 1, BOS_ALWAYS);
    assert_int_equal(e, bos < 0 ? ERR_USAGE : OK);
    if (!e) {
        assert_int_equal(ids.id[0], bos);
        assert_true(ids.n >= 2 && ids.id[1] != bos);
    }
    token_ids_free(&ids);
    golden_close(&g);
}

/* Each maximal invalid part is one U+FFFD. */
static void test_invalid_utf8(void **state)
{
    static const struct {
        const char *broken, *whole;
    } cases[] = {
        {"a\x80z", "a\xEF\xBF\xBDz"},
        {"\xC3", "\xEF\xBF\xBD"},
        {"\xE6\x97\xFFx", "\xEF\xBF\xBD\xEF\xBF\xBDx"},
        {"\xC0\xAF", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xF0\x9F\x98 \xF0\x9F\x98\x80", "\xEF\xBF\xBD \xF0\x9F\x98\x80"},
        {"\xF5\x80 \xF4\x90\x80\x80",
         "\xEF\xBF\xBD\xEF\xBF\xBD \xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
    };
    struct golden g = golden_open(*state);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct token_ids a = {0}, b = {0};
        check(
            tokenizer_encode(&a, g.t, cases[i].broken, strlen(cases[i].broken), BOS_AUTO));
        check(tokenizer_encode(&b, g.t, cases[i].whole, strlen(cases[i].whole), BOS_AUTO));
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.id, b.id, a.n * sizeof(*a.id));
        token_ids_free(&a);
        token_ids_free(&b);
    }
    golden_close(&g);
}

/* Unknown ids are skipped, and no id does harm. */
static void test_decode_any_id(void **state)
{
    struct golden g = golden_open(*state);
    const int32_t hole = (int32_t)tokenizer_vocab(g.t);
    const int32_t odd[] = {-1, INT32_MIN, hole, INT32_MAX};
    char *s = NULL;
    size_t n;
    check(tokenizer_decode(&s, &n, g.t, odd, ARRAY_LEN(odd), true));
    assert_int_equal(n, 0);
    mem_free(s);
    for (int32_t id = 0; id < hole; id++) {
        const int32_t one[] = {id, odd[id % 4], hole - 1 - id};
        check(tokenizer_decode(&s, &n, g.t, one, ARRAY_LEN(one), id % 2));
        assert_int_equal(strlen(s) <= n, 1);
        mem_free(s);
    }
    golden_close(&g);
}

/* A directory with both files: tokenizer.json is used. */
static void test_both_files(void **state)
{
    const char *kind[] = {"llama2", "spm"}, *name[] = {"tokenizer.json", "tokenizer.model"};
    char dir[] = "/tmp/wkvq_tok_XXXXXX", from[1024], to[1024];
    struct tokenizer *t = NULL;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(tokenizer_open(&t, dir), ERR_NOT_FOUND);
    for (int i = 1; i >= 0; i--) {
        struct file_map m = {0};
        snprintf(from, sizeof(from), "%s/%s/%s", golden_dir(), kind[i], name[i]);
        snprintf(to, sizeof(to), "%s/%s", dir, name[i]);
        err_clear();
        check(file_map_open(&m, from));
        check(file_write_all(to, m.data, m.size));
        file_map_close(&m);
        check(tokenizer_open(&t, dir));
        assert_string_equal(tokenizer_file(t), name[i]);
        assert_non_null(strstr(tokenizer_about(t), name[i]));
        tokenizer_close(&t);
    }
    assert_true(scratch_remove(dir));
}

#define N_PER_KIND 4

int main(void)
{
    static struct CMUnitTest tests[ARRAY_LEN(kinds) * N_PER_KIND + 1];
    static char names[ARRAY_LEN(kinds) * N_PER_KIND][64];
    static const struct {
        const char *name;
        CMUnitTestFunction f;
    } per_kind[N_PER_KIND] = {{"golden", test_golden},
                              {"bos", test_bos},
                              {"invalid utf-8", test_invalid_utf8},
                              {"decode any id", test_decode_any_id}};
    size_t n = 0;
    for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
        for (size_t i = 0; i < N_PER_KIND; i++, n++) {
            snprintf(names[n], sizeof(names[n]), "%s: %s", kinds[k], per_kind[i].name);
            tests[n] = (struct CMUnitTest){.name = names[n],
                                           .test_func = per_kind[i].f,
                                           .initial_state = (void *)(uintptr_t)kinds[k]};
        }
    }
    tests[n] = (struct CMUnitTest){.name = "both files", .test_func = test_both_files};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

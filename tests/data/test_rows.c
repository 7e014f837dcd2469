/* SPDX-License-Identifier: MIT
 *
 * JSON rows as Python's json module reads them: compared with its results
 * (tests/golden/gen_rows.py), and in linear time. */
#include "data/corpus_rows.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN_ROWS 1200

/* kind is that of the golden file; the text of a string, decoded. */
static const char *read_row(struct text *text, uint64_t *lone, const char *s, size_t n)
{
    struct json_scan c = {.s = s, .n = n};
    struct json_span v;
    if (!json_scan_value(&v, &c) || json_scan_space(&c))
        return "refused";
    if (*v.s != '{')
        return "not an object";
    v = json_span_member(v, "text", NULL);
    if (v.s && *v.s == '"')
        assert_int_equal(json_span_decode(text, v, lone, NULL), OK);
    return json_span_kind(v);
}

static void check_golden(const json_t *golden)
{
    const json_t *row = json_object_get(golden, "row");
    const json_t *want = json_object_get(golden, "text");
    const char *kind = json_string_value(json_object_get(golden, "kind"));
    struct text text = {0};
    uint64_t lone = 0;
    /* A copy of exactly its size, so that a sanitizer sees a read past the end. */
    const size_t n = json_string_length(row);
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, json_string_value(row), n);
    const char *have = read_row(&text, &lone, copy, n);
    if (strcmp(have, kind))
        fail_msg("%s: want %s, have %s", json_string_value(row), kind, have);
    assert_int_equal(text.n, json_string_length(want));
    if (text.n)
        assert_memory_equal(text.p, json_string_value(want), text.n);
    assert_int_equal(lone, json_integer_value(json_object_get(golden, "lone")));
    text_free(&text);
    free(copy);
}

static void test_golden(void **state)
{
    char *file = NULL;
    size_t n;
    int rows = 0;
    assert_int_equal(file_read_all(&file, &n, getenv("GOLDEN_ROWS_FILE"), 16u << 20), OK);
    for (size_t at = 0, k; at < n; at += k, rows++) {
        json_t *golden = NULL;
        k = text_line_length(file + at, n - at);
        assert_int_equal(json_parse(&golden, file + at, k, "rows.jsonl"), OK);
        check_golden(golden);
        json_decref(golden);
    }
    assert_true(rows > GOLDEN_ROWS);
    mem_free(file);
}

/* Nesting ends at its limit, in an object or an array. */
static void test_depth(void **state)
{
    char s[2 * JSON_DEPTH_MAX + 8];
    for (int depth = JSON_DEPTH_MAX - 1; depth <= JSON_DEPTH_MAX + 1; depth++) {
        struct json_scan c = {.s = s, .n = (size_t)depth * 2};
        struct json_span v;
        memset(s, '[', (size_t)depth);
        memset(s + depth, ']', (size_t)depth);
        assert_int_equal(json_scan_value(&v, &c), depth <= JSON_DEPTH_MAX);
    }
}

/* --- work --------------------------------------------------------------------------- */

/* A text of n pieces between a head and a tail. */
struct shape {
    const char *name, *head, *piece, *tail;
};

static const struct shape shapes[] = {
    {"lines", "", "{\"text\": \"a\"}\n", ""},
    {"array", "[", "{\"text\": \"a\"},\n", "{\"text\": \"a\"}]"},
    {"one long string", "{\"text\": \"", "abc\\n\\u00e9", "\"}"},
    {"equal keys", "{", "\"text\": \"a\", ", "\"text\": \"b\"}"},
    {"other keys", "{", "\"te\\u0078\": \"a\", ", "\"text\": \"b\"}"},
    {"other values", "{\"a\": [", "[{}, []], ", "1], \"text\": \"b\"}"},
    {"messages", "{\"messages\": [", "{\"role\": \"u\", \"content\": \"c\"}, ",
     "{\"role\": \"u\", \"content\": \"c\"}]}"},
    {"a list within", "{\"v\": 1, \"rows\": [", "{\"text\": \"a\"}, ",
     "{\"text\": \"b\"}]}"},
    {"objects over lines", "", "{\n\"text\": \"a\"}\n", ""},
    {"blanks", "{\"text\": \"a\"", " \n", "}"},
    {"unterminated strings", "", "{\"text\": \"a}\n", ""},
    {"bad rows", "", "{\"text\": \"a\"}\n{\"text\": 3}\n{\"body\": [1, 2]}\n{\"text\"\n",
     ""},
    {"opened and not closed", "[{\"text\": \"a\"}, ", "[", ""},
    {"openings on lines", "{}\n{}\n{}\n", "[[[[\n", ""},
};

static uint64_t work_of(const struct shape *s, size_t pieces)
{
    struct text text = {0}, out = {0};
    struct json_scan c;
    uint64_t steps = 0;
    int64_t documents = 0;
    assert_int_equal(text_add(&text, s->head, strlen(s->head)), OK);
    for (size_t i = 0; i < pieces; i++)
        assert_int_equal(text_add(&text, s->piece, strlen(s->piece)), OK);
    assert_int_equal(text_add(&text, s->tail, strlen(s->tail)), OK);
    const enum json_layout layout = json_layout(&c, text.p, text.n, true, &steps);
    struct corpus_rows r = {.path = "x", .text = text.p, .n = text.n};
    if (layout != LAYOUT_NONE && layout != LAYOUT_BROKEN)
        (void)corpus_add_rows(&out, &documents, &r, layout);
    err_clear();
    text_free(&text);
    text_free(&out);
    return steps + r.steps;
}

static void test_linear(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
        const uint64_t once = work_of(&shapes[i], 2000), twice = work_of(&shapes[i], 4000);
        if (!once || twice > 3 * once)
            fail_msg("%s: %llu steps, and %llu for twice as much", shapes[i].name,
                     (unsigned long long)once, (unsigned long long)twice);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_linear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT
 *
 * YAML trees: kinds, lines, quoting, and everything that is refused. */
#include "data/yaml.h"
#include "kernels/base/error.h"
#include "kernels/base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct yaml *parse(const char *text)
{
    struct yaml *y = NULL;
    err_clear();
    if (yaml_parse_text(&y, text, strlen(text), "x.yaml"))
        fail_msg("%s", err_text());
    return y;
}

static void refuse(const char *text, size_t n, const char *line, const char *word)
{
    struct yaml *y = NULL;
    err_clear();
    const enum err e = yaml_parse_text(&y, text, n, "x.yaml");
    if (e != ERR_FORMAT || strncmp(err_text(), "x.yaml: ", 8) ||
        !strstr(err_text(), line) || !strstr(err_text(), word))
        fail_msg("%s: want \"%s\" and \"%s\", have %s: %s", text, line, word, err_name(e),
                 err_text());
    assert_null(y);
}

static void test_tree(void **state)
{
    struct yaml *y =
        parse("# recipe\nweights:\n  bits: 4\n  name: \"4\"\nlist: [a, 'b', {c: d}]\n"
              "empty:\nblock: |\n  text\n");
    assert_int_equal(y->kind, YAML_MAP);
    assert_int_equal(y->n, 4);
    assert_string_equal(y->key[1], "list");
    const struct yaml *w = yaml_child(y, "weights");
    assert_int_equal(w->kind, YAML_MAP);
    assert_string_equal(yaml_child(w, "bits")->text, "4");
    assert_false(yaml_child(w, "bits")->quoted);
    assert_int_equal(yaml_child(w, "bits")->line, 3);
    assert_true(yaml_child(w, "name")->quoted);
    const struct yaml *list = yaml_child(y, "list");
    assert_int_equal(list->kind, YAML_LIST);
    assert_int_equal(list->n, 3);
    assert_int_equal(list->line, 5);
    assert_string_equal(yaml_child(&list->child[2], "c")->text, "d");
    assert_string_equal(yaml_child(y, "empty")->text, "");
    assert_string_equal(yaml_child(y, "block")->text, "text\n");
    assert_null(yaml_child(y, "bits"));
    assert_null(yaml_child(list, "c"));
    yaml_free(&y);
    assert_null(y);
    yaml_free(&y);
}

static void test_empty(void **state)
{
    static const char *const texts[] = {"", "\n\n", "# nothing\n", "---\n", "{}"};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct yaml *y = parse(texts[i]);
        assert_int_equal(y->kind, YAML_MAP);
        assert_int_equal(y->n, 0);
        yaml_free(&y);
    }
}

static void test_many(void **state)
{
    char text[64 * 200] = "";
    for (int i = 0; i < 200; i++)
        sprintf(text + strlen(text), "key%d: [%d, %d, %d]\n", i, i, i + 1, i + 2);
    struct yaml *y = parse(text);
    assert_int_equal(y->n, 200);
    for (size_t i = 0; i < 200; i++) {
        assert_int_equal(y->child[i].line, (int)i + 1);
        assert_int_equal(y->child[i].n, 3);
    }
    yaml_free(&y);
}

static void test_refuses(void **state)
{
    static const struct {
        const char *text, *line, *word;
    } bad[] = {
        {"a: 1\nb: 2\na: 3\n", "line 3", "twice"},
        {"a: &x 1\n", "line 1", "anchors"},
        {"a: 1\nb: *x\n", "line 2", "anchors"},
        {"&x a: 1\n", "line 1", "anchors"},
        {"*x : 1\n", "line 1", "anchors"},
        {"a: !!int 1\n", "line 1", "tags"},
        {"a: &x [1]\n", "line 1", "anchors"},
        {"a: 1\n---\nb: 2\n", "line 2", "second document"},
        {"? [a]\n: 1\n", "line 1", "key"},
        {"a: [1, 2\nb: 3\n", "line 2", ""},
        {"a: 1\n\tb: 2\n", "line 2", ""},
        {"a: \"\\0\"\n", "line 1", "NUL"},
        {"a: \xff\n", "line 1", ""},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        refuse(bad[i].text, strlen(bad[i].text), bad[i].line, bad[i].word);
    refuse("a: b\0c\n", 7, "line 1", "");
}

static void test_depth(void **state)
{
    char text[4096];
    memset(text, '[', sizeof(text));
    refuse(text, sizeof(text), "line 1", "deeper than 64");
    memset(text, '[', 64);
    memset(text + 64, ']', 64);
    text[128] = '\0';
    struct yaml *y = parse(text);
    yaml_free(&y);
}

static void test_too_many_keys(void **state)
{
    static char text[16 * 5000];
    size_t n = 0;
    for (int i = 0; i < 5000; i++)
        n += (size_t)sprintf(text + n, "k%d:\n", i);
    refuse(text, n, "line 4097", "more than 4096 keys");
}

static void test_mutations(void **state)
{
    static const char good[] =
        "weights:\n  method: lwc\n  bits: 4\nkv: {bits: 4, window: 1}\n"
        "data: [a.txt, \"b\", 'c']\ntext: |\n  x\n  y\n";
    static const char alphabet[] = "&*!|>[]{},:?-#'\"%@`\n \t~0";
    struct rng r;
    int accepted = 0;
    rng_seed(&r, 3);
    for (int i = 0; i < 5000; i++) {
        char b[sizeof(good)];
        struct yaml *y = NULL;
        memcpy(b, good, sizeof(good));
        for (uint64_t k = 1 + rng_below(&r, 4); k; k--)
            b[rng_below(&r, sizeof(good) - 1)] =
                rng_below(&r, 4) ? alphabet[rng_below(&r, sizeof(alphabet) - 1)]
                                 : (char)rng_u64(&r);
        err_clear();
        const enum err e = yaml_parse_text(&y, b, rng_below(&r, sizeof(good)), "x.yaml");
        assert_true(e == OK || e == ERR_FORMAT);
        accepted += !e;
        yaml_free(&y);
    }
    assert_true(accepted > 100 && accepted < 4900);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree),      cmocka_unit_test(test_empty),
        cmocka_unit_test(test_many),      cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_depth),     cmocka_unit_test(test_too_many_keys),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

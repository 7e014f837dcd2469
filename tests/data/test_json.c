/* SPDX-License-Identifier: MIT
 *
 * JSON of models: values that the lenient functions accept until a getter reads them, the
 * getters' messages, and what is always refused. */
#include "data/json.h"
#include "data/json_soften.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char warning[256];

static void keep_warning(void *ctx, enum log_level level, const char *line)
{
    snprintf(warning, sizeof(warning), "%s", line);
}

static int setup(void **state)
{
    err_clear();
    *warning = '\0';
    log_set_sink(keep_warning, NULL);
    return 0;
}

static json_t *lenient(const char *text)
{
    json_t *v = NULL;
    if (json_parse_lenient(&v, text, strlen(text), JSON_REPEATS_LAST, "file"))
        fail_msg("%s: %s", text, err_text());
    return v;
}

static void refused(enum err e, const char *sentence)
{
    assert_int_equal(e, ERR_FORMAT);
    assert_string_equal(err_text(), sentence);
    err_clear();
}

/* Numbers that Python writes or reads and jansson cannot hold. */
static const char *const odd_numbers[] = {"1000000000000000019884624838656",
                                          "9223372036854775808",
                                          "-9223372036854775809",
                                          "NaN",
                                          "Infinity",
                                          "-Infinity",
                                          "1e400",
                                          "-1E+999",
                                          "123456789e301"};

static void an_odd_number_matters_only_where_it_is_needed(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(odd_numbers); i++) {
        char text[256], sentence[256];
        int64_t n = 0;
        double x = 0;
        bool b = false;
        const char *s = NULL;
        json_t *strict = NULL;
        snprintf(text, sizeof(text), "{\"odd\": %s, \"list\":[1,%s] ,\"n\": 7}",
                 odd_numbers[i], odd_numbers[i]);
        assert_int_equal(json_parse(&strict, text, strlen(text), "file"), ERR_FORMAT);
        err_clear();
        json_t *o = lenient(text);
        assert_int_equal(json_need_int(&n, o, "n", 0, 9, "file"), OK);
        assert_int_equal(n, 7);
        assert_string_equal(json_odd_number(json_object_get(o, "odd")), odd_numbers[i]);
        snprintf(sentence, sizeof(sentence),
                 "file: odd is %s, want an integer within 64 bits", odd_numbers[i]);
        refused(json_need_int(&n, o, "odd", 0, 9, "file"), sentence);
        snprintf(sentence, sizeof(sentence), "file: odd is %s, want a finite number",
                 odd_numbers[i]);
        refused(json_get_real(&x, o, "odd", 0, 9, "file"), sentence);
        refused(json_get_bool(&b, o, "odd", "file"),
                "file: odd is a number out of range, want true or false");
        refused(json_need_string(&s, o, "odd", "file"),
                "file: odd is a number out of range, want a string");
        char *back = json_text_restored(o, JSON_COMPACT);
        snprintf(sentence, sizeof(sentence), "{\"odd\":%s,\"list\":[1,%s],\"n\":7}",
                 odd_numbers[i], odd_numbers[i]);
        assert_string_equal(back, sentence);
        free(back);
        json_decref(o);
    }
}

static void numbers_that_fit_keep_their_value(void **state)
{
    json_t *o = lenient("[9223372036854775807, -9223372036854775808, -0, 1e308, 1e-400, "
                        "0.1, \"1e400\", \"NaN\"]");
    assert_true(json_integer_value(json_array_get(o, 0)) == INT64_MAX);
    assert_true(json_integer_value(json_array_get(o, 1)) == INT64_MIN);
    assert_true(json_is_integer(json_array_get(o, 2)));
    assert_true(json_real_value(json_array_get(o, 3)) == 1e308);
    assert_true(json_real_value(json_array_get(o, 4)) == 0);
    assert_true(json_real_value(json_array_get(o, 5)) == 0.1);
    assert_string_equal(json_string_value(json_array_get(o, 6)), "1e400");
    assert_null(json_odd_number(json_array_get(o, 6)));
    assert_string_equal(json_string_value(json_array_get(o, 7)), "NaN");
    json_decref(o);
}

static void halves_of_pairs_and_nuls(void **state)
{
    const char *s = NULL;
    json_t *o =
        lenient("{\"a\": \"x\\ud800y\", \"b\": \"\\uDFFF\", \"c\": \"\\ud83d\\ude00\", "
                "\"d\": \"\\ud800\\ud83d\\ude00\", \"e\": \"\\u0000\", "
                "\"f\": \"\\\\ud800\", \"k\\ud800\": 1, \"\\u0000\" : 2}");
    static const char *const keys[] = {"a", "b", "d", "e"};
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        char sentence[128];
        snprintf(sentence, sizeof(sentence),
                 "file: %s holds a NUL character or half a surrogate pair", keys[i]);
        refused(json_need_string(&s, o, keys[i], "file"), sentence);
    }
    assert_int_equal(json_need_string(&s, o, "c", "file"), OK);
    assert_string_equal(s, "\xF0\x9F\x98\x80");
    assert_int_equal(json_need_string(&s, o, "f", "file"), OK);
    assert_string_equal(s, "\\ud800");
    assert_int_equal(json_integer_value(json_object_get(o, "k" JSON_LOST_CHAR)), 1);
    assert_int_equal(json_integer_value(json_object_get(o, JSON_LOST_CHAR)), 2);
    json_decref(o);
    o = lenient("[\"x\\uD800y\", \"\\u0000\", \"\\\\u0000d800\", \"\\\"\\udfff\"]");
    char *back = json_text_restored(o, JSON_COMPACT);
    assert_string_equal(back,
                        "[\"x\\uD800y\",\"\\u0000\",\"\\\\u0000d800\",\"\\\"\\udfff\"]");
    free(back);
    json_decref(o);
    /* A NUL before hexadecimal digits is not half of a pair. */
    o = lenient("[\"\\ud800\\u0000dddd\", \"\\u00001e999\"]");
    back = json_text_restored(o, JSON_COMPACT);
    assert_string_equal(back, "[\"\\ud800\\u0000dddd\",\"\\u00001e999\"]");
    free(back);
    json_decref(o);
}

static void the_last_of_a_repeated_key_counts(void **state)
{
    int64_t n = 0;
    json_t *o = lenient("{\"a\": 1,\n\"b\": 2, \"a\": NaN, \"a\": 3}");
    assert_int_equal(json_need_int(&n, o, "a", 0, 9, "file"), OK);
    assert_int_equal(n, 3);
    assert_string_equal(warning,
                        "file: line 2: duplicate object key near '\"a\"'; the last "
                        "value of a repeated key is used");
    json_decref(o);
    o = NULL;
    assert_int_equal(json_parse(&o, "{\"a\":1,\"a\":2}", 13, "file"), ERR_FORMAT);
    assert_int_equal(
        json_parse_lenient(&o, "{\"a\":1,\"a\":2}", 13, JSON_REPEATS_NONE, "file"),
        ERR_FORMAT);
    assert_null(o);
}

static void a_byte_order_mark_is_skipped(void **state)
{
    json_t *o = lenient("\xEF\xBB\xBF{\"a\": 1}");
    assert_int_equal(json_object_size(o), 1);
    json_decref(o);
    o = NULL;
    assert_int_equal(json_parse_lenient(&o, "\xEF\xBB", 2, JSON_REPEATS_LAST, "file"),
                     ERR_FORMAT);
}

/* Lenient is not careless: Python refuses all of these, too. */
static const char *const damaged[] = {"",           "{",          "[1,]",
                                      "{\"a\":1,}", "01",         "-",
                                      "+1",         "1.",         ".5",
                                      "1e",         "nan",        "-NaN",
                                      "infinity",   "Infinit",    "NaN1",
                                      "1NaN",       "tru",        "'a'",
                                      "\"a",        "\"\\ud80\"", "\"\\x\"",
                                      "\"a\nb\"",   "[1] 2",      "{1:2}",
                                      "\"\xFF\"",   "{\"a\" 1}",  "[NaN",
                                      "\"\\ud800",  "\\u0000",    "--1",
                                      "{NaN: 1}",   "[1e400 2]",  "{\"a\":NaN \"b\"}",
                                      "1e400e400"};

static void damage_stays_damage(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(damaged); i++) {
        json_t *v = NULL;
        const enum err e = json_parse_lenient(&v, damaged[i], strlen(damaged[i]),
                                              JSON_REPEATS_LAST, "file");
        if (e != ERR_FORMAT || !strstr(err_text(), "not valid JSON"))
            fail_msg("%s: %s, \"%s\"", damaged[i], err_name(e), err_text());
        err_clear();
    }
}

static void a_pointer_of_git_lfs_is_named(void **state)
{
    char path[] = "/tmp/wkvq_json_XXXXXX";
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\nsize 1\n";
    json_t *o = NULL;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, pointer, sizeof(pointer) - 1), sizeof(pointer) - 1);
    close(fd);
    assert_int_equal(json_load_file_lenient(&o, path, 1000, JSON_REPEATS_LAST), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "git lfs pull"));
    err_clear();
    assert_int_equal(json_load_file_strict(&o, path, 1000), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "git lfs pull"));
    unlink(path);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup(f, setup)
    const struct CMUnitTest tests[] = {
        CASE(an_odd_number_matters_only_where_it_is_needed),
        CASE(numbers_that_fit_keep_their_value),
        CASE(halves_of_pairs_and_nuls),
        CASE(the_last_of_a_repeated_key_counts),
        CASE(a_byte_order_mark_is_skipped),
        CASE(damage_stays_damage),
        CASE(a_pointer_of_git_lfs_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT
 *
 * Words on the command line: sizes, choices, the nearest candidate. */
#include "tools/cli/nearest.h"
#include "tools/cli/opt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"4096", 4096},
                {"1k", 1024},
                {"512M", 512u << 20},
                {"1.5g", 3u << 29},
                {"8GiB", (uint64_t)8 << 30},
                {"2TB", (uint64_t)2 << 40}};
    static const char *const bad[] = {"",      "G",  "-1",  "+1",  "8X", "8GG",
                                      "1e30T", "8 ", "nan", "inf", "0x", "8Gi"};
    uint64_t got;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_true(opt_bytes(&got, good[i].text));
        assert_true(got == good[i].bytes);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        if (opt_bytes(&got, bad[i]))
            fail_msg("'%s' was taken for a size", bad[i]);
    }
}

static void choices(void **state)
{
    char text[32];
    assert_int_equal(opt_choice("rtn|lwc", "rtn"), 0);
    assert_int_equal(opt_choice("rtn|lwc", "lwc"), 1);
    assert_int_equal(opt_choice("rtn|lwc", "lw"), -1);
    assert_int_equal(opt_choice("rtn|lwc", "rtn|lwc"), -1);
    assert_int_equal(opt_choice("rtn|lwc", ""), -1);
    opt_choices_text(text, sizeof(text), "a|b|c");
    assert_string_equal(text, "a, b, c");
    opt_choices_text(text, 6, "aaaa|bbbb");
    assert_true(strlen(text) < 6);
}

static void distances(void **state)
{
    assert_int_equal(nearest_distance("", ""), 0);
    assert_int_equal(nearest_distance("abc", "abc"), 0);
    assert_int_equal(nearest_distance("abc", ""), 3);
    assert_int_equal(nearest_distance("abc", "acb"), 1); /* a swap */
    assert_int_equal(nearest_distance("quantise", "quantize"), 1);
    assert_int_equal(nearest_distance("kitten", "sitting"), 3);
}

static void nearest_word(void **state)
{
    struct nearest n = {0};
    nearest_consider(&n, "evla", "verify");
    assert_null(n.word);
    nearest_consider(&n, "evla", "eval");
    assert_string_equal(n.word, "eval");
    nearest_consider(&n, "evla", "evil");
    assert_string_equal(n.word, "eval"); /* among equals the first wins */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),
        cmocka_unit_test(choices),
        cmocka_unit_test(distances),
        cmocka_unit_test(nearest_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

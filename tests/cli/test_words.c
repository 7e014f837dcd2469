/* SPDX-License-Identifier: MIT
 *
 * Words on the command line: sizes, choices, the nearest candidate. */
#include "tools/cli/nearest.h"
#include "tools/cli/opt.h"
#include "tools/cli/size.h"

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
                {"3kiB", 3072},
                {"2T", (uint64_t)2 << 40},
                {"40kB", 40000},
                {"60MB", 60000000},
                {"5GB", 5000000000},
                {"1.5gB", 1500000000},
                {"2TB", 2000000000000}};
    static const char *const bad[] = {"",      "G",  "-1",   "+1",   "8X",   "8GG", "8B",
                                      "1e30T", "8 ", "nan",  "inf",  "0x",   "8Gi", "8Gb",
                                      "8iB",   "GB", "8 GB", "8GBB", "8GiBs"};
    uint64_t got;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_true(size_parse(&got, good[i].text));
        assert_true(got == good[i].bytes);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        if (size_parse(&got, bad[i]))
            fail_msg("'%s' was taken for a size", bad[i]);
    }
}

static void size_texts(void **state)
{
    static const struct {
        double bytes;
        const char *text;
    } want[] = {{0, "0 B"},           {8, "8 B"},
                {999, "999 B"},       {1000, "1.0 kB"},
                {288240, "288.2 kB"}, {61932312, "61.9 MB"},
                {5e9, "5.00 GB"},     {13.476e9, "13.48 GB"}};
    char text[SIZE_TEXT];
    for (size_t i = 0; i < ARRAY_LEN(want); i++)
        assert_string_equal(size_text(text, want[i].bytes), want[i].text);
}

/* What a wrong size should have been. */
static void sizes_wanted(void **state)
{
    static const struct {
        const char *text, *also, *want;
    } row[] = {{"8", "", "want a size of at least 100.0 kB; did you mean 8G?"},
               {"1023.5", "", "want a size of at least 100.0 kB; did you mean 1023.5G?"},
               {"1024", "", "want a size of at least 100.0 kB; did you mean 1024M?"},
               {"97k", "auto, or ", "want auto, or a size of at least 100.0 kB"},
               {"0", "auto, or ", "want auto, or a size of at least 100.0 kB"},
               {"8X", "auto, or ",
                "want auto, or a size in bytes, as in 512M or 8G (powers of 1024), 500MB "
                "or 5GB (powers of 1000)"}};
    char text[192];
    for (size_t i = 0; i < ARRAY_LEN(row); i++) {
        size_wanted(text, sizeof(text), row[i].text, SIZE_BUDGET_MIN, row[i].also);
        assert_string_equal(text, row[i].want);
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
        cmocka_unit_test(sizes),        cmocka_unit_test(size_texts),
        cmocka_unit_test(sizes_wanted), cmocka_unit_test(choices),
        cmocka_unit_test(distances),    cmocka_unit_test(nearest_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

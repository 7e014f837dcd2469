/* SPDX-License-Identifier: MIT
 *
 * Stop strings: however the text is split into tokens, exactly the text before the first
 * stop string is shown, and never more. */
#include "tools/cli/stop_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/rng.h"

#define LONGEST 64

/* Shows text [n] as `generate` would. The text comes in pieces that end at every set bit of
 * cuts; an unfinished character decodes to U+FFFD. Returns the bytes shown. */
static size_t stream(char *shown, const char *text, size_t n, uint64_t cuts,
                     const struct text_list *stop)
{
    size_t done = 0, at;
    for (size_t end = 1; end <= n; end++) {
        char now[LONGEST + 4];
        size_t whole = end;
        if (end < n && !(cuts >> end & 1))
            continue;
        while (whole < n && ((uint8_t)text[whole] & 0xc0) == 0x80)
            whole--; /* the character that is split */
        memcpy(now, text, whole);
        size_t length = whole;
        if (whole < end) {
            memcpy(now + whole, "\xef\xbf\xbd", 3);
            length += 3;
        }
        size_t settled = end == n ? length : stop_text_settled(now, length);
        const bool found = stop_text_find(&at, now, settled, done, stop);
        if (found)
            settled = at;
        else if (end < n)
            settled = stop_text_safe(now, settled, stop);
        assert_true(settled >= done);
        memcpy(shown + done, now + done, settled - done);
        done = settled;
        if (found)
            break;
    }
    return done;
}

/* Every way to split a short text, and many ways for a longer one. */
static void check(const char *text, const char *want, const struct text_list *stop)
{
    char shown[LONGEST];
    struct rng rng;
    const size_t n = strlen(text);
    const uint64_t all = n <= 13 ? (uint64_t)1 << n : 20000;
    assert_true(n < LONGEST);
    rng_seed(&rng, 7);
    for (uint64_t i = 0; i < all; i++) {
        const uint64_t cuts = n <= 13 ? i : rng_u64(&rng) | (i & 1 ? rng_u64(&rng) : 0);
        const size_t got = stream(shown, text, n, cuts, stop);
        if (got != strlen(want) || memcmp(shown, want, got))
            fail_msg("'%s' cut at %llx shows '%.*s', not '%s'", text,
                     (unsigned long long)cuts, (int)got, shown, want);
    }
}

static void one_stop(void **state)
{
    const struct text_list stop = {.item = {"abc"}, .n = 1};
    check("xxabcyy", "xx", &stop);
    check("abc", "", &stop);
    check("xababcz", "xab", &stop);
    check("nothing ab", "nothing ab", &stop); /* begun, never ended */
    check("", "", &stop);
    check("aabbcc", "aabbcc", &stop);
}

static void several_stops(void **state)
{
    const struct text_list stop = {.item = {"\n\n", "User:", "User"}, .n = 3};
    check("one\ntwo\n\nthree", "one\ntwo", &stop);
    check("hi User: x", "hi ", &stop);
    check("a UseUser b\n\n", "a Use", &stop);
    check("Us\nUse\n", "Us\nUse\n", &stop);
}

static void none(void **state)
{
    const struct text_list stop = {.n = 0};
    check("any text", "any text", &stop);
}

static void characters_in_pieces(void **state)
{
    const struct text_list stop = {.item = {"\xe2\x82\xac", "\xc3\xa9t"},
                                   .n = 2}; /* EUR, et */
    check("x\xe2\x82\xacy", "x", &stop);
    check("x\xe2\x82\xady", "x\xe2\x82\xady", &stop);
    check("\xc3\xa9 \xc3\xa9t\xc3\xa9", "\xc3\xa9 ", &stop);
    check("\xf0\x9f\x98\x80\xc3\xa9", "\xf0\x9f\x98\x80\xc3\xa9", &stop);
    const struct text_list unknown = {.item = {"\xef\xbf\xbd!"}, .n = 1};
    check("a\xef\xbf\xbd!b", "a", &unknown);
}

static void the_first_place_counts(void **state)
{
    const struct text_list stop = {.item = {"late", "a"}, .n = 2};
    size_t at = 99;
    assert_true(stop_text_find(&at, "xxlate a", 8, 0, &stop) && at == 2);
    assert_true(stop_text_find(&at, "xxlate a", 8, 3, &stop) && at == 3);
    assert_false(stop_text_find(&at, "xxlate a", 8, 8, &stop));
    assert_int_equal(stop_text_safe("xla", 3, &stop), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_stop),
        cmocka_unit_test(several_stops),
        cmocka_unit_test(none),
        cmocka_unit_test(characters_in_pieces),
        cmocka_unit_test(the_first_place_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

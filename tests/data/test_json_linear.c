/* SPDX-License-Identifier: MIT
 *
 * The time that damaged JSON takes grows with its size: up to 20 MB, counted in
 * branches of our code (the compiler calls us at each, -fsanitize-coverage=trace-pc) and
 * in bytes that are allocated, not in seconds. */
#include "data/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MB ((size_t)1 << 20)
/* The largest cost of a byte. The slowest input here costs about a tenth of this. */
#define STEPS_PER_BYTE 100

static uint64_t steps, step_limit;

static void count(uint64_t n)
{
    steps += n;
    if (step_limit && steps > step_limit) {
        static const char text[] = "too many steps: the time is not linear\n";
        fwrite(text, 1, sizeof(text) - 1, stderr);
        _Exit(1);
    }
}

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    count(1);
}

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);

void *__wrap_malloc(size_t n)
{
    count(1 + n / 16);
    return __real_malloc(n);
}

/* Repeats part, with a running number for each %d, to `bytes` or a little more. Returns the
 * length of the text, which has n bytes before. */
static size_t repeat(char *text, size_t n, size_t bytes, const char *part)
{
    const size_t once = strlen(part);
    const bool numbered = strchr(part, '%');
    for (int i = 0; n < bytes; i++) {
        if (!numbered)
            memcpy(text + n, part, once);
        n += numbered ? (size_t)snprintf(text + n, 256, part, i, i) : once;
    }
    return n;
}

/* head, then part with a running number for each %d, up to `bytes`, then tail. */
static void check(size_t bytes, const char *head, const char *part, const char *tail,
                  enum err want)
{
    char *text = calloc(1, bytes + 4096);
    size_t n = strlen(head);
    json_t *v = NULL;
    assert_non_null(text);
    memcpy(text, head, n);
    n = repeat(text, n, bytes, part);
    memcpy(text + n, tail, strlen(tail));
    n += strlen(tail);
    err_clear();
    steps = 0;
    step_limit = STEPS_PER_BYTE * bytes;
    const enum err have = json_parse_lenient(&v, text, n, JSON_REPEATS_LAST, "doc");
    json_decref(v);
    step_limit = 0;
    if (have != want)
        fail_msg("%s%s%s: %s: %s", head, part, tail, err_name(have), err_text());
    assert_true(steps > bytes / 2); /* the branches are counted */
    free(text);
}

static void damaged_documents(void **state)
{
    check(20 * MB, "[", "0,", "", ERR_FORMAT);
    check(4 * MB, "[", "[0],", "", ERR_FORMAT);
    check(20 * MB, "[", "{\"a\":[0,\"b\"]},", "}", ERR_FORMAT);
    check(20 * MB, "", "[", "", ERR_FORMAT);
    check(4 * MB, "\"", "a long string without end ", "", ERR_FORMAT);
    check(4 * MB, "[\"", "\\ud800", "", ERR_FORMAT);
    check(4 * MB, "{", "\"key %d\": %d, ", "", ERR_FORMAT);
    check(20 * MB, "{\"model\": {\"vocab\": {", "\"t%d\":%d,", "\"merges\": [", ERR_FORMAT);
    check(4 * MB, "[", "NaN,", "", ERR_FORMAT);
    check(4 * MB, "[", "7", "", ERR_FORMAT); /* one number beyond all bounds */
    check(4 * MB, "0.", "7", "e", ERR_FORMAT);
    check(4 * MB, "", "\"\\\"", "", ERR_FORMAT);
}

static void odd_documents(void **state)
{
    check(4 * MB, "[", "1e400,", "0]", OK);
    check(4 * MB, "{", "\"same\": %d, ", "\"same\": 0}", OK);
    check(4 * MB, "[\"", "\\ud800", "\"]", OK);
    check(4 * MB, "{", "\"\\u0000%d\": NaN, ", "\"a\": 0}", OK);
    check(4 * MB, "[\"", "\\ud83d\\ude00", "\"]", OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(damaged_documents),
                                       cmocka_unit_test(odd_documents)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

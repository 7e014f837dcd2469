/* SPDX-License-Identifier: MIT
 *
 * Errors: the first one stays, context goes before it, codes lead to exit statuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/error.h"

#include <pthread.h>
#include <string.h>

static enum err inner(int x)
{
    FAIL_IF(x > 2, ERR_FORMAT, "x is %d", x);
    return OK;
}

static enum err outer(int x, int *out)
{
    TRY(inner(x));
    *out = x;
    return OK;
}

static void the_first_failure_stays(void **state)
{
    int out = 77;
    err_clear();
    assert_string_equal(err_text(), "");
    assert_int_equal(outer(1, &out), OK);
    assert_int_equal(out, 1);
    assert_int_equal(outer(3, &out), ERR_FORMAT);
    assert_int_equal(out, 1);
    assert_string_equal(err_text(), "x is 3");
    assert_memory_equal(err_where(), "test_error.c:", 13);
    assert_int_equal(outer(4, &out), ERR_FORMAT);
    assert_string_equal(err_text(), "x is 3");
    assert_int_equal(err_add(ERR_FORMAT, "in %s: ", "a.bin"), ERR_FORMAT);
    assert_string_equal(err_text(), "in a.bin: x is 3");
    err_clear();
    assert_int_equal(outer(5, &out), ERR_FORMAT);
    assert_string_equal(err_text(), "x is 5");
}

static void long_sentences_are_cut(void **state)
{
    char text[4000];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    err_clear();
    err_set(ERR_IO, "dir/file.c", 9, "%s", text);
    assert_true(strlen(err_text()) < sizeof(text) && strlen(err_text()) > 100);
    assert_string_equal(err_where(), "file.c:9");
    err_add(ERR_IO, "%s", text);
    assert_true(strlen(err_text()) < sizeof(text));
}

static void *fail_elsewhere(void *arg)
{
    err_set(ERR_IO, "x.c", 1, "other thread");
    return NULL;
}

static void each_thread_has_its_own(void **state)
{
    pthread_t t;
    err_clear();
    assert_int_equal(pthread_create(&t, NULL, fail_elsewhere, NULL), 0);
    assert_int_equal(pthread_join(t, NULL), 0);
    assert_string_equal(err_text(), "");
}

static void codes(void **state)
{
    static const struct {
        enum err e;
        int value, status;
    } want[] = {{OK, 0, 0},
                {ERR_USAGE, 10, 2},
                {ERR_FORMAT, 11, 2},
                {ERR_SUPPORT, 12, 2},
                {ERR_NOT_FOUND, 13, 2},
                {ERR_MISMATCH, 14, 2},
                {ERR_SHAPE, 15, 1},
                {ERR_IO, 20, 1},
                {ERR_MEMORY, 21, 1},
                {ERR_DEVICE, 22, 1},
                {ERR_NUMERIC, 30, 1},
                {ERR_VERIFY, 31, 3},
                {ERR_STOPPED, 32, 130}};
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        assert_int_equal(want[i].e, want[i].value);
        assert_int_equal(err_exit_status(want[i].e), want[i].status);
        assert_string_not_equal(err_name(want[i].e), "unknown");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_failure_stays),
        cmocka_unit_test(long_sentences_are_cut),
        cmocka_unit_test(each_thread_has_its_own),
        cmocka_unit_test(codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

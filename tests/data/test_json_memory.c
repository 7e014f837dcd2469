/* SPDX-License-Identifier: MIT
 *
 * A parse runs out of memory at each of its allocations in turn: it returns ERR_MEMORY,
 * writes nothing past a buffer, and leaks nothing (checked by the sanitizers). The linker
 * redirects malloc and realloc here. */
#include "data/json.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static long left = -1; /* allocations that still succeed; negative: all */

static bool refuse(void)
{
    return left >= 0 && left-- == 0;
}

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n)
{
    return refuse() ? NULL : __real_malloc(n);
}

void *__wrap_realloc(void *p, size_t n)
{
    return refuse() ? NULL : __real_realloc(p, n);
}

/* Strings longer than the scanner's first buffer, a table that grows, and nesting. */
static char *make_text(void)
{
    char *text = calloc(1, 8192), *at = text;
    assert_non_null(text);
    at += sprintf(at, "{\"long\": \"");
    memset(at, 'x', 3000);
    at += 3000;
    at += sprintf(at, "\"");
    for (int i = 0; i < 40; i++)
        at += sprintf(at, ", \"key %d\": [%d, {\"n\": %d.5}]", i, i, i);
    sprintf(at, "}");
    return text;
}

static void every_allocation_once(void **state)
{
    char *text = make_text();
    json_t *v = NULL;
    long n = 0;
    enum err err = ERR_MEMORY;
    for (; err; n++) {
        err_clear();
        left = n;
        err = json_parse(&v, text, strlen(text), "doc");
        left = -1;
        if (err) {
            assert_int_equal(err, ERR_MEMORY);
            assert_non_null(strstr(err_text(), "doc: out of memory"));
        }
    }
    assert_true(n > 100);
    assert_int_equal(json_object_size(v), 41);
    json_decref(v);
    free(text);
}

/* A shortage of memory is recorded per thread, for good. */
static void *count_down_text(void *v)
{
    static long n;
    left = n++;
    char *text = json_text_restored(v, JSON_COMPACT);
    left = -1;
    assert_true(text || json_out_of_memory());
    return text;
}

static void every_allocation_of_a_text(void **state)
{
    json_t *v = json_object();
    void *text = NULL;
    long n = 0;
    json_object_set_new(v, "a", json_stringn("\0NaN", 4));
    for (; !text; n++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, count_down_text, v), 0);
        assert_int_equal(pthread_join(thread, &text), 0);
    }
    assert_true(n > 2);
    assert_string_equal(text, "{\"a\":NaN}");
    free(text);
    json_decref(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation_of_a_text),
                                       cmocka_unit_test(every_allocation_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

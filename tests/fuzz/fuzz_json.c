/* SPDX-License-Identifier: MIT
 *
 * The JSON layer: a document, strictly and leniently, and every typed getter on its
 * members. A strictly parsed document is equal when parsed leniently; restored text can be
 * read again. */
#include "data/json.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void fuzz_setup(void)
{
}

static void get_all(const json_t *o, const char *key)
{
    int64_t i = 0;
    double x = 0;
    bool b = false;
    const char *s = NULL;
    json_t *v = NULL;
    fuzz_check(json_get_int(&i, o, key, -1000, INT64_MAX, "file"));
    fuzz_check(json_need_int(&i, o, key, INT64_MIN, 7, "file"));
    fuzz_check(json_get_real(&x, o, key, -HUGE_VAL, HUGE_VAL, "file"));
    fuzz_check(json_need_real(&x, o, key, 0, 1, "file"));
    fuzz_check(json_get_bool(&b, o, key, "file"));
    fuzz_check(json_need_string(&s, o, key, "file"));
    fuzz_check(json_get_string(&s, o, key, "file"));
    fuzz_check(json_get_object(&v, o, key, "file"));
    fuzz_check(json_get_array(&v, o, key, "file"));
}

static void read_again(const json_t *root)
{
    json_t *back = NULL;
    char *text = json_text_restored(root, JSON_COMPACT);
    if (json_parse_lenient(&back, text, strlen(text), JSON_REPEATS_NONE, "file") ||
        !json_equal(root, back))
        abort();
    json_decref(back);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    json_t *root = NULL, *strict = NULL, *v;
    const char *key;
    const enum err is_strict = json_parse(&strict, (const char *)data, n, "file");
    fuzz_check(is_strict);
    const enum err e =
        json_parse_lenient(&root, (const char *)data, n, JSON_REPEATS_LAST, "file");
    fuzz_check(e);
    if (!is_strict && e)
        abort();
    if (!e && json_is_object(root))
        json_object_foreach(root, key, v) get_all(root, key);
    if (!e)
        read_again(root);
    json_decref(root);
    json_decref(strict);
    return 0;
}

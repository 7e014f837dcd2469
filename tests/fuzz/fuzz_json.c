/* SPDX-License-Identifier: MIT
 *
 * The strict JSON layer: a document, and every typed getter on its members. */
#include "data/json.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    json_t *root = NULL, *v;
    const char *key;
    const enum err e = json_parse(&root, (const char *)data, n, "file");
    fuzz_check(e);
    if (!e && json_is_object(root))
        json_object_foreach(root, key, v) get_all(root, key);
    json_decref(root);
    return 0;
}

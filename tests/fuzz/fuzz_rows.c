/* SPDX-License-Identifier: MIT
 *
 * JSON rows: the scanner accepts everything that jansson accepts, with the same text,
 * unless it is nested too deep. Its work is linear in the input. */
#include "data/corpus_rows.h"
#include "tests/fuzz/fuzz.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Passes over a row: its layout, the usual fields, the wanted one, its messages. */
#define STEPS_PER_BYTE 64

void fuzz_setup(void)
{
}

static bool read_text(struct text *out, bool *is_text, const char *s, size_t n)
{
    struct json_scan c = {.s = s, .n = n};
    struct json_span v;
    uint64_t lone = 0;
    *is_text = false;
    if (!json_scan_value(&v, &c))
        return c.why && !strcmp(c.why, "values nested too deep");
    if (json_scan_space(&c))
        return false;
    if (*v.s != '{')
        return true;
    v = json_span_member(v, "text", NULL);
    *is_text = v.s && *v.s == '"';
    if (*is_text && json_span_decode(out, v, &lone, NULL))
        abort();
    return true;
}

/* jansson 2.14 loses a raw NUL that follows a number or a word, because it marks an empty buffer;
 * the scanner refuses it, as Python does. Such inputs are not compared. */
static void compare(const char *s, size_t n)
{
    if (memchr(s, 0, n))
        return;
    json_t *o = json_loadb(s, n, JSON_ALLOW_NUL, NULL);
    struct text have = {0};
    bool is_text;
    const bool ok = read_text(&have, &is_text, s, n);
    const json_t *want = o ? json_object_get(o, "text") : NULL;
    if (o && !ok)
        abort();
    if (o && is_text != (bool)json_is_string(want) && ok && is_text)
        abort();
    if (o && is_text &&
        (have.n != json_string_length(want) ||
         (have.n && memcmp(have.p, json_string_value(want), have.n))))
        abort();
    text_free(&have);
    json_decref(o);
}

static void load(const char *s, size_t n)
{
    struct json_scan c;
    struct text out = {0};
    struct corpus_rows r = {.path = "rows", .text = s, .n = n};
    int64_t documents = 0;
    const enum json_layout layout = json_layout(&c, s, n, false, &r.steps);
    if (layout != LAYOUT_NONE && layout != LAYOUT_BROKEN)
        fuzz_check(corpus_add_rows(&out, &documents, &r, layout));
    if (r.steps > STEPS_PER_BYTE * (n + 16))
        abort();
    fuzz_use(out.p, out.n);
    text_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    compare((const char *)data, n);
    load((const char *)data, n);
    return 0;
}

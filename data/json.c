/* SPDX-License-Identifier: MIT */
#include "data/json.h"

#include "data/json_soften.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local bool refused;

/* The header of each allocation that jansson gets. The allocations of a running parse form
 * a ring, so that a failed parse can free them at once; elsewhere next is NULL. */
struct piece {
    _Alignas(max_align_t) struct piece *prev;
    struct piece *next;
};

/* The scanner of jansson 2.14 (lex_save() in load.c) ignores that its buffer could not grow.
 * If that loses a character of a string, the document is silently wrong. If it loses the
 * closing quotation mark, the scanner copies past the end of its buffers. An assertion
 * aborts if it loses the end of a number. A parse that runs out of memory is therefore left
 * with longjmp before the scanner continues. */
static _Thread_local struct {
    bool on;
    jmp_buf give_up;
    struct piece ring;
} parse;

static void *watched_alloc(size_t n)
{
    struct piece *p = malloc(sizeof(*p) + n);
    if (!p) {
        refused = true;
        if (parse.on)
            longjmp(parse.give_up, 1);
        return NULL;
    }
    *p = (struct piece){0};
    if (parse.on) {
        *p = (struct piece){.prev = &parse.ring, .next = parse.ring.next};
        p->next->prev = parse.ring.next = p;
    }
    return p + 1;
}

static void watched_free(void *memory)
{
    if (!memory)
        return;
    struct piece *p = (struct piece *)memory - 1;
    if (p->next) {
        p->next->prev = p->prev;
        p->prev->next = p->next;
    }
    free(p);
}

/* Runs before main, so that every document is allocated here. */
__attribute__((constructor)) static void watch_memory(void)
{
    json_set_alloc_funcs(watched_alloc, watched_free);
}

/* Ends a parse. drop: frees its allocations; otherwise they belong to the document. */
static void end_parse(bool drop)
{
    for (struct piece *p = parse.ring.next, *next; p != &parse.ring; p = next) {
        next = p->next;
        p->next = NULL;
        if (drop)
            free(p);
    }
    parse.on = false;
}

static json_t *load(const char *text, size_t n, size_t flags, json_error_t *e)
{
    parse.ring.prev = parse.ring.next = &parse.ring;
    parse.on = true;
    if (setjmp(parse.give_up)) {
        end_parse(true);
        return NULL;
    }
    json_t *v = json_loadb(text, n, flags | JSON_ALLOW_NUL, e);
    end_parse(false);
    return v;
}

bool json_out_of_memory(void)
{
    return refused;
}

char *json_text(const json_t *v, size_t flags)
{
    /* json_dumps() is not used, because only jansson's own allocator can free its
     * result. */
    const size_t n = v ? json_dumpb(v, NULL, 0, flags) : 0;
    char *text = n ? malloc(n + 1) : NULL;
    refused |= n && !text;
    if (text && json_dumpb(v, text, n, flags) == n && !refused) {
        text[n] = '\0';
        return text;
    }
    free(text);
    return NULL;
}

char *json_text_restored(const json_t *v, size_t flags)
{
    struct text restored = {0};
    char *text = json_text(v, flags);
    if (!text || !strstr(text, "\\u0000"))
        return text;
    if (json_restore(&restored, text, strlen(text)) || text_add(&restored, "", 1)) {
        refused = true;
        text_free(&restored);
    }
    free(text);
    return restored.p; /* text_free() calls free() */
}

enum err json_print(const json_t *v, size_t flags)
{
    char *text = json_text(v, flags);
    FAIL_IF(!text, ERR_MEMORY, "out of memory for the result");
    printf("%s\n", text); /* errors of standard output are reported at the end */
    free(text);
    return OK;
}

static enum err not_parsed(const json_error_t *e, const char *where)
{
    FAIL_IF(refused, ERR_MEMORY, "%s: out of memory for its JSON", where);
    FAIL(ERR_FORMAT, "%s: line %d, column %d: not valid JSON: %s", where, e->line,
         e->column, e->text);
}

enum err json_parse(json_t **out, const char *text, size_t n, const char *where)
{
    json_error_t e;
    json_t *v = load(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!v)
        return not_parsed(&e, where);
    *out = v;
    return OK;
}

static json_t *load_softened(const char *text, size_t n, enum json_repeats repeats,
                             const char *where, json_error_t *e)
{
    json_t *v = load(text, n, JSON_REJECT_DUPLICATES, e);
    if (v || refused || repeats == JSON_REPEATS_NONE ||
        json_error_code(e) != json_error_duplicate_key)
        return v;
    log_warn("%s: line %d: %s; the last value of a repeated key is used", where, e->line,
             e->text);
    return load(text, n, 0, e);
}

static enum err parse_lenient(json_t **out, bool *lost_keys, const char *text, size_t n,
                              enum json_repeats repeats, const char *where)
{
    json_error_t e;
    struct text soft = {0};
    if (n >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) {
        text += 3;
        n -= 3;
    }
    enum err err = json_soften(&soft, lost_keys, text, n);
    if (!err) {
        json_t *v = soft.n ? load_softened(soft.p, soft.n, repeats, where, &e)
                           : load_softened(text, n, repeats, where, &e);
        if (v)
            *out = v;
        else
            err = not_parsed(&e, where);
    }
    text_free(&soft);
    return err;
}

enum err json_parse_lenient(json_t **out, const char *text, size_t n,
                            enum json_repeats repeats, const char *where)
{
    bool lost_keys;
    return parse_lenient(out, &lost_keys, text, n, repeats, where);
}

/* Reads a file for json_load_file_*(); the caller frees *text with mem_free(). */
static enum err read_file(char **text, size_t *n, const char *path, size_t limit)
{
    TRY(file_read_all(text, n, path, limit));
    if (!file_is_lfs_pointer(*text, *n))
        return OK;
    mem_free(*text);
    FAIL(ERR_FORMAT, "%s: " FILE_LFS_ADVICE, path);
}

enum err json_load_file_strict(json_t **out, const char *path, size_t limit)
{
    char *text = NULL;
    size_t n;
    TRY(read_file(&text, &n, path, limit));
    const enum err err = json_parse(out, text, n, path);
    mem_free(text);
    return err;
}

static enum err load_lenient(json_t **out, bool *lost_keys, const char *path, size_t limit,
                             enum json_repeats repeats)
{
    char *text = NULL;
    size_t n;
    TRY(read_file(&text, &n, path, limit));
    const enum err err = parse_lenient(out, lost_keys, text, n, repeats, path);
    mem_free(text);
    return err;
}

enum err json_load_file_lenient(json_t **out, const char *path, size_t limit,
                                enum json_repeats repeats)
{
    bool lost_keys;
    return load_lenient(out, &lost_keys, path, limit, repeats);
}

enum err json_load_table(json_t **out, bool *lost_keys, const char *path, size_t limit)
{
    return load_lenient(out, lost_keys, path, limit, JSON_REPEATS_NONE);
}

const char *json_odd_number(const json_t *v)
{
    const char *s = json_string_value(v);
    const size_t n = json_string_length(v);
    return n > 1 && !s[0] && json_is_odd_number(s + 1, n - 1) ? s + 1 : NULL;
}

const char *json_kind(const json_t *v)
{
    if (!v)
        return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return json_odd_number(v) ? "a number out of range" : "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

/* Returns the member, or NULL if it is missing or null. */
static json_t *member(const json_t *o, const char *key)
{
    json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

enum err json_get_int(int64_t *out, const json_t *o, const char *key, int64_t lo,
                      int64_t hi, const char *where)
{
    const json_t *v = member(o, key);
    if (!v)
        return OK;
    int64_t value;
    if (json_is_real(v) && fabs(json_real_value(v)) <= 0x1p53 &&
        json_real_value(v) == rint(json_real_value(v)))
        value = (int64_t)json_real_value(v);
    else if (json_is_integer(v))
        value = (int64_t)json_integer_value(v);
    else if (json_odd_number(v))
        FAIL(ERR_FORMAT, "%s: %s is %.60s, want an integer within 64 bits", where, key,
             json_odd_number(v));
    else
        FAIL(ERR_FORMAT, "%s: %s is %s, want an integer", where, key, json_kind(v));
    FAIL_IF(value < lo || value > hi, ERR_FORMAT,
            "%s: %s is %" PRId64 ", want %" PRId64 " to %" PRId64, where, key, value, lo,
            hi);
    *out = value;
    return OK;
}

enum err json_need_int(int64_t *out, const json_t *o, const char *key, int64_t lo,
                       int64_t hi, const char *where)
{
    FAIL_IF(!member(o, key), ERR_FORMAT, "%s: %s is missing", where, key);
    return json_get_int(out, o, key, lo, hi, where);
}

enum err json_get_real(double *out, const json_t *o, const char *key, double lo, double hi,
                       const char *where)
{
    const json_t *v = member(o, key);
    if (!v)
        return OK;
    FAIL_IF(json_odd_number(v), ERR_FORMAT, "%s: %s is %.60s, want a finite number", where,
            key, json_odd_number(v));
    FAIL_IF(!json_is_number(v), ERR_FORMAT, "%s: %s is %s, want a number", where, key,
            json_kind(v));
    const double value = json_number_value(v);
    FAIL_IF(!(value >= lo && value <= hi), ERR_FORMAT, "%s: %s is %g, want %g to %g", where,
            key, value, lo, hi);
    *out = value;
    return OK;
}

enum err json_need_real(double *out, const json_t *o, const char *key, double lo, double hi,
                        const char *where)
{
    FAIL_IF(!member(o, key), ERR_FORMAT, "%s: %s is missing", where, key);
    return json_get_real(out, o, key, lo, hi, where);
}

enum err json_get_bool(bool *out, const json_t *o, const char *key, const char *where)
{
    const json_t *v = member(o, key);
    if (!v)
        return OK;
    FAIL_IF(!json_is_boolean(v), ERR_FORMAT, "%s: %s is %s, want true or false", where, key,
            json_kind(v));
    *out = json_is_true(v);
    return OK;
}

enum err json_get_string(const char **out, const json_t *o, const char *key,
                         const char *where)
{
    const json_t *v = member(o, key);
    if (!v)
        return OK;
    FAIL_IF(!json_is_string(v) || json_odd_number(v), ERR_FORMAT,
            "%s: %s is %s, want a string", where, key, json_kind(v));
    FAIL_IF(strlen(json_string_value(v)) != json_string_length(v), ERR_FORMAT,
            "%s: %s holds a NUL character or half a surrogate pair", where, key);
    *out = json_string_value(v);
    return OK;
}

enum err json_need_string(const char **out, const json_t *o, const char *key,
                          const char *where)
{
    FAIL_IF(!member(o, key), ERR_FORMAT, "%s: %s is missing", where, key);
    return json_get_string(out, o, key, where);
}

const char *json_member_text(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text ? text : "";
}

enum err json_get_object(json_t **out, const json_t *o, const char *key, const char *where)
{
    json_t *v = member(o, key);
    FAIL_IF(v && !json_is_object(v), ERR_FORMAT, "%s: %s is %s, want an object", where, key,
            json_kind(v));
    *out = v;
    return OK;
}

enum err json_get_array(json_t **out, const json_t *o, const char *key, const char *where)
{
    json_t *v = member(o, key);
    FAIL_IF(v && !json_is_array(v), ERR_FORMAT, "%s: %s is %s, want an array", where, key,
            json_kind(v));
    *out = v;
    return OK;
}

json_t *json_finite(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *json_reals(const double *x, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; list && i < n; i++) {
        if (json_array_append_new(list, json_finite(x[i]))) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

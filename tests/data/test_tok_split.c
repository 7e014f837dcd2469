/* SPDX-License-Identifier: MIT
 *
 * Splits by regular expressions: pieces as in the reference (tests/golden/tok/splits.json),
 * the hand-written scanners against Oniguruma, and bounds on backtracking. */
#include "data/tokenizer/files/tok_json.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <utf8proc.h>

static void check(enum err e)
{
    if (e)
        fail_msg("%s: %s", err_name(e), err_text());
}

static json_t *load(const char *name)
{
    char path[1024];
    json_t *v = NULL;
    assert_non_null(getenv("GOLDEN_TOK"));
    snprintf(path, sizeof(path), "%s/%s", getenv("GOLDEN_TOK"), name);
    check(json_load_file_strict(&v, path, (size_t)1 << 24));
    return v;
}

/* Pieces, as their ends in their concatenation. */
struct words {
    struct text text;
    struct id_list end;
};

static enum err add_word(void *ctx, const char *s, size_t n)
{
    struct words *w = ctx;
    TRY(text_add(&w->text, s, n));
    return id_list_add(&w->end, (int32_t)w->text.n);
}

static void words_free(struct words *w)
{
    text_free(&w->text);
    id_list_free(&w->end);
}

static enum err split(struct words *w, const struct pre_tokenizer *pre, const char *s,
                      size_t n)
{
    struct step_work work = {.growth.bytes = n};
    struct pre_run run = {.pre = pre, .work = &work, .word = add_word, .ctx = w};
    w->text.n = w->end.n = 0;
    const enum err e = pre_run_text(&run, s, n, true);
    pre_run_free(&run);
    step_work_free(&work);
    return e;
}

/* --- the reference's pieces --------------------------------------------------------- */

static void check_pieces(const json_t *step, const struct words *have, const json_t *want,
                         const char *text)
{
    bool same = have->end.n == json_array_size(want);
    for (size_t i = 0, at = 0; same && i < have->end.n; i++) {
        const json_t *piece = json_array_get(want, i);
        const size_t n = (size_t)have->end.id[i] - at;
        same = n == json_string_length(piece) &&
               !memcmp(have->text.p + at, json_string_value(piece), n);
        at += n;
    }
    if (!same)
        fail_msg("%s of \"%s\": %zu pieces, want %s", json_dumps(step, 0), text,
                 have->end.n, json_dumps(want, 0));
}

static void test_golden(void **state)
{
    json_t *all = load("splits.json"), *texts = json_object_get(all, "texts"),
           *cases = json_object_get(all, "cases");
    assert_true(json_array_size(cases) >= 100 && json_array_size(texts) >= 10);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *step = json_array_get(json_array_get(cases, i), 0),
                     *want = json_array_get(json_array_get(cases, i), 1);
        struct pre_tokenizer pre = {0};
        struct words have = {0};
        const char *family;
        check(pre_tokenizer_parse(&pre, &family, step, "splits.json"));
        for (size_t k = 0; k < json_array_size(texts); k++) {
            const char *s = json_string_value(json_array_get(texts, k));
            check(split(&have, &pre, s, strlen(s)));
            check_pieces(step, &have, json_array_get(want, k), s);
        }
        words_free(&have);
        pre_tokenizer_free(&pre);
    }
    json_decref(all);
}

/* --- scanners against Oniguruma ----------------------------------------------------- */

/* The expressions that have a scanner. */
static const struct {
    const char *regex;
    scan_fn *scan;
} scanners[] = {
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     scan_gpt2},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     scan_llama3},
    {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}|"
     " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
     scan_llama3},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     scan_qwen2},
    {"\\p{N}|\\P{N}+", scan_digit},
    {"\\p{N}+|\\P{N}+", scan_digit_run},
};

static struct pre_tokenizer by_regex(const char *pattern)
{
    struct pre_tokenizer p = {.n = 1};
    p.step[0].kind = PRE_SPLIT;
    check(regex_open(&p.step[0].regex, pattern, "test"));
    return p;
}

static struct pre_tokenizer by_scan(scan_fn *scan)
{
    return (struct pre_tokenizer){.step[0] = {.kind = PRE_SCAN, .scan = scan}, .n = 1};
}

static bool matches(const struct pre_tokenizer *p, int32_t c)
{
    char s[4];
    bool found;
    size_t start, end;
    static struct regex_work *work; /* for the whole test */
    if (!work)
        check(regex_work_open(&work, SIZE_MAX / 1000));
    struct regex_matches m = {p->step[0].regex, work, s, utf8_put(s, c), 0, 0, false};
    check(regex_next(&found, &start, &end, &m));
    return found;
}

/* utf8proc and Oniguruma may have different versions of Unicode. So a character may be
 * unassigned in one of them, and is of the same class in both otherwise. */
static bool same_class(const struct pre_tokenizer of[4], int32_t c)
{
    const enum char_class have = char_class(c);
    return matches(&of[0], c) == (have == CHAR_LETTER) &&
           matches(&of[1], c) == (have == CHAR_NUMBER) &&
           matches(&of[2], c) == (have == CHAR_SPACE);
}

static void test_classes(void **state)
{
    struct pre_tokenizer of[4] = {by_regex("\\p{L}"), by_regex("\\p{N}"), by_regex("\\s"),
                                  by_regex("\\p{Cn}")};
    for (int32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xD800 && c < 0xE000)
            continue;
        if (!same_class(of, c) && !matches(&of[3], c) &&
            utf8proc_category(c) != UTF8PROC_CATEGORY_CN)
            fail_msg("U+%04X", (unsigned)c);
    }
    for (int i = 0; i < 4; i++)
        pre_tokenizer_free(&of[i]);
}

static void check_same(const struct pre_tokenizer *scan, const struct pre_tokenizer *regex,
                       const char *s, size_t n)
{
    struct words a = {0}, b = {0};
    check(split(&a, scan, s, n));
    check(split(&b, regex, s, n));
    if (a.end.n != b.end.n ||
        (a.end.n && memcmp(a.end.id, b.end.id, a.end.n * sizeof(*a.end.id))))
        fail_msg("\"%.*s\": %zu words by the scanner, %zu by the expression", (int)n, s,
                 a.end.n, b.end.n);
    words_free(&a);
    words_free(&b);
}

/* Appends a random piece: a character of a golden text, or one that scanners look for. */
static void add_random(struct text *t, const json_t *texts, struct rng *rng)
{
    static const char *const bits[] = {" ",        "  ",       "\n",  "\r\n", "\t",
                                       "'",        "'S",       "'ll", "'rE",  "1",
                                       "2345",     "\xC5\xBF", "A",   "b",    "\xC2\xA0",
                                       "\xCC\x81", "\xC2\xBD", "!",   "_",    "the"};
    if (rng_below(rng, 3)) {
        const char *bit = bits[rng_below(rng, ARRAY_LEN(bits))];
        check(text_add(t, bit, strlen(bit)));
        return;
    }
    const json_t *from = json_array_get(texts, rng_below(rng, json_array_size(texts)));
    const char *s = json_string_value(from);
    const size_t n = json_string_length(from);
    int32_t c;
    for (size_t at = 0, skip = n ? rng_below(rng, n) : 0, k; at < n; at += k) {
        k = utf8_next(&c, s + at, n - at);
        if (at + k > skip) {
            check(text_add(t, s + at, k));
            return;
        }
    }
}

static void test_scanners(void **state)
{
    json_t *texts = load("texts.json");
    struct rng rng;
    rng_seed(&rng, 11);
    for (size_t i = 0; i < ARRAY_LEN(scanners); i++) {
        struct pre_tokenizer scan = by_scan(scanners[i].scan),
                             regex = by_regex(scanners[i].regex);
        for (size_t k = 0; k < json_array_size(texts); k++) {
            const json_t *t = json_array_get(texts, k);
            check_same(&scan, &regex, json_string_value(t), json_string_length(t));
        }
        for (int k = 0; k < 6000; k++) {
            struct text t = {0};
            for (uint64_t n = 1 + rng_below(&rng, 12); n--;)
                add_random(&t, texts, &rng);
            check_same(&scan, &regex, t.p, t.n);
            text_free(&t);
        }
        pre_tokenizer_free(&regex);
    }
    json_decref(texts);
}

/* --- bounds ------------------------------------------------------------------------- */

static double cpu_time(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static void check_error(const char *pattern, enum err want, const char *word)
{
    struct regex *r = NULL;
    err_clear();
    const enum err e = regex_open(&r, pattern, "PATH: pre_tokenizer");
    if (e != want || !strstr(err_text(), "PATH: pre_tokenizer: ") ||
        !strstr(err_text(), word))
        fail_msg("%s: want %s with \"%s\", have %s: %s", pattern, err_name(want), word,
                 err_name(e), err_text());
    assert_null(r);
}

/* Returns true if [:punct:] holds "$", as in the reference. */
static bool has_symbols(void)
{
    struct regex *r = NULL;
    const enum err e = regex_open(&r, "[[:punct:]]", "test");
    struct pre_tokenizer p = {.step[0].regex = r};
    const bool yes = !e && matches(&p, '$');
    assert_true(e == OK ? yes : e == ERR_SUPPORT);
    regex_close(&r);
    return yes;
}

static void test_bad_patterns(void **state)
{
    char *deep = malloc(20001), *nested = malloc(2001);
    assert_true(deep && nested);
    memset(deep, 'a', 20000);
    deep[20000] = '\0';
    memset(nested, '(', 1000);
    memset(nested + 1000, ')', 1000);
    nested[2000] = '\0';
    check_error("(a", ERR_FORMAT, "the pattern (a is not");
    check_error("[z-a]", ERR_FORMAT, "empty range");
    check_error("a\\p{Foo}", ERR_FORMAT, "invalid character property name {Foo}");
    check_error("(?<!a*)b\\", ERR_FORMAT, "end pattern at escape");
    check_error(deep, ERR_SUPPORT, "20000 bytes");
    if (!has_symbols()) /* an older library */
        check_error("[[:punct:]]", ERR_SUPPORT, "in another way than the reference");
    check_error(nested, ERR_FORMAT, "parse depth limit over");
    free(deep);
    free(nested);
}

/* Splits n times the part of a text, followed by the last part. */
static enum err split_repeated(const char *pattern, const char *part, size_t n,
                               const char *last)
{
    struct pre_tokenizer pre = by_regex(pattern);
    struct words have = {0};
    struct text t = {0};
    for (size_t i = 0; i < n; i++)
        check(text_add(&t, part, strlen(part)));
    check(text_add(&t, last, strlen(last)));
    err_clear();
    const enum err e = split(&have, &pre, t.p, t.n);
    words_free(&have);
    text_free(&t);
    pre_tokenizer_free(&pre);
    return e;
}

/* Each of them would take very long, because of one match or of all together. */
static void test_backtracking(void **state)
{
    static const struct {
        const char *pattern, *part, *last;
        size_t n;
    } bad[] = {
        {"(a+)+$", "a", "b", 50},
        {"(a|aa)+$", "a", "b", 60},
        {"a*a*b|a", "a", "", 20000},
        {"(a{1,2}){20}b|a", "a", "", 100000},
        {"(?>[ac]*)[bd]|a", "a", "", 100000},
        {"(?:a|b)*c|a", "a", "", 3000000},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const double start = cpu_time();
        const enum err e =
            split_repeated(bad[i].pattern, bad[i].part, bad[i].n, bad[i].last);
        if (e != ERR_SUPPORT || !strstr(err_text(), bad[i].pattern) ||
            !strstr(err_text(), "backtracks too much"))
            fail_msg("%s: %s: %s", bad[i].pattern, err_name(e), err_text());
        assert_true(cpu_time() - start <= 30);
    }
}

/* Published expressions on a million bytes of their worst: long runs of one kind. */
static void test_long_runs(void **state)
{
    json_t *doc = load("gpt4o/tokenizer.json");
    json_t *steps = json_object_get(json_object_get(doc, "pre_tokenizer"), "pretokenizers");
    const char *regex = json_string_value(
        json_object_get(json_object_get(json_array_get(steps, 0), "pattern"), "Regex"));
    static const char *const runs[] = {"A",  "a",  " ",   "\n",  "9",           "!",
                                       "aA", " x", " \n", "'s ", "\xE6\x97\xA5"};
    assert_non_null(regex);
    for (size_t i = 0; i < ARRAY_LEN(runs); i++) {
        const double start = cpu_time();
        check(split_repeated(regex, runs[i], 1000000 / strlen(runs[i]), "x"));
        assert_true(cpu_time() - start <= 10);
    }
    json_decref(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),       cmocka_unit_test(test_classes),
        cmocka_unit_test(test_scanners),     cmocka_unit_test(test_bad_patterns),
        cmocka_unit_test(test_backtracking), cmocka_unit_test(test_long_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

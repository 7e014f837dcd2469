/* SPDX-License-Identifier: MIT
 *
 * The parts of the tokenizers: pre-tokenizers on known words, UTF-8, NFC, hash tables, and
 * BPE merges against the definition; long texts in time that is not quadratic. */
#include "data/tokenizer/files/tok_added.h"
#include "data/tokenizer/tok_bpe.h"
#include "data/tokenizer/tok_decode.h"
#include "data/tokenizer/tok_pre.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void check(enum err e)
{
    if (e)
        fail_msg("%s: %s", err_name(e), err_text());
}

static void check_words(scan_fn *scan, const char *text, const char *const *words, size_t n)
{
    const size_t length = strlen(text);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(at < length);
        const size_t k = scan(text + at, length - at);
        if (k != strlen(words[i]) || memcmp(text + at, words[i], k) != 0)
            fail_msg("word %zu: have \"%.*s\", want \"%s\"", i, (int)k, text + at,
                     words[i]);
        at += k;
    }
    assert_int_equal(at, length);
}

static void test_scan(void **state)
{
    static const char text[] = "Hello  world's 12345\n\n \n  foo!!\n\nBAR'LL  ";
    static const char *const llama3[] = {"Hello",  " ",   " world",  "'s", " ",
                                         "123",    "45",  "\n\n \n", " ",  " foo",
                                         "!!\n\n", "BAR", "'LL",     "  "};
    static const char *const qwen2[] = {"Hello", " ",      " world", "'s",  " ",       "1",
                                        "2",     "3",      "4",      "5",   "\n\n \n", " ",
                                        " foo",  "!!\n\n", "BAR",    "'LL", "  "};
    static const char *const gpt2[] = {"Hello",    " ",    " world", "'s", " 12345",
                                       "\n\n \n ", " foo", "!!",     "\n", "\n",
                                       "BAR",      "'",    "LL",     "  "};
    static const char *const digit[] = {
        "Hello  world's ", "1", "2", "3", "4", "5", "\n\n \n  foo!!\n\nBAR'LL  "};
    static const char *const runs[] = {"Hello  world's ", "12345",
                                       "\n\n \n  foo!!\n\nBAR'LL  "};
    check_words(scan_llama3, text, llama3, ARRAY_LEN(llama3));
    check_words(scan_qwen2, text, qwen2, ARRAY_LEN(qwen2));
    check_words(scan_gpt2, text, gpt2, ARRAY_LEN(gpt2));
    check_words(scan_digit, text, digit, ARRAY_LEN(digit));
    check_words(scan_digit_run, text, runs, ARRAY_LEN(runs));
}

static void test_byte_level(void **state)
{
    static const struct {
        uint8_t byte;
        int32_t c;
    } known[] = {{0x00, 0x100}, {0x09, 0x109}, {0x0A, 0x10A}, {0x20, 0x120}, {0x21, 0x21},
                 {0x7E, 0x7E},  {0x7F, 0x121}, {0x80, 0x122}, {0xA0, 0x142}, {0xA1, 0xA1},
                 {0xAD, 0x143}, {0xAE, 0xAE},  {0xFF, 0xFF}};
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        assert_int_equal(byte_level_char(known[i].byte), known[i].c);
    int n = 0;
    for (int32_t c = 0; c < 0x200; c++) {
        const int b = byte_level_byte(c);
        n += b >= 0;
        if (b >= 0)
            assert_int_equal(byte_level_char((uint8_t)b), c);
    }
    assert_int_equal(n, 256);
}

/* Every character is encoded and decoded, and invalid bytes are recognized. */
static void test_utf8(void **state)
{
    char s[4];
    int32_t back;
    for (int32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xD800 && c < 0xE000)
            continue;
        const size_t n = utf8_put(s, c);
        if (utf8_next(&back, s, n) != n || back != c)
            fail_msg("U+%04X", (unsigned)c);
        if (n > 1 && (utf8_next(&back, s, n - 1) != n - 1 || back != -1))
            fail_msg("U+%04X cut short", (unsigned)c);
    }
    assert_true(utf8_valid("", 0));
    assert_false(utf8_valid("\xED\xA0\x80", 3));
    assert_false(utf8_valid("\xF4\x90\x80\x80", 4));
    assert_false(utf8_valid("\xE0\x80\x80", 3));
}

static void check_nfc(const char *s, const char *want)
{
    struct text t = {0};
    check(text_normalize(&t, s, strlen(s), FORM_NFC));
    if (t.n != strlen(want) || memcmp(t.p, want, t.n) != 0)
        fail_msg("NFC of \"%s\": have \"%.*s\", want \"%s\"", s, (int)t.n, t.p, want);
    text_free(&t);
}

static void test_nfc(void **state)
{
    check_nfc("plain \xC3\xA9", "plain \xC3\xA9");
    check_nfc("e\xCC\x81", "\xC3\xA9");
    check_nfc("s\xCC\x87\xCC\xA3", "\xE1\xB9\xA9"); /* marks in the wrong order */
    check_nfc("\xE2\x84\xAB", "\xC3\x85");          /* a singleton */
    check_nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81"); /* Hangul */
    check_nfc("\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"); /* a composition exclusion */
    check_nfc("\xCC\x81", "\xCC\x81");
    check_nfc("\xEF\xAC\x81", "\xEF\xAC\x81"); /* compatibility forms stay */
}

/* One block of units. Unit 0 leads to unit 'a', which has a value: text "bc". */
static void test_charsmap(void **state)
{
    char data[4 + 1024 + 6] = {[1] = 4, [1028] = 'b', 'c', '\0', '\xC3', '\xA9', '\0'};
    const uint32_t root = 1u << 10, a = 'a' | 1u << 8 | 2u << 10, value = 1u << 31;
    struct charsmap m = {0};
    struct text t = {0};
    struct text_growth growth = {0};
    memcpy(data + 4, &root, 4);
    memcpy(data + 4 + 4 * (1 ^ 'a'), &a, 4);
    memcpy(data + 4 + 4 * (1 ^ 'a' ^ 2), &value, 4);
    check(charsmap_open(&m, data, sizeof(data)));
    check(charsmap_add(&t, &growth, &m, "xay\xC3\xA9", 5));
    assert_int_equal(t.n, 6);
    assert_memory_equal(t.p, "xbcy\xC3\xA9", 6);
    assert_int_equal(growth.grown, 1);
    growth.grown = (size_t)1 << 20;
    assert_int_equal(charsmap_add(&t, &growth, &m, "a", 1), ERR_SUPPORT);
    err_clear();
    charsmap_free(&m);
    text_free(&t);
    static const struct {
        size_t at;
        uint32_t unit;
        const char *why;
    } bad[] = {{4, 256u << 10, "points outside"}, /* the root's children are outside */
               {4, UINT32_MAX, "not the root"},
               /* an offset in units of 256 */
               {4 + 4 * 7, 1u << 9 | 1u << 10, "points outside"},
               /* a value after the text, and one inside a character */
               {4 + 4 * (1 ^ 'a' ^ 2), 1u << 31 | 6, "points outside"},
               {4 + 4 * (1 ^ 'a' ^ 2), 1u << 31 | 4, "points into a character"}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        uint32_t old;
        memcpy(&old, data + bad[i].at, 4);
        memcpy(data + bad[i].at, &bad[i].unit, 4);
        assert_int_equal(charsmap_open(&m, data, sizeof(data)), ERR_FORMAT);
        assert_non_null(strstr(err_text(), bad[i].why));
        err_clear();
        charsmap_free(&m);
        memcpy(data + bad[i].at, &old, 4);
    }
    data[sizeof(data) - 1] = 'd';
    assert_int_equal(charsmap_open(&m, data, sizeof(data)), ERR_FORMAT);
    err_clear();
    charsmap_free(&m);
}

/* A million combining marks, each pair out of order: sorting by neighbours would take
 * hours, not seconds. */
static void test_nfc_long(void **state)
{
    struct text in = {0}, out = {0};
    const size_t n = 1000000;
    check(text_add(&in, "a", 1));
    for (size_t i = 0; i < n; i++)
        check(text_add_char(&in, i % 2 ? 0x323 : 0x301));
    const double start = clock_s();
    check(text_normalize(&out, in.p, in.n, FORM_NFC));
    assert_true(clock_s() - start <= 10);
    assert_int_equal(out.n, 3 + 2 * (n - 1)); /* U+1EA1, then the other marks */
    assert_memory_equal(out.p, "\xE1\xBA\xA1\xCC\xA3", 5);
    text_free(&in);
    text_free(&out);
}

static void test_word_class(void **state)
{
    static const int32_t yes[] = {'a',    'Z',    '0',    '_',    0xE9,   0x301,
                                  0x200D, 0x2160, 0x24B6, 0x203F, 0x4E00, 0x661};
    static const int32_t no[] = {' ', '-', '\n', 0xB2, 0x2028, 0x20AC, 0xFFFD, 0x1F600, -1};
    for (size_t i = 0; i < ARRAY_LEN(yes); i++)
        assert_true(char_is_word(yes[i]));
    for (size_t i = 0; i < ARRAY_LEN(no); i++)
        assert_false(char_is_word(no[i]));
}

static void test_dict(void **state)
{
    struct dict d = {0};
    struct pair_map m = {0};
    char s[32];
    uint32_t k;
    size_t n;
    for (int i = 0; i < 20000; i++) {
        snprintf(s, sizeof(s), "%d", i);
        check(dict_add(&k, &d, s, strlen(s)));
        assert_int_equal(k, i);
        check(dict_add(&k, &d, s, strlen(s)));
        assert_int_equal(k, i);
        check(pair_map_put(&m, i % 100, i / 100, i));
    }
    assert_int_equal(dict_find(&d, "20000", 5), -1);
    assert_int_equal(dict_find(&d, "1", 1), 1);
    assert_memory_equal(dict_string(&n, &d, 12345), "12345", 5);
    assert_int_equal(n, 5);
    for (int i = 0; i < 20000; i++)
        assert_int_equal(pair_map_get(&m, i % 100, i / 100), i);
    assert_int_equal(pair_map_get(&m, 0, 200), -1);
    dict_free(&d);
    pair_map_free(&m);
}

/* A vocabulary of strings over {a, b, c}, with merges in random order and one merge per
 * result. For two pairs with the same result, the reference lets a queue entry of one stand
 * for the other, which differs from the definition. */
static void random_bpe(struct bpe *b, struct rng *rng)
{
    char token[80][16] = {"a", "b", "c"};
    int left[80], right[80], n = 3;
    *b = (struct bpe){0};
    for (int tries = 0; tries < 300 && n < 80; tries++) {
        char whole[32];
        left[n] = (int)rng_below(rng, (uint64_t)n);
        right[n] = (int)rng_below(rng, (uint64_t)n);
        snprintf(whole, sizeof(whole), "%s%s", token[left[n]], token[right[n]]);
        bool known = strlen(whole) > 12;
        for (int i = 0; i < n; i++)
            known |= !strcmp(token[i], whole);
        if (!known)
            snprintf(token[n++], sizeof(token[0]), "%.15s", whole);
    }
    for (int i = 0; i < n; i++)
        check(bpe_add_token(b, token[i], strlen(token[i]), i));
    check(bpe_index(b));
    for (int i = n - 1; i >= 3; i--) { /* a random one of 3..i, then i in its place */
        const int k = 3 + (int)rng_below(rng, (uint64_t)i - 2);
        const char *l = token[left[k]], *r = token[right[k]];
        check(bpe_add_merge(b, l, strlen(l), r, strlen(r)));
        left[k] = left[i];
        right[k] = right[i];
    }
}

/* The definition: repeatedly merge the pair of lowest rank, the leftmost of equals. */
static size_t merge_by_definition(int32_t *id, size_t n, const struct bpe *b)
{
    for (;;) {
        size_t best = n;
        int32_t best_rank = INT32_MAX;
        for (size_t i = 0; i + 1 < n; i++) {
            const int32_t rank = pair_map_get(&b->rank, id[i], id[i + 1]);
            if (rank >= 0 && rank < best_rank) {
                best = i;
                best_rank = rank;
            }
        }
        if (best == n)
            return n;
        id[best] = b->merged[best_rank];
        memmove(id + best + 1, id + best + 2, (n - best - 2) * sizeof(*id));
        n--;
    }
}

static void check_merges(const struct bpe *b, struct rng *rng)
{
    char word[200];
    int32_t want[200];
    struct bpe_work work = {0};
    struct id_list have = {0};
    for (int round = 0; round < 50; round++) {
        const size_t n = 1 + rng_below(rng, sizeof(word));
        for (size_t i = 0; i < n; i++) {
            word[i] = (char)('a' + rng_below(rng, 3));
            want[i] = bpe_id(b, word + i, 1);
        }
        const size_t n_want = merge_by_definition(want, n, b);
        have.n = 0;
        check(bpe_encode(&have, b, &work, word, n));
        assert_int_equal(have.n, n_want);
        assert_memory_equal(have.id, want, n_want * sizeof(*want));
    }
    bpe_work_free(&work);
    id_list_free(&have);
}

static void test_merges(void **state)
{
    struct rng rng;
    rng_seed(&rng, 7);
    for (int i = 0; i < 40; i++) {
        struct bpe b;
        random_bpe(&b, &rng);
        assert_true(b.n_merges > 10);
        check_merges(&b, &rng);
        bpe_free(&b);
    }
}

/* One word of two million characters. */
static void test_long_word(void **state)
{
    struct bpe b = {0};
    struct bpe_work work = {0};
    struct id_list ids = {0};
    struct text word = {0};
    const size_t n = 2000000;
    char token[40] = "a";
    for (int k = 0; k < 6; k++) { /* a, aa, aaaa, ... */
        memset(token, 'a', (size_t)1 << k);
        check(bpe_add_token(&b, token, (size_t)1 << k, k));
    }
    check(bpe_index(&b));
    for (int k = 0; k < 5; k++)
        check(bpe_add_merge(&b, token, (size_t)1 << k, token, (size_t)1 << k));
    check(text_reserve(&word, n));
    memset(word.p, 'a', n);
    const double start = clock_s();
    check(bpe_encode(&ids, &b, &work, word.p, n));
    assert_true(clock_s() - start <= 20);
    assert_int_equal(ids.n, n / 32);
    bpe_free(&b);
    bpe_work_free(&work);
    id_list_free(&ids);
    text_free(&word);
}

struct parts {
    struct added_part part[8];
    size_t n;
};

static enum err collect(void *ctx, const char *s, struct added_part p)
{
    struct parts *all = ctx;
    if (all->n < ARRAY_LEN(all->part))
        all->part[all->n] = p;
    all->n++;
    return OK;
}

/* Tokens of white space, each of which scans all white space after it. */
static void test_added_long(void **state)
{
    char content[] = " ";
    const struct added_token token = {.content = content, .rstrip = true};
    struct added_matcher m = {0};
    struct parts parts = {0};
    struct text s = {0};
    const size_t n = 1000000;
    check(text_reserve(&s, n));
    memset(s.p, ' ', n);
    check(added_matcher_add(&m, content, 1, 0));
    const double start = clock_s();
    check(added_matcher_run(&m, &token, s.p, n, collect, &parts));
    assert_true(clock_s() - start <= 10);
    assert_int_equal(parts.n, n);
    assert_int_equal(parts.part[1].end, n);
    added_matcher_free(&m);
    text_free(&s);
}

/* "<e>" absorbs the white space after it. A token inside that has lstrip begins where the
 * absorbed white space ends; if nothing is left of it, it is none. */
static void test_absorbed(void **state)
{
    char e[] = "<e>", line[] = "\n", twice[] = "\n\n";
    const struct added_token token[] = {{.content = e, .id = 5, .rstrip = true},
                                        {.content = line, .id = 6, .lstrip = true},
                                        {.content = twice, .rstrip = true, .lstrip = true}};
    static const struct {
        const char *text;
        size_t n_tokens, n;
        struct added_part want[4];
    } cases[] = {
        {"a<e>\nb", 2, 3, {{0, 1, -1}, {1, 5, 0}, {5, 6, -1}}},
        {"<e> \n \n", 2, 1, {{0, 7, 0}}},
        {"a \n<e>", 2, 3, {{0, 1, -1}, {1, 3, 1}, {3, 6, 0}}},
        {"<e>\n\n b", 3, 2, {{0, 6, 0}, {6, 7, -1}}},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct added_matcher m = {0};
        struct parts have = {0};
        for (size_t k = 0; k < cases[i].n_tokens; k++)
            check(added_matcher_add(&m, token[k].content, strlen(token[k].content),
                                    (int32_t)k));
        check(added_matcher_run(&m, token, cases[i].text, strlen(cases[i].text), collect,
                                &have));
        assert_int_equal(have.n, cases[i].n);
        for (size_t k = 0; k < have.n; k++) {
            assert_int_equal(have.part[k].start, cases[i].want[k].start);
            assert_int_equal(have.part[k].end, cases[i].want[k].end);
            assert_int_equal(have.part[k].token, cases[i].want[k].token);
        }
        added_matcher_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scan),       cmocka_unit_test(test_byte_level),
        cmocka_unit_test(test_utf8),       cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_charsmap),   cmocka_unit_test(test_nfc_long),
        cmocka_unit_test(test_word_class), cmocka_unit_test(test_dict),
        cmocka_unit_test(test_merges),     cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_added_long), cmocka_unit_test(test_absorbed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

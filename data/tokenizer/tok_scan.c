/* SPDX-License-Identifier: MIT
 *
 * The commonest regular expressions of tokenizer.json files as hand-written scanners, which
 * are faster than a general engine. Each alternative of an expression is one step below,
 * tried in the same order. Together they match any text, so there are no gaps between
 * words. */
#include "data/tokenizer/tok_pre.h"

#include <string.h>

struct reader {
    const char *s;
    size_t n;
};

static int32_t char_at(size_t *k, const struct reader *r, size_t at)
{
    int32_t c;
    *k = utf8_next(&c, r->s + at, r->n - at);
    return c;
}

/* Returns the end of the run of this class that starts at `at`, limited to `limit`
 * characters. */
static size_t run_end(const struct reader *r, size_t at, enum char_class wanted,
                      size_t limit)
{
    size_t k;
    while (at < r->n && limit-- && char_class(char_at(&k, r, at)) == wanted)
        at += k;
    return at;
}

static bool is_line_end(char c)
{
    return c == '\n' || c == '\r';
}

/* Returns the length of 's, 't, 're, 've, 'm, 'll or 'd, 0 for anything else. If the
 * expression ignores case, the long s (U+017F) is also an s. */
static size_t contraction(const struct reader *r, bool any_case)
{
    static const char tail[][3] = {"s", "t", "re", "ve", "m", "ll", "d"};
    const int fold = any_case ? 0x20 : 0;
    if (r->n < 2 || r->s[0] != '\'')
        return 0;
    for (size_t i = 0; i < ARRAY_LEN(tail); i++) {
        const size_t k = strlen(tail[i]);
        if (r->n > k && (r->s[1] | fold) == tail[i][0] &&
            (k == 1 || (r->s[2] | fold) == tail[i][1]))
            return k + 1;
    }
    return any_case && r->n >= 3 && !memcmp(r->s + 1, "\xC5\xBF", 2) ? 3 : 0;
}

/* \s+(?!\S)|\s+ : a run that is followed by other text leaves its last character to that
 * text. */
static size_t white_space(const struct reader *r)
{
    size_t at = 0, last = 0, k;
    while (at < r->n && char_class(char_at(&k, r, at)) == CHAR_SPACE) {
        last = at;
        at += k;
    }
    return at == r->n || last == 0 ? at : last;
}

/* \s*[\r\n]+ : the run of white space up to its last line end; 0 if it has none. */
static size_t line_ends(const struct reader *r)
{
    const size_t end = run_end(r, 0, CHAR_SPACE, SIZE_MAX);
    for (size_t i = end; i > 0; i--)
        if (is_line_end(r->s[i - 1]))
            return i;
    return 0;
}

size_t scan_gpt2(const char *s, size_t n)
{
    const struct reader r = {s, n};
    size_t k = contraction(&r, false);
    if (k)
        return k;
    const size_t start = s[0] == ' ' && n > 1;
    const enum char_class class = char_class(char_at(&k, &r, start));
    if (class != CHAR_SPACE)
        return run_end(&r, start, class, SIZE_MAX);
    return white_space(&r);
}

static size_t scan_tiktoken(const char *s, size_t n, size_t max_digits)
{
    const struct reader r = {s, n};
    size_t k = contraction(&r, true), k1;
    if (k)
        return k;
    const enum char_class class = char_class(char_at(&k, &r, 0));
    if (class == CHAR_LETTER)
        return run_end(&r, 0, CHAR_LETTER, SIZE_MAX);
    if (class == CHAR_NUMBER)
        return run_end(&r, 0, CHAR_NUMBER, max_digits);
    /* Any single other character belongs to the letters after it. */
    if (!is_line_end(s[0]) && k < n && char_class(char_at(&k1, &r, k)) == CHAR_LETTER)
        return run_end(&r, k, CHAR_LETTER, SIZE_MAX);
    const size_t start = s[0] == ' ';
    size_t end = run_end(&r, start, CHAR_OTHER, SIZE_MAX);
    if (end > start) {
        while (end < n && is_line_end(s[end]))
            end++;
        return end;
    }
    k = line_ends(&r);
    return k ? k : white_space(&r);
}

size_t scan_llama3(const char *s, size_t n)
{
    return scan_tiktoken(s, n, 3);
}

size_t scan_qwen2(const char *s, size_t n)
{
    return scan_tiktoken(s, n, 1);
}

static size_t not_digits(const struct reader *r)
{
    size_t at = 0, k;
    while (at < r->n && char_class(char_at(&k, r, at)) != CHAR_NUMBER)
        at += k;
    return at;
}

size_t scan_digit(const char *s, size_t n)
{
    const struct reader r = {s, n};
    const size_t k = run_end(&r, 0, CHAR_NUMBER, 1);
    return k ? k : not_digits(&r);
}

size_t scan_digit_run(const char *s, size_t n)
{
    const struct reader r = {s, n};
    const size_t k = run_end(&r, 0, CHAR_NUMBER, SIZE_MAX);
    return k ? k : not_digits(&r);
}

scan_fn *scan_of_regex(const char **family, const char *regex)
{
    static const struct {
        const char *regex, *family;
        scan_fn *scan;
    } known[] = {
        {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
         "\\s+(?!\\S)|\\s+",
         "GPT-2", scan_gpt2},
        {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
         " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
         "Llama 3", scan_llama3},
        {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}|"
         " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
         "GPT-4", scan_llama3}, /* finds the same words */
        {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
         " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
         "Qwen2", scan_qwen2},
    };
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (!strcmp(regex, known[i].regex)) {
            *family = known[i].family;
            return known[i].scan;
        }
    }
    return NULL;
}

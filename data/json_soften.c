/* SPDX-License-Identifier: MIT */
#include "data/json_soften.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ESCAPE_BYTES 6 /* \uXXXX */

/* A text while it is rewritten: bytes before `copied` are in out already. */
struct rewrite {
    struct text *out;
    const char *s;
    size_t n, copied;
    bool lost_keys;
};

static enum err replace(struct rewrite *r, size_t start, size_t end, const char *by,
                        size_t n)
{
    TRY(text_add(r->out, r->s + r->copied, start - r->copied));
    r->copied = end;
    return text_add(r->out, by, n);
}

static enum err finish(struct rewrite *r)
{
    return text_add(r->out, r->s + r->copied, r->n - r->copied);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '+' ||
           c == '-' || c == '.';
}

static size_t skip_digits(const char *s, size_t n, size_t at)
{
    while (at < n && is_digit(s[at]))
        at++;
    return at;
}

/* Returns true if JSON's grammar accepts s as a number. *integer: it has neither fraction
 * nor exponent. */
static bool is_number(bool *integer, const char *s, size_t n)
{
    size_t at = n && s[0] == '-', start = at;
    at = skip_digits(s, n, at);
    if (at == start || (s[start] == '0' && at > start + 1))
        return false;
    *integer = at == n;
    if (at < n && s[at] == '.') {
        start = at + 1;
        at = skip_digits(s, n, start);
        if (at == start)
            return false;
    }
    if (at < n && (s[at] | 0x20) == 'e') {
        start = at + 1;
        start += start < n && (s[start] == '+' || s[start] == '-');
        at = skip_digits(s, n, start);
        if (at == start)
            return false;
    }
    return at == n;
}

static bool fits_int64(const char *s, size_t n)
{
    const bool minus = s[0] == '-';
    const char *limit = minus ? "9223372036854775808" : "9223372036854775807";
    return n - minus < 19 || (n - minus == 19 && memcmp(s + minus, limit, 19) <= 0);
}

static bool fits_double(const char *s, size_t n)
{
    /* a longer number is not copied, because no reader can use it */
    char copy[1024];
    if (n >= sizeof(copy))
        return false;
    memcpy(copy, s, n);
    copy[n] = '\0';
    return isfinite(strtod(copy, NULL));
}

bool json_is_odd_number(const char *s, size_t n)
{
    static const char *const names[] = {"NaN", "Infinity", "-Infinity"};
    bool integer;
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (n == strlen(names[i]) && !memcmp(s, names[i], n))
            return true;
    if (!is_number(&integer, s, n))
        return false;
    return integer ? !fits_int64(s, n) : !fits_double(s, n);
}

static size_t word_end(const char *s, size_t n, size_t at)
{
    while (at < n && is_word(s[at]))
        at++;
    return at;
}

/* Returns the value of an escape \uXXXX at s + at, or -1 if there is none. */
static int escape_at(const char *s, size_t n, size_t at)
{
    int value = 0;
    if (at + ESCAPE_BYTES > n || s[at] != '\\' || s[at + 1] != 'u')
        return -1;
    for (size_t i = 2; i < ESCAPE_BYTES; i++) {
        const char c = s[at + i], low = (char)(c | 0x20);
        if (!is_digit(c) && (low < 'a' || low > 'f'))
            return -1;
        value = 16 * value + (is_digit(c) ? c - '0' : low - 'a' + 10);
    }
    return value;
}

static bool is_high(int c)
{
    return c >= 0xD800 && c <= 0xDBFF;
}

static bool is_low(int c)
{
    return c >= 0xDC00 && c <= 0xDFFF;
}

/* Returns the length of the character or escape at s + at in a string. *odd is 'n' for NUL,
 * 's' for half a surrogate pair, and 0 for all others. */
static size_t unit_at(char *odd, const char *s, size_t n, size_t at)
{
    *odd = 0;
    if (s[at] != '\\')
        return 1;
    const int c = escape_at(s, n, at);
    if (c < 0)
        return at + 1 < n ? 2 : 1;
    if (is_high(c) && is_low(escape_at(s, n, at + ESCAPE_BYTES)))
        return 2 * (size_t)ESCAPE_BYTES;
    *odd = (char)(c == 0 ? 'n' : is_high(c) || is_low(c) ? 's' : 0);
    return ESCAPE_BYTES;
}

/* Returns the position of the closing quote of a string whose text starts at `at`; n if it
 * has none. */
static size_t string_end(bool *any_odd, const char *s, size_t n, size_t at)
{
    char odd;
    *any_odd = false;
    while (at < n && s[at] != '"') {
        at += unit_at(&odd, s, n, at);
        *any_odd |= odd != 0;
    }
    return at < n ? at : n;
}

static bool is_key(const char *s, size_t n, size_t end)
{
    end++;
    while (end < n && strchr(" \t\r\n", s[end]) && s[end])
        end++;
    return end < n && s[end] == ':';
}

static enum err soften_string(struct rewrite *r, size_t at, size_t end)
{
    const bool key = is_key(r->s, r->n, end);
    char odd, by[] = "\\u0000XXXX";
    for (size_t n; at < end; at += n) {
        n = unit_at(&odd, r->s, r->n, at);
        if (odd && key) {
            r->lost_keys = true;
            TRY(replace(r, at, at + n, JSON_LOST_CHAR, strlen(JSON_LOST_CHAR)));
        } else if (odd) {
            memcpy(by + ESCAPE_BYTES, r->s + at + 2, 4);
            TRY(replace(r, at, at + n, by, strlen(by)));
        }
    }
    return OK;
}

static enum err soften_word(struct rewrite *r, size_t at, size_t end)
{
    if (!json_is_odd_number(r->s + at, end - at))
        return OK;
    TRY(replace(r, at, at, "\"\\u0000", 7));
    return replace(r, end, end, "\"", 1);
}

enum err json_soften(struct text *out, bool *lost_keys, const char *text, size_t n)
{
    struct rewrite r = {.out = out, .s = text, .n = n};
    for (size_t at = 0, end; at < n; at = end) {
        bool odd;
        if (text[at] == '"') {
            end = string_end(&odd, text, n, at + 1);
            if (odd && end < n)
                TRY(soften_string(&r, at + 1, end));
            end++;
        } else if (is_word(text[at])) {
            end = word_end(text, n, at);
            TRY(soften_word(&r, at, end));
        } else
            end = at + 1;
    }
    *lost_keys = r.lost_keys;
    return r.copied ? finish(&r) : OK;
}

/* Restores a whole string that represents a number, or the NULs and halves of pairs in it. */
static enum err restore_string(struct rewrite *r, size_t at, size_t end)
{
    static const char nul[] = "\\u0000";
    char odd;
    if (end - at > ESCAPE_BYTES && !memcmp(r->s + at, nul, ESCAPE_BYTES) &&
        json_is_odd_number(r->s + at + ESCAPE_BYTES, end - at - ESCAPE_BYTES)) {
        TRY(replace(r, at - 1, at + ESCAPE_BYTES, "", 0));
        return replace(r, end, end + 1, "", 0);
    }
    for (size_t n; at < end; at += n) {
        char as_escape[ESCAPE_BYTES] = "\\u";
        n = unit_at(&odd, r->s, r->n, at);
        if (odd != 'n' || at + n + 4 > end)
            continue;
        memcpy(as_escape + 2, r->s + at + n, 4);
        const int c = escape_at(as_escape, ESCAPE_BYTES, 0);
        if (c == 0 || is_high(c) || is_low(c))
            TRY(replace(r, at, at + n + 4, as_escape, ESCAPE_BYTES));
    }
    return OK;
}

enum err json_restore(struct text *out, const char *text, size_t n)
{
    struct rewrite r = {.out = out, .s = text, .n = n};
    for (size_t at = 0, end; at < n; at = end + 1) {
        bool odd = false;
        end = text[at] == '"' ? string_end(&odd, text, n, at + 1) : at;
        if (odd && end < n)
            TRY(restore_string(&r, at + 1, end));
    }
    return finish(&r);
}

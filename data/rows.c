/* SPDX-License-Identifier: MIT */
#include "data/rows.h"

#include <string.h>

/* The kinds of the open values, one bit each; a set bit is an object. */
struct open_values {
    uint8_t bits[(JSON_DEPTH_MAX + 7) / 8];
    int n;
};

static void count(uint64_t *steps, size_t n)
{
    if (steps)
        *steps += n;
}

static bool fail(struct json_scan *c, const char *why)
{
    c->why = why;
    return false;
}

bool json_scan_space(struct json_scan *c)
{
    const size_t from = c->at;
    while (c->at < c->n && (c->s[c->at] == ' ' || c->s[c->at] == '\n' ||
                            c->s[c->at] == '\r' || c->s[c->at] == '\t'))
        c->at++;
    count(c->steps, c->at - from + 1);
    return c->at < c->n;
}

/* Skips white space and the character ch; false if another character follows. */
static bool take(struct json_scan *c, char ch)
{
    if (!json_scan_space(c) || c->s[c->at] != ch)
        return false;
    c->at++;
    return true;
}

static int hex_digit(char ch)
{
    if (ch >= '0' && ch <= '9')
        return ch - '0';
    ch |= 0x20;
    return ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : -1;
}

/* Returns the value of four hexadecimal digits, or -1 if s does not start with them. */
static int32_t four_digits(const char *s, size_t n)
{
    int32_t value = 0;
    if (n < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        const int d = hex_digit(s[i]);
        if (d < 0)
            return -1;
        value = value << 4 | d;
    }
    return value;
}

/* Skips an escape, which starts with its backslash. */
static bool scan_escape(struct json_scan *c)
{
    if (c->at + 1 >= c->n)
        return fail(c, "a string without its end");
    const char ch = c->s[c->at + 1];
    if (ch == 'u') {
        if (four_digits(c->s + c->at + 2, c->n - c->at - 2) < 0)
            return fail(c, "\\u without four hexadecimal digits");
        c->at += 6;
        return true;
    }
    if (!ch || !strchr("\"\\/bfnrt", ch))
        return fail(c, "an unknown escape in a string");
    c->at += 2;
    return true;
}

static bool scan_string(struct json_scan *c)
{
    const size_t from = c->at++;
    bool ok = true, end = false;
    while (ok && !end && c->at < c->n) {
        const uint8_t ch = (uint8_t)c->s[c->at];
        if (ch == '\\')
            ok = scan_escape(c);
        else if (ch < 0x20)
            ok = fail(c, "a control character in a string");
        else {
            end = ch == '"';
            c->at++;
        }
    }
    count(c->steps, c->at - from);
    if (ok && !end)
        return fail(c, "a string without its end");
    return ok;
}

static size_t digits(const struct json_scan *c, size_t at)
{
    const size_t from = at;
    while (at < c->n && c->s[at] >= '0' && c->s[at] <= '9')
        at++;
    return at - from;
}

/* Skips a number. An incomplete fraction or exponent does not belong to it. */
static bool scan_number(struct json_scan *c)
{
    size_t at = c->at, k;
    at += c->s[at] == '-';
    k = digits(c, at);
    if (!k)
        return fail(c, "a value is missing");
    at += c->s[at] == '0' ? 1 : k;
    if (at < c->n && c->s[at] == '.' && (k = digits(c, at + 1)))
        at += 1 + k;
    if (at < c->n && (c->s[at] == 'e' || c->s[at] == 'E')) {
        const bool sign = at + 1 < c->n && (c->s[at + 1] == '+' || c->s[at + 1] == '-');
        k = digits(c, at + 1 + sign);
        at += k ? 1 + sign + k : 0;
    }
    count(c->steps, at - c->at);
    c->at = at;
    return true;
}

static bool scan_scalar(struct json_scan *c)
{
    static const char *const words[] = {"null",     "true",      "false", "NaN",
                                        "Infinity", "-Infinity", NULL};
    if (c->s[c->at] == '"')
        return scan_string(c);
    for (int i = 0; words[i]; i++) {
        const size_t k = strlen(words[i]);
        if (c->n - c->at >= k && !memcmp(c->s + c->at, words[i], k)) {
            c->at += k;
            count(c->steps, k);
            return true;
        }
    }
    return scan_number(c);
}

static bool in_object(const struct open_values *o)
{
    return o->bits[(o->n - 1) / 8] >> ((o->n - 1) % 8) & 1;
}

/* Skips a key and its colon. */
static bool scan_key(struct json_scan *c)
{
    if (!json_scan_space(c) || c->s[c->at] != '"')
        return fail(c, "a key is missing");
    if (!scan_string(c))
        return false;
    return take(c, ':') || fail(c, "the colon after a key is missing");
}

/* Enters the object or array that begins here. *empty: it was empty and has been
 * skipped. */
static bool scan_open(bool *empty, struct json_scan *c, struct open_values *o)
{
    const bool object = c->s[c->at] == '{';
    *empty = false;
    if (o->n == JSON_DEPTH_MAX)
        return fail(c, "values nested too deep");
    c->at++;
    if (take(c, object ? '}' : ']')) {
        *empty = true;
        return true;
    }
    o->bits[o->n / 8] &= (uint8_t) ~(1u << (o->n % 8));
    o->bits[o->n / 8] |= (uint8_t)((unsigned)object << (o->n % 8));
    o->n++;
    return !object || scan_key(c);
}

/* Skips the ends that follow a value, then a comma with its key. *done: the outermost value
 * has ended. */
static bool scan_after(bool *done, struct json_scan *c, struct open_values *o)
{
    for (; o->n; o->n--) {
        const bool object = in_object(o);
        c->complete += o->n == 1;
        if (take(c, ',')) {
            *done = false;
            return !object || scan_key(c);
        }
        if (!take(c, object ? '}' : ']'))
            return fail(c, c->at < c->n ? "neither a comma nor an end after a value"
                                        : "the text ends inside a value");
    }
    *done = true;
    return true;
}

bool json_scan_value(struct json_span *out, struct json_scan *c)
{
    struct open_values open = {.n = 0};
    bool done = false;
    json_scan_space(c);
    const size_t from = c->at;
    c->complete = 0;
    while (!done) {
        bool whole = true;
        if (!json_scan_space(c))
            return fail(c, "the text ends where a value is expected");
        if (c->s[c->at] == '{' || c->s[c->at] == '[') {
            if (!scan_open(&whole, c, &open))
                return false;
        } else if (!scan_scalar(c)) {
            return false;
        }
        if (whole && !scan_after(&done, c, &open))
            return false;
    }
    *out = (struct json_span){c->s + from, c->at - from};
    return true;
}

/* --- of accepted text --------------------------------------------------------------- */

/* Returns one character of a string's inside, with escapes decoded; *n is its length.
 * Returns -1 for invalid UTF-8, whose *n bytes are then kept. A lone surrogate is returned
 * unchanged. */
static int32_t next_char(size_t *n, const char *s, size_t left)
{
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    int32_t c;
    if (s[0] != '\\') {
        *n = utf8_next(&c, s, left);
        return c;
    }
    if (s[1] != 'u') {
        *n = 2;
        return meant[strchr(escapes, s[1]) - escapes];
    }
    c = four_digits(s + 2, left - 2);
    *n = 6;
    if (c < 0xD800 || c > 0xDBFF || left < 12 || s[6] != '\\' || s[7] != 'u')
        return c;
    const int32_t low = four_digits(s + 8, left - 8);
    if (low < 0xDC00 || low > 0xDFFF)
        return c;
    *n = 12;
    return 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
}

/* Returns the text between the quotes. */
static struct json_span inside(struct json_span string)
{
    return (struct json_span){string.s + 1, string.n - 2};
}

static size_t plain_length(struct json_span s)
{
    const char *escape = memchr(s.s, '\\', s.n);
    return escape ? (size_t)(escape - s.s) : s.n;
}

enum err json_span_decode(struct text *out, struct json_span string, uint64_t *lone,
                          uint64_t *steps)
{
    struct json_span rest = inside(string);
    count(steps, string.n);
    while (rest.n) {
        size_t n = plain_length(rest);
        TRY(text_add(out, rest.s, n));
        if (n < rest.n) {
            size_t k;
            int32_t c = next_char(&k, rest.s + n, rest.n - n);
            if (c >= 0xD800 && c <= 0xDFFF) {
                c = 0xFFFD;
                ++*lone;
            }
            TRY(text_add_char(out, c));
            n += k;
        }
        rest.s += n;
        rest.n -= n;
    }
    return OK;
}

/* Returns true if a string equals key. */
static bool says(struct json_span string, const char *key, uint64_t *steps)
{
    struct json_span rest = inside(string);
    count(steps, string.n);
    while (rest.n) {
        char utf8[4];
        size_t k, n;
        const int32_t c = next_char(&k, rest.s, rest.n);
        if (c < 0 || (c >= 0xD800 && c <= 0xDFFF))
            return false;
        n = utf8_put(utf8, c);
        if (strncmp(key, utf8, n) || !c)
            return false;
        key += n;
        rest.s += k;
        rest.n -= k;
    }
    return !*key;
}

bool json_span_next(struct json_span *key, struct json_span *value, struct json_span outer,
                    size_t *at, uint64_t *steps)
{
    struct json_scan c = {.s = outer.s, .n = outer.n, .at = *at ? *at : 1, .steps = steps};
    const bool object = outer.s[0] == '{';
    *key = (struct json_span){0};
    if (*at)
        take(&c, ',');
    if (take(&c, object ? '}' : ']'))
        return false;
    if (object && (!json_scan_value(key, &c) || !take(&c, ':')))
        return false;
    if (!json_scan_value(value, &c))
        return false;
    *at = c.at;
    return true;
}

struct json_span json_span_member(struct json_span object, const char *key, uint64_t *steps)
{
    struct json_span found = {0}, k, v;
    for (size_t at = 0; json_span_next(&k, &v, object, &at, steps);)
        if (says(k, key, steps))
            found = v;
    return found;
}

const char *json_span_kind(struct json_span v)
{
    switch (v.s ? v.s[0] : '\0') {
    case '\0':
        return "missing";
    case '{':
        return "an object";
    case '[':
        return "an array";
    case '"':
        return "a string";
    case 't':
    case 'f':
        return "a boolean";
    case 'n':
        return "null";
    default:
        return "a number";
    }
}

/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/tok_text.h"

#include "kernels/base/mem.h"

#include <string.h>
#include <utf8proc.h>

/* A compatibility decomposition alone makes some characters 11 times as long. */
#define GROWTH_PER_BYTE 16
#define GROWTH ((size_t)1 << 20)

/* Returns a doubled capacity that holds need items. */
static size_t grown(size_t cap, size_t need)
{
    size_t fresh = cap > SIZE_MAX / 2 ? SIZE_MAX : cap * 2;
    if (fresh < 64)
        fresh = 64;
    return fresh < need ? need : fresh;
}

enum err text_reserve(struct text *t, size_t extra)
{
    size_t need = 0;
    FAIL_IF(!size_add(t->n, extra, &need), ERR_MEMORY, "text of %zu + %zu bytes overflows",
            t->n, extra);
    if (need <= t->cap)
        return OK;
    const size_t cap = grown(t->cap, need);
    TRY(mem_resize(&t->p, t->n, cap, 1));
    t->cap = cap;
    return OK;
}

enum err text_add(struct text *t, const char *s, size_t n)
{
    TRY(text_reserve(t, n));
    if (n)
        memcpy(t->p + t->n, s, n);
    t->n += n;
    return OK;
}

enum err text_add_char(struct text *t, int32_t c)
{
    TRY(text_reserve(t, 4));
    t->n += utf8_put(t->p + t->n, c);
    return OK;
}

void text_free(struct text *t)
{
    mem_free(t->p);
    *t = (struct text){0};
}

enum err text_grow(struct text_growth *g, size_t from, size_t to)
{
    const size_t most = g->bytes * GROWTH_PER_BYTE + GROWTH;
    if (to <= from)
        return OK;
    FAIL_IF(to - from > most - g->grown, ERR_SUPPORT,
            "the steps of tokenizer.json make a text of %zu bytes longer by more than %zu "
            "bytes: refused as a likely bomb",
            g->bytes, most);
    g->grown += to - from;
    return OK;
}

enum err id_list_add_n(struct id_list *l, const int32_t *id, size_t n)
{
    size_t need = 0;
    FAIL_IF(!size_add(l->n, n, &need), ERR_MEMORY, "list of tokens overflows");
    if (need > l->cap) {
        const size_t cap = grown(l->cap, need);
        TRY(mem_resize(&l->id, l->n, cap, sizeof(*l->id)));
        l->cap = cap;
    }
    if (n)
        memcpy(l->id + l->n, id, n * sizeof(*id));
    l->n += n;
    return OK;
}

enum err id_list_add(struct id_list *l, int32_t id)
{
    return id_list_add_n(l, &id, 1);
}

void id_list_free(struct id_list *l)
{
    mem_free(l->id);
    *l = (struct id_list){0};
}

static int base64_value(char c)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

int64_t base64_decode(char *out, const char *s, size_t n)
{
    int64_t k = 0;
    uint32_t bits = 0;
    const size_t padding = n && s[n - 1] == '=' ? 1 + (n > 1 && s[n - 2] == '=') : 0;
    if (!n || n % 4)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const int value = i < n - padding ? base64_value(s[i]) : 0;
        if (value < 0)
            return -1;
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 != 3)
            continue;
        for (int shift = 16; shift >= 0; shift -= 8)
            out[k++] = (char)(bits >> shift & 0xFF);
        bits = 0;
    }
    return k - (int64_t)padding;
}

/* Returns the number of continuation bytes after lead byte b, or -1 if it is not one. [lo,
 * hi] is the range of the first of them; it excludes overlong forms, surrogates and values
 * above U+10FFFF. */
static int lead_byte(uint8_t b, uint8_t *lo, uint8_t *hi)
{
    *lo = 0x80;
    *hi = 0xBF;
    if (b >= 0xC2 && b <= 0xDF)
        return 1;
    if (b >= 0xE0 && b <= 0xEF) {
        if (b == 0xE0)
            *lo = 0xA0;
        if (b == 0xED)
            *hi = 0x9F;
        return 2;
    }
    if (b >= 0xF0 && b <= 0xF4) {
        if (b == 0xF0)
            *lo = 0x90;
        if (b == 0xF4)
            *hi = 0x8F;
        return 3;
    }
    return -1;
}

size_t utf8_next(int32_t *c, const char *s, size_t n)
{
    const uint8_t *b = (const uint8_t *)s;
    uint8_t lo, hi;
    if (b[0] < 0x80) {
        *c = b[0];
        return 1;
    }
    const int more = lead_byte(b[0], &lo, &hi);
    int32_t value = more < 0 ? -1 : b[0] & (0x3F >> more);
    for (int i = 1; i <= more; i++) {
        if ((size_t)i >= n || b[i] < lo || b[i] > hi) {
            *c = -1;
            return (size_t)i;
        }
        value = value << 6 | (b[i] & 0x3F);
        lo = 0x80;
        hi = 0xBF;
    }
    *c = value;
    return more < 0 ? 1 : (size_t)more + 1;
}

size_t utf8_put(char *out, int32_t c)
{
    const utf8proc_ssize_t n = utf8proc_encode_char(c, (utf8proc_uint8_t *)out);
    return (size_t)n;
}

bool utf8_valid(const char *s, size_t n)
{
    int32_t c;
    for (size_t at = 0; at < n;) {
        at += utf8_next(&c, s + at, n - at);
        if (c < 0)
            return false;
    }
    return true;
}

enum err utf8_repair(struct text *out, const char *s, size_t n)
{
    int32_t c;
    TRY(text_reserve(out, n));
    for (size_t at = 0; at < n;) {
        size_t valid = at, k = 0;
        for (c = 0; valid < n; valid += k) {
            k = utf8_next(&c, s + valid, n - valid);
            if (c < 0)
                break;
        }
        TRY(text_add(out, s + at, valid - at));
        at = valid;
        if (at < n) {
            TRY(text_add_char(out, 0xFFFD));
            at += k;
        }
    }
    return OK;
}

enum char_class char_class(int32_t c)
{
    if (c < 0x80) {
        if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')
            return CHAR_LETTER;
        if (c >= '0' && c <= '9')
            return CHAR_NUMBER;
        return c == ' ' || (c >= 9 && c <= 13) ? CHAR_SPACE : CHAR_OTHER;
    }
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return CHAR_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return CHAR_NUMBER;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return CHAR_SPACE;
    default: /* of the controls above ASCII, only NEXT LINE is white space */
        return c == 0x85 ? CHAR_SPACE : CHAR_OTHER;
    }
}

bool char_is_punctuation(int32_t c)
{
    if (c < 0x80)
        return c > ' ' && c < 0x7F && char_class(c) == CHAR_OTHER;
    const utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

bool char_is_space(int32_t c)
{
    return char_class(c) == CHAR_SPACE;
}

/* One composed form decomposes into at most this many characters. */
#define DECOMPOSED_MAX 32

struct code_points {
    int32_t *c;
    size_t n, cap;
};

static enum err decompose(struct code_points *out, const char *s, size_t n, bool compat)
{
    const utf8proc_option_t how =
        UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    int boundary = UTF8PROC_BOUNDCLASS_START;
    int32_t c;
    for (size_t at = 0; at < n;) {
        at += utf8_next(&c, s + at, n - at);
        if (out->cap - out->n < DECOMPOSED_MAX) {
            const size_t cap = grown(out->cap, out->n + DECOMPOSED_MAX);
            TRY(mem_resize(&out->c, out->n, cap, sizeof(*out->c)));
            out->cap = cap;
        }
        const utf8proc_ssize_t k =
            utf8proc_decompose_char(c, out->c + out->n, DECOMPOSED_MAX, how, &boundary);
        FAIL_IF(k < 0 || k > DECOMPOSED_MAX, ERR_FORMAT, "cannot normalize U+%04X: %s",
                (unsigned)c, utf8proc_errmsg(k));
        out->n += (size_t)k;
    }
    return OK;
}

static int combining_class(int32_t c)
{
    return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class;
}

/* Sorts a run of combining marks with a stable counting sort. utf8proc's own reordering
 * takes quadratic time on a long run. spare: n characters. */
static void order_marks(int32_t *c, size_t n, int32_t *spare)
{
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[combining_class(c[i]) + 1]++;
    for (int k = 0; k < 256; k++)
        start[k + 1] += start[k];
    for (size_t i = 0; i < n; i++)
        spare[start[combining_class(c[i])]++] = c[i];
    memcpy(c, spare, n * sizeof(*c));
}

static enum err order_all_marks(struct code_points *p)
{
    int32_t *spare = NULL;
    TRY(mem_alloc(&spare, p->n, sizeof(*spare)));
    for (size_t i = 0; i < p->n; i++) {
        size_t end = i;
        while (end < p->n && combining_class(p->c[end]))
            end++;
        if (end - i > 1)
            order_marks(p->c + i, end - i, spare);
        if (end > i)
            i = end - 1;
    }
    mem_free(spare);
    return OK;
}

static enum err write_out(struct text *out, struct code_points *p, bool compose)
{
    const utf8proc_ssize_t n =
        compose ? utf8proc_normalize_utf32(p->c, (utf8proc_ssize_t)p->n,
                                           UTF8PROC_STABLE | UTF8PROC_COMPOSE)
                : (utf8proc_ssize_t)p->n;
    FAIL_IF(n < 0, ERR_FORMAT, "cannot normalize: %s", utf8proc_errmsg(n));
    TRY(text_reserve(out, (size_t)n * 4));
    for (utf8proc_ssize_t i = 0; i < n; i++)
        out->n += utf8_put(out->p + out->n, p->c[i]);
    return OK;
}

enum err text_normalize(struct text *out, const char *s, size_t n, enum normal_form form)
{
    enum err err = OK;
    struct code_points p = {0};
    const bool compat = form == FORM_NFKC || form == FORM_NFKD,
               compose = form == FORM_NFC || form == FORM_NFKC;
    /* NFC changes nothing below U+0300 (lead byte 0xCC) unless such a character follows. */
    const uint8_t least = form == FORM_NFC ? 0xCC : 0x80;
    size_t plain = 0;
    while (plain < n && (uint8_t)s[plain] < least)
        plain++;
    if (plain == n)
        return text_add(out, s, n);
    TRY_OUT(decompose(&p, s, n, compat));
    TRY_OUT(order_all_marks(&p));
    TRY_OUT(write_out(out, &p, compose));
out:
    mem_free(p.c);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * Units of the double array are those of Darts-clone: bits 0 to 7 (and 31) are the label,
 * bit 8 says that a value follows, bit 9 that the offset is in units of 256, and bits 10 to
 * 30 are the offset. A value's unit has bit 31 set. */
#include "data/tokenizer/tok_charsmap.h"

#include "kernels/base/mem.h"

#include <string.h>
#include <utf8proc.h>

#define MAX_BYTES ((size_t)64 << 20)
/* Longer clusters are normalized by character. */
#define MAX_CLUSTER_BYTES 5

static bool has_value(uint32_t unit)
{
    return unit >> 8 & 1;
}

static uint32_t value_of(uint32_t unit)
{
    return unit & 0x7FFFFFFF;
}

static uint32_t label_of(uint32_t unit)
{
    return unit & 0x800000FF;
}

static size_t offset_of(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

/* Units that no search reaches are checked as well: a builder leaves none that point
 * outside. */
static enum err check_units(const struct charsmap *m)
{
    FAIL_IF(m->unit[0] >> 31, ERR_FORMAT, "charsmap: unit 0 is a value, not the root");
    for (size_t i = 0; i < m->n_units; i++) {
        const uint32_t unit = m->unit[i];
        if (unit >> 31)
            continue;
        const size_t base = i ^ offset_of(unit);
        FAIL_IF((base | 0xFF) >= m->n_units, ERR_FORMAT,
                "charsmap: unit %zu of %zu points outside", i, m->n_units);
        const uint32_t value = has_value(unit) ? value_of(m->unit[base]) : 0;
        FAIL_IF(value >= m->n_text, ERR_FORMAT,
                "charsmap: unit %zu points outside the replacements", i);
        FAIL_IF(((uint8_t)m->text[value] & 0xC0) == 0x80, ERR_FORMAT,
                "charsmap: unit %zu points into a character of the replacements", i);
    }
    return OK;
}

enum err charsmap_open(struct charsmap *m, const char *data, size_t n)
{
    uint32_t bytes = 0;
    if (n >= 4)
        for (int i = 3; i >= 0; i--)
            bytes = bytes << 8 | (uint8_t)data[i];
    FAIL_IF(n < 4 || n > MAX_BYTES || bytes > n - 4 || bytes % 4 || bytes < 1024,
            ERR_FORMAT, "charsmap: %zu bytes with an array of %u", n, (unsigned)bytes);
    m->n_units = bytes / 4;
    m->n_text = n - 4 - bytes;
    FAIL_IF(!m->n_text || data[n - 1] != '\0' || !utf8_valid(data + 4 + bytes, m->n_text),
            ERR_FORMAT, "charsmap: its replacements are not UTF-8 that ends with a NUL");
    TRY(mem_alloc(&m->unit, m->n_units, sizeof(*m->unit)));
    TRY(mem_alloc(&m->text, m->n_text, 1));
    const uint8_t *at = (const uint8_t *)data + 4;
    for (size_t i = 0; i < m->n_units; i++, at += 4)
        m->unit[i] =
            at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
    memcpy(m->text, at, m->n_text);
    return check_units(m);
}

void charsmap_free(struct charsmap *m)
{
    mem_free(m->unit);
    mem_free(m->text);
    *m = (struct charsmap){0};
}

/* Returns the replacement of the shortest prefix of s that has one, or NULL. The reference
 * takes it for the whole of s. */
static const char *find(const struct charsmap *m, const char *s, size_t n)
{
    size_t at = offset_of(m->unit[0]);
    for (size_t i = 0; i < n && s[i]; i++) {
        at ^= (uint8_t)s[i];
        const uint32_t unit = m->unit[at];
        if (label_of(unit) != (uint8_t)s[i])
            return NULL;
        at ^= offset_of(unit);
        if (has_value(unit))
            return m->text + value_of(m->unit[at]);
    }
    return NULL;
}

/* Appends s [n], or `to` in its place unless that is NULL. */
static enum err add_or_replace(struct text *out, struct text_growth *growth, const char *s,
                               size_t n, const char *to)
{
    if (!to)
        return text_add(out, s, n);
    const size_t k = strlen(to);
    TRY(text_grow(growth, n, k));
    return text_add(out, to, k);
}

static enum err add_chars(struct text *out, struct text_growth *growth,
                          const struct charsmap *m, const char *s, size_t n)
{
    int32_t c;
    for (size_t at = 0, k; at < n; at += k) {
        k = utf8_next(&c, s + at, n - at);
        TRY(add_or_replace(out, growth, s + at, k, find(m, s + at, k)));
    }
    return OK;
}

/* Returns the end of the grapheme cluster at s. */
static size_t cluster(const char *s, size_t n)
{
    utf8proc_int32_t state = 0;
    int32_t before, c;
    size_t at = utf8_next(&before, s, n), k;
    for (; at < n; at += k, before = c) {
        k = utf8_next(&c, s + at, n - at);
        if (utf8proc_grapheme_break_stateful(before, c, &state))
            break;
    }
    return at;
}

enum err charsmap_add(struct text *out, struct text_growth *growth,
                      const struct charsmap *m, const char *s, size_t n)
{
    for (size_t at = 0, k; at < n; at += k) {
        k = cluster(s + at, n - at);
        const char *to = k <= MAX_CLUSTER_BYTES ? find(m, s + at, k) : NULL;
        if (to)
            TRY(add_or_replace(out, growth, s + at, k, to));
        else
            TRY(add_chars(out, growth, m, s + at, k));
    }
    return OK;
}

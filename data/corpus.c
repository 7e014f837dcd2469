/* SPDX-License-Identifier: MIT */
#include "data/corpus.h"

#include "data/corpus_rows.h"
#include "data/unpack.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define INFLATED_MAX ((size_t)8 << 30)
#define BAD_BYTES_IN 1000 /* one byte in so many, at most, is not text */

/* The text while it grows. */
struct growing {
    struct text text;
    int64_t documents, skipped;
    const struct corpus_rules *rules;
};

/* --- is it text? -------------------------------------------------------------------- */

/* Returns true for a control character that texts do not contain. Excluded are tab, line
 * ends, backspace, DOS's end of file, and escape, which starts colours. */
static bool is_control(uint8_t c)
{
    return c < 0x20 && !strchr("\b\t\n\v\f\r\x1a\x1b", c ? c : 1);
}

/* Counts bytes of invalid UTF-8 and control characters; *first is the position of the first
 * one. */
static size_t count_bad(size_t *first, size_t *controls, const char *s, size_t n)
{
    size_t bad = 0;
    *controls = 0;
    for (size_t at = 0; at < n;) {
        int32_t c;
        const size_t k = utf8_next(&c, s + at, n - at);
        if (c < 0 || (c < 0x20 && is_control((uint8_t)c))) {
            if (!bad)
                *first = at;
            bad += k;
            *controls += c >= 0;
        }
        at += k;
    }
    return bad;
}

/* Checks that u holds text. The tokenizer repairs a few invalid bytes; many of them mean
 * another encoding, or a binary file. */
static enum err check_text(const struct unpacked *u, const char *shown)
{
    size_t first = 0, controls;
    const size_t bad = count_bad(&first, &controls, u->data, u->bytes);
    if (!bad)
        return OK;
    const double share = 100 * (double)bad / (double)u->bytes;
    const int64_t line = text_line(u->data, first);
    const bool many = bad > u->bytes / BAD_BYTES_IN;
    FAIL_IF(many && 2 * controls > bad, ERR_FORMAT,
            "%s: is not text: %.3g %% of its bytes are control characters, the first in "
            "line %" PRId64 "; give a text file, or convert it: iconv -f UTF-16LE -t UTF-8",
            shown, share, line);
    FAIL_IF(many, ERR_FORMAT,
            "%s: is not UTF-8: %.3g %% of its bytes, the first in line %" PRId64
            "; convert it, as with iconv -f WINDOWS-1252 -t UTF-8",
            shown, share, line);
    if (bad > controls)
        log_warn(
            "%s: bytes that are not UTF-8 become U+FFFD: %zu of %zu, the first in line "
            "%" PRId64,
            shown, bad - controls, u->bytes, line);
    return OK;
}

/* Returns what Python's str.isspace() does, which the convention of rows is based on. */
static bool is_space(int32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int32_t c;
        i += utf8_next(&c, s + i, n - i);
        if (!is_space(c))
            return false;
    }
    return true;
}

/* --- CSV ---------------------------------------------------------------------------- */

/* Returns true if s could be a column's name in a header: one short word, apart from
 * quotes. */
static bool is_column(const char *s, size_t n, bool *text)
{
    if (n >= 2 && s[0] == '"' && s[n - 1] == '"') {
        s++;
        n -= 2;
    }
    for (size_t i = 0; i < n; i++)
        if (strchr(" \t\"'.:!?()[]{}<>", s[i]) || !s[i])
            return false;
    *text =
        *text || (n == 4 && !memcmp(s, "text", 4)) || (n == 7 && !memcmp(s, "content", 7));
    return n > 0 && n < 40;
}

/* Returns true if the first line looks like a header of columns, one of which is the
 * text. */
static bool has_header(const char *s, size_t n, char separator)
{
    bool text = false;
    int columns = 0;
    n = text_line_length(s, n);
    while (n && (s[n - 1] == '\n' || s[n - 1] == '\r'))
        n--;
    for (size_t at = 0; at < n; columns++) {
        const char *end = memchr(s + at, separator, n - at);
        const size_t k = end ? (size_t)(end - s) - at : n - at;
        if (!is_column(s + at, k, &text))
            return false;
        at += k + 1;
    }
    return columns >= 2 && text;
}

static bool is_csv(const struct unpacked *u)
{
    const size_t n = text_line_length(u->data, u->bytes);
    if ((name_ends(u->name, ".csv") && memchr(u->data, ',', n)) ||
        (name_ends(u->name, ".tsv") && memchr(u->data, '\t', n)))
        return true;
    return has_header(u->data, u->bytes, ',') || has_header(u->data, u->bytes, '\t');
}

static enum err refuse_csv(const char *shown)
{
    FAIL(ERR_FORMAT, "%s: " CSV_ADVICE, shown);
}

/* --- files -------------------------------------------------------------------------- */

/* Returns what stands between two documents. */
static const char *separator(const struct growing *g)
{
    return g->rules->join == JOIN_SPACE ? " " : "\n\n";
}

static enum err start_document(struct growing *g)
{
    const char *between = separator(g);
    return text_add(&g->text, between, g->documents++ ? strlen(between) : 0);
}

static enum err add_lines_as_rows(struct text *t, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const size_t len = text_line_length(s + i, n - i);
        TRY(text_add(t, "\n\n", i ? 2 : 0));
        TRY(text_add(t, s + i, is_blank(s + i, len) ? 0 : len));
        i += len;
    }
    return OK;
}

/* Joins the lines without the white space at their ends, as in `" ".join(sentences)`. */
static enum err add_lines_as_words(struct text *t, const char *s, size_t n)
{
    for (size_t i = 0, len; i < n; i += len) {
        size_t from = i, end = 0;
        len = text_line_length(s + i, n - i);
        for (size_t at = i; at < i + len;) {
            int32_t c;
            at += utf8_next(&c, s + at, i + len - at);
            if (!is_space(c))
                end = at;
            else if (!end)
                from = at;
        }
        TRY(text_add(t, " ", i ? 1 : 0));
        TRY(text_add(t, s + from, end ? end - from : 0));
    }
    return OK;
}

static bool by_rows(const char *name, enum corpus_join join)
{
    if (join != JOIN_AUTO)
        return join == JOIN_ROWS;
    return name_ends(name, ".raw") || name_ends(name, ".tokens");
}

static enum err add_plain(struct growing *g, const struct unpacked *u, const char *shown)
{
    const bool rows = by_rows(u->name, g->rules->join);
    const bool words = g->rules->join == JOIN_SPACE;
    if (u->bytes && is_csv(u))
        return refuse_csv(shown);
    log_info("%s: plain text%s%s%s", shown,
             rows    ? " in rows"
             : words ? " in rows, joined by a space"
                     : "",
             *u->about ? ", " : "", u->about);
    TRY(start_document(g));
    if (words)
        return add_lines_as_words(&g->text, u->data, u->bytes);
    return rows ? add_lines_as_rows(&g->text, u->data, u->bytes)
                : text_add(&g->text, u->data, u->bytes);
}

static void say_rows(const struct corpus_rows *r, const struct unpacked *u,
                     enum json_layout layout)
{
    const char *kind = layout == LAYOUT_LINES   ? "JSON lines"
                       : layout == LAYOUT_ARRAY ? "JSON array"
                                                : "JSON";
    log_info("%s: %s, %s%s%sfield `%s`%s, %" PRId64 " document%s%s%s", r->path, kind,
             *r->within ? "rows in " : "", r->within, *r->within ? ", " : "", r->field,
             r->chat ? " as ROLE: CONTENT lines" : "", r->documents, plural(r->documents),
             *u->about ? ", " : "", u->about);
    if (r->bad)
        log_warn("%s: %" PRId64 " of %" PRId64 " rows are skipped; the first is %s",
                 r->path, r->bad, r->rows, r->first_bad);
    if (r->lone)
        log_warn("%s: %" PRIu64 " lone surrogates become U+FFFD", r->path, r->lone);
}

static enum err add_json(struct growing *g, const struct unpacked *u, const char *shown,
                         enum json_layout layout)
{
    struct corpus_rows r = {
        .path = shown, .text = u->data, .n = u->bytes, .between = separator(g)};
    const char *field = g->rules->field ? g->rules->field : "";
    FAIL_IF(strlen(field) >= sizeof(r.field), ERR_USAGE,
            "--text-field: longer than %zu bytes", sizeof(r.field) - 1);
    strcpy(r.field, field);
    TRY(corpus_add_rows(&g->text, &g->documents, &r, layout));
    g->skipped += r.bad;
    say_rows(&r, u, layout);
    return OK;
}

static bool named_json(const char *name)
{
    return name_ends(name, ".json") || name_ends(name, ".jsonl") ||
           name_ends(name, ".ndjson");
}

/* Returns the line of the byte where JSON is broken. At the end of the text, this is the
 * line of its last visible byte. */
static int64_t broken_line(const struct json_scan *c)
{
    size_t at = c->at;
    while (at && (at == c->n || strchr(" \t\r\n", c->s[at])))
        at--;
    return text_line(c->s, at);
}

static enum err add_content(struct growing *g, const struct unpacked *u, const char *shown)
{
    struct json_scan c;
    TRY(check_text(u, shown));
    const enum json_layout layout =
        json_layout(&c, u->data, u->bytes, named_json(u->name), NULL);
    FAIL_IF(layout == LAYOUT_BROKEN, ERR_FORMAT,
            "%s: line %" PRId64 ": begins as JSON, but is broken: %s", shown,
            broken_line(&c), c.why);
    return layout == LAYOUT_NONE ? add_plain(g, u, shown) : add_json(g, u, shown, layout);
}

static enum err add_file(struct growing *g, const char *path)
{
    struct unpacked u = {0};
    TRY(unpack_open(&u, path, INFLATED_MAX));
    const enum err err = add_content(g, &u, unpack_shown(path));
    unpack_close(&u);
    return err;
}

static enum err check_paths(const char *const *path, int n)
{
    int streams = 0;
    for (int i = 0; i < n; i++)
        streams += !strcmp(path[i], "-") || !strcmp(path[i], "/dev/stdin");
    FAIL_IF(streams > 1, ERR_USAGE, "standard input is given %d times; it is read once",
            streams);
    return OK;
}

enum err corpus_load(struct corpus *out, const char *const *path, int n,
                     const struct corpus_rules *rules)
{
    enum err err = OK;
    struct growing g = {.rules = rules};
    TRY(check_paths(path, n));
    for (int i = 0; i < n; i++)
        TRY_OUT(add_file(&g, path[i]));
    TRY_OUT(text_add(&g.text, "", 1)); /* the NUL */
    *out = (struct corpus){.text = g.text.p,
                           .bytes = g.text.n - 1,
                           .n_documents = g.documents,
                           .n_skipped = g.skipped};
    return OK;
out:
    text_free(&g.text);
    return err;
}

void corpus_free(struct corpus *c)
{
    mem_free(c->text);
    *c = (struct corpus){0};
}

/* SPDX-License-Identifier: MIT */
#include "data/corpus_rows.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LINES_LOOKED_AT 16
#define BAD_ROWS_PER_CENT 1
#define NAMES_SHOWN 8

int64_t text_line(const char *s, size_t at)
{
    int64_t line = 1;
    for (const char *end = s + at; (s = memchr(s, '\n', (size_t)(end - s))); s++)
        line++;
    return line;
}

size_t text_line_length(const char *s, size_t n)
{
    const char *end = memchr(s, '\n', n);
    return end ? (size_t)(end - s) + 1 : n;
}

/* --- layout ------------------------------------------------------------------------- */

/* Returns true if a line is exactly one object. */
static bool is_object_line(const char *s, size_t n, uint64_t *steps)
{
    struct json_scan c = {.s = s, .n = n, .steps = steps};
    struct json_span v;
    return json_scan_value(&v, &c) && *v.s == '{' && !json_scan_space(&c);
}

/* Returns true if most lines are objects; a single line counts as a value instead. */
static bool are_lines(const char *s, size_t n, uint64_t *steps)
{
    int lines = 0, objects = 0;
    for (size_t at = 0; at < n && lines < LINES_LOOKED_AT;) {
        const size_t k = text_line_length(s + at, n - at);
        struct json_scan c = {.s = s + at, .n = k, .steps = steps};
        if (json_scan_space(&c)) {
            lines++;
            objects += is_object_line(s + at, k, steps);
        }
        at += k;
    }
    return lines > 1 && 2 * objects > lines;
}

/* Returns true if the text is one array, or objects, up to its end. Otherwise *complete
 * tells whether it was meant as JSON: its first value, or an element of it, is complete and
 * no prose follows. */
static bool are_values(struct json_scan *c, bool *complete)
{
    struct json_span v = {0};
    const size_t start = c->at;
    bool ok = true;
    for (bool first = true; ok && json_scan_space(c); first = false) {
        const char *from = c->s + c->at;
        if (!first && (*from != '{' || c->s[start] == '[')) {
            *complete = *complete && strchr("{[", *from);
            return false;
        }
        ok = json_scan_value(&v, c);
        struct json_scan inner = {
            .s = from, .n = c->n - (size_t)(from - c->s), .at = 1, .steps = c->steps};
        if (first && *from == '[') /* "[1] and so on" is prose */
            *complete = json_scan_space(&inner) && from[inner.at] == '{' &&
                        json_scan_value(&v, &inner);
        else if (first)
            *complete = c->complete > 0;
    }
    return ok;
}

enum json_layout json_layout(struct json_scan *c, const char *s, size_t n, bool named,
                             uint64_t *steps)
{
    bool complete = false;
    *c = (struct json_scan){.s = s, .n = n, .steps = steps};
    if (!json_scan_space(c) || (s[c->at] != '{' && s[c->at] != '['))
        return LAYOUT_NONE;
    const bool array = s[c->at] == '[';
    if (are_lines(s, n, steps))
        return LAYOUT_LINES;
    if (are_values(c, &complete))
        return array ? LAYOUT_ARRAY : LAYOUT_VALUES;
    if (!c->why)
        c->why = "more text after the end";
    return complete || named ? LAYOUT_BROKEN : LAYOUT_NONE;
}

/* --- rows --------------------------------------------------------------------------- */

static void bad_row(struct corpus_rows *r, const char *at, const char *why)
{
    if (!r->bad++)
        snprintf(r->first_bad, sizeof(r->first_bad), "line %" PRId64 ": %s",
                 text_line(r->text, (size_t)(at - r->text)), why);
}

static enum err start_document(struct text *out, int64_t *documents, const char *between)
{
    if (!between)
        between = "\n\n";
    return text_add(out, between, (*documents)++ ? strlen(between) : 0);
}

/* Checks a list of messages {"role": ..., "content": ...}. Some of them may lack content,
 * as a tool call does. Returns NULL, or what is wrong. */
static const char *check_chat(struct json_span list, uint64_t *steps)
{
    struct json_span key, m;
    int64_t texts = 0;
    for (size_t at = 0; json_span_next(&key, &m, list, &at, steps);) {
        if (*m.s != '{')
            return "a message is not an object";
        const struct json_span role = json_span_member(m, "role", steps);
        const struct json_span content = json_span_member(m, "content", steps);
        if (!role.s || *role.s != '"')
            return "a message has no role";
        if (content.s && *content.s != '"' && *content.s != 'n')
            return "a message's content is not a string";
        texts += content.s && *content.s == '"';
    }
    return texts ? NULL : "its messages have no content";
}

/* Appends messages as "ROLE: CONTENT", each on one or more lines. */
static enum err add_chat(struct text *out, struct json_span list, struct corpus_rows *r)
{
    struct json_span key, m;
    bool first = true;
    for (size_t at = 0; json_span_next(&key, &m, list, &at, &r->steps);) {
        const struct json_span content = json_span_member(m, "content", &r->steps);
        if (!content.s || *content.s != '"')
            continue;
        TRY(text_add(out, "\n", first ? 0 : 1));
        TRY(json_span_decode(out, json_span_member(m, "role", &r->steps), &r->lone,
                             &r->steps));
        TRY(text_add(out, ": ", 2));
        TRY(json_span_decode(out, content, &r->lone, &r->steps));
        first = false;
    }
    r->chat = true;
    return OK;
}

/* Sets the field to read once a row has one of the usual names. */
static bool know_field(struct corpus_rows *r, struct json_span row)
{
    static const char *const usual[] = {"text", "content", "messages"};
    for (size_t i = 0; !*r->field && i < ARRAY_LEN(usual); i++)
        if (json_span_member(row, usual[i], &r->steps).s)
            snprintf(r->field, sizeof(r->field), "%s", usual[i]);
    return *r->field;
}

static enum err add_value(struct text *out, int64_t *documents, struct corpus_rows *r,
                          struct json_span row, struct json_span v)
{
    char why[2 * ROW_FIELD_MAX];
    const char *wrong = NULL;
    if (!v.s || (*v.s != '"' && *v.s != '[')) {
        snprintf(why, sizeof(why), v.s ? "%s is %s" : "no field %s", r->field,
                 json_span_kind(v));
        wrong = why;
    } else if (*v.s == '[') {
        wrong = check_chat(v, &r->steps);
    }
    if (wrong) {
        bad_row(r, row.s, wrong);
        return OK;
    }
    r->documents++;
    TRY(start_document(out, documents, r->between));
    if (*v.s == '[')
        return add_chat(out, v, r);
    return json_span_decode(out, v, &r->lone, &r->steps);
}

static enum err add_row(struct text *out, int64_t *documents, struct corpus_rows *r,
                        struct json_span row)
{
    r->rows++;
    if (*row.s != '{') {
        char why[64];
        snprintf(why, sizeof(why), "%s, not an object", json_span_kind(row));
        bad_row(r, row.s, why);
        return OK;
    }
    if (!r->sample.s)
        r->sample = row;
    if (!know_field(r, row)) {
        bad_row(r, row.s, "no field text, content or messages");
        return OK;
    }
    return add_value(out, documents, r, row, json_span_member(row, r->field, &r->steps));
}

static enum err add_lines(struct text *out, int64_t *documents, struct corpus_rows *r)
{
    for (size_t at = 0; at < r->n;) {
        const size_t k = text_line_length(r->text + at, r->n - at);
        struct json_scan c = {.s = r->text + at, .n = k, .steps = &r->steps};
        struct json_span row;
        /* a byte order mark inside concatenated files */
        if (k >= 3 && !memcmp(c.s, "\xef\xbb\xbf", 3))
            c.at = 3;
        at += k;
        if (!json_scan_space(&c))
            continue;
        if (json_scan_value(&row, &c) && !json_scan_space(&c)) {
            TRY(add_row(out, documents, r, row));
        } else {
            r->rows++;
            bad_row(r, c.s, c.why ? c.why : "more text after the end of the row");
        }
    }
    return OK;
}

static enum err add_elements(struct text *out, int64_t *documents, struct corpus_rows *r,
                             struct json_span array)
{
    struct json_span key, row;
    for (size_t at = 0; json_span_next(&key, &row, array, &at, &r->steps);)
        TRY(add_row(out, documents, r, row));
    return OK;
}

/* Returns the member of an object that is an array of objects, as in {"version": 1, "data":
 * [...]}. */
static struct json_span find_rows(struct corpus_rows *r, struct json_span object)
{
    struct json_span key, v, none, first;
    for (size_t at = 0; json_span_next(&key, &v, object, &at, &r->steps);) {
        size_t inner = 0;
        if (*v.s == '[' && json_span_next(&none, &first, v, &inner, &r->steps) &&
            *first.s == '{') {
            snprintf(r->within, sizeof(r->within), "%.*s", (int)(key.n < 100 ? key.n : 100),
                     key.s);
            return v;
        }
    }
    return (struct json_span){0};
}

static enum err add_values(struct text *out, int64_t *documents, struct corpus_rows *r)
{
    struct json_scan c = {.s = r->text, .n = r->n, .steps = &r->steps};
    struct json_span v;
    while (json_scan_space(&c) && json_scan_value(&v, &c)) {
        struct json_span rows = {0};
        const bool direct = know_field(r, v) && json_span_member(v, r->field, &r->steps).s;
        if (!direct)
            rows = find_rows(r, v);
        TRY(rows.s ? add_elements(out, documents, r, rows) : add_row(out, documents, r, v));
    }
    return OK;
}

/* Writes the names of an object's members to out, for a message. */
static void name_list(char *out, size_t n, struct json_span object)
{
    struct json_span key, v;
    size_t used = 0;
    int shown = 0;
    *out = '\0';
    for (size_t at = 0;
         object.s && shown < NAMES_SHOWN && json_span_next(&key, &v, object, &at, NULL);)
        if (key.n + 3 < n - used)
            used += (size_t)snprintf(out + used, n - used, "%s%.*s", shown++ ? ", " : "",
                                     (int)key.n - 2, key.s + 1);
}

static enum err check_rows(const struct corpus_rows *r)
{
    char names[400];
    name_list(names, sizeof(names), r->sample);
    FAIL_IF(!r->rows, ERR_FORMAT, "%s: this JSON has no rows", r->path);
    FAIL_IF(!r->documents && !r->sample.s, ERR_FORMAT,
            "%s: no row is an object with a text; %s", r->path, r->first_bad);
    FAIL_IF(!r->documents, ERR_FORMAT,
            "%s: no row has a text in the field %s; %s; the first row has %s; choose with "
            "--text-field NAME",
            r->path, *r->field ? r->field : "text, content or messages", r->first_bad,
            *names ? names : "no field");
    FAIL_IF(r->bad * 100 > r->rows * BAD_ROWS_PER_CENT, ERR_FORMAT,
            "%s: %" PRId64 " of %" PRId64
            " rows cannot be read, more than %d %%; the first "
            "is %s",
            r->path, r->bad, r->rows, BAD_ROWS_PER_CENT, r->first_bad);
    return OK;
}

enum err corpus_add_rows(struct text *out, int64_t *documents, struct corpus_rows *r,
                         enum json_layout layout)
{
    struct json_scan c = {.s = r->text, .n = r->n, .steps = &r->steps};
    struct json_span array;
    if (layout == LAYOUT_LINES)
        TRY(add_lines(out, documents, r));
    else if (layout == LAYOUT_VALUES)
        TRY(add_values(out, documents, r));
    else if (json_scan_value(&array, &c))
        TRY(add_elements(out, documents, r, array));
    return check_rows(r);
}

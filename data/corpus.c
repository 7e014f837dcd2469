/* SPDX-License-Identifier: MIT */
#include "data/corpus.h"

#include "data/json.h"
#include "data/unpack.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define INFLATED_MAX ((size_t)8 << 30)

/* The text as it grows. */
struct text {
    char *data;
    size_t n, room;
    int64_t documents;
};

static enum err append(struct text *t, const char *s, size_t n)
{
    size_t need;
    FAIL_IF(!size_add(t->n, n, &need) || !size_add(need, 1, &need), ERR_MEMORY,
            "the text is too large");
    if (need > t->room) {
        const size_t room = need < t->room * 2 ? t->room * 2 : need + 4096;
        TRY(mem_resize(&t->data, t->n, room, 1));
        t->room = room;
    }
    if (n)
        memcpy(t->data + t->n, s, n);
    t->n += n;
    t->data[t->n] = '\0';
    return OK;
}

/* Every document but the first follows two newlines. */
static enum err start_document(struct text *t)
{
    TRY(append(t, "\n\n", t->documents ? 2 : 0));
    t->documents++;
    return OK;
}

/* What Python's str.isspace takes for white space, which the convention was made with. */
static bool is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* The space characters all fit in three bytes; anything else is no space. */
static size_t decode(uint32_t *out, const char *s, size_t n)
{
    const uint8_t *p = (const uint8_t *)s;
    if (p[0] < 0x80) {
        *out = p[0];
        return 1;
    }
    if (n >= 2 && (p[0] & 0xe0) == 0xc0 && (p[1] & 0xc0) == 0x80) {
        *out = (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
        return 2;
    }
    if (n >= 3 && (p[0] & 0xf0) == 0xe0 && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80) {
        *out = (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
        return 3;
    }
    *out = 0xfffd;
    return 1;
}

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t c;
        i += decode(&c, s + i, n - i);
        if (!is_space(c))
            return false;
    }
    return true;
}

/* Length of the line at s, its newline included. */
static size_t line_length(const char *s, size_t n)
{
    const char *end = memchr(s, '\n', n);
    return end ? (size_t)(end - s) + 1 : n;
}

static enum err add_rows(struct text *t, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const size_t len = line_length(s + i, n - i);
        TRY(append(t, "\n\n", i ? 2 : 0));
        TRY(append(t, s + i, is_blank(s + i, len) ? 0 : len));
        i += len;
    }
    return OK;
}

static enum err add_json_line(struct text *t, const char *s, size_t n, const char *where)
{
    json_t *o = NULL;
    const char *text = NULL;
    TRY(json_parse(&o, s, n, where));
    enum err err = OK;
    if (!json_is_object(o))
        FAIL_OUT(ERR_FORMAT, "%s: is %s, want an object with a text field", where,
                 json_kind(o));
    TRY_OUT(json_need_string(&text, o, "text", where));
    TRY_OUT(start_document(t));
    TRY_OUT(append(t, text, strlen(text)));
out:
    json_decref(o);
    return err;
}

static enum err add_json_lines(struct text *t, const char *s, size_t n, const char *path)
{
    int64_t line = 1;
    for (size_t i = 0; i < n; line++) {
        char where[600];
        const size_t len = line_length(s + i, n - i);
        snprintf(where, sizeof(where), "%.500s: line %" PRId64, path, line);
        if (!is_blank(s + i, len))
            TRY(add_json_line(t, s + i, len, where));
        i += len;
    }
    return OK;
}

static bool by_rows(const char *name, enum corpus_join join)
{
    if (join != JOIN_AUTO)
        return join == JOIN_ROWS;
    return name_ends(name, ".raw") || name_ends(name, ".tokens");
}

static enum err add_file(struct text *t, const char *path, enum corpus_join join)
{
    enum err err = OK;
    struct unpacked u = {0};
    TRY(unpack_open(&u, path, INFLATED_MAX));
    if (name_ends(u.name, ".jsonl")) {
        TRY_OUT(add_json_lines(t, u.data, u.bytes, path));
    } else {
        TRY_OUT(start_document(t));
        TRY_OUT(by_rows(u.name, join) ? add_rows(t, u.data, u.bytes)
                                      : append(t, u.data, u.bytes));
    }
out:
    unpack_close(&u);
    return err;
}

enum err corpus_load(struct corpus *out, const char *const *path, int n,
                     enum corpus_join join)
{
    enum err err = OK;
    struct text t = {0};
    TRY_OUT(append(&t, "", 0));
    for (int i = 0; i < n; i++)
        TRY_OUT(add_file(&t, path[i], join));
    *out = (struct corpus){.text = t.data, .bytes = t.n, .n_documents = t.documents};
    return OK;
out:
    mem_free(t.data);
    return err;
}

void corpus_free(struct corpus *c)
{
    mem_free(c->text);
    *c = (struct corpus){0};
}

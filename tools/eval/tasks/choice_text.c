/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/choice_text.h"

#include "data/tokenizer/tok_text.h"
#include "kernels/base/mem.h"

#include <string.h>
#include <utf8proc.h>

/* Passes t's text, NUL-terminated, to the caller; releases t on error. */
static enum err finish(char **out, struct text *t, enum err err)
{
    if (!err)
        err = text_add(t, "", 1);
    if (err)
        text_free(t);
    else
        *out = t->p;
    return err;
}

enum err choice_join(char **out, const char *const *part)
{
    struct text t = {0};
    enum err err = OK;
    for (; *part && !err; part++)
        err = text_add(&t, *part, strlen(*part));
    return finish(out, &t, err);
}

enum err choice_cut(char **out, const char *s, size_t n)
{
    struct text t = {0};
    return finish(out, &t, text_add(&t, s, n));
}

bool python_is_space(int32_t c)
{
    return (c >= 0x1c && c <= 0x1f) || char_class(c) == CHAR_SPACE;
}

size_t choice_bare_bytes(const char *s)
{
    const size_t n = strlen(s);
    size_t bare = 0;
    for (size_t at = 0; at < n;) {
        int32_t c;
        at += utf8_next(&c, s + at, n - at);
        if (!python_is_space(c))
            bare = at;
    }
    return bare;
}

enum err choice_strip(char **out, const char *s)
{
    const size_t end = choice_bare_bytes(s);
    size_t at = 0;
    while (at < end) {
        int32_t c;
        const size_t used = utf8_next(&c, s + at, end - at);
        if (!python_is_space(c))
            break;
        at += used;
    }
    return choice_cut(out, s + at, end - at);
}

enum err choice_capitalize(char **out, const char *s)
{
    struct text t = {0};
    enum err err = OK;
    const size_t n = strlen(s);
    for (size_t at = 0; at < n && !err;) {
        int32_t c;
        const size_t used = utf8_next(&c, s + at, n - at);
        c = c < 0 ? 0xfffd : at ? utf8proc_tolower(c) : utf8proc_totitle(c);
        at += used;
        err = text_add_char(&t, c);
    }
    return finish(out, &t, err);
}

int64_t choice_chars(const char *s)
{
    const size_t n = strlen(s);
    int64_t chars = 0;
    for (size_t at = 0; at < n; chars++) {
        int32_t c;
        at += utf8_next(&c, s + at, n - at);
    }
    return chars;
}

/* Replaces every `from` by `to`, left to right. */
static enum err replace(char **out, const char *s, const char *from, const char *to)
{
    struct text t = {0};
    enum err err = OK;
    for (const char *hit; (hit = strstr(s, from)) && !err; s = hit + strlen(from)) {
        err = text_add(&t, s, (size_t)(hit - s));
        if (!err)
            err = text_add(&t, to, strlen(to));
    }
    if (!err)
        err = text_add(&t, s, strlen(s));
    return finish(out, &t, err);
}

/* Returns the position after the bracket that closes the one at s, or NULL if the line has
 * none. *none: no bracket up to that position is closed, so that the search need not be
 * repeated. */
static const char *bracket_end(const char *s, const char **none)
{
    if (s < *none)
        return NULL;
    s += strcspn(s, "]\n");
    if (*s == ']')
        return s + 1;
    *none = s;
    return NULL;
}

static enum err drop_brackets(char **out, const char *s)
{
    struct text t = {0};
    enum err err = OK;
    const char *none = s;
    while (*s && !err) {
        const char *end = *s == '[' ? bracket_end(s, &none) : NULL;
        if (!end)
            err = text_add(&t, s, 1);
        s = end ? end : s + 1;
    }
    return finish(out, &t, err);
}

enum err choice_hellaswag(char **out, const char *s)
{
    enum err err = OK;
    char *strip = NULL, *title = NULL, *bare = NULL;
    TRY_OUT(choice_strip(&strip, s));
    TRY_OUT(replace(&title, strip, " [title]", ". "));
    TRY_OUT(drop_brackets(&bare, title));
    TRY_OUT(replace(out, bare, "  ", " "));
out:
    mem_free(strip);
    mem_free(title);
    mem_free(bare);
    return err;
}

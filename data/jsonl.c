/* SPDX-License-Identifier: MIT */
#include "data/jsonl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LIMIT ((size_t)1 << 30)

enum err jsonl_open(struct jsonl *f, const char *path)
{
    *f = (struct jsonl){.path = unpack_shown(path)};
    return unpack_open(&f->content, path, LIMIT);
}

void jsonl_close(struct jsonl *f)
{
    unpack_close(&f->content);
    *f = (struct jsonl){0};
}

static bool is_blank(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!p[i] || !strchr(" \t\r", p[i]))
            return false;
    return true;
}

/* Moves to the next line that is not blank and returns it [n]; NULL at the end. */
static const char *next_line(size_t *n, struct jsonl *f)
{
    while (f->at < f->content.bytes) {
        const char *p = f->content.data + f->at;
        const size_t left = f->content.bytes - f->at;
        const char *end = memchr(p, '\n', left);
        *n = end ? (size_t)(end - p) : left;
        f->at += *n + (end != NULL);
        f->line++;
        if (!is_blank(p, *n))
            return p;
    }
    return NULL;
}

bool jsonl_skip(struct jsonl *f)
{
    size_t n;
    return next_line(&n, f) != NULL;
}

int64_t jsonl_count(const struct jsonl *f)
{
    struct jsonl copy = *f;
    int64_t rows = 0;
    while (jsonl_skip(&copy))
        rows++;
    return rows;
}

enum err jsonl_next(json_t **row, struct jsonl *f)
{
    size_t n;
    const char *p = next_line(&n, f);
    *row = NULL;
    if (!p)
        return OK;
    snprintf(f->where, sizeof(f->where), "%s: line %" PRId64, f->path, f->line);
    TRY(json_parse(row, p, n, f->where));
    if (json_is_object(*row))
        return OK;
    const char *kind = json_kind(*row);
    json_decref(*row);
    FAIL(ERR_FORMAT, "%s is %s, want an object", f->where, kind);
}

/* SPDX-License-Identifier: MIT */
#include "tools/jsonl.h"

#include "kernels/base/file.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LIMIT ((size_t)1 << 30)

enum err jsonl_open(struct jsonl *f, const char *path)
{
    *f = (struct jsonl){.path = path};
    return file_read_all(&f->text, &f->n, path, LIMIT);
}

void jsonl_close(struct jsonl *f)
{
    mem_free(f->text);
    *f = (struct jsonl){0};
}

static bool is_blank(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!p[i] || !strchr(" \t\r", p[i]))
            return false;
    return true;
}

enum err jsonl_next(json_t **row, struct jsonl *f)
{
    while (f->at < f->n) {
        const char *p = f->text + f->at;
        const char *end = memchr(p, '\n', f->n - f->at);
        const size_t n = end ? (size_t)(end - p) : f->n - f->at;
        f->at += n + (end != NULL);
        f->line++;
        if (is_blank(p, n))
            continue;
        snprintf(f->where, sizeof(f->where), "%s: line %" PRId64, f->path, f->line);
        TRY(json_parse(row, p, n, f->where));
        if (json_is_object(*row))
            return OK;
        const char *kind = json_kind(*row);
        json_decref(*row);
        FAIL(ERR_FORMAT, "%s is %s, want an object", f->where, kind);
    }
    *row = NULL;
    return OK;
}

/* SPDX-License-Identifier: MIT
 *
 * The failure that each thread has recorded, and the names of errors. */
#include "kernels/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TEXT_MAX 1024

static _Thread_local char text[TEXT_MAX];
static _Thread_local char where[128];
static _Thread_local int recorded;

/* ASCII's, and those of C1 as UTF-8 (U+0080 to U+009F). A line feed would fake a line. */
void err_show_plain(char *s)
{
    for (unsigned char *p = (unsigned char *)s; *p; p++) {
        if (*p < 0x20 || *p == 0x7f)
            *p = '?';
        else if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0)
            p[0] = p[1] = '?';
    }
}

enum err err_set(enum err e, const char *file, int line, const char *fmt, ...)
{
    if (recorded)
        return e;
    recorded = 1;
    const char *base = strrchr(file, '/');
    snprintf(where, sizeof(where), "%s:%d", base ? base + 1 : file, line);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    err_show_plain(text);
    return e;
}

enum err err_add(enum err e, const char *fmt, ...)
{
    char old[TEXT_MAX];
    memcpy(old, text, sizeof(old));
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n < 0)
        n = 0;
    if ((size_t)n < sizeof(text) - 1)
        snprintf(text + n, sizeof(text) - (size_t)n, "%s", old);
    err_show_plain(text);
    recorded = 1;
    return e;
}

const char *err_text(void)
{
    return text;
}

const char *err_where(void)
{
    return where;
}

void err_clear(void)
{
    recorded = 0;
    text[0] = where[0] = '\0';
}

const char *err_name(enum err e)
{
    switch (e) {
    case OK:
        return "ok";
    case ERR_USAGE:
        return "usage";
    case ERR_FORMAT:
        return "format";
    case ERR_SUPPORT:
        return "not supported";
    case ERR_NOT_FOUND:
        return "not found";
    case ERR_MISMATCH:
        return "mismatch";
    case ERR_SHAPE:
        return "shape";
    case ERR_IO:
        return "input/output";
    case ERR_MEMORY:
        return "out of memory";
    case ERR_DEVICE:
        return "device";
    case ERR_NUMERIC:
        return "non-finite value";
    case ERR_VERIFY:
        return "verification failed";
    case ERR_STOPPED:
        return "interrupted";
    }
    return "unknown";
}

int err_exit_status(enum err e)
{
    switch (e) {
    case OK:
        return 0;
    case ERR_USAGE:
    case ERR_FORMAT:
    case ERR_SUPPORT:
    case ERR_NOT_FOUND:
    case ERR_MISMATCH:
        return 2;
    case ERR_VERIFY:
        return 3;
    case ERR_STOPPED:
        return 130;
    default:
        return 1;
    }
}

/* SPDX-License-Identifier: MIT
 *
 * Formats a line and passes it to the sink. */
#include "kernels/base/log.h"

#include "kernels/base/error.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static enum log_level max_level = LOG_INFO;
static log_sink sink_fn;
static void *sink_ctx;

void log_set_level(enum log_level level)
{
    max_level = level;
}

void log_set_sink(log_sink sink, void *ctx)
{
    sink_fn = sink;
    sink_ctx = ctx;
}

/* Returns whether a line was said before, and remembers it; of very many, the first ones. */
static bool said_before(const char *line)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char *said[64];
    static size_t n;
    bool before = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n && !before; i++)
        before = !strcmp(said[i], line);
    if (!before && n < ARRAY_LEN(said) && (said[n] = strdup(line)))
        n++;
    pthread_mutex_unlock(&lock);
    return before;
}

void log_write(enum log_level level, const char *line)
{
    static const char *const prefix[] = {"error: ", "warning: ", "", "", ""};
    if (level != LOG_WARN || !said_before(line))
        fprintf(stderr, "%s%s\n", prefix[level], line);
}

void log_line(enum log_level level, const char *fmt, ...)
{
    if (level > max_level)
        return;
    char line[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    err_show_plain(line);
    if (sink_fn)
        sink_fn(sink_ctx, level, line);
    else
        log_write(level, line);
}

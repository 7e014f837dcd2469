/* SPDX-License-Identifier: MIT
 *
 * Formats a line and passes it to the sink. */
#include "kernels/base/log.h"

#include "kernels/base/error.h"

#include <stdarg.h>
#include <stdio.h>

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

void log_line(enum log_level level, const char *fmt, ...)
{
    static const char *const prefix[] = {"error: ", "warning: ", "", "", ""};
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
        fprintf(stderr, "%s%s\n", prefix[level], line);
}

/* SPDX-License-Identifier: MIT
 *
 * Talk for people, on stderr only. Results never go through here. */
#ifndef WKVQ_LOG_H
#define WKVQ_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_VERBOSE, LOG_DEBUG };

/* Called with one line without its newline. */
typedef void (*log_sink)(void *ctx, enum log_level level, const char *line);

/* Lines above level are dropped. Default LOG_INFO. */
void log_set_level(enum log_level level);
/* Replace the default sink (stderr); NULL brings it back. */
void log_set_sink(log_sink sink, void *ctx);
void log_line(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_verbose(...) log_line(LOG_VERBOSE, __VA_ARGS__)

#endif

/* SPDX-License-Identifier: MIT
 *
 * Messages for people, on stderr only; results of commands never pass through it. Any
 * thread may log; settings must not change at the same time. */
#ifndef WKVQ_LOG_H
#define WKVQ_LOG_H

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_VERBOSE, LOG_DEBUG };

/* Receives one line, without its newline. */
typedef void (*log_sink)(void *ctx, enum log_level level, const char *line);

/* Lines of a higher level are dropped. The default is LOG_INFO. */
void log_set_level(enum log_level level);
/* Replaces the default sink, log_write; NULL restores it. */
void log_set_sink(log_sink sink, void *ctx);
/* Writes a line to stderr. A warning is written once: several parts of a command open the same
 * checkpoint. */
void log_write(enum log_level level, const char *line);
void log_line(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_verbose(...) log_line(LOG_VERBOSE, __VA_ARGS__)

#endif

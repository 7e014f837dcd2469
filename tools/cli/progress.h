/* SPDX-License-Identifier: MIT
 *
 * How far a long run is: one line that is redrawn on a terminal, plain lines elsewhere, and
 * JSON lines in a file for machines. Everything for people goes to stderr. */
#ifndef WKVQ_PROGRESS_H
#define WKVQ_PROGRESS_H

#include "calib/calib.h"

struct progress; /* opaque; one thread */

/* quiet: no lines for people. log_json: file to append to, NULL: none. Takes over the log's
 * lines until closed. Errors: ERR_USAGE when the file cannot be opened. */
enum err progress_open(struct progress **out, bool quiet, const char *log_json);
void progress_close(struct progress **p);

/* Suits calib_io.event. */
void progress_calib(void *p, const struct calib_event *e);
/* A phase with a name ("convert") that reports shares; share 0 starts the clock. */
void progress_phase(struct progress *p, const char *name);
/* Suits the callbacks of artifact_write and model_run. */
void progress_share(void *p, double share);
/* The line is done with: clear it. */
void progress_end(struct progress *p);

/* "1 h 02 min", "3 min 20 s", "12 s". */
void progress_time_text(char *out, size_t n, double seconds);

#endif

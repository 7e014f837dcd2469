/* SPDX-License-Identifier: MIT
 *
 * Progress of a long run. It is one redrawn line on a terminal, plain lines elsewhere, and
 * JSON lines in a file. Text for people goes to stderr. */
#ifndef WKVQ_PROGRESS_H
#define WKVQ_PROGRESS_H

#include "calib/calib.h"
#include "calib/refine/refine.h"

#include <stdio.h>

struct progress; /* opaque; one thread */

/* Opens the progress output. quiet: no lines for people. log_json: file to append to, or
 * NULL. It receives the log's lines until it is closed. cell: the name of a sweep's cell, which
 * every object of the file has then; NULL: none. Both are borrowed. ERR_USAGE if the file
 * cannot be opened. If lines cannot be written later, a warning says so once. */
enum err progress_open(struct progress **out, bool quiet, const char *log_json,
                       const char *cell);
/* Opens the file alone, to be closed with fclose: a command whose processes append to it holds it
 * open, so that a mistake is told once, and a reader of a pipe sees one end. */
enum err progress_open_file(FILE **out, const char *log_json);
void progress_close(struct progress **p);

/* Reports an event of a calibration; a callback for calib_io.event. */
void progress_calib(void *p, const struct calib_event *e);
/* Reports an event of a refinement; a callback for refine_io.event. */
void progress_refine(void *p, const struct refine_event *e);
/* Starts a named phase ("convert") that reports shares; share 0 starts the clock. */
void progress_phase(struct progress *p, const char *name);
/* Reports the finished share, 0 to 1; a callback for model_run. */
void progress_share(void *p, double share);
/* The same for artifact_write and other writers: ERR_STOPPED ends them after a signal that
 * stop_watch(STOP_AT_STEP) awaited. */
enum err progress_write(void *p, double share);
/* Clears the line at the end of a phase. */
void progress_end(struct progress *p);

/* Writes a duration, such as "1 h 02 min", "3 min 20 s", "12 s". */
void progress_time_text(char *out, size_t n, double seconds);

#endif

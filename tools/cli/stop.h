/* SPDX-License-Identifier: MIT
 *
 * Signals that end the program. The first SIGINT, SIGTERM, SIGHUP or SIGXCPU requests a
 * stop at the next safe point; another SIGINT or SIGTERM kills. A signal that was ignored
 * when the program started (nohup) stays ignored. */
#ifndef WKVQ_STOP_H
#define WKVQ_STOP_H

#include <stdbool.h>

/* STOP_AT_ONCE: there is no safe point to wait for, since all work is redone from whole
 * files, and the first signal ends the process at once, with status 130. */
enum stop_phase { STOP_AT_STEP, STOP_AT_ONCE };

void stop_watch(enum stop_phase phase);
/* A closed pipe (SIGPIPE) and a file size limit (SIGXFSZ) become errors of write. */
void stop_ignore_broken_output(void);
/* Was a stop requested? Suits calib_io.stop; ctx is not used. */
bool stop_asked(void *ctx);

#endif

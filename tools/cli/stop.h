/* SPDX-License-Identifier: MIT
 *
 * Signals that end the program: SIGINT, SIGTERM, SIGHUP and SIGXCPU. Every command ends with
 * status 130 and a message that says what it keeps. Where work can be saved in the middle, the
 * first signal requests a stop at the next safe point, and another SIGINT or SIGTERM ends the
 * program at once, unless a process sends the first one twice within a second. A signal that was
 * ignored when the program started (nohup) stays ignored. */
#ifndef WKVQ_STOP_H
#define WKVQ_STOP_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <sys/types.h>

/* STOP_AT_STEP: a signal stops the work at its next safe point. STOP_AT_ONCE: the first
 * signal ends the process, because all work is redone from complete files. */
enum stop_phase { STOP_AT_STEP, STOP_AT_ONCE };

void stop_watch(enum stop_phase phase);
/* Between the two a signal of STOP_AT_ONCE waits, for the moments in which files on trial lie in
 * the place of an output. Ends the process if one came. */
void stop_hold(void);
void stop_release(void);
/* Names the file or directory from which the same command continues, for the message of
 * STOP_AT_ONCE. Without a call, this run has kept nothing so far. path is copied. */
void stop_keeps(const char *path);
/* Turns a closed pipe (SIGPIPE) and a file size limit (SIGXFSZ) into errors of write: work whose
 * results nobody reads is still finished and saved. */
void stop_ignore_broken_output(void);
/* Returns whether standard output is a pipe or socket that nobody reads any more. */
bool stop_output_closed(void);
/* The status of a command whose results nobody read to their end, which a shell gives to programs
 * that SIGPIPE ends. */
#define STOP_STATUS_PIPE 141
/* For a child of the process `parent`, which a terminal tells too. Leaves it to the parent to say
 * that a step is the last. A signal that the parent passes on requests a stop, but is never the
 * one that aborts. */
void stop_follow(pid_t parent);
/* Returns whether a stop was requested; a callback for calib_io.stop. ctx is not used. */
bool stop_asked(void *ctx);
/* Writes text to standard error; and what is kept, in a line. Safe in a handler of signals. */
void stop_say(const char *text);
void stop_say_what_is_kept(void);
/* Returns ERR_STOPPED, and says what is kept, if a stop was requested. */
enum err stop_check(void);

#endif

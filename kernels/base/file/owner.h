/* SPDX-License-Identifier: MIT
 *
 * Records which process created a temporary file, a directory or a lock, to recognize the
 * remains of dead processes. A process is identified by host, boot, pid namespace, pid and
 * start time. A tag, "PID-START-CRC", is part of a file name; a mark is a small text file.
 * Thread-safe. */
#ifndef WKVQ_OWNER_H
#define WKVQ_OWNER_H

#include "kernels/base/error.h"

#include <stdbool.h>

#define OWNER_TAG_MAX 48
#define OWNER_TEXT_MAX 512

enum owner_state {
    OWNER_UNKNOWN,   /* neither a tag nor a mark of this program */
    OWNER_ALIVE,     /* the process runs (it may be this one) */
    OWNER_DEAD,      /* it ran on this host since the last boot, and has ended */
    OWNER_ELSEWHERE, /* another host, boot or container: nothing can be proven */
};

/* Writes the tag of this process. */
void owner_tag(char out[OWNER_TAG_MAX]);
/* Returns the state of the owner of a tag. */
enum owner_state owner_of_tag(const char *tag);

/* Writes this process's mark as the new file path, which appears complete if the file
 * system has hard links. *taken: the name exists already, and nothing was written. Errors:
 * ERR_USAGE for a place that cannot be written, ERR_IO, ERR_MEMORY. */
enum err owner_mark(bool *taken, const char *path);
/* Returns true if this process wrote the mark in path. */
bool owner_mark_is_mine(const char *path);
/* Returns the state of the owner of the mark in path; OWNER_UNKNOWN also for a missing
 * file, a link, or another file. about (may be NULL) receives "process PID on HOST" for a
 * message. */
enum owner_state owner_of_mark(const char *path, char about[OWNER_TEXT_MAX]);

#endif

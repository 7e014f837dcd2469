/* SPDX-License-Identifier: MIT
 *
 * Which process made a temporary file, a directory or a lock, so that what a dead process
 * left can be told from everything else. A process is named by host, boot, pid namespace,
 * pid and start time. Two spellings: a tag, "PID-START-CRC", which fits into a file name,
 * and a mark, a small text file. */
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

/* This process as a tag. */
void owner_tag(char out[OWNER_TAG_MAX]);
/* The owner that a whole tag names. */
enum owner_state owner_of_tag(const char *tag);

/* Write this process's mark as the new file path, which appears whole where the file system
 * has hard links. *taken: there is something under that name already, and nothing was
 * written. Errors: ERR_IO, ERR_MEMORY. */
enum err owner_mark(bool *taken, const char *path);
/* Is the mark in path the one that this process wrote? */
bool owner_mark_is_mine(const char *path);
/* The owner of the mark in path; OWNER_UNKNOWN also for a missing file, a link, or another
 * file. about (may be NULL) gets "process PID on HOST" for a message. */
enum owner_state owner_of_mark(const char *path, char about[OWNER_TEXT_MAX]);

#endif

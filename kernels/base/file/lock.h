/* SPDX-License-Identifier: MIT
 *
 * A lock for one process at a time: flock on a file, or, on file systems without locks, a
 * second file beside it that names its owner. */
#ifndef WKVQ_LOCK_H
#define WKVQ_LOCK_H

#include "kernels/base/error.h"

#include <stdbool.h>

#define LOCK_OWNER_SUFFIX ".owner"

struct lock {
    int fd;      /* -1 if not held */
    char *owner; /* the second file's path; NULL if flock holds the lock */
};

/* Takes the lock of the file path, which is created if missing. what: "this state", for the
 * message. tenths: how long to wait for a process that holds it, in tenths of a
 * second; 0: not at all. The holder may remove the file before the release. Errors:
 * ERR_USAGE if another process holds it, or may hold it on another host (the message names
 * the file to remove), or if the place does not allow such a file; ERR_IO, ERR_MEMORY. */
enum err lock_take(struct lock *out, const char *path, const char *what, int tenths);
/* The same. After ERR_USAGE, *held says whether another process holds the lock, or may hold it. */
enum err lock_try(struct lock *out, bool *held, const char *path, const char *what,
                  int tenths);
/* l may be a lock that is not held: {.fd = -1}. */
void lock_release(struct lock *l);

#endif

/* SPDX-License-Identifier: MIT
 *
 * One process at a time: flock on a file, and where the file system has none, a second file
 * beside it that names its owner. */
#ifndef WKVQ_LOCK_H
#define WKVQ_LOCK_H

#include "kernels/base/error.h"

#define LOCK_OWNER_SUFFIX ".owner"

struct lock {
    int fd;      /* -1: not held */
    char *owner; /* the second file's path; NULL: flock holds */
};

/* Take the lock of the file path, which is made where it is missing and stays. what: "this
 * state", for the message. tenths: how long to wait for a process that holds it by flock, in
 * tenths of a second; 0: not at all. Its holder may remove the file before the release.
 * Errors: ERR_USAGE when another process holds it, or may hold it on another host (the
 * message names the file to remove), or the place does not allow such a file; ERR_IO. */
enum err lock_take(struct lock *out, const char *path, const char *what, int tenths);
/* Accepts one that is not held: {.fd = -1}. */
void lock_release(struct lock *l);

#endif

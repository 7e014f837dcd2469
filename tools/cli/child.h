/* SPDX-License-Identifier: MIT
 *
 * Work in a child process: a fork that ends with its parent and reports an error code by
 * its exit status. The functions are for a process without other threads. */
#ifndef WKVQ_CHILD_H
#define WKVQ_CHILD_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <sys/types.h>

/* How a process ended. */
struct child_end {
    /* the child's error code; ERR_STOPPED: interrupted; ERR_IO: killed, or ended with an
     * unknown status */
    enum err err;
    bool told; /* it logged its own message */
    /* end of "its process ...": "was killed by SIGKILL", or the name of the code */
    char why[96];
};
/* Interprets a status from waitpid. */
struct child_end child_end(int status);

/* Runs fn(ctx) in a fork. The child logs its own message; changes to its memory are lost.
 * The caller has no threads. ERR_IO: the process could not be started. */
enum err child_start(pid_t *out, enum err (*fn)(void *ctx), void *ctx);
/* Returns whether the child has ended, without waiting. */
bool child_ended(struct child_end *out, pid_t pid);
/* Starts fn(ctx) in a fork and waits for its end. Passes the first signal on as a request to
 * stop (stop_follow). The error message says how the process ended, unless the child logged
 * one. */
enum err child_run(enum err (*fn)(void *ctx), void *ctx);

#endif

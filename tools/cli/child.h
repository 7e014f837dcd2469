/* SPDX-License-Identifier: MIT
 *
 * Work in a process of its own: a fork that ends with its parent and reports an error code
 * by its exit status. */
#ifndef WKVQ_CHILD_H
#define WKVQ_CHILD_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <sys/types.h>

/* How a process ended. */
struct child_end {
    enum err err; /* its own code; ERR_STOPPED: interrupted; ERR_IO: killed, or ended by a
                      status that is no error code */
    bool told;    /* its message went to the log */
    char why[96]; /* the end of "its process ...": "was killed by SIGKILL"; a code's name */
};
/* status: what waitpid gave. */
struct child_end child_end(int status);

/* fn(ctx) in a fork. Its message goes to the log as it happens; what it leaves in memory is
 * lost. The caller has no threads. ERR_IO: no process could be started. */
enum err child_start(pid_t *out, enum err (*fn)(void *ctx), void *ctx);
/* Has it ended? Does not wait. */
bool child_ended(struct child_end *out, pid_t pid);
/* Start and wait for the end. SIGINT and SIGTERM are handed on as a request to stop. The
 * message of an error says how the process ended, unless the process told. */
enum err child_run(enum err (*fn)(void *ctx), void *ctx);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Work in a process of its own: a fork that ends with its parent, and whose status is an
 * error code. */
#ifndef WKVQ_CHILD_H
#define WKVQ_CHILD_H

#include "kernels/base/error.h"

#include <sys/types.h>

/* In a fresh fork: end when the parent does. */
void child_follow(pid_t parent);
/* What a child that left with _exit(its error code) came to. */
enum err child_result(int status);
/* fn(ctx) in a fork, to its end; its message goes to the log as it happens. What fn leaves
 * in memory is lost. A stop that is asked for is handed on. The caller has no threads. */
enum err child_run(enum err (*fn)(void *ctx), void *ctx);

#endif

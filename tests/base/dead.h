/* SPDX-License-Identifier: MIT
 *
 * The tag of a process of this host that has ended. */
#ifndef WKVQ_TEST_DEAD_H
#define WKVQ_TEST_DEAD_H

#include "kernels/base/file/owner.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs work(ctx) in a child process, which then ends. Returns its exit status. */
static inline int dead_run(int (*work)(void *ctx), void *ctx)
{
    int status = -1;
    const pid_t pid = fork();
    if (!pid)
        _exit(work(ctx));
    return pid > 0 && waitpid(pid, &status, 0) == pid ? WEXITSTATUS(status) : -1;
}

static inline int dead_tell_tag(void *ctx)
{
    char tag[OWNER_TAG_MAX];
    owner_tag(tag);
    return write(*(int *)ctx, tag, sizeof(tag)) != sizeof(tag);
}

static inline int dead_tag(char tag[OWNER_TAG_MAX])
{
    int ends[2];
    if (pipe(ends) || dead_run(dead_tell_tag, &ends[1]))
        return -1;
    const ssize_t n = read(ends[0], tag, OWNER_TAG_MAX);
    close(ends[0]);
    close(ends[1]);
    return n == OWNER_TAG_MAX ? 0 : -1;
}

#endif

/* SPDX-License-Identifier: MIT */
#include "tools/child.h"

#include "kernels/base/log.h"
#include "tools/stop.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

void child_follow(pid_t parent)
{
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (getppid() != parent)
        _exit(err_exit_status(ERR_STOPPED));
}

enum err child_result(int status)
{
    if (WIFEXITED(status))
        return (enum err)WEXITSTATUS(status);
    return err_set(ERR_IO, __FILE__, __LINE__, "its process was killed by signal %d",
                   WTERMSIG(status));
}

static void work(enum err (*fn)(void *ctx), void *ctx, pid_t parent)
{
    child_follow(parent);
    const enum err err = fn(ctx);
    if (err && err != ERR_STOPPED)
        log_error("%s", *err_text() ? err_text() : err_name(err));
    fflush(NULL);
    _exit((int)err);
}

static enum err wait_for(pid_t pid)
{
    int status;
    bool told = false;
    while (waitpid(pid, &status, WNOHANG) != pid) {
        if (stop_asked(NULL) && !told) {
            kill(pid, SIGTERM);
            told = true;
        }
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    }
    return child_result(status);
}

enum err child_run(enum err (*fn)(void *ctx), void *ctx)
{
    const pid_t parent = getpid();
    fflush(NULL);
    stop_watch(STOP_AT_STEP);
    const pid_t pid = fork();
    FAIL_IF(pid < 0, ERR_IO, "cannot start a process: %s", strerror(errno));
    if (pid == 0)
        work(fn, ctx, parent);
    const enum err err = wait_for(pid);
    stop_watch(STOP_AT_ONCE);
    return err;
}

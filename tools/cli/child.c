/* SPDX-License-Identifier: MIT */
#include "tools/cli/child.h"

#include "kernels/base/log.h"
#include "tools/cli/stop.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

/* Returns whether an exit status is one of our error codes. They start at ERR_USAGE, above
 * the statuses of shells, libraries and sanitizers (1, 2, 126, 127, ...). */
static bool is_code(int status)
{
    return status >= ERR_USAGE && strcmp(err_name((enum err)status), "unknown");
}

static struct child_end exited(int status)
{
    struct child_end e = {.err = (enum err)status, .told = status != OK};
    if (status == err_exit_status(ERR_STOPPED)) /* set by the signal handler */
        e.err = ERR_STOPPED;
    else if (status != OK && !is_code(status))
        e = (struct child_end){.err = ERR_IO};
    if (e.err == ERR_IO && !e.told)
        snprintf(e.why, sizeof(e.why), "ended with exit status %d", status);
    else
        snprintf(e.why, sizeof(e.why), "%s", err_name(e.err));
    return e;
}

static struct child_end killed(int sig)
{
    static const struct {
        int sig;
        const char *name;
    } known[] = {
        {SIGKILL, "SIGKILL (out of memory?)"},
        {SIGSEGV, "SIGSEGV"},
        {SIGBUS, "SIGBUS (a file was cut short, or the disk is full?)"},
        {SIGABRT, "SIGABRT"},
        {SIGFPE, "SIGFPE"},
        {SIGILL, "SIGILL"},
        {SIGHUP, "SIGHUP"},
        {SIGPIPE, "SIGPIPE"},
        {SIGXCPU, "SIGXCPU (limit on processor time)"},
        {SIGXFSZ, "SIGXFSZ (limit on file size)"},
    };
    struct child_end e = {.err = ERR_IO};
    if (sig == SIGINT || sig == SIGTERM)
        return exited(err_exit_status(ERR_STOPPED));
    snprintf(e.why, sizeof(e.why), "was killed by signal %d", sig);
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (known[i].sig == sig)
            snprintf(e.why, sizeof(e.why), "was killed by %s", known[i].name);
    return e;
}

struct child_end child_end(int status)
{
    return WIFEXITED(status) ? exited(WEXITSTATUS(status)) : killed(WTERMSIG(status));
}

/* Makes the process end when its parent ends. */
static void follow(pid_t parent)
{
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
    if (getppid() != parent)
        _exit(err_exit_status(ERR_STOPPED));
}

static void work(enum err (*fn)(void *ctx), void *ctx, pid_t parent)
{
    follow(parent);
    stop_follow(parent);
    const enum err err = fn(ctx);
    if (err && err != ERR_STOPPED)
        log_error("%s", *err_text() ? err_text() : err_name(err));
    fflush(NULL);
    _exit((int)err);
}

enum err child_start(pid_t *out, enum err (*fn)(void *ctx), void *ctx)
{
    const pid_t parent = getpid();
    /* a parent may have ignored it, and then waitpid finds no child */
    signal(SIGCHLD, SIG_DFL);
    fflush(NULL);
    const pid_t pid = fork();
    FAIL_IF(pid < 0, ERR_IO, "cannot start a process: %s", strerror(errno));
    if (pid == 0)
        work(fn, ctx, parent);
    *out = pid;
    return OK;
}

bool child_ended(struct child_end *out, pid_t pid)
{
    int status;
    const pid_t got = waitpid(pid, &status, WNOHANG);
    if (got == 0 || (got < 0 && errno == EINTR))
        return false;
    *out = got == pid
               ? child_end(status)
               : (struct child_end){.err = ERR_IO, .why = "was lost: no such process"};
    return true;
}

static struct child_end wait_for(pid_t pid)
{
    struct child_end end;
    bool told = false;
    while (!child_ended(&end, pid)) {
        if (stop_asked(NULL) && !told) {
            kill(pid, SIGTERM);
            told = true;
        }
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    }
    return end;
}

enum err child_run(enum err (*fn)(void *ctx), void *ctx)
{
    pid_t pid;
    stop_watch(STOP_AT_STEP);
    TRY(child_start(&pid, fn, ctx));
    const struct child_end end = wait_for(pid);
    stop_watch(STOP_AT_ONCE);
    FAIL_IF(end.err && !end.told, end.err, "its process %s", end.why);
    return end.err;
}

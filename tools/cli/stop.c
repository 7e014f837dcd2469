/* SPDX-License-Identifier: MIT */
#include "tools/cli/stop.h"

#include "kernels/base/clock.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const int watched[] = {SIGINT, SIGTERM, SIGHUP, SIGXCPU};

#define CONTINUES " has the finished work, and the same command continues from there"
#define NOTHING "nothing was kept since this run began; run the same command again"

#define ECHO_S 1 /* no person types as fast as a program signals */

static volatile sig_atomic_t asked;
static volatile sig_atomic_t held, came; /* between stop_hold() and stop_release() */
static volatile sig_atomic_t phase_now, parent;
/* The first signal that no parent passed on. Used by the handler alone. */
static struct {
    int sig; /* 0: none came */
    pid_t sender;
    double at_s;
} first;
static char kept[4096];
static volatile sig_atomic_t keeps; /* kept is whole */

void stop_say(const char *text)
{
    const ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
}

/* Returns whether a second signal aborts. A closing terminal sends SIGHUP repeatedly and a
 * processor limit sends SIGXCPU every second, so only SIGINT and SIGTERM do. */
static bool aborts(int sig)
{
    return sig == SIGINT || sig == SIGTERM;
}

void stop_say_what_is_kept(void)
{
    stop_say("\ninterrupted; ");
    if (keeps) {
        stop_say(kept);
        stop_say(CONTINUES "\n");
    } else {
        stop_say(NOTHING "\n");
    }
}

static void end_at_once(void)
{
    stop_say_what_is_kept();
    _exit(130);
}

/* Returns whether the parent of a child passes on what it was told. It cannot know that a terminal
 * or a batch system has told the child as well. */
static bool is_passed_on(const siginfo_t *from)
{
    return parent && from->si_code == SI_USER && from->si_pid == parent;
}

/* Returns whether a process sends the first signal again at once, as timeout does: to its child,
 * and to the group that the child is in. A terminal is no process, and means its second one. */
static bool is_echo(int sig, const siginfo_t *from)
{
    return from->si_code == SI_USER && sig == first.sig && from->si_pid == first.sender &&
           clock_s() - first.at_s < ECHO_S;
}

/* Counts a signal that nobody passed on. Returns whether it is another than the first. */
static bool is_another(int sig, const siginfo_t *from)
{
    if (first.sig)
        return !is_echo(sig, from);
    first.sender = from->si_code == SI_USER ? from->si_pid : 0;
    first.at_s = clock_s();
    first.sig = sig;
    return false;
}

static void stop_at_step(int sig, const siginfo_t *from)
{
    const bool again = !is_passed_on(from) && is_another(sig, from) && aborts(sig);
    if (!asked && !parent)
        stop_say("\nstopping after the current step; press Ctrl-C again to abort\n");
    asked = 1;
    if (again) {
        signal(sig, SIG_DFL);
        raise(sig); /* delivered when this handler returns */
    }
}

static void on_signal(int sig, siginfo_t *from, void *context)
{
    (void)context;
    if (phase_now == STOP_AT_ONCE && held) {
        came = 1;
        return;
    }
    if (phase_now == STOP_AT_ONCE)
        end_at_once();
    stop_at_step(sig, from);
}

/* Returns whether a signal was ignored at start. nohup and background jobs of a shell do
 * that. */
static bool is_ignored(int sig)
{
    struct sigaction now;
    return !sigaction(sig, NULL, &now) && now.sa_handler == SIG_IGN;
}

void stop_watch(enum stop_phase phase)
{
    struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_RESTART | SA_SIGINFO};
    sigfillset(&act.sa_mask);
    phase_now = phase;
    for (size_t i = 0; i < ARRAY_LEN(watched); i++)
        if (!is_ignored(watched[i]))
            sigaction(watched[i], &act, NULL);
}

void stop_hold(void)
{
    held = 1;
}

void stop_release(void)
{
    held = 0;
    if (came)
        end_at_once();
}

void stop_keeps(const char *path)
{
    keeps = 0;
    const int n = snprintf(kept, sizeof(kept), "%s", path);
    keeps = n > 0 && (size_t)n < sizeof(kept);
}

void stop_ignore_broken_output(void)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

bool stop_output_closed(void)
{
    struct pollfd p = {STDOUT_FILENO, POLLOUT, 0};
    return poll(&p, 1, 0) == 1 && p.revents & (POLLERR | POLLHUP);
}

void stop_follow(pid_t pid)
{
    parent = pid;
}

bool stop_asked(void *ctx)
{
    return asked != 0;
}

enum err stop_check(void)
{
    FAIL_IF(asked && keeps, ERR_STOPPED, "interrupted; %s" CONTINUES, kept);
    FAIL_IF(asked, ERR_STOPPED, "interrupted; " NOTHING);
    return OK;
}

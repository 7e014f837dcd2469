/* SPDX-License-Identifier: MIT */
#include "tools/stop.h"

#include "kernels/base/error.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t asked;
static volatile sig_atomic_t phase_now;

static void say(const char *text)
{
    const ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
}

static void on_signal(int sig)
{
    if (phase_now == STOP_AT_ONCE) {
        say("\ninterrupted; the same command goes on from the last whole file\n");
        _exit(130);
    }
    asked = 1;
    say("\nstopping after the step in hand; once more kills\n");
    signal(sig, SIG_DFL);
}

void stop_watch(enum stop_phase phase)
{
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&act.sa_mask);
    phase_now = phase;
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
}

bool stop_asked(void *ctx)
{
    return asked != 0;
}

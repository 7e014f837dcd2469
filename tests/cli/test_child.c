/* SPDX-License-Identifier: MIT
 *
 * How a child process ended: an error code, another exit status, an interruption, a
 * signal. Which signals end a step that a child has begun. */
#include "kernels/base/log.h"
#include "tools/cli/child.h"
#include "tools/cli/stop.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static enum err leave(void *ctx)
{
    const enum err err = *(enum err *)ctx;
    return err ? err_set(err, __FILE__, __LINE__, "as planned") : OK;
}

static enum err quit(void *ctx)
{
    _exit(*(int *)ctx);
}

static enum err kill_self(void *ctx)
{
    signal(*(int *)ctx, SIG_DFL);
    raise(*(int *)ctx);
    return OK;
}

static enum err run(enum err (*fn)(void *ctx), int value)
{
    err_clear();
    return child_run(fn, &value);
}

/* The process printed its message itself, so its parent adds none. */
static void codes_come_back(void **state)
{
    static const enum err code[] = {ERR_USAGE,  ERR_FORMAT, ERR_SUPPORT, ERR_NOT_FOUND,
                                    ERR_SHAPE,  ERR_IO,     ERR_MEMORY,  ERR_DEVICE,
                                    ERR_VERIFY, ERR_STOPPED};
    assert_int_equal(run(leave, OK), OK);
    for (size_t i = 0; i < ARRAY_LEN(code); i++) {
        assert_int_equal(run(leave, code[i]), code[i]);
        assert_string_equal(err_text(), "");
    }
}

static void an_exit_of_130_is_an_interruption(void **state)
{
    assert_int_equal(run(quit, 130), ERR_STOPPED);
}

/* Exit statuses of abort handlers, sanitizers and the dynamic linker, which are not error
 * codes. */
static void other_statuses_are_failures(void **state)
{
    static const int status[] = {1, 2, 3, 9, 17, 33, 126, 127, 255};
    for (size_t i = 0; i < ARRAY_LEN(status); i++) {
        assert_int_equal(run(quit, status[i]), ERR_IO);
        assert_non_null(strstr(err_text(), "ended with exit status"));
    }
}

static void signals_are_named(void **state)
{
    assert_int_equal(run(kill_self, SIGKILL), ERR_IO);
    assert_string_equal(err_text(), "its process was killed by SIGKILL (out of memory?)");
    assert_int_equal(run(kill_self, SIGSEGV), ERR_IO);
    assert_non_null(strstr(err_text(), "killed by SIGSEGV"));
    assert_int_equal(run(kill_self, SIGUSR1), ERR_IO);
    assert_non_null(strstr(err_text(), "killed by signal "));
    assert_int_equal(run(kill_self, SIGTERM), ERR_STOPPED);
    assert_int_equal(run(kill_self, SIGINT), ERR_STOPPED);
}

/* A process inherits an ignored SIGCHLD from its parent. The system then forgets how its
 * children ended. */
static void an_ignored_sigchld_loses_no_end(void **state)
{
    signal(SIGCHLD, SIG_IGN);
    assert_int_equal(run(leave, ERR_FORMAT), ERR_FORMAT);
    signal(SIGCHLD, SIG_DFL);
}

static void a_process_that_is_not_ours_has_ended(void **state)
{
    struct child_end end;
    assert_true(child_ended(&end, getppid()));
    assert_int_equal(end.err, ERR_IO);
}

/* A step of a group's process that a terminal tells to stop. */
struct group {
    int sig;
    bool begun, finished;
};

/* The terminal's signal and the parent's come while the step is in work. */
static enum err finish_the_step(void *ctx)
{
    struct group *g = ctx;
    kill(0, g->sig);
    usleep(200000);
    g->finished = stop_asked(NULL);
    return ERR_STOPPED;
}

static enum err abort_the_step(void *ctx)
{
    struct group *g = ctx;
    raise(SIGTERM);
    usleep(100000);
    g->begun = true;
    raise(g->sig);
    g->finished = true;
    return ERR_STOPPED;
}

static enum err send_again(void *ctx)
{
    struct group *g = ctx;
    kill(getpid(), SIGTERM);
    kill(getpid(), SIGTERM);
    g->begun = true;
    usleep(1100000);
    kill(getpid(), g->sig);
    g->finished = true;
    return ERR_STOPPED;
}

/* Runs fn in a child of the first process of a group. */
static struct group run_in_group(enum err (*fn)(void *ctx), int sig)
{
    struct group *g =
        mmap(NULL, sizeof(*g), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(g != MAP_FAILED);
    g->sig = sig;
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        setpgid(0, 0);
        _exit(child_run(fn, g) == ERR_STOPPED ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    const struct group end = *g;
    munmap(g, sizeof(*g));
    return end;
}

static void a_signal_to_the_group_lets_a_step_end(void **state)
{
    static const int sig[] = {SIGINT, SIGHUP, SIGTERM};
    for (size_t i = 0; i < ARRAY_LEN(sig); i++)
        assert_true(run_in_group(finish_the_step, sig[i]).finished);
}

static void the_second_of_a_child_aborts(void **state)
{
    const struct group end = run_in_group(abort_the_step, SIGINT);
    assert_true(end.begun && !end.finished);
}

/* timeout(1) sends its signal twice, and whoever runs kill later means it. */
static void the_same_again_aborts_after_a_second(void **state)
{
    const struct group end = run_in_group(send_again, SIGTERM);
    assert_true(end.begun && !end.finished);
}

static void quiet(void *ctx, enum log_level level, const char *line)
{
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_come_back),
        cmocka_unit_test(an_exit_of_130_is_an_interruption),
        cmocka_unit_test(other_statuses_are_failures),
        cmocka_unit_test(signals_are_named),
        cmocka_unit_test(an_ignored_sigchld_loses_no_end),
        cmocka_unit_test(a_process_that_is_not_ours_has_ended),
        cmocka_unit_test(a_signal_to_the_group_lets_a_step_end),
        cmocka_unit_test(the_second_of_a_child_aborts),
        cmocka_unit_test(the_same_again_aborts_after_a_second),
    };
    log_set_sink(quiet, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

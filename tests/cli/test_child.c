/* SPDX-License-Identifier: MIT
 *
 * How a child process ended: an error code, another exit status, an interruption, a
 * signal. */
#include "kernels/base/log.h"
#include "tools/cli/child.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
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
    };
    log_set_sink(quiet, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

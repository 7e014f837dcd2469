/* SPDX-License-Identifier: MIT
 *
 * The owner of a temporary file: this process, a dead one, another host, or unknown. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/file/file.h"
#include "kernels/base/file/owner.h"
#include "kernels/base/mem.h"
#include "tests/base/dead.h"
#include "tests/scratch.h"

#include <signal.h>
#include <sys/stat.h>

static char dir[96], path[160], other[160];

static int setup(void **state)
{
    err_clear();
    if (!scratch_dir(dir, sizeof(dir)))
        return -1;
    snprintf(path, sizeof(path), "%s/mark", dir);
    snprintf(other, sizeof(other), "%s/other", dir);
    return 0;
}

static int teardown(void **state)
{
    return !scratch_remove(dir); /* a test may have removed it */
}

static void tags(void **state)
{
    char mine[OWNER_TAG_MAX], dead[OWNER_TAG_MAX], text[OWNER_TAG_MAX + 8];
    owner_tag(mine);
    assert_int_equal(owner_of_tag(mine), OWNER_ALIVE);
    assert_int_equal(dead_tag(dead), 0);
    assert_int_equal(owner_of_tag(dead), OWNER_DEAD);
    /* One wrong digit: the owner is unknown. */
    snprintf(text, sizeof(text), "%s", dead);
    char *last = text + strlen(text) - 1;
    *last = *last == '0' ? '1' : '0';
    assert_int_equal(owner_of_tag(text), OWNER_ELSEWHERE);
    const char *const none[] = {"",
                                "20240101",
                                "1",
                                "12-ab",
                                "1-2",
                                "1-2-0000000A",
                                "1-2-0000000",
                                "-1-2-00000000",
                                "a",
                                "01-2-00000000",
                                "1-2-00000000x",
                                "1-02-00000000",
                                " 1-2-00000000"};
    for (size_t i = 0; i < ARRAY_LEN(none); i++)
        assert_int_equal(owner_of_tag(none[i]), OWNER_UNKNOWN);
}

/* If a pid is used again, the start time shows that it is another process. */
static void a_pid_in_use_again(void **state)
{
    bool taken;
    char *text = NULL;
    size_t n;
    assert_int_equal(owner_mark(&taken, path), OK);
    assert_false(taken);
    assert_int_equal(owner_of_mark(path, NULL), OWNER_ALIVE);
    assert_true(owner_mark_is_mine(path));
    assert_int_equal(file_read_all(&text, &n, path, 4096), OK);
    char *start = strstr(text, "\nstart ");
    assert_non_null(start);
    snprintf(start, (size_t)(text + n - start) + 1, "\nstart 7\n");
    assert_int_equal(file_write_all(path, text, strlen(text)), OK);
    assert_int_equal(owner_of_mark(path, NULL), OWNER_DEAD);
    assert_false(owner_mark_is_mine(path));
    mem_free(text);
}

static void a_zombie_is_dead(void **state)
{
    siginfo_t info;
    const pid_t pid = fork();
    if (!pid) {
        bool taken;
        _exit(owner_mark(&taken, path) != OK || taken);
    }
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    assert_int_equal(owner_of_mark(path, NULL), OWNER_DEAD);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(owner_of_mark(path, NULL), OWNER_DEAD);
}

static void another_host(void **state)
{
    char about[OWNER_TEXT_MAX];
    static const char text[] = "wkvq-owner 1\nhost far\nboot b\npidns p\npid 1\nstart 2\n";
    assert_int_equal(file_write_all(path, text, strlen(text)), OK);
    assert_int_equal(owner_of_mark(path, about), OWNER_ELSEWHERE);
    assert_string_equal(about, "process 1 on far");
}

static void no_marks(void **state)
{
    static const char *const text[] = {
        "", "wkvq-owner 1\n", "wkvq-owner 2\nhost far\nboot b\npidns p\npid 1\nstart 2\n",
        "wkvq-owner 1\nhost far\nboot b\npidns p\npid 1\nstart 2\nmore\n",
        "wkvq-owner 1\nhost far\nboot b\npidns p\npid 0\nstart 2\n"};
    for (size_t i = 0; i < ARRAY_LEN(text); i++) {
        assert_int_equal(file_write_all(path, text[i], strlen(text[i])), OK);
        assert_int_equal(owner_of_mark(path, NULL), OWNER_UNKNOWN);
    }
    assert_int_equal(owner_of_mark(other, NULL), OWNER_UNKNOWN);
    assert_int_equal(mkdir(other, 0755), 0);
    assert_int_equal(owner_of_mark(other, NULL), OWNER_UNKNOWN);
    assert_int_equal(rmdir(other), 0);
}

/* Nothing is overwritten, and no temporary file remains. */
static void a_taken_name(void **state)
{
    bool taken;
    assert_int_equal(file_write_all(path, "theirs", 6), OK);
    assert_int_equal(owner_mark(&taken, path), OK);
    assert_true(taken);
    assert_int_equal(file_size(path), 6);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(owner_mark(&taken, path), OK);
    assert_false(taken);
    assert_int_equal(symlink(path, other), 0);
    assert_int_equal(owner_of_mark(other, NULL), OWNER_UNKNOWN); /* a link is not a mark */
    assert_int_equal(unlink(other), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(tags),         CASE(a_pid_in_use_again), CASE(a_zombie_is_dead),
        CASE(another_host), CASE(no_marks),           CASE(a_taken_name)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

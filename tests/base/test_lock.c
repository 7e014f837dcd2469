/* SPDX-License-Identifier: MIT
 *
 * The lock for one process at a time, with flock and on a file system without locks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/file/file.h"
#include "kernels/base/file/lock.h"
#include "kernels/base/log.h"
#include "tests/base/dead.h"
#include "tests/scratch.h"

#include <errno.h>
#include <pthread.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static char dir[96], path[400], owner[416];
static int flock_errno; /* 0: as the system does */
static int busy;        /* so many calls fail because another process holds the lock */
static bool unlink_first;

int __real_flock(int fd, int operation);
int __wrap_flock(int fd, int operation);

int __wrap_flock(int fd, int operation)
{
    if (unlink_first)
        unlink(path);
    unlink_first = false;
    if (!flock_errno && !busy)
        return __real_flock(fd, operation);
    errno = busy ? EWOULDBLOCK : flock_errno;
    busy -= busy > 0;
    return -1;
}

static void quiet(void *ctx, enum log_level level, const char *line)
{
}

static int setup(void **state)
{
    err_clear();
    flock_errno = busy = 0;
    unlink_first = false;
    log_set_sink(quiet, NULL);
    if (!scratch_dir(dir, sizeof(dir)))
        return -1;
    snprintf(path, sizeof(path), "%s/lock", dir);
    snprintf(owner, sizeof(owner), "%s.owner", path);
    return 0;
}

static int teardown(void **state)
{
    log_set_sink(NULL, NULL);
    return !scratch_remove(dir);
}

static void refused(const char *why)
{
    bool held = false;
    struct lock l;
    err_clear();
    assert_int_equal(lock_try(&l, &held, path, "this state", 0), ERR_USAGE);
    assert_true(held);
    assert_non_null(strstr(err_text(), why));
}

static void a_place_without_a_folder_is_held_by_nobody(void **state)
{
    bool held = true;
    struct lock l;
    assert_int_not_equal(lock_try(&l, &held, "no/such/folder/lock", "this state", 0), OK);
    assert_false(held);
}

static void taken_once(void **state)
{
    struct lock l;
    assert_int_equal(lock_take(&l, path, "this state", 0), OK);
    assert_false(file_exists(owner));
    refused("another process");
    lock_release(&l);
    assert_int_equal(lock_take(&l, path, "this state", 0), OK);
    lock_release(&l);
}

static void waited_for(void **state)
{
    struct lock l;
    busy = 2;
    assert_int_equal(lock_take(&l, path, "this state", 2), OK);
    assert_int_equal(busy, 0);
    lock_release(&l);
    busy = 2;
    assert_int_equal(lock_take(&l, path, "this state", 1), ERR_USAGE);
}

/* Its owner removes the file between our open and our flock. */
static void a_removed_file_is_no_lock(void **state)
{
    struct lock l;
    unlink_first = true;
    assert_int_equal(lock_take(&l, path, "this state", 0), OK);
    refused("another process");
    lock_release(&l);
}

static void without_flock(void **state)
{
    static const int codes[] = {ENOSYS, ENOLCK, EOPNOTSUPP};
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        struct lock l;
        flock_errno = codes[i];
        assert_int_equal(lock_take(&l, path, "this state", 0), OK);
        assert_true(file_exists(owner));
        refused("another process");
        assert_true(file_exists(owner));
        lock_release(&l);
        assert_false(file_exists(owner));
    }
    flock_errno = EIO;
    struct lock l;
    err_clear();
    assert_int_equal(lock_take(&l, path, "this state", 0), ERR_IO);
}

static void *remove_owner_soon(void *ctx)
{
    nanosleep(&(struct timespec){.tv_nsec = 150 * 1000 * 1000}, NULL);
    unlink(owner);
    return ctx;
}

static void waited_for_without_flock(void **state)
{
    struct lock l, other;
    pthread_t thread;
    flock_errno = ENOSYS;
    assert_int_equal(lock_take(&other, path, "this state", 0), OK);
    assert_int_equal(lock_take(&l, path, "this state", 1), ERR_USAGE);
    err_clear();
    assert_int_equal(pthread_create(&thread, NULL, remove_owner_soon, NULL), 0);
    assert_int_equal(lock_take(&l, path, "this state", 100), OK);
    pthread_join(thread, NULL);
    assert_true(file_exists(owner));
    lock_release(&l);
    lock_release(&other);
}

static int take_and_die(void *ctx)
{
    struct lock l;
    return lock_take(&l, path, "this state", 0) != OK;
}

static void a_dead_owner_is_followed(void **state)
{
    struct lock l;
    flock_errno = ENOSYS;
    assert_int_equal(dead_run(take_and_die, NULL), 0);
    assert_int_equal(owner_of_mark(owner, NULL), OWNER_DEAD);
    assert_int_equal(lock_take(&l, path, "this state", 0), OK);
    assert_int_equal(owner_of_mark(owner, NULL), OWNER_ALIVE);
    lock_release(&l);
}

static void an_unknown_owner_is_not(void **state)
{
    static const char far[] = "wkvq-owner 1\nhost far\nboot b\npidns p\npid 1\nstart 2\n";
    flock_errno = ENOSYS;
    assert_int_equal(file_write_all(owner, far, strlen(far)), OK);
    refused("process 1 on far may work on this state");
    assert_int_equal(file_size(owner), (int64_t)strlen(far));
    assert_int_equal(file_write_all(owner, "mine", 4), OK);
    refused("remove the file");
    assert_int_equal(file_size(owner), 4);
}

/* Another host took over meanwhile, because a person removed the file. */
static void what_is_not_mine_stays(void **state)
{
    struct lock l;
    flock_errno = ENOSYS;
    assert_int_equal(lock_take(&l, path, "this state", 0), OK);
    assert_int_equal(file_write_all(owner, "theirs", 6), OK);
    lock_release(&l);
    assert_int_equal(file_size(owner), 6);
}

/* The lock is a separate file: a link would create or lock another's file. */
static void a_link_is_no_lock(void **state)
{
    struct lock l;
    assert_int_equal(symlink("elsewhere", path), 0);
    assert_int_equal(lock_take(&l, path, "this state", 0), ERR_USAGE);
    snprintf(owner, sizeof(owner), "%s/elsewhere", dir);
    assert_false(file_exists(owner));
}

/* The name of the owner's file is too long, which no waiting mends. This would wait for a day. */
static void a_place_without_room_is_not_waited_for(void **state)
{
    struct lock l;
    const size_t begin = strlen(dir) + 1;
    flock_errno = ENOLCK;
    memset(path + begin, 'x', 252);
    path[begin + 252] = 0;
    assert_int_equal(lock_take(&l, path, "this state", 864000), ERR_USAGE);
    assert_non_null(strstr(err_text(), strerror(ENAMETOOLONG)));
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_place_without_a_folder_is_held_by_nobody),
        CASE(taken_once),
        CASE(waited_for),
        CASE(a_removed_file_is_no_lock),
        CASE(without_flock),
        CASE(waited_for_without_flock),
        CASE(a_dead_owner_is_followed),
        CASE(an_unknown_owner_is_not),
        CASE(what_is_not_mine_stays),
        CASE(a_link_is_no_lock),
        CASE(a_place_without_room_is_not_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

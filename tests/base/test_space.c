/* SPDX-License-Identifier: MIT
 *
 * Free space on file systems that say how large they are, and on those that do not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/file/file.h"

#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>

static struct statvfs disk; /* what every path is on */

/* The C library has both names. */
int __wrap_statvfs(const char *path, struct statvfs *fs);
int __wrap_statvfs64(const char *path, struct statvfs *fs);

int __wrap_statvfs(const char *path, struct statvfs *fs)
{
    *fs = disk;
    return 0;
}

int __wrap_statvfs64(const char *path, struct statvfs *fs)
{
    return __wrap_statvfs(path, fs);
}

static void what_does_not_fit_is_refused(void **state)
{
    disk = (struct statvfs){.f_frsize = 4096, .f_blocks = 1000, .f_bavail = 10};
    assert_int_equal(file_check_space("/", 40960, "the file"), OK);
    err_clear();
    assert_int_equal(file_check_space("/", 40961, "the file"), ERR_IO);
    assert_non_null(strstr(err_text(), "the disk has 0.0 MB free"));
    err_clear();
    assert_int_equal(file_write_error("/a", ENOSPC), ERR_IO);
    assert_non_null(strstr(err_text(), "the disk of / has 0.0 MB free"));
    disk.f_bavail = 0;
    err_clear();
    assert_int_equal(file_check_space("/", 1, "the file"), ERR_IO);
}

/* ramfs, and file systems in user space that do not answer. */
static void an_unknown_size_is_no_full_disk(void **state)
{
    disk = (struct statvfs){.f_frsize = 4096};
    err_clear();
    assert_int_equal(file_check_space("/", UINT64_MAX, "the file"), OK);
    assert_int_equal(file_write_error("/a", ENOSPC), ERR_IO);
    assert_null(strstr(err_text(), "MB free"));
    assert_non_null(strstr(err_text(), "free some space"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(an_unknown_size_is_no_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

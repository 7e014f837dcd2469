/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_results.h"

#include "kernels/base/file/file.h"
#include "kernels/base/file/lock.h"
#include "kernels/base/mem.h"
#include "tools/sweep/sweep_record.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define LOCK_TENTHS 50

/* Is a name in OUT the lock of a sweep, which is empty, or its list, which is read before
 * anything is written? */
static bool is_mark(int dir, const char *name)
{
    struct stat st;
    const bool lock = !strcmp(name, SWEEP_LOCK);
    if (!lock && strcmp(name, SWEEP_LIST))
        return false;
    return !fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode) &&
           (!lock || !st.st_size);
}

/* What a directory holds: names that do not begin with a dot. */
struct entries {
    int n;
    bool marked;
};

static struct entries look_into(const char *path)
{
    struct entries c = {0};
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        c.n += e->d_name[0] != '.';
        c.marked |= is_mark(dirfd(d), e->d_name);
    }
    if (d)
        closedir(d);
    return c;
}

bool sweep_place_is_empty(const char *out_dir)
{
    return !look_into(out_dir).n;
}

/* Returns whether the list has results. A damaged list is none of a sweep. */
static bool has_results(const char *out_dir)
{
    json_t *rows = NULL;
    const bool yes = !sweep_results_read(&rows, out_dir) && json_array_size(rows);
    json_decref(rows);
    err_clear();
    return yes;
}

static bool has_record(const char *out_dir)
{
    json_t *record = NULL;
    const bool yes = !sweep_record_read(&record, out_dir) &&
                     json_array_size(json_object_get(record, "cells"));
    json_decref(record);
    err_clear();
    return yes;
}

static enum err check(const char *out_dir, const char *cells)
{
    const struct entries c = look_into(out_dir);
    const bool sweep =
        file_is_dir(cells)
            ? c.marked || (c.n == 1 && !look_into(cells).n)
            : !file_exists(cells) && c.n && (has_results(out_dir) || has_record(out_dir));
    FAIL_IF(c.n && !sweep, ERR_USAGE,
            "%s: holds something that is not a sweep; name another -o OUT", out_dir);
    return OK;
}

enum err sweep_place_check(const char *out_dir)
{
    char *cells = NULL;
    TRY(file_join(&cells, out_dir, "cells"));
    const enum err err = check(out_dir, cells);
    mem_free(cells);
    return err;
}

/* The empty lock says whose directory this is. */
static enum err make_mark(const char *out_dir)
{
    char *path = NULL;
    struct lock l = {.fd = -1};
    TRY(file_join(&path, out_dir, SWEEP_LOCK));
    const enum err err =
        file_is_plain(path) ? OK : lock_take(&l, path, "this sweep", LOCK_TENTHS);
    lock_release(&l);
    mem_free(path);
    return err;
}

enum err sweep_place_make(const char *out_dir)
{
    char *cells = NULL;
    TRY(file_join(&cells, out_dir, "cells"));
    enum err err = check(out_dir, cells);
    if (!err)
        err = file_make_dir(cells);
    if (!err)
        err = make_mark(out_dir);
    mem_free(cells);
    return err;
}

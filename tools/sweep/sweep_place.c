/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_results.h"

#include "kernels/base/file/file.h"
#include "kernels/base/file/lock.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/sweep/sweep_record.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_TENTHS 50
#define NAMED 3 /* states in a message */

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

/* --- states of other cells ---------------------------------------------------------- */

/* *hash = that of a state's name, HASH.state. false: another file. */
static bool is_state(char hash[SWEEP_HASH_MAX], const char *name)
{
    snprintf(hash, SWEEP_HASH_MAX, "%.16s", name);
    return strlen(name) == 16 + 6 && !strcmp(name + 16, ".state") &&
           strspn(hash, "0123456789abcdef") == 16;
}

/* Has the state's cell a result? Then --keep kept the state. */
static bool is_kept(const struct sweep *s, const char *hash)
{
    size_t i;
    json_t *row;
    json_array_foreach(s->results, i, row)
    {
        const char *of = json_string_value(json_object_get(row, "hash"));
        if (of && !strcmp(of, hash))
            return true;
    }
    return false;
}

/* A state has files alone. */
static uint64_t bytes_in(int cells, const char *name)
{
    uint64_t n = 0;
    struct stat st;
    const int fd = openat(cells, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *e; d && (e = readdir(d));)
        if (!fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode))
            n += (uint64_t)st.st_size;
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
    return n;
}

/* Returns whether another process holds the lock of a state's cell. */
static bool is_in_work(const char *cells, const char *hash)
{
    char name[SWEEP_HASH_MAX + 8], *path = NULL;
    struct lock l = {.fd = -1};
    bool held = false;
    snprintf(name, sizeof(name), "%s.lock", hash);
    if (!file_join(&path, cells, name) && !access(path, F_OK)) { /* a try makes it */
        if (!lock_try(&l, &held, path, "this cell", 0))
            lock_release(&l);
    }
    err_clear();
    mem_free(path);
    return held;
}

void sweep_place_say_others(const struct sweep *s)
{
    char *cells = NULL, hash[SWEEP_HASH_MAX], names[NAMED * 24 + 1] = "";
    int n = 0;
    uint64_t bytes = 0;
    DIR *d = file_join(&cells, s->out_dir, "cells") ? NULL : opendir(cells);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!is_state(hash, e->d_name) || is_kept(s, hash) || is_in_work(cells, hash))
            continue;
        const size_t at = strlen(names);
        if (n++ < NAMED)
            snprintf(names + at, sizeof(names) - at, "%s%s.state", at ? ", " : "", hash);
        bytes += bytes_in(dirfd(d), e->d_name);
    }
    if (d)
        closedir(d);
    if (n)
        log_warn(
            "%s: %d state%s of cells that are not in this sweep, %.1f MB: %s%s; a sweep "
            "that has the cells resumes them, and else you can remove them",
            cells, n, plural(n), 1e-6 * (double)bytes, names, n > NAMED ? ", ..." : "");
    mem_free(cells);
}

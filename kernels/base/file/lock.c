/* SPDX-License-Identifier: MIT */
#include "kernels/base/file/lock.h"

#include "kernels/base/file/file.h"
#include "kernels/base/file/owner.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static enum err refuse(const char *file, const char *what, enum owner_state state,
                       const char *about)
{
    FAIL_IF(state == OWNER_ALIVE, ERR_USAGE,
            "%s: another process (%s) works on %s; wait for it or stop it", file, about,
            what);
    FAIL(ERR_USAGE,
         "%s: %s may work on %s, which this host cannot check; remove the file if that "
         "process no longer runs",
         file, about, what);
}

/* Removes a dead owner's file by one rename, which only one process can win. The renamed
 * file is checked again, because another process may have taken the lock meanwhile. */
static enum err clear_dead(const char *file, const char *what)
{
    enum err err = OK;
    char *aside = NULL, tag[OWNER_TAG_MAX], about[OWNER_TEXT_MAX];
    owner_tag(tag);
    TRY(mem_alloc(&aside, strlen(file) + sizeof(tag) + 8, 1));
    sprintf(aside, "%s.tmp.%s", file, tag);
    if (rename(file, aside)) {
        if (errno != ENOENT)
            err = err_set(ERR_IO, __FILE__, __LINE__, "%s: cannot rename: %s", file,
                          strerror(errno));
        goto out;
    }
    const enum owner_state state = owner_of_mark(aside, about);
    if (state != OWNER_DEAD) {
        if (!link(aside, file))
            unlink(aside);
        err = refuse(file, what, state, about);
        goto out;
    }
    unlink(aside);
out:
    mem_free(aside);
    return err;
}

/* *held: another process has the file, if this fails with ERR_USAGE. A place that cannot be written
 * gives ERR_USAGE as well. */
static enum err try_by_file(struct lock *l, bool *held, const char *path, const char *what)
{
    enum err err = OK;
    char *file = NULL, about[OWNER_TEXT_MAX];
    bool taken = true;
    TRY(mem_alloc(&file, strlen(path) + sizeof(LOCK_OWNER_SUFFIX), 1));
    sprintf(file, "%s%s", path, LOCK_OWNER_SUFFIX);
    for (int i = 0; taken && i < 2; i++) {
        *held = false;
        TRY_OUT(owner_mark(&taken, file));
        if (!taken)
            break;
        *held = true;
        const enum owner_state state = owner_of_mark(file, about);
        if (state != OWNER_DEAD)
            TRY_OUT(refuse(file, what, state, about));
        log_warn("%s: %s has ended; its lock is taken over", file, about);
        TRY_OUT(clear_dead(file, what));
    }
    if (taken)
        FAIL_OUT(ERR_USAGE, "%s: another process works on %s; wait for it or stop it", file,
                 what);
    l->owner = file;
    return OK;
out:
    mem_free(file);
    return err;
}

/* Tries again for tenths of a second while another process has the file. */
static enum err take_by_file(struct lock *l, bool *held, const char *path, const char *what,
                             int tenths)
{
    enum err err;
    while ((err = try_by_file(l, held, path, what)) == ERR_USAGE && *held && tenths-- > 0) {
        err_clear();
        nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
    }
    return err;
}

/* flock, tried again for tenths of a second while another process holds it. The value is
 * errno; 0: taken. */
static int take_by_flock(int fd, int tenths)
{
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB);) {
        if (errno == EINTR)
            continue;
        if (errno != EWOULDBLOCK || i++ == tenths)
            return errno;
        nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
    }
    return 0;
}

/* False: the owner before us removed the file, and the next process will make and lock a
 * new one. */
static bool still_named(int fd, const char *path)
{
    struct stat a, b;
    return !fstat(fd, &a) && !lstat(path, &b) && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* *again: the lock was taken on a file that has lost its name. */
static enum err take_once(struct lock *out, bool *again, bool *held, const char *path,
                          const char *what, int tenths)
{
    enum err err = OK;
    struct lock l = {.fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644)};
    FAIL_IF(l.fd < 0, file_place_error(), "%s: %s", path, strerror(errno));
    const int why = take_by_flock(l.fd, tenths);
    *held = why == EWOULDBLOCK;
    if (*held)
        FAIL_OUT(ERR_USAGE, "%s: another process works on %s; wait for it or stop it", path,
                 what);
    if (why == ENOSYS || why == ENOLCK || why == EOPNOTSUPP) {
        log_warn("%s: the file system has no locks (%s); the file %s%s guards %s instead",
                 path, strerror(why), path, LOCK_OWNER_SUFFIX, what);
        TRY_OUT(take_by_file(&l, held, path, what, tenths));
    } else if (why) {
        FAIL_OUT(ERR_IO, "%s: cannot lock: %s", path, strerror(why));
    }
    *again = !still_named(l.fd, path);
    if (*again)
        goto out;
    *out = l;
    return OK;
out:
    lock_release(&l);
    return err;
}

enum err lock_try(struct lock *out, bool *held, const char *path, const char *what,
                  int tenths)
{
    bool again = true;
    *held = false;
    while (again) {
        again = false;
        TRY(take_once(out, &again, held, path, what, tenths));
    }
    return OK;
}

enum err lock_take(struct lock *out, const char *path, const char *what, int tenths)
{
    bool held;
    return lock_try(out, &held, path, what, tenths);
}

void lock_release(struct lock *l)
{
    if (l->owner && owner_mark_is_mine(l->owner))
        unlink(l->owner);
    if (l->fd >= 0)
        close(l->fd);
    mem_free(l->owner);
    *l = (struct lock){.fd = -1};
}

/* SPDX-License-Identifier: MIT
 *
 * Creates, probes and cleans directories. */
#include "kernels/base/file/file.h"

#include "kernels/base/file/owner.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum err file_make_dir(const char *path)
{
    enum err err = OK;
    char *p = NULL;
    FAIL_IF(!*path, ERR_USAGE, "empty directory name");
    TRY(mem_strdup(&p, path));
    for (char *s = p + 1;; s++) {
        if (*s && *s != '/')
            continue;
        const char keep = *s;
        *s = '\0';
        if (mkdir(p, 0755) && errno != EEXIST)
            TRY_OUT(file_write_error(p, errno));
        *s = keep;
        if (!keep)
            break;
    }
    if (!file_is_dir(path))
        FAIL_OUT(ERR_USAGE, "%s: exists and is not a directory", path);
out:
    mem_free(p);
    return err;
}

enum err file_make_new_dir(bool *taken, const char *path)
{
    *taken = false;
    if (!mkdir(path, 0755))
        return OK;
    *taken = errno == EEXIST;
    return *taken ? OK : file_write_error(path, errno);
}

static bool plain_entry(int dir, const char *name)
{
    struct stat st;
    return !fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode);
}

bool file_is_dot(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

void file_sync_dir(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)fsync(fd); /* some file systems cannot; the renames have happened */
    close(fd);
}

bool file_vanished(int dir, const char *name)
{
    struct stat st;
    return fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) && errno == ENOENT;
}

static enum err remove_entries(char **left, DIR *d, const char *path, file_known_fn *known,
                               const void *ctx)
{
    for (struct dirent *e; (e = readdir(d));) {
        if (file_is_dot(e->d_name))
            continue;
        if (!known(ctx, e->d_name) || !plain_entry(dirfd(d), e->d_name)) {
            if (!*left && !file_vanished(dirfd(d), e->d_name))
                TRY(mem_strdup(left, e->d_name));
            continue;
        }
        FAIL_IF(unlinkat(dirfd(d), e->d_name, 0) && errno != ENOENT, ERR_IO,
                "%s/%s: cannot remove: %s", path, e->d_name, strerror(errno));
    }
    return OK;
}

/* Returns true for errors of rmdir() that are no failure: a mount point, the working
 * directory, a link to a directory, and a directory in which another process creates
 * files. */
static bool may_stay(void)
{
    return errno == ENOENT || errno == ENOTEMPTY || errno == EEXIST || errno == EBUSY ||
           errno == EINVAL || errno == ENOTDIR || errno == EACCES || errno == EPERM ||
           errno == EROFS;
}

enum err file_remove_known(char **left, const char *dir, file_known_fn *known,
                           const void *ctx)
{
    enum err err = OK;
    char *stays = NULL;
    DIR *d = opendir(dir);
    FAIL_IF(!d && errno != ENOENT, ERR_IO, "%s: %s", dir, strerror(errno));
    if (d)
        TRY_OUT(remove_entries(&stays, d, dir, known, ctx));
    if (d && !stays && rmdir(dir) && !may_stay())
        FAIL_OUT(ERR_IO, "%s: cannot remove: %s", dir, strerror(errno));
    if (left) {
        if (!stays)
            TRY_OUT(mem_strdup(&stays, ""));
        *left = stays;
        stays = NULL;
    }
out:
    mem_free(stays);
    if (d)
        closedir(d);
    return err;
}

bool file_is_temp(char tag[OWNER_TAG_MAX], const char *entry, const char *name)
{
    const size_t n = strlen(name);
    if (strncmp(entry, name, n) || strncmp(entry + n, ".tmp.", 5))
        return false;
    const char *p = entry + n + 5;
    const size_t len = strcspn(p, ".");
    if (len >= OWNER_TAG_MAX)
        return false;
    memcpy(tag, p, len);
    tag[len] = '\0';
    if (p[len] && (p[len + 1] < '1' || p[len + 1] > '9' ||
                   p[len + 1 + strspn(p + len + 1, "0123456789")]))
        return false;
    return owner_of_tag(tag) != OWNER_UNKNOWN;
}

static bool is_dead_temp(DIR *d, const char *entry, const char *name)
{
    char tag[OWNER_TAG_MAX];
    return file_is_temp(tag, entry, name) && owner_of_tag(tag) == OWNER_DEAD &&
           plain_entry(dirfd(d), entry);
}

enum err file_remove_dead_temps(const char *path)
{
    char *parent = NULL;
    TRY(file_parent(&parent, path));
    DIR *d = opendir(parent);
    mem_free(parent);
    for (struct dirent *e; d && (e = readdir(d));)
        if (is_dead_temp(d, e->d_name, file_base_name(path)))
            unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
    return OK;
}

bool file_is_plain(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode);
}

enum err file_parent(char **out, const char *path)
{
    const char *slash = strrchr(path, '/');
    TRY(mem_strdup(out, slash ? path : "."));
    if (slash)
        (*out)[slash == path ? 1 : slash - path] = '\0';
    return OK;
}

enum err file_check_writable(const char *dir)
{
    FAIL_IF(faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS), file_place_error(),
            "%s: cannot be written: %s; change its mode, or choose another directory", dir,
            strerror(errno));
    return OK;
}

enum err file_existing_dir(char **out, const char *path)
{
    char *p = NULL;
    TRY(mem_strdup(&p, path));
    while (!file_is_dir(p)) {
        char *up = NULL;
        enum err err = OK;
        if (file_exists(p))
            err = err_set(ERR_USAGE, __FILE__, __LINE__,
                          "%s: exists and is not a directory", p);
        else
            err = file_parent(&up, p);
        if (!err && !strcmp(up, p))
            err = err_set(ERR_USAGE, __FILE__, __LINE__, "%s: no such directory", p);
        mem_free(p);
        if (err) {
            mem_free(up);
            return err;
        }
        p = up;
    }
    *out = p;
    return OK;
}

enum err file_check_space(const char *dir, uint64_t need, const char *what)
{
    char *parent = NULL;
    struct statvfs fs;
    TRY(file_existing_dir(&parent, dir));
    const int bad = statvfs(parent, &fs);
    mem_free(parent);
    FAIL_IF(bad, ERR_IO, "%s: %s", dir, strerror(errno));
    const double have = (double)fs.f_bavail * (double)fs.f_frsize;
    if (!fs.f_blocks) /* it has no size, as ramfs, or does not say which, as some in user space */
        return OK;
    FAIL_IF(!((double)need <= have), ERR_IO,
            "%s: %s: %.1f MB are needed, and the disk has %.1f MB free; free some space, "
            "or name a directory on another disk",
            dir, what, 1e-6 * (double)need, 1e-6 * have);
    return OK;
}

enum err file_probe_dir(const char *path)
{
    enum err err = OK;
    struct stat st;
    char *dir = NULL, *file = NULL;
    FAIL_IF(!*path, ERR_USAGE, "empty directory name");
    const bool there = !stat(path, &st);
    FAIL_IF(there && !S_ISDIR(st.st_mode), ERR_USAGE, "%s: exists and is not a directory",
            path);
    FAIL_IF(!there && !lstat(path, &st), ERR_USAGE,
            "%s: is a link to a directory that does not exist; make that directory, or "
            "name another one",
            path);
    TRY(file_existing_dir(&dir, path));
    TRY_OUT(file_check_writable(dir));
    const int fd = open(dir, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) { /* an unnamed file, which disappears after a kill */
        close(fd);
    } else {
        TRY_OUT(file_join(&file, dir, ".wkvq-probe"));
        err = file_writer_probe(file);
    }
out:
    mem_free(dir);
    mem_free(file);
    return err;
}

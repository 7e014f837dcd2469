/* SPDX-License-Identifier: MIT
 *
 * Finds where an output directory is, and whether a rename over it is possible. */
#include "convert/output/outdir_priv.h"

#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Copies out_dir without slashes and "/." at its end. */
static enum err trim(char **out, const char *out_dir)
{
    FAIL_IF(!*out_dir, ERR_USAGE, "the output directory's name is empty");
    TRY(mem_strdup(out, out_dir));
    for (size_t n = strlen(*out); n > 1; n--) {
        const bool dot = n > 2 && (*out)[n - 1] == '.' && (*out)[n - 2] == '/';
        if ((*out)[n - 1] != '/' && !dot)
            break;
        (*out)[n - 1] = '\0';
    }
    return OK;
}

/* Resolves path; *out is NULL if nothing has that name. */
static enum err real_path(char **out, const char *path)
{
    *out = NULL;
    char *real = realpath(path, NULL);
    FAIL_IF(!real && errno == ENOMEM, ERR_MEMORY, "%s: out of memory", path);
    FAIL_IF(!real && errno != ENOENT, ERR_USAGE, "%s: %s", path, strerror(errno));
    const enum err err = real ? mem_strdup(out, real) : OK;
    free(real);
    return err;
}

static enum err resolve_missing(char **out, const char *path)
{
    enum err err = OK;
    struct stat st;
    char *above = NULL, *real = NULL;
    FAIL_IF(!lstat(path, &st) && S_ISLNK(st.st_mode), ERR_USAGE,
            "%s: is a link to a directory that does not exist; make that directory, or "
            "name another output",
            path);
    FAIL_IF(file_is_dot(file_base_name(path)), ERR_USAGE, "%s: no such directory", path);
    TRY(file_existing_dir(&above, path));
    TRY_OUT(real_path(&real, above));
    const size_t n = strlen(above);
    const char *rest = strncmp(path, above, n) ? path : path + n;
    err = file_join(out, real ? real : above, rest + strspn(rest, "/"));
out:
    mem_free(above);
    mem_free(real);
    return err;
}

enum err outdir_resolve(char **out, const char *out_dir)
{
    char *path = NULL, *real = NULL;
    TRY(trim(&path, out_dir));
    enum err err = real_path(&real, path);
    if (!err && real)
        *out = real;
    else if (!err)
        err = resolve_missing(out, path);
    mem_free(path);
    return err;
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Returns true for a mount point. The kernel is asked first, because a bind mount of the
 * same file system has its parent's device number. */
static bool is_mount_point(const char *path, const char *parent)
{
    struct stat x, y;
#ifdef STATX_ATTR_MOUNT_ROOT
    struct statx sx;
    if (!statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &sx) &&
        sx.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT)
        return sx.stx_attributes & STATX_ATTR_MOUNT_ROOT;
#endif
    return !stat(path, &x) && !stat(parent, &y) &&
           (x.st_dev != y.st_dev || x.st_ino == y.st_ino);
}

/* Returns true if this user may rename path. In a sticky directory only its owner may. */
static bool may_rename(const char *path, const char *parent)
{
    struct stat x, y;
    if (faccessat(AT_FDCWD, parent, W_OK | X_OK, AT_EACCESS) || stat(path, &x) ||
        stat(parent, &y))
        return false;
    return !(y.st_mode & S_ISVTX) || !geteuid() || x.st_uid == geteuid() ||
           y.st_uid == geteuid();
}

/* Sets *yes if neither files nor the state can be beside final: it is a mount point, or its
 * parent is not writable. */
static enum err parent_is_no_place(bool *yes, const char *final)
{
    char *parent = NULL;
    *yes = false;
    if (!file_is_dir(final))
        return OK;
    TRY(file_parent(&parent, final));
    *yes = is_mount_point(final, parent) || !may_rename(final, parent);
    mem_free(parent);
    return OK;
}

enum err outdir_needs_inside(bool *yes, const char *final)
{
    char *state = NULL;
    TRY(parent_is_no_place(yes, final));
    TRY(file_join(&state, final, OUTDIR_STATE));
    *yes = *yes || file_exists(state) || same_file(final, ".");
    mem_free(state);
    return OK;
}

static enum err append(char **out, const char *path, const char *suffix)
{
    TRY(mem_alloc(out, strlen(path) + strlen(suffix) + 1, 1));
    sprintf(*out, "%s%s", path, suffix);
    return OK;
}

enum err outdir_state(char **out, const char *out_dir)
{
    enum err err = OK;
    char *typed = NULL, *final = NULL, *inside = NULL, *beside = NULL;
    bool no_place;
    TRY_OUT(trim(&typed, out_dir));
    TRY_OUT(outdir_resolve(&final, out_dir));
    TRY_OUT(file_join(&inside, final, OUTDIR_STATE));
    TRY_OUT(append(&beside, file_is_dot(file_base_name(typed)) ? final : typed, ".state"));
    TRY_OUT(parent_is_no_place(&no_place, final));
    const bool in = file_exists(inside) || (no_place && !file_exists(beside));
    *out = in ? inside : beside;
    *(in ? &inside : &beside) = NULL;
out:
    mem_free(typed);
    mem_free(final);
    mem_free(inside);
    mem_free(beside);
    return err;
}

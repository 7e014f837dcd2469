/* SPDX-License-Identifier: MIT */
#include "convert/artifact/outdir.h"

#include "convert/artifact/manifest.h"
#include "convert/artifact/reader.h"
#include "kernels/base/file.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The real path of what exists, else the name without slashes at its end. */
static enum err resolve(char **out, const char *dir)
{
    FAIL_IF(!*dir, ERR_USAGE, "the output directory's name is empty");
    char *real = realpath(dir, NULL);
    const enum err err = mem_strdup(out, real ? real : dir);
    free(real);
    if (err)
        return err;
    for (size_t n = strlen(*out); n > 1 && (*out)[n - 1] == '/'; n--)
        (*out)[n - 1] = '\0';
    return OK;
}

static bool dot(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

/* The first name in dir that the artifact's manifest does not know, in a fresh string;
 * NULL: none. known NULL: the first name at all. */
static enum err first_foreign(char **out, const char *dir, const struct manifest *known)
{
    enum err err = OK;
    *out = NULL;
    DIR *d = opendir(dir);
    FAIL_IF(!d, ERR_IO, "%s: %s", dir, strerror(errno));
    for (struct dirent *e; !*out && !err && (e = readdir(d));)
        if (!dot(e->d_name) && (!known || !manifest_knows_file(known, e->d_name)))
            err = mem_strdup(out, e->d_name);
    closedir(d);
    return err;
}

static enum err check_existing(const char *dir, bool force, bool *replace)
{
    enum err err = OK;
    struct manifest *m = NULL;
    char *name = NULL;
    bool artifact;
    *replace = false;
    if (!file_exists(dir))
        return OK;
    FAIL_IF(!file_is_dir(dir), ERR_USAGE, "%s: exists and is not a directory", dir);
    TRY(first_foreign(&name, dir, NULL));
    if (!name)
        return OK;
    TRY_OUT(artifact_is(&artifact, dir));
    if (!artifact)
        FAIL_OUT(ERR_USAGE,
                 "%s: exists and holds %s, not an artifact; choose another directory", dir,
                 name);
    if (!force)
        FAIL_OUT(ERR_USAGE, "%s: holds an artifact already; overwrite it with --force",
                 dir);
    TRY_OUT(manifest_open(&m, dir));
    mem_free(name);
    name = NULL;
    TRY_OUT(first_foreign(&name, dir, m));
    if (name)
        FAIL_OUT(ERR_USAGE, "%s: holds %s, which is not the artifact's; move it away", dir,
                 name);
    *replace = true;
out:
    mem_free(name);
    manifest_close(&m);
    return err;
}

/* NAME.tmp.PID or NAME.old.PID of a process that is no more. */
static bool is_leftover(const char *entry, const char *name)
{
    const size_t n = strlen(name);
    if (strncmp(entry, name, n) ||
        (strncmp(entry + n, ".tmp.", 5) && strncmp(entry + n, ".old.", 5)))
        return false;
    char *end;
    const long pid = strtol(entry + n + 5, &end, 10);
    return end != entry + n + 5 && !*end && pid > 0 && kill((pid_t)pid, 0) &&
           errno == ESRCH;
}

static enum err parent_of(char **out, const char *path)
{
    const char *slash = strrchr(path, '/');
    TRY(mem_strdup(out, slash ? path : "."));
    if (slash)
        (*out)[slash == path ? 1 : slash - path] = '\0';
    return OK;
}

static enum err remove_leftovers(const char *final)
{
    enum err err = OK;
    char *parent = NULL;
    TRY(parent_of(&parent, final));
    DIR *d = opendir(parent);
    for (struct dirent *e; d && !err && (e = readdir(d));) {
        char *path = NULL;
        if (!is_leftover(e->d_name, file_base_name(final)))
            continue;
        err = file_join(&path, parent, e->d_name);
        if (!err && file_is_dir(path))
            err = file_remove_dir(path);
        mem_free(path);
    }
    if (d)
        closedir(d);
    mem_free(parent);
    return err;
}

enum err outdir_open(struct outdir *out, const char *out_dir, bool force)
{
    enum err err = OK;
    struct outdir d = {0};
    TRY_OUT(resolve(&d.final, out_dir));
    TRY_OUT(check_existing(d.final, force, &d.replace));
    TRY_OUT(remove_leftovers(d.final));
    const size_t room = strlen(d.final) + 32;
    TRY_OUT(mem_alloc(&d.tmp, room, 1));
    snprintf(d.tmp, room, "%s.tmp.%ld", d.final, (long)getpid());
    TRY_OUT(file_remove_dir(d.tmp));
    TRY_OUT(file_make_dir(d.tmp));
    *out = d;
    return OK;
out:
    mem_free(d.final);
    mem_free(d.tmp);
    return err;
}

/* Some file systems cannot sync a directory; the rename itself has happened. */
static void sync_dir(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)fsync(fd);
    close(fd);
}

/* Put tmp in the place of a directory that is there: at once where the file system can
 * exchange names, else with an instant in which the old one is called OUT.old.PID. */
static enum err replace(const struct outdir *d)
{
    if (!renameat2(AT_FDCWD, d->tmp, AT_FDCWD, d->final, RENAME_EXCHANGE))
        return file_remove_dir(d->tmp);
    enum err err = OK;
    char *old = NULL;
    const size_t room = strlen(d->final) + 32;
    TRY(mem_alloc(&old, room, 1));
    snprintf(old, room, "%s.old.%ld", d->final, (long)getpid());
    if (rename(d->final, old))
        FAIL_OUT(ERR_IO, "%s: cannot rename: %s", d->final, strerror(errno));
    if (rename(d->tmp, d->final)) {
        err = err_set(ERR_IO, __FILE__, __LINE__, "%s: cannot rename to %s: %s", d->tmp,
                      d->final, strerror(errno));
        (void)rename(old, d->final);
        goto out;
    }
    TRY_OUT(file_remove_dir(old));
out:
    mem_free(old);
    return err;
}

enum err outdir_commit(struct outdir *d)
{
    enum err err = OK;
    char *parent = NULL;
    sync_dir(d->tmp);
    TRY_OUT(parent_of(&parent, d->final));
    if (d->replace)
        TRY_OUT(replace(d));
    else if (rename(d->tmp, d->final))
        FAIL_OUT(ERR_IO, "%s: cannot rename to %s: %s", d->tmp, d->final, strerror(errno));
    sync_dir(parent);
out:
    mem_free(parent);
    outdir_abort(d); /* after a rename the temporary directory is missing, which is fine */
    return err;
}

void outdir_abort(struct outdir *d)
{
    if (d->tmp)
        (void)file_remove_dir(d->tmp);
    mem_free(d->final);
    mem_free(d->tmp);
    *d = (struct outdir){0};
}

/* SPDX-License-Identifier: MIT */
#include "convert/output/outdir.h"

#include "convert/format/artifact_names.h"
#include "convert/format/manifest.h"
#include "convert/output/outdir_priv.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- what may be written ------------------------------------------------------------ */

static bool real_kind(int dir, const char *name, mode_t kind)
{
    struct stat st;
    return !fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) && (st.st_mode & S_IFMT) == kind;
}

static bool stage_of_this_process(const char *name)
{
    char mine[OWNER_TAG_MAX], tag[OWNER_TAG_MAX];
    owner_tag(mine);
    return file_is_temp(tag, name, STAGE_INSIDE) && !strcmp(tag, mine);
}

/* Returns true for a name that may be in an output directory: the state's directory, the
 * stage, and the files that the artifact's manifest (known) lists, if they have a writer's
 * names. */
static bool expected(int dir, const char *name, const struct manifest *known)
{
    if (!strcmp(name, OUTDIR_STATE) || stage_of_this_process(name))
        return real_kind(dir, name, S_IFDIR);
    return known && manifest_knows_file(known, name) && artifact_file_name(name) &&
           real_kind(dir, name, S_IFREG);
}

/* Returns the first name in dir that is not expected, in a new string; NULL if there is
 * none. */
static enum err first_foreign(char **out, const char *dir, const struct manifest *known)
{
    enum err err = OK;
    *out = NULL;
    DIR *d = opendir(dir);
    FAIL_IF(!d, errno == EACCES ? ERR_USAGE : ERR_IO, "%s: %s", dir, strerror(errno));
    for (struct dirent *e; !*out && !err && (e = readdir(d));)
        if (!file_is_dot(e->d_name) && !expected(dirfd(d), e->d_name, known) &&
            !file_vanished(dirfd(d), e->d_name))
            err = mem_strdup(out, e->d_name);
    closedir(d);
    return err;
}

static enum err refuse_foreign(const char *dir, const char *name)
{
    FAIL_IF(stage_inside_name(name), ERR_USAGE,
            "%s: holds %s, which a process of another host made; remove it if that process "
            "no longer runs",
            dir, name);
    FAIL(ERR_USAGE, "%s: exists and holds %s, not an artifact; choose another directory",
         dir, name);
}

/* An artifact with its manifest: without it, nothing says which files are the artifact's.
 */
static enum err whole_artifact(bool *yes, const char *dir)
{
    char *path = NULL;
    TRY(file_join(&path, dir, MANIFEST_NAME));
    const bool manifest = file_exists(path);
    mem_free(path);
    TRY(artifact_is(yes, dir));
    *yes = *yes && manifest;
    return OK;
}

static enum err check_existing(const char *dir, enum outdir_policy policy, bool *replace)
{
    enum err err = OK;
    struct manifest *m = NULL;
    char *name = NULL;
    bool artifact;
    *replace = false;
    if (!file_exists(dir))
        return OK;
    FAIL_IF(!file_is_dir(dir), ERR_USAGE, "%s: exists and is not a directory", dir);
    TRY(file_check_writable(dir));
    TRY(first_foreign(&name, dir, NULL));
    if (!name)
        return OK;
    TRY_OUT(whole_artifact(&artifact, dir));
    if (!artifact)
        TRY_OUT(refuse_foreign(dir, name));
    if (policy != OUTDIR_REPLACE)
        FAIL_OUT(ERR_USAGE, "%s: holds an artifact already; %s", dir,
                 policy == OUTDIR_KEEP ? "overwrite it with --force"
                                       : "choose another directory, or remove it");
    TRY_OUT(manifest_open(&m, dir));
    mem_free(name);
    name = NULL;
    TRY_OUT(first_foreign(&name, dir, m));
    if (name)
        FAIL_OUT(ERR_USAGE,
                 "%s: holds %s, which does not belong to the artifact; move it away", dir,
                 name);
    *replace = true;
out:
    mem_free(name);
    manifest_close(&m);
    return err;
}

/* --- opening ------------------------------------------------------------------------ */

/* Creates the staging directory. If the place beside OUT turns out not to be writable, it
 * is created inside OUT. */
static enum err make_stage(struct outdir *d)
{
    TRY(outdir_needs_inside(&d->inside, d->final));
    const enum err err = stage_make(d);
    if (err != ERR_USAGE || d->inside || d->stage || !file_is_dir(d->final))
        return err;
    err_clear();
    d->inside = true;
    return stage_make(d);
}

static enum err begin(struct outdir *d, const char *out_dir, enum outdir_policy policy)
{
    TRY(outdir_resolve(&d->final, out_dir));
    TRY(stage_tidy(d->final));
    return check_existing(d->final, policy, &d->replace);
}

enum err outdir_open(struct outdir *out, const char *out_dir, enum outdir_policy policy)
{
    enum err err = OK;
    struct outdir d = {0};
    char *parent = NULL;
    TRY_OUT(begin(&d, out_dir, policy));
    TRY_OUT(file_parent(&parent, d.final));
    TRY_OUT(file_make_dir(parent));
    TRY_OUT(make_stage(&d));
    *out = d;
    d = (struct outdir){0};
out:
    outdir_abort(&d);
    mem_free(parent);
    return err;
}

enum err outdir_recover(const char *out_dir)
{
    char *final = NULL;
    TRY(outdir_resolve(&final, out_dir));
    const enum err err = stage_tidy(final);
    mem_free(final);
    return err;
}

enum err outdir_probe(const char *out_dir, enum outdir_policy policy)
{
    enum err err = OK;
    struct outdir d = {0};
    char *parent = NULL;
    TRY_OUT(begin(&d, out_dir, policy));
    TRY_OUT(file_parent(&parent, d.final));
    err = file_is_dir(parent) ? make_stage(&d) : file_probe_dir(parent);
out:
    outdir_abort(&d);
    mem_free(parent);
    return err;
}

/* --- the end ------------------------------------------------------------------------ */

static enum err rename_error(const char *from, const char *to, int code)
{
    FAIL(ERR_IO, "%s: cannot rename to %s: %s", from, to, strerror(code));
}

/* Replaces the old directory by the new one: atomically if the file system can exchange
 * names, else with an instant in which the old one is STAGE/old. code: errno of the
 * failure. */
static enum err replace(const struct outdir *d, int *code)
{
    enum err err = OK;
    char *old = NULL;
    if (!renameat2(AT_FDCWD, d->tmp, AT_FDCWD, d->final, RENAME_EXCHANGE))
        return OK;
    TRY(file_join(&old, d->stage, "old"));
    if (rename(d->final, old)) {
        *code = errno;
        err = rename_error(d->final, old, *code);
    } else if (rename(d->tmp, d->final)) {
        *code = errno;
        err = rename_error(d->tmp, d->final, *code);
        (void)rename(old, d->final);
    }
    mem_free(old);
    return err;
}

/* Returns true for errors after which moving single files may work: layers and mounts can
 * refuse the rename of a directory only. */
static bool move_may_help(int code)
{
    return code == EBUSY || code == EXDEV || code == EACCES || code == EPERM;
}

static enum err put_in_place(const struct outdir *d)
{
    enum err err = OK;
    int code = 0;
    if (d->inside)
        return stage_move_in(d);
    if (d->replace) {
        err = replace(d, &code);
    } else if (rename(d->tmp, d->final)) {
        code = errno;
        err = rename_error(d->tmp, d->final, code);
    }
    if (!err || !move_may_help(code) || !file_is_dir(d->final))
        return err;
    err_clear();
    return stage_move_in(d);
}

enum err outdir_commit(struct outdir *d)
{
    enum err err = OK;
    char *parent = NULL;
    bool replace_now;
    file_sync_dir(d->tmp);
    TRY_OUT(file_parent(&parent, d->final));
    /* Minutes have passed: files that somebody else has put there are not moved. */
    TRY_OUT(
        check_existing(d->final, d->replace ? OUTDIR_REPLACE : OUTDIR_KEEP, &replace_now));
    d->replace = replace_now;
    TRY_OUT(put_in_place(d));
    file_sync_dir(parent);
    err = stage_remove(d->stage);
    mem_free(d->stage);
    d->stage = NULL;
out:
    mem_free(parent);
    outdir_abort(d);
    return err;
}

/* The old artifact left and could not come back: it is in the stage alone. */
static bool holds_the_only_copy(const struct outdir *d)
{
    char *old = NULL;
    if (!d->final || file_exists(d->final) || file_join(&old, d->stage, "old"))
        return false;
    const bool is = file_is_dir(old);
    if (is)
        log_warn("%s: is the artifact that was to be replaced; the next command that "
                 "writes %s moves it back",
                 old, d->final);
    mem_free(old);
    return is;
}

void outdir_abort(struct outdir *d)
{
    if (d->stage && !holds_the_only_copy(d))
        (void)stage_remove(d->stage);
    mem_free(d->final);
    mem_free(d->stage);
    mem_free(d->tmp);
    *d = (struct outdir){0};
}

static bool artifact_name(const void *ctx, const char *name)
{
    return artifact_file_name(name);
}

enum err outdir_remove(const char *dir)
{
    char *left = NULL;
    TRY(file_remove_known(&left, dir, artifact_name, NULL));
    if (*left)
        log_warn("%s: kept, because it holds %s, which is not a file of an artifact", dir,
                 left);
    mem_free(left);
    return OK;
}

/* SPDX-License-Identifier: MIT
 *
 * The staging directory:
 *
 *   STAGE/owner    the mark of the process that made it
 *   STAGE/data/    the new files
 *   STAGE/old/     the files, or the directory, that they replace
 *   STAGE/commit   while files move one by one: "new" or "replace", then their names, the
 *                  one that makes the directory readable last
 *   STAGE/retired  the old files have all left
 *   STAGE/card     data/README.md is a writer's, too
 *
 * A kill at any instant leaves what the next command can finish or take back. */
#include "convert/output/outdir_priv.h"

#include "convert/format/artifact_names.h"
#include "convert/format/manifest.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_MAX_BYTES 64 /* of an artifact's file */
#define LIST_LIMIT (8u << 20)

static bool is_real_dir(const char *path)
{
    struct stat st;
    return !lstat(path, &st) && S_ISDIR(st.st_mode);
}

/* --- making it ---------------------------------------------------------------------- */

/* The message names the directory: nobody knows the stage's name. */
static enum err check_parent(const char *base)
{
    char *parent = NULL;
    TRY(file_parent(&parent, base));
    const enum err err = file_check_writable(parent);
    mem_free(parent);
    return err;
}

static enum err make_named(char **out, const char *base)
{
    char tag[OWNER_TAG_MAX], *path = NULL;
    const size_t room = strlen(base) + sizeof(tag) + 32;
    bool taken = true;
    TRY(check_parent(base));
    owner_tag(tag);
    TRY(mem_alloc(&path, room, 1));
    for (int i = 0; taken; i++) {
        snprintf(path, room, i ? "%s.tmp.%s.%d" : "%s.tmp.%s", base, tag, i);
        const enum err err = file_make_new_dir(&taken, path);
        if (err) {
            mem_free(path);
            return err;
        }
    }
    *out = path;
    return OK;
}

enum err stage_make(struct outdir *d)
{
    enum err err = OK;
    char *base = NULL, *owner = NULL;
    bool taken;
    if (d->inside)
        TRY(file_join(&base, d->final, STAGE_INSIDE));
    else
        TRY(mem_strdup(&base, d->final));
    TRY_OUT(make_named(&d->stage, base));
    TRY_OUT(file_join(&owner, d->stage, "owner"));
    TRY_OUT(owner_mark(&taken, owner));
    TRY_OUT(file_join(&d->tmp, d->stage, FILE_STAGE_DATA));
    TRY_OUT(file_make_new_dir(&taken, d->tmp));
out:
    mem_free(base);
    mem_free(owner);
    return err;
}

enum err outdir_write_card(const struct outdir *d, const char *text)
{
    enum err err = OK;
    char *mark = NULL, *card = NULL;
    FAIL_IF(d->replace, ERR_SHAPE, "a model card for a directory that is replaced");
    TRY(file_join(&mark, d->stage, "card"));
    TRY_OUT(file_join(&card, d->tmp, OUTDIR_CARD));
    TRY_OUT(file_write_all(mark, "", 0));
    err = file_write_all(card, text, strlen(text));
out:
    mem_free(mark);
    mem_free(card);
    return err;
}

/* --- removing it -------------------------------------------------------------------- */

/* Returns true for a name of a file that a writer puts into STAGE/data. */
static bool new_name(const char *name)
{
    return artifact_file_name(name) || !strcmp(name, OUTDIR_CARD);
}

/* Returns true for a writer's file, complete or temporary. card: whether a model card may
 * be one of them. Otherwise it may be a person's, from a directory that was replaced. */
static bool written_name(const void *card, const char *name)
{
    char plain[NAME_MAX_BYTES], tag[OWNER_TAG_MAX];
    const char *tmp = strstr(name, ".tmp.");
    if (!tmp)
        return *(const bool *)card ? new_name(name) : artifact_file_name(name);
    const int n = snprintf(plain, sizeof(plain), "%.*s", (int)(tmp - name), name);
    return n < (int)sizeof(plain) && written_name(card, plain) &&
           file_is_temp(tag, name, plain);
}

static bool half_mark(const void *ctx, const char *name)
{
    char tag[OWNER_TAG_MAX];
    return file_is_temp(tag, name, "owner");
}

static bool note_name(const void *ctx, const char *name)
{
    char tag[OWNER_TAG_MAX];
    return !strcmp(name, "retired") || file_is_temp(tag, name, "retired") ||
           !strcmp(name, "card") || file_is_temp(tag, name, "card") ||
           file_is_temp(tag, name, "commit") || half_mark(ctx, name);
}

static bool owner_name(const void *ctx, const char *name)
{
    return !strcmp(name, "owner");
}

static enum err remove_part(bool *all, const char *stage, const char *part, bool card)
{
    char *path = NULL, *left = NULL;
    TRY(file_join(&path, stage, part));
    enum err err = file_remove_known(&left, path, written_name, &card);
    if (!err && *left) {
        *all = false;
        log_warn("%s: kept, because it holds %s, which is not a file of an artifact", path,
                 left);
    }
    mem_free(path);
    mem_free(left);
    return err;
}

enum err stage_remove(const char *stage)
{
    enum err err = OK;
    char *commit = NULL, *card = NULL;
    bool all = true;
    TRY(file_join(&commit, stage, "commit"));
    const bool moving = file_exists(commit);
    mem_free(commit);
    TRY(file_join(&card, stage, "card"));
    const bool with_card = file_exists(card);
    mem_free(card);
    if (moving) { /* neither finished nor undone: the files must be kept */
        log_warn("%s: keeps files that could not be moved; the next command that writes "
                 "there moves them",
                 stage);
        return OK;
    }
    TRY(remove_part(&all, stage, FILE_STAGE_DATA, with_card));
    TRY(remove_part(&all, stage, "old", false));
    if (all)
        TRY(file_remove_known(NULL, stage, note_name, NULL));
    if (all)
        err = file_remove_known(NULL, stage, owner_name, NULL);
    return err;
}

/* --- moving file by file ------------------------------------------------------------ */

/* Reads one line of the list; false at its end. */
static bool next_name(const char **p, char name[NAME_MAX_BYTES])
{
    const size_t n = strcspn(*p, "\n");
    if (!(*p)[n] || n >= NAME_MAX_BYTES)
        return false;
    memcpy(name, *p, n);
    name[n] = '\0';
    *p += n + 1;
    return true;
}

static enum err write_list(const struct outdir *d, const char *commit)
{
    enum err err = OK;
    struct file_writer *w = NULL;
    char *path = NULL;
    DIR *dir = NULL;
    TRY(file_join(&path, d->tmp, MANIFEST_NAME));
    const char *last = file_exists(path) ? MANIFEST_NAME : "config.json";
    TRY_OUT(file_writer_open(&w, commit));
    TRY_OUT(file_printf(w, "%s\n", d->replace ? "replace" : "new"));
    if (!(dir = opendir(d->tmp)))
        FAIL_OUT(ERR_IO, "%s: %s", d->tmp, strerror(errno));
    for (struct dirent *e; (e = readdir(dir));)
        if (new_name(e->d_name) && strcmp(e->d_name, last))
            TRY_OUT(file_printf(w, "%s\n", e->d_name));
    TRY_OUT(file_printf(w, "%s\n", last));
    err = file_writer_commit(&w);
out:
    if (dir)
        closedir(dir);
    file_writer_abort(&w);
    mem_free(path);
    return err;
}

/* Renames a file, but never replaces an existing one. */
static enum err rename_new(const char *from, const char *to)
{
    if (!renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE))
        return OK;
    struct stat st;
    const bool lacking = errno == ENOSYS || errno == EINVAL;
    if (lacking && !lstat(to, &st))
        errno = EEXIST;
    else if (lacking && !rename(from, to))
        return OK;
    FAIL(ERR_IO, "%s: cannot rename to %s: %s", from, to, strerror(errno));
}

/* Moves from/name to to/name, if from has it. */
static enum err move_one(const char *from, const char *to, const char *name)
{
    enum err err = OK;
    char *a = NULL, *b = NULL;
    TRY(file_join(&a, from, name));
    TRY_OUT(file_join(&b, to, name));
    if (file_is_plain(a))
        err = rename_new(a, b);
out:
    mem_free(a);
    mem_free(b);
    return err;
}

/* Moves the old artifact's files away, the manifest first. */
static enum err retire(const char *stage, const char *final)
{
    enum err err = OK;
    bool taken;
    char *old = NULL, *done = NULL, *manifest = NULL;
    struct manifest *m = NULL;
    TRY(file_join(&done, stage, "retired"));
    TRY_OUT(file_join(&old, stage, "old"));
    TRY_OUT(file_join(&manifest, old, MANIFEST_NAME));
    if (file_exists(done))
        goto out;
    if (!is_real_dir(old))
        TRY_OUT(file_make_new_dir(&taken, old));
    TRY_OUT(manifest_open(&m, file_exists(manifest) ? old : final));
    TRY_OUT(move_one(final, old, MANIFEST_NAME));
    for (size_t i = 0; i < m->n_files; i++)
        if (artifact_file_name(m->file[i].name))
            TRY_OUT(move_one(final, old, m->file[i].name));
    err = file_write_all(done, "", 0);
out:
    manifest_close(&m);
    mem_free(old);
    mem_free(done);
    mem_free(manifest);
    return err;
}

static enum err move_listed(const char *data, const char *final, const char *list)
{
    char name[NAME_MAX_BYTES];
    while (next_name(&list, name)) {
        FAIL_IF(!new_name(name), ERR_FORMAT, "%s: '%s' is not a file of an artifact", data,
                name);
        if (!*list)
            file_sync_dir(final);
        TRY(move_one(data, final, name));
    }
    file_sync_dir(final);
    return OK;
}

/* Finishes a move. Every step checks what has been done already. */
static enum err go_forward(const char *stage, const char *final, const char *commit)
{
    enum err err = OK;
    char *data = NULL, *text = NULL, kind[NAME_MAX_BYTES];
    size_t n;
    TRY(file_read_all(&text, &n, commit, LIST_LIMIT));
    const char *list = text;
    if (!next_name(&list, kind))
        kind[0] = '\0';
    TRY_OUT(file_join(&data, stage, FILE_STAGE_DATA));
    if (!strcmp(kind, "replace"))
        TRY_OUT(retire(stage, final));
    TRY_OUT(move_listed(data, final, list));
    if (unlink(commit))
        FAIL_OUT(ERR_IO, "%s: cannot remove: %s", commit, strerror(errno));
out:
    mem_free(data);
    mem_free(text);
    return err;
}

/* Moves new files back: those listed names that are no longer in data. */
static enum err take_new_back(const char *stage, const char *final, const char *list)
{
    enum err err = OK;
    char *data = NULL, name[NAME_MAX_BYTES];
    TRY(file_join(&data, stage, FILE_STAGE_DATA));
    while (!err && next_name(&list, name)) {
        char *path = NULL;
        TRY_OUT(file_join(&path, data, name));
        const bool moved = !file_exists(path);
        mem_free(path);
        if (moved)
            err = move_one(final, data, name);
    }
out:
    mem_free(data);
    return err;
}

static enum err bring_old_back(const char *stage, const char *final)
{
    enum err err = OK;
    char *old = NULL;
    TRY(file_join(&old, stage, "old"));
    DIR *d = opendir(old);
    for (struct dirent *e; d && !err && (e = readdir(d));)
        if (artifact_file_name(e->d_name) && strcmp(e->d_name, MANIFEST_NAME))
            err = move_one(old, final, e->d_name);
    if (d && !err)
        err = move_one(old, final, MANIFEST_NAME);
    if (d)
        closedir(d);
    mem_free(old);
    return err;
}

static enum err go_back(const char *stage, const char *final, const char *commit)
{
    enum err err = OK;
    char *text = NULL, *retired = NULL, kind[NAME_MAX_BYTES];
    size_t n;
    TRY(file_read_all(&text, &n, commit, LIST_LIMIT));
    const char *list = text;
    (void)next_name(&list, kind);
    TRY_OUT(file_join(&retired, stage, "retired"));
    if (!strcmp(kind, "new") || file_exists(retired))
        TRY_OUT(take_new_back(stage, final, list));
    TRY_OUT(bring_old_back(stage, final));
    if (unlink(commit))
        FAIL_OUT(ERR_IO, "%s: cannot remove: %s", commit, strerror(errno));
out:
    mem_free(text);
    mem_free(retired);
    return err;
}

enum err stage_move_in(const struct outdir *d)
{
    char *commit = NULL;
    TRY(file_join(&commit, d->stage, "commit"));
    enum err err = write_list(d, commit);
    if (!err) {
        err = go_forward(d->stage, d->final, commit);
        if (err)
            (void)go_back(d->stage, d->final, commit); /* the first error is reported */
    }
    mem_free(commit);
    return err;
}

/* --- what dead processes left ------------------------------------------------------- */

/* Decides whether a dead process made the stage: by its mark, or by its name if the process
 * was killed before it wrote the mark. */
static enum err is_dead_stage(bool *yes, const char *stage)
{
    char *owner = NULL;
    TRY(file_join(&owner, stage, "owner"));
    *yes = is_real_dir(stage) &&
           (owner_of_mark(owner, NULL) == OWNER_DEAD || !file_exists(owner));
    mem_free(owner);
    return OK;
}

static enum err tidy_stage(const char *stage, const char *final)
{
    enum err err = OK;
    bool dead;
    char *commit = NULL, *old = NULL, *owner = NULL;
    TRY(is_dead_stage(&dead, stage));
    if (!dead)
        return OK;
    TRY_OUT(file_join(&owner, stage, "owner"));
    TRY_OUT(file_join(&commit, stage, "commit"));
    TRY_OUT(file_join(&old, stage, "old"));
    if (!file_exists(owner)) {
        err = file_remove_known(NULL, stage, half_mark, NULL);
        goto out;
    }
    if (file_exists(commit))
        TRY_OUT(go_forward(stage, final, commit));
    else if (is_real_dir(old) && !file_exists(final) && rename(old, final))
        FAIL_OUT(ERR_IO, "%s: cannot rename to %s: %s", old, final, strerror(errno));
    err = stage_remove(stage);
out:
    mem_free(commit);
    mem_free(old);
    mem_free(owner);
    return err;
}

static uint64_t counted; /* by count_bytes, which nftw calls without a context */

static int count_bytes(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    counted += kind == FTW_F ? (uint64_t)st->st_size : 0;
    return 0;
}

/* Says what stays after a reboot, or of a machine that was lost: no command of this machine
 * removes it, because its process may run. */
static void say_elsewhere(const char *stage)
{
    counted = 0;
    (void)nftw(stage, count_bytes, 4, FTW_PHYS);
    log_warn("%s: %.1f MB of a run on another machine, or from before this one's last "
             "start, which are kept; remove the directory if that run has ended",
             stage, 1e-6 * (double)counted);
}

static bool told_elsewhere; /* a command looks at a place several times */

/* Tidies the stages of final in dir, which are called NAME.tmp.TAG. *found: there are some whose
 * process may run elsewhere. */
static enum err tidy_in(bool *found, const char *dir, const char *name, const char *final,
                        bool inside)
{
    enum err err = OK;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && !err && (e = readdir(d));) {
        char tag[OWNER_TAG_MAX], *path = NULL;
        if (!file_is_temp(tag, e->d_name, name))
            continue;
        const enum owner_state state = owner_of_tag(tag);
        TRY_OUT(file_join(&path, dir, e->d_name));
        if (state == OWNER_DEAD)
            err = tidy_stage(path, final);
        else if (inside && state == OWNER_ALIVE)
            err = err_set(ERR_USAGE, __FILE__, __LINE__,
                          "%s: another process writes into %s; wait for it or stop it",
                          path, final);
        if (state == OWNER_ELSEWHERE && is_real_dir(path)) {
            *found = true;
            if (!told_elsewhere)
                say_elsewhere(path);
        }
        mem_free(path);
    }
out:
    if (d)
        closedir(d);
    return err;
}

enum err stage_tidy(const char *final)
{
    enum err err = OK;
    bool found = false;
    char *parent = NULL;
    TRY(file_parent(&parent, final));
    TRY_OUT(tidy_in(&found, parent, file_base_name(final), final, false));
    TRY_OUT(tidy_in(&found, final, STAGE_INSIDE, final, true));
out:
    told_elsewhere |= found;
    mem_free(parent);
    return err;
}

bool stage_inside_name(const char *entry)
{
    char tag[OWNER_TAG_MAX];
    return file_is_temp(tag, entry, STAGE_INSIDE);
}

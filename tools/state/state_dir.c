/* SPDX-License-Identifier: MIT
 *
 * Names of files in a state's directory, leftovers of killed runs, and removal. */
#include "tools/state/state_priv.h"

#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/stop.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCKS_LIMIT 100000 /* block numbers of any state, as in a manifest */
#define NAME_BYTES 64

/* --- names -------------------------------------------------------------------------- */

static bool lock_name(const char *name)
{
    return !strcmp(name, "lock") || !strcmp(name, "lock" LOCK_OWNER_SUFFIX);
}

/* Returns the block's number if name is one that make() writes, else -1. It parses the number
 * and compares the name that is made from it. */
static int64_t number_in(const char *name, void (*make)(char out[40], int64_t block),
                         int64_t blocks)
{
    char again[40];
    const char *at = strchr(name, '-');
    int64_t block;
    if (!at || sscanf(at + 1, "%" SCNd64, &block) != 1 || block < 0 || block >= blocks)
        return -1;
    make(again, block);
    return strcmp(name, again) ? -1 : block;
}

static int64_t block_of(const char *name, int64_t blocks)
{
    return number_in(name, state_block_name, blocks);
}

static int64_t refined_of(const char *name, int64_t blocks)
{
    return number_in(name, state_refined_name, blocks);
}

static bool partial_name(const char *name)
{
    return !strcmp(name, "partial-a.safetensors") || !strcmp(name, "partial-b.safetensors");
}

static bool file_name(const char *name, int64_t blocks)
{
    return !strcmp(name, STATE_MANIFEST) || lock_name(name) || partial_name(name) ||
           block_of(name, blocks) >= 0 || refined_of(name, blocks) >= 0;
}

/* Returns whether name is a temporary file of one of those, or of a stream. */
static bool temp_name(char tag[OWNER_TAG_MAX], const char *name, int64_t blocks)
{
    char plain[NAME_BYTES];
    const char *tmp = strstr(name, ".tmp.");
    if (!tmp || tmp - name >= NAME_BYTES)
        return false;
    snprintf(plain, sizeof(plain), "%.*s", (int)(tmp - name), name);
    return (file_name(plain, blocks) || !strncmp(plain, "stream-", 7)) &&
           file_is_temp(tag, name, plain);
}

/* Returns whether a file belongs to the state. The lock file is empty, which distinguishes it from
 * another file named lock. A temporary file that another process has removed by now counts as the
 * state's. One look decides, because that process may make the file again at once. */
static bool own_file(const struct state *s, const char *name, int64_t blocks)
{
    struct stat st;
    char *path = NULL, tag[OWNER_TAG_MAX];
    const bool named =
        blocks ? file_name(name, blocks) : lock_name(name) || !strcmp(name, STATE_MANIFEST);
    if ((!named && !temp_name(tag, name, blocks)) || state_path(&path, s, name))
        return false;
    const bool there = !lstat(path, &st), gone = !there && errno == ENOENT;
    bool own = there && S_ISREG(st.st_mode);
    if (own && !strcmp(name, "lock"))
        own = st.st_size == 0;
    if (own && !strcmp(name, "lock" LOCK_OWNER_SUFFIX))
        own = owner_of_mark(path, NULL) != OWNER_UNKNOWN;
    mem_free(path);
    return own || gone;
}

enum err state_check_names(const struct state *s)
{
    enum err err = OK;
    char *path = NULL;
    TRY(state_path(&path, s, STATE_MANIFEST));
    const bool old = file_exists(path);
    mem_free(path);
    const int64_t blocks = s->manifest ? s->blocks : old ? BLOCKS_LIMIT : 0;
    DIR *d = opendir(s->dir);
    FAIL_IF(!d, errno == EACCES ? ERR_USAGE : ERR_IO, "%s: %s", s->dir, strerror(errno));
    for (struct dirent *e; !err && (e = readdir(d));)
        if (!file_is_dot(e->d_name) && !own_file(s, e->d_name, blocks) &&
            !file_vanished(dirfd(d), e->d_name))
            err = err_set(ERR_USAGE, __FILE__, __LINE__,
                          "%s: contains '%s', which is not a file of %s; name an empty or "
                          "new directory",
                          s->dir, e->d_name, old ? "this state" : "a new state");
    closedir(d);
    return err;
}

enum err state_is_empty(bool *yes, const char *dir)
{
    struct state s = {.dir = (char *)(uintptr_t)dir};
    *yes = false;
    if (!file_is_dir(dir))
        return OK;
    DIR *d = opendir(dir);
    FAIL_IF(!d, errno == EACCES ? ERR_USAGE : ERR_IO, "%s: %s", dir, strerror(errno));
    *yes = true;
    for (struct dirent *e; *yes && (e = readdir(d));)
        *yes = file_is_dot(e->d_name) ||
               (lock_name(e->d_name) && own_file(&s, e->d_name, 0)) ||
               file_vanished(dirfd(d), e->d_name);
    closedir(d);
    return OK;
}

/* --- removal ------------------------------------------------------------------------ */

static bool dead_temp(const char *name, int64_t blocks)
{
    char tag[OWNER_TAG_MAX];
    return temp_name(tag, name, blocks) && owner_of_tag(tag) == OWNER_DEAD;
}

/* Returns whether a killed run left the file: a temporary file, or one that the manifest
 * does not name. */
static bool leftover(const void *ctx, const char *name)
{
    const struct state *s = ctx;
    if (partial_name(name)) {
        const json_t *entry = json_object_get(s->manifest, "partial");
        const char *partial = json_string_value(json_object_get(entry, "file"));
        return !partial || strcmp(partial, name);
    }
    if (refined_of(name, s->blocks) >= 0)
        return !state_refined(s);
    return block_of(name, s->blocks) >= state_done(s) || dead_temp(name, s->blocks);
}

enum err state_remove_leftovers(const struct state *s)
{
    return file_remove_known(NULL, s->dir, leftover, s);
}

static bool content(const void *ctx, const char *name)
{
    const struct state *s = ctx;
    return partial_name(name) || block_of(name, s->blocks) >= 0 ||
           refined_of(name, s->blocks) >= 0 || !strcmp(name, "lock") ||
           dead_temp(name, s->blocks);
}

static bool nothing(const void *ctx, const char *name)
{
    return false;
}

static enum err remove_manifest(const struct state *s)
{
    char *path = NULL;
    TRY(state_path(&path, s, STATE_MANIFEST));
    const int bad = unlink(path);
    const int why = errno;
    mem_free(path);
    FAIL_IF(bad && why != ENOENT, ERR_IO, "%s/" STATE_MANIFEST ": cannot remove: %s",
            s->dir, strerror(why));
    return OK;
}

enum err state_remove(struct state **ps)
{
    struct state *s = *ps;
    char *left = NULL;
    enum err err = OK;
    if (json_object_set_new(s->manifest, "removing", json_true()))
        FAIL_OUT(ERR_MEMORY, "%s: out of memory for the manifest", s->dir);
    TRY_OUT(state_write_manifest(s));
    TRY_OUT(file_remove_known(NULL, s->dir, content, s));
    TRY_OUT(remove_manifest(s));
    lock_release(&s->lock);
    TRY_OUT(file_remove_known(&left, s->dir, nothing, NULL));
    if (*left)
        log_warn("%s: contains %s, which is not a file of the state; the directory is "
                 "kept",
                 s->dir, left);
out:
    mem_free(left);
    state_close(ps);
    return err;
}

enum err state_remove_empty(const char *dir)
{
    struct state s = {.dir = (char *)(uintptr_t)dir, .lock.fd = -1};
    char *path = NULL;
    enum err err = OK;
    TRY(state_path(&path, &s, "lock"));
    TRY_OUT(lock_take(&s.lock, path, "this state", 0));
    unlink(path);
    lock_release(&s.lock);
    err = file_remove_known(NULL, dir, nothing, NULL);
out:
    mem_free(path);
    return err;
}

/* Tests whether a directory is writable. In an existing one it uses the manifest's
 * temporary name, so that the next run recognizes the file after a kill. */
enum err state_probe(const char *dir)
{
    struct state s = {.dir = (char *)(uintptr_t)dir};
    char *path = NULL;
    enum err err = OK;
    stop_hold();
    if (!file_is_dir(dir)) {
        err = file_probe_dir(dir);
        goto out;
    }
    TRY_OUT(state_check_names(&s));
    TRY_OUT(state_path(&path, &s, STATE_MANIFEST));
    err = file_writer_probe(path);
out:
    stop_release();
    mem_free(path);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * The message of a file that cannot be written: the name that the user knows, the cause, and what
 * to do about it. */
#include "kernels/base/file/file.h"

#include "kernels/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

/* Returns the length of name [n] before its last ".tmp.TAG", or n if it has none. The name may be
 * longer than any file's, and have ".tmp." in itself. */
static size_t plain_length(const char *name, size_t n)
{
    char end[OWNER_TAG_MAX + 32], tag[OWNER_TAG_MAX];
    for (size_t k = 1; k < sizeof(end) && k <= n; k++) {
        memcpy(end, name + n - k, k);
        end[k] = '\0';
        if (file_is_temp(tag, end, ""))
            return n - k;
    }
    return n;
}

static bool is_word(const char *part, size_t n, const char *word)
{
    return n == strlen(word) && !memcmp(part, word, n);
}

void file_final_name(char *out, const char *path)
{
    bool in_stage = false;
    while (*path) {
        const size_t slashes = strspn(path, "/"), n = strcspn(path + slashes, "/");
        const char *part = path + slashes;
        const size_t keep = plain_length(part, n);
        const bool inside = keep < n && is_word(part, keep, FILE_STAGE_INSIDE);
        const bool data = in_stage && is_word(part, n, FILE_STAGE_DATA);
        if (!inside && !data) {
            memcpy(out, path, slashes + keep);
            out += slashes + keep;
        }
        in_stage = keep < n;
        path = part + n;
    }
    *out = '\0';
}

/* Writes the advice for a full disk, with what is free there. */
static void advise_space(char *out, size_t size, const char *path)
{
    struct statvfs fs;
    char *parent = NULL, *dir = NULL;
    if (file_parent(&parent, path) || file_existing_dir(&dir, parent) ||
        statvfs(dir, &fs) || !fs.f_blocks)
        snprintf(out, size, "; free some space, or name a place on another disk");
    else
        snprintf(out, size,
                 "; the disk of %.300s has %.1f MB free: free some space there, or name a "
                 "place on another disk",
                 dir, 1e-6 * (double)fs.f_bavail * (double)fs.f_frsize);
    err_clear(); /* the message to come is the one that counts */
    mem_free(parent);
    mem_free(dir);
}

static void advise_size(char *out, size_t size)
{
    struct rlimit limit;
    if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur != RLIM_INFINITY)
        snprintf(
            out, size,
            "; files may have at most %llu bytes: raise the limit (ulimit -f), or leave it out",
            (unsigned long long)limit.rlim_cur);
    else
        snprintf(out, size, "; name a place on a file system that holds larger files");
}

static void advise(char *out, size_t size, const char *path, int why)
{
    *out = '\0';
    if (why == ENOSPC)
        advise_space(out, size, path);
    else if (why == EDQUOT)
        snprintf(out, size,
                 "; remove files of yours there, or name a place without a quota");
    else if (why == EFBIG)
        advise_size(out, size);
    else if (why == EACCES || why == EPERM)
        snprintf(out, size, "; change the mode of its directory, or name another place");
    else if (why == EROFS)
        snprintf(out, size, "; name a place that can be written");
    else if (why == ENOENT || why == ENOTDIR)
        snprintf(out, size, "; make its directory, or name another place");
    else if (why == ENAMETOOLONG)
        snprintf(
            out, size,
            "; give a shorter name: while a file is written, its name has up to %d bytes "
            "more",
            (int)(strlen(".tmp.") + OWNER_TAG_MAX));
    else if (why == EIO)
        snprintf(out, size, "; check the disk, or name a place on another one");
}

enum err file_write_error(const char *path, int why)
{
    char advice[512], *name = NULL;
    errno = why;
    const enum err kind = file_place_error();
    TRY(mem_alloc(&name, strlen(path) + 1, 1));
    file_final_name(name, path);
    advise(advice, sizeof(advice), name, why);
    const enum err err = err_set(kind, __FILE__, __LINE__, "%s: cannot write: %s%s", name,
                                 strerror(why), advice);
    mem_free(name);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * Maps, writers and whole files. */
#include "kernels/base/file/file.h"

#include "kernels/base/bytes.h"
#include "kernels/base/file/owner.h"
#include "kernels/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES (1u << 20)

struct file_writer {
    int fd;
    char *path, *tmp;
    uint8_t *buffer;
    size_t used;
    uint64_t bytes;
    uint32_t crc;
};

static enum err open_error(const char *path)
{
    if (errno == ENOENT)
        TRY(file_check_link(path));
    const enum err e = errno == ENOENT || errno == ENOTDIR ? ERR_NOT_FOUND
                       : errno == EACCES                   ? ERR_USAGE
                                                           : ERR_IO;
    FAIL(e, "%s: %s", path, strerror(errno));
}

static enum err map_file(struct file_map *m, int fd, const char *path)
{
    void *p = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0);
    FAIL_IF(p == MAP_FAILED, ERR_IO, "%s: cannot map %zu bytes: %s", path, m->size,
            strerror(errno));
    m->data = p;
    return OK;
}

static enum err read_whole(uint8_t *p, size_t n, int fd, const char *path)
{
    for (size_t at = 0; at < n;) {
        const ssize_t done = read(fd, p + at, n - at);
        if (done < 0 && errno == EINTR)
            continue;
        FAIL_IF(done < 0, ERR_IO, "%s: %s", path, strerror(errno));
        FAIL_IF(
            done == 0, ERR_IO,
            "%s: read %zu of %zu bytes: another process truncated the file while it was "
            "read",
            path, at, n);
        at += (size_t)done;
    }
    return OK;
}

static enum err load_file(struct file_map *m, int fd, const char *path)
{
    void *p =
        mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(p == MAP_FAILED, ERR_MEMORY, "%s: out of memory: %zu bytes", path, m->size);
    mem_want_huge(p, m->size);
    const enum err err = read_whole(p, m->size, fd, path);
    if (err) {
        munmap(p, m->size);
        return err;
    }
    (void)mprotect(p, m->size, PROT_READ);
    m->data = p;
    m->loaded = true;
    return OK;
}

typedef enum err fill_fn(struct file_map *m, int fd, const char *path);

static enum err open_map(struct file_map *out, const char *path, fill_fn *fill)
{
    enum err err = OK;
    struct stat st;
    /* Without O_NONBLOCK, opening a pipe under a file's name would wait for its writer. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return open_error(path);
    if (fstat(fd, &st))
        FAIL_OUT(ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        FAIL_OUT(ERR_NOT_FOUND, "%s: not a regular file", path);
    struct file_map m = {.size = (size_t)st.st_size};
    if (m.size)
        TRY_OUT(fill(&m, fd, path));
    *out = m;
out:
    close(fd);
    return err;
}

enum err file_map_open(struct file_map *out, const char *path)
{
    return open_map(out, path, map_file);
}

enum err file_map_load(struct file_map *out, const char *path)
{
    return open_map(out, path, load_file);
}

void file_map_close(struct file_map *m)
{
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->size);
    *m = (struct file_map){0};
}

enum err file_place_error(void)
{
    return errno == EACCES || errno == EPERM || errno == EROFS || errno == ELOOP ||
                   errno == ENAMETOOLONG || errno == ENOENT || errno == ENOTDIR
               ? ERR_USAGE
               : ERR_IO;
}

/* Returns the file to replace: the target of a link, else path itself. */
static enum err follow_link(char **out, const char *path)
{
    struct stat st;
    if (lstat(path, &st) || !S_ISLNK(st.st_mode))
        return mem_strdup(out, path);
    char *real = realpath(path, NULL);
    FAIL_IF(!real && errno == ENOMEM, ERR_MEMORY, "%s: out of memory", path);
    FAIL_IF(!real, ERR_USAGE, "%s: cannot follow the link: %s; remove it or name a file",
            path, strerror(errno));
    const enum err err = mem_strdup(out, real);
    free(real);
    return err;
}

/* Opens a new file beside w->path, after what killed writers of it left has made room. If
 * its name exists, it belongs to another process, and the next name is tried. */
static enum err open_beside(struct file_writer *w)
{
    char tag[OWNER_TAG_MAX];
    const size_t room = strlen(w->path) + sizeof(tag) + 32;
    char *tmp = NULL;
    TRY(file_remove_dead_temps(w->path));
    owner_tag(tag);
    TRY(mem_alloc(&tmp, room, 1));
    for (int i = 0; w->fd < 0; i++) {
        snprintf(tmp, room, i ? "%s.tmp.%s.%d" : "%s.tmp.%s", w->path, tag, i);
        w->fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (w->fd < 0 && errno != EEXIST) {
            const enum err err = file_write_error(tmp, errno);
            mem_free(tmp);
            return err;
        }
    }
    w->tmp = tmp;
    return OK;
}

static enum err open_for_writing(struct file_writer *w)
{
    struct stat st;
    const bool there = !stat(w->path, &st);
    FAIL_IF(there && S_ISDIR(st.st_mode), ERR_USAGE, "%s: is a directory; name a file",
            w->path);
    if (!there || S_ISREG(st.st_mode))
        return open_beside(w);
    w->fd = open(w->path, O_WRONLY | O_CLOEXEC);
    return w->fd < 0 ? file_write_error(w->path, errno) : OK;
}

enum err file_writer_open(struct file_writer **out, const char *path)
{
    enum err err = OK;
    struct stat st;
    struct file_writer *w = NULL;
    TRY(mem_calloc(&w, 1, sizeof(*w)));
    w->fd = -1;
    if (!path) {
        *out = w;
        return OK;
    }
    if (!stat(path, &st) && !S_ISREG(st.st_mode))
        /* such as /dev/stdout, which has no name to replace */
        TRY_OUT(mem_strdup(&w->path, path));
    else
        TRY_OUT(follow_link(&w->path, path));
    TRY_OUT(mem_alloc(&w->buffer, BUFFER_BYTES, 1));
    TRY_OUT(open_for_writing(w));
    *out = w;
    return OK;
out:
    file_writer_abort(&w);
    return err;
}

enum err file_writer_probe(const char *path)
{
    struct stat st;
    struct file_writer *w = NULL;
    if (!stat(path, &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return OK; /* opening a pipe would wait for its reader */
    TRY(file_writer_open(&w, path));
    file_writer_abort(&w);
    return OK;
}

static const char *written_name(const struct file_writer *w)
{
    return w->tmp ? w->tmp : w->path;
}

static enum err write_fully(struct file_writer *w, const uint8_t *p, size_t n)
{
    while (n) {
        const ssize_t done = write(w->fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return file_write_error(written_name(w), errno);
        p += done;
        n -= (size_t)done;
    }
    return OK;
}

static enum err flush(struct file_writer *w)
{
    const size_t n = w->used;
    w->used = 0;
    return write_fully(w, w->buffer, n);
}

enum err file_write(struct file_writer *w, const void *data, size_t n)
{
    w->crc = bytes_crc32(w->crc, data, n);
    w->bytes += n;
    if (!w->path)
        return OK;
    if (n > BUFFER_BYTES - w->used)
        TRY(flush(w));
    if (n >= BUFFER_BYTES)
        return write_fully(w, data, n);
    if (n)
        memcpy(w->buffer + w->used, data, n);
    w->used += n;
    return OK;
}

enum err file_printf(struct file_writer *w, const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    const int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    FAIL_IF(n < 0, ERR_MEMORY, "out of memory while formatting");
    enum err err = file_write(w, s, (size_t)n);
    free(s);
    return err;
}

uint64_t file_writer_bytes(const struct file_writer *w)
{
    return w->bytes;
}

uint32_t file_writer_crc(const struct file_writer *w)
{
    return w->crc;
}

static enum err sync_parent(const char *path)
{
    char *dir = NULL;
    TRY(file_parent(&dir, path));
    file_sync_dir(dir);
    mem_free(dir);
    return OK;
}

enum err file_writer_commit(struct file_writer **pw)
{
    enum err err = OK;
    struct file_writer *w = *pw;
    TRY_OUT(flush(w));
    if (w->tmp && fsync(w->fd))
        TRY_OUT(file_write_error(w->tmp, errno));
    const int bad = close(w->fd);
    w->fd = -1;
    if (bad)
        TRY_OUT(file_write_error(written_name(w), errno));
    if (!w->tmp)
        goto out;
    if (rename(w->tmp, w->path))
        TRY_OUT(file_write_error(w->tmp, errno));
    mem_free(w->tmp);
    w->tmp = NULL;
    TRY_OUT(sync_parent(w->path));
out:
    file_writer_abort(pw);
    return err;
}

void file_writer_abort(struct file_writer **pw)
{
    struct file_writer *w = *pw;
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (w->tmp)
        unlink(w->tmp);
    mem_free(w->path);
    mem_free(w->tmp);
    mem_free(w->buffer);
    mem_free(w);
    *pw = NULL;
}

enum err file_read_all(char **out, size_t *size, const char *path, size_t limit)
{
    struct file_map m = {0};
    enum err err = OK;
    char *p = NULL;
    TRY(file_map_open(&m, path));
    if (m.size > limit)
        FAIL_OUT(ERR_FORMAT, "%s: %zu bytes, more than the limit of %zu", path, m.size,
                 limit);
    TRY_OUT(mem_alloc(&p, m.size + 1, 1));
    if (m.size)
        memcpy(p, m.data, m.size);
    p[m.size] = '\0';
    *out = p;
    *size = m.size;
out:
    file_map_close(&m);
    return err;
}

enum err file_write_all(const char *path, const void *data, size_t n)
{
    struct file_writer *w = NULL;
    TRY(file_writer_open(&w, path));
    enum err err = file_write(w, data, n);
    if (err) {
        file_writer_abort(&w);
        return err;
    }
    return file_writer_commit(&w);
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool file_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool file_is_regular(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

int64_t file_size(const char *path)
{
    struct stat st;
    return stat(path, &st) ? -1 : (int64_t)st.st_size;
}

enum err file_check_link(const char *path)
{
    char target[512];
    if (file_exists(path))
        return OK;
    FAIL_IF(errno == EACCES, ERR_USAGE, "%s: %s", path, strerror(errno));
    const ssize_t n = readlink(path, target, sizeof(target) - 1);
    if (n < 0) /* not a link: missing, which the caller reports */
        return OK;
    target[n] = '\0';
    FAIL(ERR_NOT_FOUND, "%s: a link to %s, which is missing; download the model again",
         path, target);
}

enum err file_join(char **out, const char *dir, const char *name)
{
    const size_t n = strlen(dir);
    char *p = NULL;
    TRY(mem_alloc(&p, n + strlen(name) + 2, 1));
    sprintf(p, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
    *out = p;
    return OK;
}

const char *file_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool file_is_lfs_pointer(const void *bytes, size_t n)
{
    /* The specification's limit is 1024 bytes, and "version" is always the first line. */
    static const char head[] = "version https://git-lfs.github.com/spec/v";
    return n < 1024 && n >= sizeof(head) && !memcmp(bytes, head, sizeof(head) - 1);
}

enum err file_crc32(uint32_t *crc, uint64_t *bytes, const char *path)
{
    struct file_map m = {0};
    TRY(file_map_open(&m, path));
    *crc = bytes_crc32(0, m.data, m.size);
    *bytes = m.size;
    file_map_close(&m);
    return OK;
}

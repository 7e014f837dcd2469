/* SPDX-License-Identifier: MIT */
#include "data/unpack.h"

#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <iconv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Text shrinks to a third or a tenth. Deflate reaches 1032, which only a bomb does. */
#define RATIO_MAX 100
#define INFLATED_FREE ((size_t)16 << 20) /* allowed whatever the ratio */
#define LAYERS_MAX 4
#define PIECE ((size_t)1 << 20)
#define NAMES_SHOWN 3

const char *unpack_shown(const char *path)
{
    return strcmp(path, "-") ? path : "standard input";
}

static size_t inflated_limit(size_t packed, size_t limit)
{
    size_t by_ratio;
    if (!size_mul(packed, RATIO_MAX, &by_ratio))
        return limit;
    if (by_ratio < INFLATED_FREE)
        by_ratio = INFLATED_FREE;
    return by_ratio < limit ? by_ratio : limit;
}

/* --- opening ------------------------------------------------------------------------ */

static int is_visible(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

/* Returns the error for a directory. Its message lists files in it that may have been
 * meant. */
static enum err refuse_directory(const char *path)
{
    struct dirent **entry = NULL;
    char names[512] = "";
    size_t used = 0;
    int shown = 0;
    const int n = scandir(path, &entry, is_visible, alphasort);
    for (int i = 0; i < n; i++) {
        char *file = NULL;
        if (shown < NAMES_SHOWN && !file_join(&file, path, entry[i]->d_name) &&
            file_is_regular(file) && used + strlen(file) + 3 < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s",
                                     shown++ ? ", " : "", file);
        mem_free(file);
        free(entry[i]);
    }
    free(entry);
    FAIL_IF(!shown, ERR_USAGE, "%s: is a directory without a file; give a file", path);
    FAIL(ERR_USAGE, "%s: is a directory; give a file, as in %s", path, names);
}

/* Reads a pipe or standard input to its end. */
static enum err read_stream(struct unpacked *u, int fd, const char *shown, size_t limit)
{
    size_t room = 0;
    log_info("%s: reading to the end", shown);
    for (;;) {
        if (u->bytes == room) {
            const size_t more = room ? room * 2 : PIECE;
            TRY(mem_resize(&u->owned, u->bytes, more, 1));
            room = more;
        }
        const ssize_t got = read(fd, u->owned + u->bytes, room - u->bytes);
        if (got < 0 && errno == EINTR)
            continue;
        FAIL_IF(got < 0, ERR_IO, "%s: %s", shown, strerror(errno));
        if (!got)
            break;
        u->bytes += (size_t)got;
        FAIL_IF(u->bytes > limit, ERR_FORMAT, "%s: more than the limit of %zu bytes", shown,
                limit);
    }
    u->data = u->bytes ? u->owned : NULL;
    return OK;
}

static enum err open_stream(struct unpacked *u, const char *path, size_t limit)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    FAIL_IF(fd < 0, errno == EACCES ? ERR_USAGE : ERR_IO, "%s: %s", path, strerror(errno));
    const enum err err = read_stream(u, fd, path, limit);
    close(fd);
    return err;
}

static enum err open_stdin(struct unpacked *u, size_t limit)
{
    struct stat st;
    FAIL_IF(fstat(STDIN_FILENO, &st), ERR_USAGE, "standard input: %s", strerror(errno));
    FAIL_IF(S_ISDIR(st.st_mode) || S_ISBLK(st.st_mode) ||
                (S_ISCHR(st.st_mode) && !isatty(STDIN_FILENO)),
            ERR_USAGE, "standard input: a device or a directory; give a file or a pipe");
    return read_stream(u, STDIN_FILENO, "standard input", limit);
}

/* Of a name that no file has, adds how a text from elsewhere becomes a file. */
static enum err refuse_missing(const char *path)
{
    const char *advice = "";
    if (strstr(path, "://"))
        advice = "; download it first, and give the file";
    else if (!strchr(file_base_name(path), '.'))
        advice = "; a data set of the hub is given as its files: download it first, by "
                 "`hf download --repo-type dataset NAME`";
    FAIL(ERR_NOT_FOUND, "%s: %s%s", path, strerror(ENOENT), advice);
}

static enum err open_plain(struct unpacked *u, const char *path, size_t limit)
{
    struct stat st;
    if (!strcmp(path, "-") || !strcmp(path, "/dev/stdin"))
        return open_stdin(u, limit);
    if (!stat(path, &st) && S_ISDIR(st.st_mode))
        return refuse_directory(path);
    if (!stat(path, &st) && S_ISFIFO(st.st_mode))
        return open_stream(u, path, limit);
    if (lstat(path, &st) && errno == ENOENT)
        return refuse_missing(path);
    TRY(file_map_open(&u->map, path));
    u->data = (const char *)u->map.data;
    u->bytes = u->map.size;
    FAIL_IF(u->bytes > limit, ERR_FORMAT, "%s: %zu bytes, more than the limit of %zu", path,
            u->bytes, limit);
    return OK;
}

/* Returns the colon of ARCHIVE:SUFFIX. NULL if path itself is a file, or if the part before
 * every colon is not one. */
static const char *find_colon(const char *path)
{
    if (file_exists(path))
        return NULL;
    for (const char *colon = strchr(path, ':'); colon; colon = strchr(colon + 1, ':')) {
        char *archive = strndup(path, (size_t)(colon - path));
        const bool found = archive && colon[1] && file_is_regular(archive);
        free(archive);
        if (found)
            return colon;
    }
    return NULL;
}

/* --- layers ------------------------------------------------------------------------- */

/* Replaces the content by data, and releases the layer below it. */
static void replace(struct unpacked *u, char *data, size_t n)
{
    mem_free(u->owned);
    file_map_close(&u->map);
    u->owned = data;
    u->data = n ? data : NULL;
    u->bytes = n;
}

static void drop_suffix(struct unpacked *u)
{
    static const char *const packs[] = {".gz", ".xz", ".zst", ".bz2"};
    for (size_t i = 0; i < ARRAY_LEN(packs); i++)
        if (name_ends(u->name, packs[i])) {
            u->name[strlen(u->name) - strlen(packs[i])] = '\0';
            return;
        }
}

static void note(struct unpacked *u, const char *name)
{
    const size_t n = strlen(u->about);
    snprintf(u->about + n, sizeof(u->about) - n, "%s%s", n ? ", " : "", name);
}

/* Removes one layer. *suffix = NULL once an archive has used it. */
static enum err unwrap(struct unpacked *u, const struct packed *p, struct sniffed is,
                       const char **suffix)
{
    char *data = NULL, member[MEMBER_NAME_MAX];
    size_t n = 0;
    if (is.content == CONTENT_ZIP || is.content == CONTENT_TAR) {
        TRY(inflate_member(&data, &n, member, p, is.content, *suffix));
        snprintf(u->name, sizeof(u->name), "%s", file_base_name(member));
        *suffix = NULL;
    } else {
        TRY(inflate_stream(&data, &n, p, is.content));
        drop_suffix(u);
    }
    note(u, is.name);
    replace(u, data, n);
    return OK;
}

/* Converts UTF-16 or UTF-32 to UTF-8 in one piece: the result is at most half as long
 * again. */
static enum err convert(struct unpacked *u, const char *path, struct sniffed is)
{
    char *out = NULL, *in = (char *)(uintptr_t)u->data + is.mark, *to;
    size_t left = u->bytes - is.mark, room = left / 2 * 3 + 4, free_bytes = room;
    iconv_t cd = iconv_open("UTF-8", is.name);
    FAIL_IF(cd == (iconv_t)-1, ERR_SUPPORT, "%s: is %s, which this system cannot convert",
            path, is.name);
    const enum err err = mem_alloc(&out, room, 1);
    to = out;
    const bool bad = !err && iconv(cd, &in, &left, &to, &free_bytes) == (size_t)-1;
    iconv_close(cd);
    TRY(err);
    if (bad) {
        mem_free(out);
        FAIL(
            ERR_FORMAT,
            "%s: is %s, but not valid at byte %zu; convert it with iconv -c -f %s -t UTF-8",
            path, is.name, u->bytes - left, is.name);
    }
    note(u, is.name);
    replace(u, out, room - free_bytes);
    if (!u->bytes) {
        mem_free(u->owned);
        u->owned = NULL;
    }
    return OK;
}

static enum err peel(struct unpacked *u, const char *path, const char *suffix, size_t limit)
{
    struct sniffed is = sniff(u->data, u->bytes);
    const char *shown = unpack_shown(path);
    limit = inflated_limit(u->bytes, limit);
    for (int i = 0; is.content >= CONTENT_GZIP && is.content <= CONTENT_TAR; i++) {
        const struct packed p = {shown, u->data, u->bytes, limit};
        FAIL_IF(i == LAYERS_MAX, ERR_FORMAT,
                "%s: packed more than %d times; refused as a likely archive bomb", shown,
                LAYERS_MAX);
        TRY(unwrap(u, &p, is, &suffix));
        is = sniff(u->data, u->bytes);
    }
    FAIL_IF(suffix, ERR_NOT_FOUND, "%s: is not a zip or tar archive; it has no member %s",
            shown, suffix);
    FAIL_IF(is.content == CONTENT_OTHER, ERR_FORMAT, "%s: is %s; to get text: %s", shown,
            is.name, is.advice);
    if (is.content >= CONTENT_UTF16LE && is.content <= CONTENT_UTF32BE)
        return convert(u, shown, is);
    if (is.content == CONTENT_UTF8) {
        u->data += is.mark;
        u->bytes -= is.mark;
    }
    return OK;
}

static enum err open_member(struct unpacked *u, const char *path, const char *colon,
                            size_t limit)
{
    char *archive = NULL;
    TRY(mem_strdup(&archive, path));
    archive[colon - path] = '\0';
    snprintf(u->name, sizeof(u->name), "%s", file_base_name(archive));
    enum err err = open_plain(u, archive, limit);
    if (!err)
        err = peel(u, archive, colon + 1, limit);
    mem_free(archive);
    return err;
}

static enum err open_whole(struct unpacked *u, const char *path, size_t limit)
{
    snprintf(u->name, sizeof(u->name), "%s", file_base_name(path));
    TRY(open_plain(u, path, limit));
    return peel(u, path, NULL, limit);
}

enum err unpack_open(struct unpacked *out, const char *path, size_t limit)
{
    struct unpacked u = {0};
    const char *colon = find_colon(path);
    const enum err err =
        colon ? open_member(&u, path, colon, limit) : open_whole(&u, path, limit);
    if (err) {
        unpack_close(&u);
        return err;
    }
    *out = u;
    return OK;
}

void unpack_close(struct unpacked *u)
{
    mem_free(u->owned);
    file_map_close(&u->map);
    *u = (struct unpacked){0};
}

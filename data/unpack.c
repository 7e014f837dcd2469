/* SPDX-License-Identifier: MIT */
#include "data/unpack.h"

#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <zip.h>
#include <zlib.h>

/* Text shrinks to a third or a tenth. Deflate goes to 1032, which is a bomb. */
#define RATIO_MAX 100
#define INFLATED_FREE ((size_t)16 << 20) /* whatever the ratio */
#define PIECE ((size_t)1 << 20)
#define FIRST_PIECE ((size_t)1 << 16)

/* Inflated bytes, growing up to a limit. */
struct sink {
    const char *path;
    char *data;
    size_t n, room, limit;
};

bool name_ends(const char *name, const char *suffix)
{
    const size_t n = strlen(name), k = strlen(suffix);
    return n >= k && !strcasecmp(name + n - k, suffix);
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

/* Count n more bytes, of at most PIECE. */
static enum err sink_add(struct sink *s, size_t n)
{
    s->n += n;
    FAIL_IF(s->n > s->limit, ERR_FORMAT,
            "%s: inflates to more than %zu bytes; refused as a likely archive bomb",
            s->path, s->limit);
    return OK;
}

/* At least one free byte at data + n. */
static enum err sink_room(struct sink *s)
{
    if (s->n < s->room)
        return OK;
    const size_t room = s->room ? s->room * 2 : FIRST_PIECE;
    TRY(mem_resize(&s->data, s->n, room, 1));
    s->room = room;
    return OK;
}

/* One gzip member; *z keeps its place in the input. */
static enum err inflate_member(struct sink *s, z_stream *z)
{
    int rc = Z_OK;
    while (rc != Z_STREAM_END) {
        TRY(sink_room(s));
        const size_t room = s->room - s->n < PIECE ? s->room - s->n : PIECE;
        z->next_out = (Bytef *)s->data + s->n;
        z->avail_out = (uInt)room;
        rc = inflate(z, Z_NO_FLUSH);
        TRY(sink_add(s, room - z->avail_out));
        FAIL_IF(rc == Z_BUF_ERROR || (rc == Z_OK && !z->avail_in && z->avail_out),
                ERR_FORMAT, "%s: the gzip data is truncated", s->path);
        FAIL_IF(rc != Z_OK && rc != Z_STREAM_END,
                rc == Z_MEM_ERROR ? ERR_MEMORY : ERR_FORMAT, "%s: corrupt gzip data: %s",
                s->path, z->msg ? z->msg : zError(rc));
    }
    return OK;
}

/* All members; the input is handed over in pieces because avail_in is 32 bits wide. */
static enum err inflate_all(struct sink *s, z_stream *z, const struct file_map *m)
{
    FAIL_IF(m->size > UINT32_MAX, ERR_SUPPORT,
            "%s: gzip files above 4 GiB are not supported; unpack it first", s->path);
    z->next_in = (Bytef *)(uintptr_t)m->data;
    z->avail_in = (uInt)m->size;
    FAIL_IF(!m->size, ERR_FORMAT, "%s: empty, want gzip data", s->path);
    do {
        TRY(inflate_member(s, z));
        while (z->avail_in && !*z->next_in) { /* zeros may pad the end, as tar does */
            z->next_in++;
            z->avail_in--;
        }
        inflateReset(z);
    } while (z->avail_in);
    return OK;
}

static enum err open_gzip(struct unpacked *out, const char *path, size_t limit)
{
    enum err err = OK;
    struct file_map m = {0};
    struct sink s = {.path = path};
    TRY(file_map_open(&m, path));
    s.limit = inflated_limit(m.size, limit);
    z_stream z = {0};
    if (inflateInit2(&z, 15 + 16) != Z_OK) { /* 16: gzip wrapper only */
        file_map_close(&m);
        FAIL(ERR_MEMORY, "out of memory for inflate");
    }
    TRY_OUT(inflate_all(&s, &z, &m));
    out->data = out->owned = s.data;
    out->bytes = s.n;
    s.data = NULL;
    const size_t n = strlen(file_base_name(path)) - 3;
    snprintf(out->name, sizeof(out->name), "%.*s", (int)n, file_base_name(path));
out:
    mem_free(s.data);
    inflateEnd(&z);
    file_map_close(&m);
    return err;
}

static bool is_text_name(const char *name)
{
    static const char *const ends[] = {".txt", ".raw", ".tokens", ".jsonl"};
    for (size_t i = 0; i < ARRAY_LEN(ends); i++)
        if (name_ends(name, ends[i]))
            return !strstr(name, "__MACOSX/");
    return false;
}

/* The one member that fits; its index. */
static enum err pick_member(zip_uint64_t *out, zip_t *z, const char *path,
                            const char *suffix)
{
    const zip_int64_t n = zip_get_num_entries(z, 0);
    const char *found = NULL;
    for (zip_int64_t i = 0; i < n; i++) {
        const char *name = zip_get_name(z, (zip_uint64_t)i, 0);
        if (!name || name_ends(name, "/") ||
            !(suffix ? name_ends(name, suffix) : is_text_name(name)))
            continue;
        FAIL_IF(found, ERR_FORMAT,
                "%s: holds %s and %s; say which with %s:NAME, the end of a member's name",
                path, found, name, path);
        found = name;
        *out = (zip_uint64_t)i;
    }
    FAIL_IF(!found && suffix, ERR_NOT_FOUND, "%s: no member's name ends in \"%s\"", path,
            suffix);
    FAIL_IF(!found, ERR_FORMAT, "%s: no text file (.txt, .raw, .tokens, .jsonl) inside",
            path);
    return OK;
}

static enum err read_member(struct sink *s, zip_t *z, zip_uint64_t i, const char *member)
{
    enum err err = OK;
    zip_file_t *f = zip_fopen_index(z, i, 0);
    FAIL_IF(!f, ERR_FORMAT, "%s: %s: %s", s->path, member, zip_strerror(z));
    for (;;) {
        TRY_OUT(sink_room(s));
        const size_t room = s->room - s->n < PIECE ? s->room - s->n : PIECE;
        const zip_int64_t got = zip_fread(f, s->data + s->n, room);
        if (got < 0)
            FAIL_OUT(ERR_FORMAT, "%s: %s: %s", s->path, member, zip_file_strerror(f));
        if (!got)
            break;
        TRY_OUT(sink_add(s, (size_t)got));
    }
out:
    zip_fclose(f);
    return err;
}

/* libzip checks sizes and the CRC of what it reads. */
static enum err open_zip(struct unpacked *out, const char *path, const char *suffix,
                         size_t limit)
{
    enum err err = OK;
    int code = 0;
    zip_error_t why;
    struct sink s = {.path = path};
    zip_uint64_t i = 0;
    FAIL_IF(!file_exists(path), ERR_NOT_FOUND, "%s: no such file", path);
    FAIL_IF(!file_is_regular(path), ERR_NOT_FOUND, "%s: not a regular file", path);
    zip_t *z = zip_open(path, ZIP_RDONLY | ZIP_CHECKCONS, &code);
    if (!z) {
        zip_error_init_with_code(&why, code);
        err = err_set(ERR_FORMAT, __FILE__, __LINE__, "%s: %s", path,
                      zip_error_strerror(&why));
        zip_error_fini(&why);
        return err;
    }
    s.limit = inflated_limit((size_t)file_size(path), limit);
    TRY_OUT(pick_member(&i, z, path, suffix));
    const char *member = zip_get_name(z, i, 0);
    TRY_OUT(read_member(&s, z, i, member));
    snprintf(out->name, sizeof(out->name), "%s", file_base_name(member));
    out->data = out->owned = s.data;
    out->bytes = s.n;
    s.data = NULL;
out:
    mem_free(s.data);
    zip_discard(z);
    return err;
}

/* ARCHIVE.zip:SUFFIX, unless a file of that very name is there. */
static enum err open_zip_member(struct unpacked *out, const char *path, const char *colon,
                                size_t limit)
{
    char *archive = NULL;
    TRY(mem_strdup(&archive, path));
    archive[colon - path] = '\0';
    const enum err err = open_zip(out, archive, colon + 1, limit);
    mem_free(archive);
    return err;
}

enum err unpack_open(struct unpacked *out, const char *path, size_t limit)
{
    struct unpacked u = {0};
    const char *inside = strstr(path, ".zip:");
    if (inside && inside[5] && !file_exists(path))
        TRY(open_zip_member(&u, path, inside + 4, limit));
    else if (name_ends(path, ".zip"))
        TRY(open_zip(&u, path, NULL, limit));
    else if (name_ends(path, ".gz"))
        TRY(open_gzip(&u, path, limit));
    else {
        TRY(file_map_open(&u.map, path));
        u.data = (const char *)u.map.data;
        u.bytes = u.map.size;
        snprintf(u.name, sizeof(u.name), "%s", file_base_name(path));
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

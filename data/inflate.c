/* SPDX-License-Identifier: MIT */
#include "data/inflate.h"

#include "kernels/base/mem.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <zlib.h>

#define PIECE ((size_t)1 << 20)
#define FIRST_PIECE ((size_t)1 << 16)

/* The output while it grows. */
struct sink {
    const struct packed *from;
    char *data;
    size_t n, room;
};

bool name_ends(const char *name, const char *suffix)
{
    const size_t n = strlen(name), k = strlen(suffix);
    return n >= k && !strcasecmp(name + n - k, suffix);
}

/* Makes room for `more` bytes, unless the limit forbids it. */
static enum err sink_room(struct sink *s, size_t more)
{
    size_t need;
    FAIL_IF(!size_add(s->n, more, &need), ERR_MEMORY, "%s: out of memory", s->from->path);
    if (need <= s->room)
        return OK;
    size_t room = s->room ? s->room * 2 : FIRST_PIECE;
    room = room < need ? need : room;
    TRY(mem_resize(&s->data, s->n, room, 1));
    s->room = room;
    return OK;
}

/* Counts n bytes that were written after the previous ones. */
static enum err sink_count(struct sink *s, size_t n)
{
    s->n += n;
    FAIL_IF(s->n > s->from->limit, ERR_FORMAT,
            "%s: inflates to more than %zu bytes; refused as a likely archive bomb",
            s->from->path, s->from->limit);
    return OK;
}

static enum err sink_add(struct sink *s, const void *data, size_t n)
{
    for (size_t at = 0; at < n;) {
        const size_t k = n - at < PIECE ? n - at : PIECE;
        TRY(sink_room(s, k));
        memcpy(s->data + s->n, (const char *)data + at, k);
        TRY(sink_count(s, k));
        at += k;
    }
    return OK;
}

/* --- gzip --------------------------------------------------------------------------- */

/* Gzip is read with zlib, because libarchive does not check a member's CRC-32 and
 * length. */
struct gunzip {
    struct sink *s;
    z_stream z;
    size_t at; /* start of the input that z has not received */
};

/* Passes z the next part of the input: zlib counts it in 32 bits. */
static void feed(struct gunzip *g)
{
    const struct packed *p = g->s->from;
    if (g->z.avail_in || g->at == p->n)
        return;
    const size_t n = p->n - g->at < PIECE ? p->n - g->at : PIECE;
    g->z.next_in = (Bytef *)(uintptr_t)p->data + g->at;
    g->z.avail_in = (uInt)n;
    g->at += n;
}

static enum err gunzip_member(struct gunzip *g)
{
    struct sink *s = g->s;
    const char *path = s->from->path;
    int rc = Z_OK;
    while (rc != Z_STREAM_END) {
        feed(g);
        TRY(sink_room(s, 1));
        const size_t room = s->room - s->n < PIECE ? s->room - s->n : PIECE;
        g->z.next_out = (Bytef *)s->data + s->n;
        g->z.avail_out = (uInt)room;
        const bool last = g->at == s->from->n;
        rc = inflate(&g->z, Z_NO_FLUSH);
        TRY(sink_count(s, room - g->z.avail_out));
        const bool starved = !g->z.avail_in && last && g->z.avail_out;
        FAIL_IF(rc == Z_BUF_ERROR || (rc == Z_OK && starved), ERR_FORMAT,
                "%s: the gzip data is truncated", path);
        FAIL_IF(rc != Z_OK && rc != Z_STREAM_END,
                rc == Z_MEM_ERROR ? ERR_MEMORY : ERR_FORMAT, "%s: corrupt gzip data: %s",
                path, g->z.msg ? g->z.msg : zError(rc));
    }
    return OK;
}

static enum err gunzip(struct sink *s)
{
    enum err err = OK;
    struct gunzip g = {.s = s};
    FAIL_IF(inflateInit2(&g.z, 15 + 16) != Z_OK, ERR_MEMORY, /* 16: gzip's wrapper only */
            "out of memory for inflate");
    do {
        TRY_OUT(gunzip_member(&g));
        feed(&g);
        while (g.z.avail_in && !*g.z.next_in) { /* tapes are padded with zeros */
            g.z.next_in++;
            g.z.avail_in--;
            feed(&g);
        }
        inflateReset(&g.z);
    } while (g.z.avail_in);
out:
    inflateEnd(&g.z);
    return err;
}

/* --- libarchive --------------------------------------------------------------------- */

static const char *kind_name(enum content kind)
{
    switch (kind) {
    case CONTENT_XZ:
        return "xz";
    case CONTENT_ZSTD:
        return "zstd";
    case CONTENT_BZIP2:
        return "bzip2";
    case CONTENT_TAR:
        return "tar";
    default:
        return "zip";
    }
}

/* Returns the error for damaged data. libarchive's message is vague if the first block is
 * broken, and is left out then. */
static enum err damaged(struct archive *a, const struct packed *p, enum content kind)
{
    const char *why = archive_error_string(a);
    const bool vague = !why || strstr(why, "Unrecognized archive");
    FAIL(archive_errno(a) == ENOMEM ? ERR_MEMORY : ERR_FORMAT,
         "%s: the %s data is truncated or corrupt%s%s", p->path, kind_name(kind),
         vague ? "" : ": ", vague ? "" : why);
}

/* Selects one format. A filter is forced, so that data which does not fit it is not passed
 * through as plain data. */
static int want_format(struct archive *a, enum content kind)
{
    switch (kind) {
    case CONTENT_XZ:
        archive_read_support_format_raw(a);
        return archive_read_append_filter(a, ARCHIVE_FILTER_XZ);
    case CONTENT_ZSTD:
        archive_read_support_format_raw(a);
        return archive_read_append_filter(a, ARCHIVE_FILTER_ZSTD);
    case CONTENT_BZIP2:
        archive_read_support_format_raw(a);
        return archive_read_append_filter(a, ARCHIVE_FILTER_BZIP2);
    case CONTENT_TAR:
        return archive_read_support_format_tar(a);
    default:
        return archive_read_support_format_zip_seekable(a);
    }
}

static enum err open_archive(struct archive **out, const struct packed *p,
                             enum content kind)
{
    struct archive *a = archive_read_new();
    FAIL_IF(!a, ERR_MEMORY, "out of memory for an archive's reader");
    if (want_format(a, kind) != ARCHIVE_OK ||
        archive_read_open_memory(a, p->data, p->n) != ARCHIVE_OK) {
        const enum err err = damaged(a, p, kind);
        archive_read_free(a);
        return err;
    }
    *out = a;
    return OK;
}

/* Reads the next entry; *e = NULL at the end. */
static enum err next_entry(struct archive_entry **e, struct archive *a,
                           const struct packed *p, enum content kind)
{
    const int rc = archive_read_next_header(a, e);
    if (rc == ARCHIVE_EOF) {
        *e = NULL;
        return OK;
    }
    return rc == ARCHIVE_OK || rc == ARCHIVE_WARN ? OK : damaged(a, p, kind);
}

static enum err read_entry(struct sink *s, struct archive *a, enum content kind)
{
    for (;;) {
        const void *block;
        size_t n;
        la_int64_t offset;
        const int rc = archive_read_data_block(a, &block, &n, &offset);
        if (rc == ARCHIVE_EOF)
            return OK;
        if (rc != ARCHIVE_OK)
            return damaged(a, s->from, kind);
        TRY(sink_add(s, block, n));
    }
}

static enum err read_filtered(struct sink *s, enum content kind)
{
    enum err err = OK;
    struct archive *a = NULL;
    struct archive_entry *e;
    TRY(open_archive(&a, s->from, kind));
    TRY_OUT(next_entry(&e, a, s->from, kind));
    TRY_OUT(e ? read_entry(s, a, kind) : damaged(a, s->from, kind));
    if ((uint64_t)archive_filter_bytes(a, -1) != s->from->n)
        FAIL_OUT(ERR_FORMAT, "%s: other bytes follow the end of the %s data", s->from->path,
                 kind_name(kind));
out:
    archive_read_free(a);
    return err;
}

enum err inflate_stream(char **data, size_t *n, const struct packed *p, enum content kind)
{
    struct sink s = {.from = p};
    const enum err err = kind == CONTENT_GZIP ? gunzip(&s) : read_filtered(&s, kind);
    if (err) {
        mem_free(s.data);
        return err;
    }
    *data = s.data;
    *n = s.n;
    return OK;
}

/* --- members ------------------------------------------------------------------------ */

/* The matching members of the list read so far. */
struct choice {
    int64_t text, file; /* index of the first text by name, and of the first file */
    int64_t n_texts, n_files;
    char first[MEMBER_NAME_MAX], second[MEMBER_NAME_MAX];
    char only[MEMBER_NAME_MAX];
};

static bool is_text_name(const char *name)
{
    static const char *const ends[] = {".txt", ".raw", ".tokens", ".jsonl"};
    static const char *const packs[] = {"", ".gz", ".xz", ".zst", ".bz2"};
    char end[32];
    for (size_t i = 0; i < ARRAY_LEN(ends); i++)
        for (size_t k = 0; k < ARRAY_LEN(packs); k++) {
            snprintf(end, sizeof(end), "%s%s", ends[i], packs[k]);
            if (name_ends(name, end))
                return true;
        }
    return false;
}

static const char *entry_name(struct archive_entry *e)
{
    const char *name = archive_entry_pathname(e);
    return name ? name : archive_entry_pathname_utf8(e);
}

static void consider(struct choice *c, struct archive_entry *e, int64_t index,
                     const char *suffix)
{
    const char *name = entry_name(e);
    const mode_t type = archive_entry_filetype(e);
    if (!name || name_ends(name, "/") || strstr(name, "__MACOSX/") ||
        (type && type != S_IFREG))
        return;
    if (!c->n_files++) {
        c->file = index;
        snprintf(c->only, sizeof(c->only), "%s", name);
    }
    if (suffix ? !name_ends(name, suffix) : !is_text_name(name))
        return;
    c->n_texts++;
    if (c->n_texts == 1)
        c->text = index;
    if (c->n_texts <= 2)
        snprintf(c->n_texts == 1 ? c->first : c->second, sizeof(c->first), "%s", name);
}

static enum err list_members(struct choice *c, const struct packed *p, enum content kind,
                             const char *suffix)
{
    enum err err = OK;
    struct archive *a = NULL;
    struct archive_entry *e = NULL;
    TRY(open_archive(&a, p, kind));
    for (int64_t i = 0;; i++) {
        TRY_OUT(next_entry(&e, a, p, kind));
        if (!e)
            break;
        consider(c, e, i, suffix);
    }
out:
    archive_read_free(a);
    return err;
}

/* Chooses the member to read: its index and its name. */
static enum err choose(int64_t *index, char *member, const struct packed *p,
                       enum content kind, const char *suffix)
{
    struct choice c = {0};
    TRY(list_members(&c, p, kind, suffix));
    FAIL_IF(c.n_texts > 1, ERR_FORMAT,
            "%s: holds %s and %s; choose one with %s:NAME, the end of a member's name",
            p->path, c.first, c.second, p->path);
    FAIL_IF(!c.n_texts && suffix, ERR_NOT_FOUND, "%s: no member's name ends in \"%s\"",
            p->path, suffix);
    FAIL_IF(!c.n_texts && c.n_files != 1, ERR_FORMAT,
            "%s: no text file (.txt, .raw, .tokens, .jsonl) inside; choose a member with "
            "%s:NAME, the end of its name",
            p->path, p->path);
    *index = c.n_texts ? c.text : c.file;
    snprintf(member, MEMBER_NAME_MAX, "%s", c.n_texts ? c.first : c.only);
    return OK;
}

enum err inflate_member(char **data, size_t *n, char *member, const struct packed *p,
                        enum content kind, const char *suffix)
{
    enum err err = OK;
    struct archive *a = NULL;
    struct archive_entry *e = NULL;
    struct sink s = {.from = p};
    int64_t index;
    TRY(choose(&index, member, p, kind, suffix));
    TRY(open_archive(&a, p, kind));
    for (int64_t i = 0; i <= index; i++) {
        TRY_OUT(next_entry(&e, a, p, kind));
        if (!e)
            FAIL_OUT(ERR_FORMAT, "%s: %s: the archive contradicts itself", p->path, member);
    }
    if (archive_entry_is_encrypted(e))
        FAIL_OUT(ERR_SUPPORT, "%s: %s is encrypted; extract it first", p->path, member);
    err = read_entry(&s, a, kind);
    if (err)
        err_add(err, "member %s of ", member);
out:
    archive_read_free(a);
    if (err) {
        mem_free(s.data);
        return err;
    }
    *data = s.data;
    *n = s.n;
    return OK;
}

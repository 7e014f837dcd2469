/* SPDX-License-Identifier: MIT */
#include "tests/data/text_fixture.h"

#include "data/inflate.h"
#include "kernels/base/file/file.h"
#include "tests/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include <archive_entry.h>
#include <cmocka.h>

char text_dir[96];
static char path[200];

int text_make_dir(void **state)
{
    return scratch_dir(text_dir, sizeof(text_dir)) ? 0 : -1;
}

int text_drop_dir(void **state)
{
    return !scratch_remove(text_dir);
}

const char *in_dir(const char *name)
{
    snprintf(path, sizeof(path), "%s/%s", text_dir, name);
    return path;
}

void put(const char *name, const char *data, size_t n)
{
    assert_int_equal(file_write_all(in_dir(name), data, n), OK);
}

void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

size_t gzip(uint8_t *out, size_t room, const char *text, size_t n)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)(uintptr_t)text;
    z.avail_in = (uInt)n;
    z.next_out = out;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return room - z.avail_out;
}

/* An archive (format: zip, ustar, raw) inside a filter (0: none); names and texts
 * alternate, NULL at the end. */
void put_archive(const char *name, int format, int filter, ...)
{
    struct archive *a = archive_write_new();
    va_list ap;
    va_start(ap, filter);
    assert_int_equal(archive_write_set_format(a, format), ARCHIVE_OK);
    assert_int_equal(archive_write_add_filter(a, filter), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(a, in_dir(name)), ARCHIVE_OK);
    for (const char *member; (member = va_arg(ap, const char *));) {
        const char *text = va_arg(ap, const char *);
        const bool is_dir = name_ends(member, "/");
        struct archive_entry *e = archive_entry_new();
        archive_entry_set_pathname(e, member);
        archive_entry_set_filetype(e, is_dir ? S_IFDIR : S_IFREG);
        archive_entry_set_perm(e, 0644);
        archive_entry_set_size(e, (la_int64_t)strlen(text));
        assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
        assert_int_equal(archive_write_data(a, text, strlen(text)), strlen(text));
        archive_entry_free(e);
    }
    va_end(ap);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
}

void put_stream(const char *name, int filter, const char *text)
{
    put_archive(name, ARCHIVE_FORMAT_RAW, filter, "data", text, NULL);
}

void want_field(const char *name, enum corpus_join join, const char *field,
                const char *text, int64_t documents)
{
    struct corpus c = {0};
    const char *const p = in_dir(name);
    const struct corpus_rules rules = {join, field};
    err_clear();
    if (corpus_load(&c, &p, 1, &rules))
        fail_msg("%s", err_text());
    assert_string_equal(c.text, text);
    assert_int_equal(c.bytes, strlen(text));
    assert_int_equal(c.n_documents, documents);
    corpus_free(&c);
}

void want(const char *name, enum corpus_join join, const char *text, int64_t documents)
{
    want_field(name, join, NULL, text, documents);
}

void refuse_field(const char *name, const char *field, enum err e, const char *word)
{
    struct corpus c = {0};
    const char *const p = in_dir(name);
    const struct corpus_rules rules = {JOIN_AUTO, field};
    err_clear();
    const enum err have = corpus_load(&c, &p, 1, &rules);
    if (have != e || !strstr(err_text(), word) || !strstr(err_text(), text_dir))
        fail_msg("%s: want %s, \"%s\", have %s: %s", name, err_name(e), word,
                 err_name(have), err_text());
    assert_null(c.text);
}

void refuse(const char *name, enum err e, const char *word)
{
    refuse_field(name, NULL, e, word);
}

/* SPDX-License-Identifier: MIT
 *
 * Text files to one string: joining, JSONL, gzip, zip, and archives that lie. */
#include "data/corpus.h"
#include "data/unpack.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "tests/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zip.h>
#include <zlib.h>

#include <cmocka.h>

static char dir[96], path[200];

static int make_dir(void **state)
{
    return scratch_dir(dir, sizeof(dir)) ? 0 : -1;
}

static int drop_dir(void **state)
{
    return file_remove_dir(dir) != OK;
}

static const char *in_dir(const char *name)
{
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static void put(const char *name, const char *data, size_t n)
{
    assert_int_equal(file_write_all(in_dir(name), data, n), OK);
}

static void put_text(const char *name, const char *text)
{
    put(name, text, strlen(text));
}

static size_t gzip(uint8_t *out, size_t room, const char *text, size_t n)
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

/* names and texts alternate, NULL at the end */
static void put_zip(const char *name, ...)
{
    unlink(in_dir(name));
    zip_t *z = zip_open(path, ZIP_CREATE, NULL);
    va_list ap;
    va_start(ap, name);
    for (const char *member; (member = va_arg(ap, const char *));) {
        const char *text = va_arg(ap, const char *);
        zip_source_t *s = zip_source_buffer(z, text, strlen(text), 0);
        assert_true(zip_file_add(z, member, s, 0) >= 0);
    }
    va_end(ap);
    assert_int_equal(zip_close(z), 0);
}

static void want(const char *name, enum corpus_join join, const char *text,
                 int64_t documents)
{
    struct corpus c = {0};
    const char *const p = in_dir(name);
    err_clear();
    if (corpus_load(&c, &p, 1, join))
        fail_msg("%s", err_text());
    assert_string_equal(c.text, text);
    assert_int_equal(c.bytes, strlen(text));
    assert_int_equal(c.n_documents, documents);
    corpus_free(&c);
}

static void refuse(const char *name, enum err e, const char *word)
{
    struct corpus c = {0};
    const char *const p = in_dir(name);
    err_clear();
    const enum err have = corpus_load(&c, &p, 1, JOIN_AUTO);
    if (have != e || !strstr(err_text(), word) || !strstr(err_text(), dir))
        fail_msg("%s: want %s, \"%s\", have %s: %s", name, err_name(e), word,
                 err_name(have), err_text());
    assert_null(c.text);
}

static void test_join(void **state)
{
    static const char raw[] = " \n = A = \n \n text \nmore\n";
    static const char rows[] = "\n\n = A = \n\n\n\n\n text \n\n\nmore\n";
    put_text("a.raw", raw);
    put_text("a.txt", raw);
    put_text("a.tokens", raw);
    want("a.raw", JOIN_AUTO, rows, 1);
    want("a.tokens", JOIN_AUTO, rows, 1);
    want("a.txt", JOIN_AUTO, raw, 1);
    want("a.txt", JOIN_ROWS, rows, 1);
    want("a.raw", JOIN_FILE, raw, 1);
    put_text(
        "b.raw",
        "x\n\xc2\xa0\xe3\x80\x80\t\n\xe2\x80\xa8\xff\nlast"); /* no newline at the end */
    want("b.raw", JOIN_AUTO, "x\n\n\n\n\n\xe2\x80\xa8\xff\n\n\nlast", 1);
    put_text("c.raw", "");
    want("c.raw", JOIN_AUTO, "", 1);
    put_text("c.raw", "\n\n");
    want("c.raw", JOIN_AUTO, "\n\n", 1);
}

static void test_files(void **state)
{
    put_text("1.txt", "one\n");
    put_text("2.txt", "two");
    char a[128], b[128];
    strcpy(a, in_dir("1.txt"));
    strcpy(b, in_dir("2.txt"));
    const char *const p[] = {a, b};
    struct corpus c = {0};
    assert_int_equal(corpus_load(&c, p, 2, JOIN_AUTO), OK);
    assert_string_equal(c.text, "one\n\n\ntwo");
    assert_int_equal(c.n_documents, 2);
    corpus_free(&c);
    put("n.txt", "a\0b", 3);
    const char *const q = in_dir("n.txt");
    assert_int_equal(corpus_load(&c, &q, 1, JOIN_AUTO), OK);
    assert_int_equal(c.bytes, 3);
    assert_memory_equal(c.text, "a\0b", 4);
    corpus_free(&c);
    refuse("none.txt", ERR_NOT_FOUND, "none.txt");
    refuse("none.zip", ERR_NOT_FOUND, "none.zip");
    refuse("none.gz", ERR_NOT_FOUND, "none.gz");
}

static void test_jsonl(void **state)
{
    put_text("a.jsonl",
             "{\"text\":\"one\"}\n \t\n\n{\"id\":3,\"text\":\"two\\u00e9\\n\"}\r\n");
    want("a.jsonl", JOIN_AUTO, "one\n\ntwo\xc3\xa9\n", 2);
    put_text("a.jsonl", "{\"text\":\"one\"}\n\n{\"txt\":\"two\"}\n");
    refuse("a.jsonl", ERR_FORMAT, "line 3: text is missing");
    put_text("a.jsonl", "{\"text\":5}\n");
    refuse("a.jsonl", ERR_FORMAT, "line 1: text is an integer");
    put_text("a.jsonl", "[1]\n");
    refuse("a.jsonl", ERR_FORMAT, "line 1: is an array");
    put_text("a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\n");
    refuse("a.jsonl", ERR_FORMAT, "line 2");
    put_text("a.jsonl", "{\"text\":\"a\"} {\"text\":\"b\"}\n");
    refuse("a.jsonl", ERR_FORMAT, "line 1");
}

static void test_gzip(void **state)
{
    uint8_t b[4096], two[8192];
    static const char text[] = "a\n \nb\n";
    const size_t n = gzip(b, sizeof(b), text, strlen(text));
    put("a.txt.gz", (char *)b, n);
    want("a.txt.gz", JOIN_AUTO, text, 1);
    put("a.raw.gz", (char *)b, n);
    want("a.raw.gz", JOIN_AUTO, "a\n\n\n\n\nb\n", 1);
    memcpy(two, b, n);
    memcpy(two + n, b, n);
    memset(two + 2 * n, 0, 100);
    put("m.gz", (char *)two, 2 * n + 100); /* two members and padding */
    want("m.gz", JOIN_AUTO, "a\n \nb\na\n \nb\n", 1);
    for (size_t cut = 0; cut < n; cut++) {
        put("t.gz", (char *)b, cut);
        refuse("t.gz", ERR_FORMAT, cut ? "truncated" : "empty");
    }
    put("t.gz", (char *)two, n + 5);
    refuse("t.gz", ERR_FORMAT, "truncated");
    b[n - 8] ^= 1; /* its CRC */
    put("t.gz", (char *)b, n);
    refuse("t.gz", ERR_FORMAT, "corrupt");
    put_text("t.gz", "plain text");
    refuse("t.gz", ERR_FORMAT, "corrupt");
    const size_t j = gzip(b, sizeof(b), "{\"text\":\"x\"}\n", 13);
    put("j.jsonl.gz", (char *)b, j);
    want("j.jsonl.gz", JOIN_AUTO, "x", 1);
}

static void test_zip(void **state)
{
    put_zip("a.zip", "w/", "", "w/wiki.test.raw", "a\n \nb\n", "w/notes.md", "x", NULL);
    want("a.zip", JOIN_AUTO, "a\n\n\n\n\nb\n", 1);
    put_zip("b.zip", "w/wiki.test.raw", "test\n", "w/wiki.train.raw", "train\n", NULL);
    refuse("b.zip", ERR_FORMAT, "wiki.train.raw");
    want("b.zip:test.raw", JOIN_AUTO, "test\n", 1);
    want("b.zip:wiki.train.raw", JOIN_AUTO, "train\n", 1);
    refuse("b.zip:valid.raw", ERR_NOT_FOUND, "valid.raw");
    refuse("b.zip:.raw", ERR_FORMAT, "wiki.train.raw");
    put_zip("c.zip", "x.bin", "1", NULL);
    refuse("c.zip", ERR_FORMAT, "no text file");
    put_zip("d.zip", "d.jsonl", "{\"text\":\"x\"}\n{\"text\":\"y\"}\n", NULL);
    want("d.zip", JOIN_AUTO, "x\n\ny", 2);
    put_text("e.zip", "not an archive");
    refuse("e.zip", ERR_FORMAT, "e.zip");
}

/* 8 MiB of zeros in about 8 KiB, against a limit of 1 MiB. */
static void test_bombs(void **state)
{
    const size_t n = 8u << 20;
    char *zeros = NULL;
    uint8_t *packed = NULL;
    struct unpacked u = {0};
    assert_int_equal(mem_calloc(&zeros, n + 1, 1), OK);
    assert_int_equal(mem_alloc(&packed, n, 1), OK);
    put("bomb.gz", (char *)packed, gzip(packed, n, zeros, n));
    err_clear();
    assert_int_equal(unpack_open(&u, in_dir("bomb.gz"), 1u << 20), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "bomb.gz: inflates to more than 1048576"));
    memset(zeros, ' ', n);
    put_zip("bomb.zip", "a.txt", zeros, NULL);
    err_clear();
    assert_int_equal(unpack_open(&u, in_dir("bomb.zip"), 1u << 20), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "inflates to more than 1048576"));
    assert_int_equal(unpack_open(&u, in_dir("bomb.zip"), n), OK);
    assert_int_equal(u.bytes, n);
    unpack_close(&u);
    mem_free(zeros);
    mem_free(packed);
}

static void mutate(const char *name, struct rng *r, int rounds)
{
    char *good = NULL, b[4096];
    size_t n;
    assert_int_equal(file_read_all(&good, &n, in_dir(name), sizeof(b)), OK);
    for (int i = 0; i < rounds; i++) {
        struct corpus c = {0};
        memcpy(b, good, n);
        for (uint64_t k = 1 + rng_below(r, 3); k; k--)
            b[rng_below(r, n)] = (char)rng_u64(r);
        char target[64];
        snprintf(target, sizeof(target), "m-%s", name);
        FILE *f = fopen(in_dir(target), "wb");
        fwrite(b, 1, rng_below(r, 4) ? n : (size_t)rng_below(r, n + 1), f);
        fclose(f);
        const char *const p = path;
        err_clear();
        const enum err e = corpus_load(&c, &p, 1, JOIN_AUTO);
        assert_true(e == OK || e == ERR_FORMAT || e == ERR_NOT_FOUND);
        corpus_free(&c);
    }
    mem_free(good);
}

static void test_mutations(void **state)
{
    static const char text[] =
        "{\"text\":\"some text that is long enough to be deflated, deflated\"}\n"
        "\n{\"text\":\"some text that is long enough to be deflated, \\n\"}\n";
    struct rng r;
    uint8_t b[1024];
    rng_seed(&r, 5);
    put("g.jsonl.gz", (char *)b, gzip(b, sizeof(b), text, strlen(text)));
    put_zip("z.zip", "a.jsonl", text, NULL);
    put_text("t.jsonl", text);
    mutate("g.jsonl.gz", &r, 1500);
    mutate("z.zip", &r, 1500);
    mutate("t.jsonl", &r, 1500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),      cmocka_unit_test(test_files),
        cmocka_unit_test(test_jsonl),     cmocka_unit_test(test_gzip),
        cmocka_unit_test(test_zip),       cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}

/* SPDX-License-Identifier: MIT
 *
 * The same text in every compression and archive, and damaged or hostile archives. */
#include "data/unpack.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "tests/data/text_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_same_rows(void **state)
{
    static const char rows[] = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
    static const char *const names[] = {"r.jsonl", "r.json", "r", "r.csv", "r.gz", "r.raw"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        put_text(names[i], rows);
        want(names[i], JOIN_AUTO, "one\n\ntwo", 2);
    }
    put_stream("r.jsonl.gz", ARCHIVE_FILTER_GZIP, rows);
    put_stream("r.json.gz", ARCHIVE_FILTER_GZIP, rows);
    put_stream("r.zst", ARCHIVE_FILTER_ZSTD, rows);
    put_stream("r.xz", ARCHIVE_FILTER_XZ, rows);
    put_stream("r.bz2", ARCHIVE_FILTER_BZIP2, rows);
    put_stream("r.txt", ARCHIVE_FILTER_XZ, rows);
    put_zip("r.zip", "r.jsonl", rows, NULL);
    put_archive("r.tar", ARCHIVE_FORMAT_TAR_USTAR, 0, "r.jsonl", rows, NULL);
    put_archive("r.tar.zst", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_ZSTD, "r.jsonl", rows,
                NULL);
    static const char *const packed[] = {"r.jsonl.gz", "r.json.gz", "r.zst",
                                         "r.xz",       "r.bz2",     "r.txt",
                                         "r.zip",      "r.tar",     "r.tar.zst"};
    for (size_t i = 0; i < ARRAY_LEN(packed); i++)
        want(packed[i], JOIN_AUTO, "one\n\ntwo", 2);
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
    for (size_t cut = 2; cut < n; cut++) {
        put("t.gz", (char *)b, cut);
        refuse("t.gz", ERR_FORMAT, "truncated");
    }
    put("t.gz", (char *)two, n + 5);
    refuse("t.gz", ERR_FORMAT, "truncated");
    memcpy(two + n, "junk", 4);
    put("t.gz", (char *)two, n + 4);
    refuse("t.gz", ERR_FORMAT, "corrupt");
    b[n - 8] ^= 1; /* its CRC */
    put("t.gz", (char *)b, n);
    refuse("t.gz", ERR_FORMAT, "corrupt");
    put_text("t.gz", "plain text");
    want("t.gz", JOIN_AUTO, "plain text", 1);
}

/* Every cut, a flipped byte in the middle, bytes after the end, and two streams. */
static void check_stream(const char *name, int filter, size_t magic)
{
    char *good = NULL, two[4096];
    size_t n;
    put_stream(name, filter, "a text that is long enough to be one\n");
    want(name, JOIN_AUTO, "a text that is long enough to be one\n", 1);
    assert_int_equal(file_read_all(&good, &n, in_dir(name), sizeof(two) / 2), OK);
    for (size_t cut = magic; cut < n; cut++) {
        put(name, good, cut);
        refuse(name, ERR_FORMAT, "truncated or corrupt");
    }
    memcpy(two, good, n);
    memcpy(two + n, good, n);
    put(name, two, 2 * n);
    want(name, JOIN_AUTO,
         "a text that is long enough to be one\na text that is long enough to be one\n", 1);
    memcpy(two + n, "junkjunkjunk", 12);
    put(name, two, n + 12);
    refuse(name, ERR_FORMAT, "the");
    two[n / 2] ^= 0x10;
    put(name, two, n);
    refuse(name, ERR_FORMAT, "truncated or corrupt");
    mem_free(good);
}

static void test_streams(void **state)
{
    check_stream("s.xz", ARCHIVE_FILTER_XZ, 6);
    check_stream("s.bz2", ARCHIVE_FILTER_BZIP2, 10);
}

/* libarchive writes zstd without a checksum, so only damage to blocks is detected. */
static void test_zstd(void **state)
{
    char *good = NULL, two[4096];
    size_t n;
    put_stream("s.zst", ARCHIVE_FILTER_ZSTD, "a text\n");
    assert_int_equal(file_read_all(&good, &n, in_dir("s.zst"), sizeof(two) / 2), OK);
    for (size_t cut = 4; cut < n; cut++) {
        put("s.zst", good, cut);
        refuse("s.zst", ERR_FORMAT, "the zstd data is truncated or corrupt");
    }
    memcpy(two, good, n);
    memcpy(two + n, good, n);
    put("s.zst", two, 2 * n);
    want("s.zst", JOIN_AUTO, "a text\na text\n", 1);
    memcpy(two + n, "junkjunkjunk", 12);
    put("s.zst", two, n + 12);
    refuse("s.zst", ERR_FORMAT, "zstd data");
    mem_free(good);
}

static void test_members(void **state)
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
    want("c.zip", JOIN_AUTO, "1", 1); /* the only file */
    put_zip("c.zip", "x.bin", "1", "y.bin", "2", NULL);
    refuse("c.zip", ERR_FORMAT, "no text file");
    want("c.zip:y.bin", JOIN_AUTO, "2", 1);
    put_archive("t.tar.gz", ARCHIVE_FORMAT_TAR_USTAR, ARCHIVE_FILTER_GZIP, "w/", "",
                "w/a.raw", "a\n \nb\n", "w/b.md", "x", NULL);
    want("t.tar.gz", JOIN_AUTO, "a\n\n\n\n\nb\n", 1);
    want("t.tar.gz:b.md", JOIN_AUTO, "x", 1);
    refuse("t.tar.gz:c.md", ERR_NOT_FOUND, "no member's name ends in \"c.md\"");
    put_text("e.zip", "not an archive");
    want("e.zip", JOIN_AUTO, "not an archive", 1);
    refuse("e.zip:a.txt", ERR_NOT_FOUND, "is not a zip or tar archive");
    put_text("with:colon.txt", "x");
    want("with:colon.txt", JOIN_AUTO, "x", 1);
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
    put_stream("bomb.xz", ARCHIVE_FILTER_XZ, zeros);
    err_clear();
    assert_int_equal(unpack_open(&u, in_dir("bomb.xz"), 1u << 20), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "inflates to more than 1048576"));
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
        const char *const p = in_dir(target);
        err_clear();
        const enum err e = corpus_load(&c, &p, 1, &(struct corpus_rules){JOIN_AUTO, NULL});
        assert_true(e == OK || e == ERR_FORMAT || e == ERR_NOT_FOUND || e == ERR_SUPPORT);
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
    put_stream("x.xz", ARCHIVE_FILTER_XZ, text);
    put_archive("r.tar", ARCHIVE_FORMAT_TAR_USTAR, 0, "a.jsonl", text, NULL);
    put_text("t.jsonl", text);
    mutate("g.jsonl.gz", &r, 1500);
    mutate("z.zip", &r, 1500);
    mutate("x.xz", &r, 500);
    mutate("t.jsonl", &r, 1500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_rows), cmocka_unit_test(test_gzip),
        cmocka_unit_test(test_streams),   cmocka_unit_test(test_zstd),
        cmocka_unit_test(test_members),   cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, text_make_dir, text_drop_dir);
}

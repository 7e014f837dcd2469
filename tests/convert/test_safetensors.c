/* SPDX-License-Identifier: MIT
 *
 * safetensors: what must be accepted, what must be refused, and round trips. */
#include "convert/checkpoint/safetensors.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "tests/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[96], path[200];

static int make_dir(void **state)
{
    if (!scratch_dir(dir, sizeof(dir)))
        return -1;
    snprintf(path, sizeof(path), "%s/x.safetensors", dir);
    return 0;
}

static int drop_dir(void **state)
{
    return !scratch_remove(dir);
}

/* A file of a header with its true length, and data bytes 0, 1, 2, ... */
static void put(const char *header, size_t data)
{
    uint8_t b[4096] = {0};
    const size_t n = strlen(header);
    assert_true(8 + n + data <= sizeof(b));
    b[0] = (uint8_t)n;
    b[1] = (uint8_t)(n >> 8);
    memcpy(b + 8, header, n);
    for (size_t i = 0; i < data; i++)
        b[8 + n + i] = (uint8_t)i;
    assert_int_equal(file_write_all(path, b, 8 + n + data), OK);
}

static struct st_file *open_ok(void)
{
    struct st_file *f = NULL;
    err_clear();
    if (st_open(&f, path))
        fail_msg("%s", err_text());
    return f;
}

/* Checks that the message names the file and contains every word. */
static void refused(enum err want, const char *word)
{
    struct st_file *f = NULL;
    err_clear();
    const enum err e = st_open(&f, path);
    if (e != want || !strstr(err_text(), word) || !strstr(err_text(), "x.safetensors"))
        fail_msg("want %s with \"%s\", have %s: %s", err_name(want), word, err_name(e),
                 err_text());
    assert_null(f);
}

static void refuse_raw(const char *bytes, size_t n, const char *word)
{
    assert_int_equal(file_write_all(path, bytes, n), OK);
    refused(ERR_FORMAT, word);
}

static void refuse(const char *header, size_t data, const char *word)
{
    put(header, data);
    refused(ERR_FORMAT, word);
}

static void test_accepts(void **state)
{
    static const char *const empty[] = {"{}\r \t\n", "\t\n{}\r ", "{}",
                                        "{\"__metadata__\":{}}"};
    for (size_t i = 0; i < ARRAY_LEN(empty); i++) {
        put(empty[i], 0);
        struct st_file *f = open_ok();
        assert_int_equal(st_count(f), 0);
        st_close(&f);
    }
    put("{\"test\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4);
    struct st_file *f = open_ok();
    const struct st_tensor *t = st_find(f, "test");
    assert_int_equal(t->n_dims, 0);
    assert_int_equal(t->bytes, 4);
    assert_int_equal(t->dtype, DT_I32);
    st_close(&f);
    put("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,0],\"data_offsets\":[0,0]}}", 0);
    f = open_ok();
    assert_int_equal(st_at(f, 0)->bytes, 0);
    st_close(&f);
    put("{\"attn0\":{\"dtype\":\"F32\",\"shape\":[1,1,2,3],\"data_offsets\":[0,24]}}      "
        " ",
        24);
    f = open_ok();
    assert_int_equal(st_at(f, 0)->dim[3], 3);
    st_close(&f);
    put("{\"a\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", 2);
    f = open_ok();
    assert_int_equal(st_at(f, 0)->dtype, DT_OTHER);
    assert_string_equal(st_at(f, 0)->dtype_name, "F4");
    st_close(&f);
}

/* Any order in the header; empty tensors between others. */
static void test_order(void **state)
{
    put("{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]},"
        "\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]},"
        "\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]},"
        "\"__metadata__\":{\"format\":\"pt\",\"k\":\"v\"}}",
        5);
    struct st_file *f = open_ok();
    assert_int_equal(st_count(f), 3);
    assert_string_equal(st_at(f, 0)->name, "a");
    assert_string_equal(st_at(f, 1)->name, "e");
    assert_string_equal(st_at(f, 2)->name, "b");
    assert_int_equal(st_find(f, "b")->data[0], 2);
    assert_null(st_find(f, "c"));
    assert_null(st_find(f, "__metadata__"));
    st_release(f, st_find(f, "b"));
    assert_int_equal(st_find(f, "b")->data[2], 4);
    st_close(&f);
}

/* A loaded file has no pages of a file to reload, so a release must not drop its data. */
static void test_loaded(void **state)
{
    static uint8_t raw[100 + 65536];
    static const char header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[65536],"
                                 "\"data_offsets\":[0,65536]}}";
    struct st_file *f = NULL;
    memset(raw, 5, sizeof(raw));
    put(header, 0);
    char *begin = NULL;
    size_t n = 0;
    assert_int_equal(file_read_all(&begin, &n, path, 100), OK);
    memcpy(raw, begin, n);
    mem_free(begin);
    assert_int_equal(file_write_all(path, raw, n + 65536), OK);
    assert_int_equal(st_load(&f, path), OK);
    assert_int_equal(file_write_all(path, "gone", 4), OK);
    st_release(f, st_find(f, "a"));
    assert_memory_equal(st_find(f, "a")->data, raw + n, 65536);
    st_close(&f);
    assert_int_equal(st_load(&f, path), ERR_FORMAT);
}

static void test_refuses_framing(void **state)
{
    refuse_raw("", 0, "too short");
    refuse_raw("1234567", 7, "too short");
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    refuse_raw(pointer, sizeof(pointer) - 1, "git lfs pull");
    refuse_raw("<\0\0\0\0\xff\xff\xff{", 9, "limit is 100000000");
    refuse_raw("\x01\xe1\xf5\x05\0\0\0\0{}", 10, "limit is 100000000"); /* 100,000,001 */
    refuse_raw("\x00\xe1\xf5\x05\0\0\0\0{}", 10, "only 2 follow");
    refuse_raw("\x01\0\0\0\0\0\0\0\xff", 9, "not valid JSON");
    refuse_raw("\x01\0\0\0\0\0\0\0{", 9, "not valid JSON");
    refuse_raw("\0\0\0\0\0\0\0\0", 8, "not valid JSON");
    refuse("[]", 0, "want an object");
    refuse("{} x", 0, "not valid JSON");
    refuse("{\"t\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}", 7,
           "3 bytes follow");
    refuse("{\"t\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}", 3,
           "complete");
    unlink(path);
    refused(ERR_NOT_FOUND, "No such file");
}

static void test_refuses_layout(void **state)
{
    char h[1024] = "{";
    for (int i = 0; i < 10; i++)
        sprintf(h + strlen(h),
                "%s\"t%d\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,16]}",
                i ? "," : "", i);
    strcat(h, "}");
    refuse(h, 16, "overlapping");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]}}",
           5, "tensor b starts at byte");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3, "gap");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
           "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
           4, "duplicate");
    refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate");
    refuse(
        "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
        2, "duplicate");
}

static void test_refuses_entries(void **state)
{
    refuse("{\"t\":{\"dtype\":\"I32\",\"shape\":[2,18446744073709551614],\"data_offsets\":["
           "0,16]}}",
           16, "x.safetensors");
    refuse("{\"t\":{\"dtype\":\"I32\",\"shape\":[4611686018427387904,4611686018427387904],"
           "\"data_offsets\":[0,16]}}",
           16, "overflow");
    refuse("{\"t\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,4]}}", 4,
           "need 16 bytes");
    refuse("{\"t\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "byte");
    refuse("{\"t\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "F33");
    refuse("{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is missing");
    refuse("{\"t\\u001b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4,
           "tensor name t? holds a control character");
    refuse("{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape is missing");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
           "shape[0]");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4,
           "shape[0]");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "shape");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4,
           "backwards");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4,
           "data_offsets[0]");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "two");
    refuse("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,"
           "9223372036854775807]}}",
           4, "data section");
    refuse("{\"t\":[]}", 0, "want an object");
    refuse("{\"t\\u0000u\":{}}", 0, "NUL");
    refuse("{\"__metadata__\":{\"a\":1}}", 0, "want a string");
    refuse("{\"__metadata__\":[]}", 0, "want an object");
    put("{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}",
        4);
    refused(ERR_SUPPORT, "9 dimensions");
}

static const float a_data[2] = {1, -2};
static const uint16_t w_data[4] = {0x3f80, 0x4000, 0x4040, 0xbf80};

static void save_example(void)
{
    struct named_tensor t[3] = {
        {"a", tensor_1d((void *)(uintptr_t)a_data, DT_F32, 2)},
        {"empty", tensor_2d((void *)(uintptr_t)a_data, DT_I64, 3, 0)},
        {"w\"\\", tensor_2d((void *)(uintptr_t)w_data, DT_BF16, 2, 2)},
    };
    const char *const meta[] = {"run", "7"};
    assert_int_equal(st_save(path, t, 3, meta, 1), OK);
}

static bool file_holds(const char *text)
{
    struct file_map m;
    assert_int_equal(file_map_open(&m, path), OK);
    const bool found = memmem(m.data, m.size, text, strlen(text)) != NULL;
    file_map_close(&m);
    return found;
}

static void test_round_trip(void **state)
{
    save_example();
    struct st_file *f = open_ok();
    assert_int_equal(st_count(f), 3);
    assert_true(file_holds("\"__metadata__\":{\"format\":\"pt\",\"run\":\"7\"}"));
    assert_memory_equal(st_find(f, "a")->data, a_data, 8);
    const struct st_tensor *w = st_find(f, "w\"\\");
    assert_int_equal(w->dtype, DT_BF16);
    assert_int_equal(w->dim[1], 2);
    assert_memory_equal(w->data, w_data, 8);
    assert_int_equal((w->data - st_find(f, "a")->data), 8);
    assert_int_equal((uintptr_t)st_find(f, "a")->data % 8, 0);
    st_close(&f);
}

/* The exact bytes, which follow from the format: twice the same. */
static void test_bytes(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    struct named_tensor t = {"a", tensor_1d((void *)(uintptr_t)a_data, DT_F32, 2)};
    const size_t n = strlen(header), padded = (n + 7) / 8 * 8;
    for (int pass = 0; pass < 2; pass++) {
        char *text = NULL;
        size_t size;
        assert_int_equal(st_save(path, &t, 1, NULL, 0), OK);
        assert_int_equal(file_read_all(&text, &size, path, 4096), OK);
        assert_int_equal(size, 8 + padded + 8);
        assert_int_equal((uint8_t)text[0], padded);
        assert_memory_equal(text + 8, header, n);
        for (size_t i = n; i < padded; i++)
            assert_int_equal(text[8 + i], ' ');
        assert_memory_equal(text + 8 + padded, a_data, 8);
        mem_free(text);
    }
}

static void test_writer_contract(void **state)
{
    const struct st_entry e[2] = {{"x", DT_U8, 1, {4}}, {"y", DT_U8, 1, {2}}};
    struct st_writer *w = NULL;
    unlink(path);
    assert_int_equal(st_writer_open(&w, path, e, 2, NULL, 0), OK);
    assert_int_equal(st_write(w, "abc", 3), OK);
    assert_int_equal(st_write(w, "de", 2), ERR_SHAPE); /* crosses x's end */
    assert_int_equal(st_write(w, "d", 1), OK);
    assert_int_equal(st_writer_crc(w, 0), bytes_crc32(0, "abcd", 4));
    assert_int_equal(st_writer_commit(&w), ERR_SHAPE); /* y is missing */
    assert_null(w);
    assert_false(file_exists(path));
    const struct st_entry twice[2] = {{"x", DT_U8, 1, {4}}, {"x", DT_U8, 1, {2}}};
    assert_int_equal(st_writer_open(&w, path, twice, 2, NULL, 0), ERR_FORMAT);
    const struct st_entry bad[1] = {{"\xff", DT_U8, 1, {4}}};
    assert_int_equal(st_writer_open(&w, path, bad, 1, NULL, 0), ERR_FORMAT);
    assert_false(file_exists(path));
    err_clear();
}

/* Any bytes: an error or a file whose every tensor byte can be read. */
static void test_mutations(void **state)
{
    struct rng r;
    char *good = NULL;
    size_t n, accepted = 0;
    save_example();
    assert_int_equal(file_read_all(&good, &n, path, 4096), OK);
    rng_seed(&r, 1);
    for (int i = 0; i < 4000; i++) {
        char b[4096];
        memcpy(b, good, n);
        const size_t size = rng_below(&r, 4) ? n : (size_t)rng_below(&r, n + 1);
        for (uint64_t k = 1 + rng_below(&r, 3); k; k--)
            b[rng_below(&r, n)] = rng_below(&r, 2)
                                      ? (char)rng_u64(&r)
                                      : "0123456789[]{},:\"-"[rng_below(&r, 18)];
        FILE *f = fopen(path, "wb");
        fwrite(b, 1, size, f);
        fclose(f);
        struct st_file *s = NULL;
        err_clear();
        if (st_open(&s, path)) {
            assert_true(strlen(err_text()) > 0);
            continue;
        }
        accepted++;
        for (int64_t j = 0; j < st_count(s); j++)
            (void)bytes_crc32(0, st_at(s, j)->data, st_at(s, j)->bytes);
        st_close(&s);
    }
    assert_true(accepted > 0); /* changes of data only are legal */
    mem_free(good);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepts),         cmocka_unit_test(test_order),
        cmocka_unit_test(test_loaded),          cmocka_unit_test(test_refuses_framing),
        cmocka_unit_test(test_refuses_layout),  cmocka_unit_test(test_refuses_entries),
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_writer_contract), cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}

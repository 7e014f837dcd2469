/* SPDX-License-Identifier: MIT
 *
 * GGUF's blocks over all scales and zero points, and the writer's contract. The files as a
 * whole are tests/cli/test_gguf.py's. */
#include "convert/export/gguf/gguf_blocks.h"
#include "convert/export/gguf/gguf_copy.h"
#include "kernels/base/file/file.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "tests/scratch.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define LARGEST_F16 0x7bffu

/* Significant bits of a positive fp16. */
static int significant(uint16_t h)
{
    uint32_t whole = (h & 0x3ffu) | (h >> 10 ? 0x400u : 0);
    while (whole % 2 == 0)
        whole /= 2;
    int n = 0;
    for (; whole; whole /= 2)
        n++;
    return n;
}

/* The promise of gguf_blocks.h, for every positive fp16 and every zero point. */
static void test_minimum(void **state)
{
    int64_t inexact = 0;
    for (unsigned h = 1; h <= LARGEST_F16; h++)
        for (uint8_t z = 0; z < 32; z++) {
            const double want = -(double)z * (double)f16_to_f32((uint16_t)h);
            const double have = (double)f16_to_f32(gguf_minimum(z, (uint16_t)h));
            if (-want > 65504)
                continue;
            assert_true(fabs(have - want) <= -want * 0x1p-11);
            if (significant((uint16_t)h) <= (z < 16 ? 7 : 6))
                assert_true(have == want);
            inexact += have != want;
        }
    assert_true(inexact > 0);
    assert_int_equal(gguf_minimum(0, 0x3c00), 0); /* not -0 */
    assert_true(isinf(f16_to_f32(gguf_minimum(15, LARGEST_F16))));
}

/* All codes of a type with all of its zero points, in a row of ragged groups. */
static void check_row(enum gguf_type t, int bits)
{
    enum { N = 32 * 5 };
    const int64_t group = 64;
    const uint8_t zeros[] = {0, (uint8_t)((1 << bits) - 1), (uint8_t)(1 << (bits - 1))};
    const uint16_t scales[] = {0x3c00, 0x0001, 0x5555}; /* 1, 2^-24, 85.3125 */
    uint8_t codes[N], row[N / 32 * 34];
    for (int c = 0; c < N; c++)
        codes[c] = (uint8_t)(c * 7 % (1 << bits));
    gguf_pack_row(row, t, &(struct gguf_row){codes, zeros, scales, N, group});
    const size_t bytes = (size_t)gguf_row_bytes(t, 32);
    for (int c = 0; c < N; c++) {
        const uint8_t *b = row + (size_t)(c / 32) * bytes;
        const int j = c % 32;
        const int64_t g = c / group;
        assert_int_equal(b[0] | b[1] << 8, scales[g]);
        if (t == GGUF_Q8_0) {
            assert_int_equal((int8_t)b[2 + j], codes[c] - zeros[g]);
            continue;
        }
        assert_int_equal(b[2] | b[3] << 8, gguf_minimum(zeros[g], scales[g]));
        const uint8_t *q = b + bytes - 16;
        int code = j < 16 ? q[j] & 15 : q[j - 16] >> 4;
        if (t == GGUF_Q5_1)
            code |= (b[4 + j / 8] >> j % 8 & 1) << 4;
        assert_int_equal(code, codes[c]);
    }
}

static void test_rows(void **state)
{
    for (int bits = 2; bits <= 4; bits++)
        check_row(GGUF_Q4_1, bits);
    check_row(GGUF_Q5_1, 5);
    for (int bits = 2; bits <= 7; bits++)
        check_row(GGUF_Q8_0, bits);
    assert_int_equal(gguf_row_bytes(GGUF_BF16, 7), 14);
    assert_string_equal(gguf_type_name(GGUF_Q5_1), "Q5_1");
}

/* Both halves of every head, in turns; every row once. */
static void test_interleaved(void **state)
{
    const int64_t want[] = {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11};
    for (int64_t r = 0; r < (int64_t)ARRAY_LEN(want); r++)
        assert_int_equal(gguf_row_source(r, 6), want[r]);
}

static char dir[256], place[300];

static void test_writer_refuses(void **state)
{
    struct gguf_writer *w = NULL;
    const int64_t dim[] = {2, 3};
    const float x[6] = {0};
    assert_int_equal(gguf_open(&w), OK);
    assert_int_equal(gguf_list_i32(w, "list", 2), OK);
    assert_int_equal(gguf_item_f32(w, 1), ERR_SHAPE); /* another type */
    assert_int_equal(gguf_item_i32(w, 1), OK);
    assert_int_equal(gguf_key_u32(w, "key", 1), ERR_SHAPE); /* the list lacks an item */
    assert_int_equal(gguf_begin(w, place), ERR_SHAPE);
    assert_int_equal(gguf_item_i32(w, 2), OK);
    assert_int_equal(gguf_item_i32(w, 3), ERR_SHAPE); /* one too many */
    const int64_t dims[] = {1, 1, 1, 1, 1};
    char name[GGUF_NAME_BYTES + 1];
    memset(name, 'n', GGUF_NAME_BYTES);
    name[GGUF_NAME_BYTES] = '\0';
    assert_int_equal(gguf_tensor(w, name, GGUF_F32, 2, dim), ERR_SHAPE);
    assert_int_equal(gguf_tensor(w, "", GGUF_F32, 2, dim), ERR_SHAPE);
    assert_int_equal(gguf_tensor(w, "x", GGUF_F32, GGUF_MAX_DIMS + 1, dims), ERR_SHAPE);
    assert_int_equal(gguf_tensor(w, "x", GGUF_F32, 0, dims), ERR_SHAPE);
    assert_int_equal(gguf_tensor(w, "x", GGUF_F32, 2, dim), OK);
    assert_int_equal(gguf_begin(w, place), OK);
    assert_int_equal(gguf_key_bool(w, "late", true), ERR_SHAPE);
    assert_int_equal(gguf_tensor(w, "late", GGUF_F32, 2, dim), ERR_SHAPE);
    assert_int_equal(gguf_write(w, x, sizeof(x) - 4), OK);
    assert_int_equal(gguf_write(w, x, 8), ERR_SHAPE); /* beyond the tensor */
    assert_int_equal(gguf_commit(&w), ERR_SHAPE);     /* four bytes are missing */
    assert_null(w);
    assert_false(file_exists(place));
}

/* The size is known before, and empty tensors need no bytes. */
static void test_writer_size(void **state)
{
    struct gguf_writer *w = NULL;
    const int64_t empty[] = {0, 32}, one[] = {1};
    const float x = 1;
    assert_int_equal(gguf_open(&w), OK);
    assert_int_equal(gguf_key_string(w, "s", "ab", 2), OK);
    assert_int_equal(gguf_tensor(w, "none", GGUF_Q4_1, 2, empty), OK);
    assert_int_equal(gguf_tensor(w, "x", GGUF_F32, 1, one), OK);
    assert_int_equal(gguf_tensor(w, "no more", GGUF_F32, 2, empty), OK);
    const uint64_t bytes = gguf_bytes(w);
    assert_int_equal(gguf_begin(w, place), OK);
    assert_int_equal(gguf_write(w, &x, sizeof(x)), OK);
    assert_int_equal(gguf_commit(&w), OK);
    assert_int_equal(file_size(place), bytes);
    assert_int_equal(bytes % 32, 0);
}

/* Writes a vocabulary of three tokens to place. */
static void write_vocab(void)
{
    struct gguf_writer *w = NULL;
    assert_int_equal(gguf_open(&w), OK);
    assert_int_equal(gguf_key_string(w, "general.name", "x", 1), OK);
    assert_int_equal(gguf_key_string(w, "tokenizer.ggml.model", "gpt2", 4), OK);
    assert_int_equal(gguf_list_string(w, "tokenizer.ggml.tokens", 3), OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(gguf_item_string(w, &"abc"[i], 1), OK);
    assert_int_equal(gguf_list_i32(w, "tokenizer.ggml.token_type", 3), OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(gguf_item_i32(w, 1), OK);
    assert_int_equal(gguf_key_bool(w, "tokenizer.ggml.add_bos_token", true), OK);
    assert_int_equal(gguf_begin(w, place), OK);
    assert_int_equal(gguf_commit(&w), OK);
}

/* Returns what becomes of the vocabulary in n bytes, for a model of three tokens that has
 * no tokenizer of its own. *keys: those that would be copied. */
static enum err try_vocab(int *keys, const void *bytes, size_t n)
{
    const struct arch arch = {.vocab = 3};
    const struct export_source s = {.dir = dir, .arch = &arch};
    struct gguf_copy c = {0};
    assert_int_equal(file_write_all(place, bytes, n), OK);
    const enum err err = gguf_copy_open(&c, place, &s);
    *keys = c.n_keys;
    assert_false(c.compared);
    gguf_copy_free(&c);
    err_clear();
    return err;
}

/* Any cut inside the keys is refused, and no changed byte breaks anything. */
static void test_damaged_vocab(void **state)
{
    char *bytes;
    size_t n;
    int keys;
    write_vocab();
    assert_int_equal(file_read_all(&bytes, &n, place, 4096), OK);
    assert_int_equal(try_vocab(&keys, bytes, n), OK);
    assert_int_equal(keys, 4);
    size_t end = n;
    while (!bytes[end - 1]) /* what pads the header; the last key is true */
        end--;
    for (size_t i = 0; i < n; i++)
        assert_int_equal(try_vocab(&keys, bytes, i), i < end ? ERR_FORMAT : OK);
    for (size_t i = 0; i < n; i++)
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] = (char)(bytes[i] ^ 1 << bit);
            const enum err err = try_vocab(&keys, bytes, n);
            assert_true(err == OK || err == ERR_FORMAT || err == ERR_SUPPORT);
            bytes[i] = (char)(bytes[i] ^ 1 << bit);
        }
    mem_free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_minimum),     cmocka_unit_test(test_rows),
        cmocka_unit_test(test_interleaved), cmocka_unit_test(test_writer_refuses),
        cmocka_unit_test(test_writer_size), cmocka_unit_test(test_damaged_vocab),
    };
    if (!scratch_dir(dir, sizeof(dir)))
        return 1;
    snprintf(place, sizeof(place), "%s/a.gguf", dir);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return scratch_remove(dir) ? failed : 1;
}

/* SPDX-License-Identifier: MIT
 *
 * The bounded cursor: values, the last byte, one past it, varints. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/bytes.h"

static const uint8_t data[] = {1, 2, 3, 4, 5, 6, 7, 0x88, 0xac, 0x02, 0xff};

static void integers_are_little_endian(void **state)
{
    struct bytes b = {data, sizeof(data), 0};
    uint8_t u8;
    uint64_t u64;
    assert_int_equal(bytes_u8(&b, &u8), OK);
    assert_int_equal(u8, 1);
    b.pos = 0;
    assert_int_equal(bytes_u64(&b, &u64), OK);
    assert_true(u64 == 0x8807060504030201u);
}

static void reads_stop_at_the_end(void **state)
{
    struct bytes b = {data, sizeof(data), 0};
    const uint8_t *p = NULL;
    uint64_t u64 = 77;
    assert_int_equal(bytes_view(&b, sizeof(data), &p), OK);
    assert_ptr_equal(p, data);
    err_clear();
    assert_int_equal(bytes_view(&b, 1, &p), ERR_FORMAT);
    assert_string_equal(err_text(), "need 1 bytes at offset 11, input has 11");
    assert_int_equal(bytes_view(&b, UINT64_MAX, &p), ERR_FORMAT);
    b.pos = 8;
    assert_int_equal(bytes_u64(&b, &u64), ERR_FORMAT);
    assert_int_equal(b.pos, 8);
    assert_true(u64 == 77);
}

static void varints(void **state)
{
    struct bytes b = {data, sizeof(data), 8};
    uint64_t v = 77;
    assert_int_equal(bytes_varint(&b, &v), OK);
    assert_true(v == 300);
    assert_int_equal(b.pos, 10);
    assert_int_equal(bytes_varint(&b, &v), ERR_FORMAT); /* continues past the end */
    assert_int_equal(b.pos, 10);
    const uint8_t max[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01};
    b = (struct bytes){max, sizeof(max), 0};
    assert_int_equal(bytes_varint(&b, &v), OK);
    assert_true(v == UINT64_MAX);
    const uint8_t endless[] = {0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
                               0x80, 0x80, 0x80, 0x80, 0};
    b = (struct bytes){endless, sizeof(endless), 0};
    assert_int_equal(bytes_varint(&b, &v), ERR_FORMAT);
    assert_int_equal(b.pos, 0);
}

static void crc_is_zlibs_and_continues(void **state)
{
    assert_int_equal(bytes_crc32(0, "123456789", 9), 0xcbf43926);
    assert_int_equal(bytes_crc32(bytes_crc32(0, "1234", 4), "56789", 5), 0xcbf43926);
    assert_int_equal(bytes_crc32(0, "", 0), 0);
    assert_int_equal(bytes_crc32(0xcbf43926, NULL, 0), 0xcbf43926);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_little_endian),
        cmocka_unit_test(reads_stop_at_the_end),
        cmocka_unit_test(varints),
        cmocka_unit_test(crc_is_zlibs_and_continues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

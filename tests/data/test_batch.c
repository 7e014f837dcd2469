/* SPDX-License-Identifier: MIT
 *
 * Windows, against values from CPython's random module. */
#include "data/batch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void test_offsets(void **state)
{
    static const struct {
        uint64_t seed;
        int64_t n, want[8];
    } v[] = {
        {0, 341469, {201979, 220500, 21225, 135746, 268055, 254766, 212302, 159023}},
        {0, 2000000, {1770880, 807917, 1589545, 1866976, 882002, 84901, 542987, 1072220}},
        {2, 2000000, {1810071, 1987738, 1780597, 118596, 192067, 177989, 757192, 1752168}},
    };
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        int64_t have[8];
        assert_int_equal(batch_random_offsets(have, 8, 2048, v[i].n, v[i].seed), OK);
        assert_memory_equal(have, v[i].want, sizeof(have));
    }
}

static void test_limits(void **state)
{
    int64_t o[2];
    err_clear();
    assert_int_equal(batch_random_offsets(o, 2, 2048, 2048, 0), ERR_USAGE);
    assert_non_null(strstr(err_text(), "2048"));
    err_clear();
    assert_int_equal(batch_random_offsets(o, 2, 0, 5, 0), ERR_USAGE);
    err_clear();
    assert_int_equal(batch_random_offsets(o, 2, 4, 5, 0), OK); /* the only place is 0 */
    assert_int_equal(o[0], 0);
    assert_int_equal(o[1], 0);
    assert_int_equal(batch_windows(341469, 2048), 166);
    assert_int_equal(batch_windows(2047, 2048), 0);
    assert_int_equal(batch_windows(5, 0), 0);
}

/* Windows apart from others: none overlaps them, and the rest follows the same generator. */
static void test_apart(void **state)
{
    static const int64_t avoid[] = {100, 400};
    int64_t have[200];
    bool before = false, between = false, after = false;
    assert_int_equal(batch_random_apart(have, 200, 50, 600, 3, avoid, 2), OK);
    for (int i = 0; i < 200; i++) {
        assert_true(have[i] >= 0 && have[i] < 600 - 50);
        assert_true(have[i] <= 50 || (have[i] >= 150 && have[i] <= 350) || have[i] >= 450);
        before = before || have[i] <= 50;
        between = between || (have[i] >= 150 && have[i] <= 350);
        after = after || have[i] >= 450;
    }
    assert_true(before && between && after);
    int64_t plain[200];
    assert_int_equal(batch_random_offsets(plain, 200, 50, 600, 3), OK);
    assert_int_equal(batch_random_apart(have, 200, 50, 600, 3, NULL, 0), OK);
    assert_memory_equal(have, plain, sizeof(have));
    err_clear(); /* no place is left */
    const int64_t middle = 20;
    assert_int_equal(batch_random_apart(have, 1, 50, 95, 3, &middle, 1), ERR_USAGE);
    assert_non_null(strstr(err_text(), "refine.guard"));
    err_clear();
}

static void test_gather(void **state)
{
    static const int32_t ids[] = {0, 1, 2, 3, 4, 5};
    static const int64_t at[] = {3, 0};
    static const int32_t want[] = {3, 4, 5, 0, 1, 2};
    int32_t have[6];
    batch_gather(have, ids, at, 2, 3);
    assert_memory_equal(have, want, sizeof(want));
}

static void test_crc(void **state)
{
    static const int32_t ids[] = {1, -2, 70000};
    assert_int_equal(batch_crc(ids, 3),
                     3653759634u); /* zlib.crc32(struct.pack('<3i', ...)) */
    assert_int_equal(batch_crc(ids, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offsets), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_apart),   cmocka_unit_test(test_gather),
        cmocka_unit_test(test_crc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: MIT
 *
 * The generators: CPython's random.Random, checked against CPython 3.11. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"

#include <math.h>
#include <stdbool.h>

static void raw_words_are_cpythons(void **state)
{
    static const uint32_t want[] = {3626764237u, 1654615998u, 3255389356u,
                                    3823568514u, 1806341205u, 173879092u};
    struct mt19937 m;
    mt_seed(&m, 0);
    for (size_t i = 0; i < ARRAY_LEN(want); i++)
        assert_int_equal(mt_u32(&m), want[i]);
}

/* random.seed(seed); random.randint(0, len - 2048 - 1), as calibration windows are drawn.
 */
static void windows_are_cpythons(void **state)
{
    static const struct {
        uint64_t seed;
        int64_t len, want[8];
    } draws[] = {
        {0, 341469, {201979, 220500, 21225, 135746, 268055, 254766, 212302, 159023}},
        {0, 2000000, {1770880, 807917, 1589545, 1866976, 882002, 84901, 542987, 1072220}},
        {2, 2000000, {1810071, 1987738, 1780597, 118596, 192067, 177989, 757192, 1752168}},
    };
    for (size_t i = 0; i < ARRAY_LEN(draws); i++) {
        struct mt19937 m;
        mt_seed(&m, draws[i].seed);
        for (int k = 0; k < 8; k++)
            assert_true(mt_randint(&m, 0, draws[i].len - 2048 - 1) == draws[i].want[k]);
    }
}

/* Python 3.11: random.seed(2**40 + 7); [random.randint(0, 2**40) for _ in range(3)], then
 * random.randint(5, 5). */
static void wide_seeds_and_ranges(void **state)
{
    struct mt19937 m;
    mt_seed(&m, ((uint64_t)1 << 40) + 7);
    assert_true(mt_randint(&m, 0, (int64_t)1 << 40) == 551799892330);
    assert_true(mt_randint(&m, 0, (int64_t)1 << 40) == 797660323531);
    assert_true(mt_randint(&m, 0, (int64_t)1 << 40) == 972351302369);
    assert_true(mt_randint(&m, 5, 5) == 5);
}

static void seeded_and_in_range(void **state)
{
    struct rng a, b;
    rng_seed(&a, 0);
    assert_true(rng_u64(&a) ==
                0xe220a8397b1dcdafu); /* SplitMix64's published first value */
    rng_seed(&a, 9);
    rng_seed(&b, 9);
    double sum = 0, squares = 0;
    bool seen[7] = {false};
    for (int i = 0; i < 20000; i++) {
        const double u = rng_uniform(&a), n = rng_normal(&a);
        const uint64_t k = rng_below(&a, 7);
        assert_true(u == rng_uniform(&b) && n == rng_normal(&b) && k == rng_below(&b, 7));
        assert_true(u >= 0 && u < 1 && k < 7 && isfinite(n));
        seen[k] = true;
        sum += n;
        squares += n * n;
    }
    assert_true(fabs(sum / 20000) <= 0.03 && fabs(squares / 20000 - 1) <= 0.05);
    for (int i = 0; i < 7; i++)
        assert_true(seen[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(raw_words_are_cpythons),
        cmocka_unit_test(windows_are_cpythons),
        cmocka_unit_test(wide_seeds_and_ranges),
        cmocka_unit_test(seeded_and_in_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

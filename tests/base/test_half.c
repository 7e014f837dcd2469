/* SPDX-License-Identifier: MIT
 *
 * fp16 and bf16, exhaustively: every code, and around every rounding boundary. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/half.h"

#include <math.h>

/* The value of a finite fp16 code, by definition of the format. */
static float f16_value(uint16_t h)
{
    const int exp = h >> 10 & 31, man = h & 1023;
    const double m = exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24);
    return (float)(h & 0x8000 ? -m : m);
}

static void every_f16_code(void **state)
{
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t h = (uint16_t)i;
        const float f = f16_to_f32(h);
        if ((h & 0x7c00) == 0x7c00 && h & 0x3ff) {
            assert_true(isnan(f) && isnan(f16_to_f32(f16_from_f32(f))));
            continue;
        }
        if ((h & 0x7c00) == 0x7c00)
            assert_true(isinf(f) && !signbit(f) == !(h >> 15));
        else
            assert_int_equal(f32_bits(f), f32_bits(f16_value(h)));
        assert_int_equal(f16_from_f32(f), h);
    }
}

/* The middle between two neighbouring codes rounds to the even one. A value beside the
 * middle rounds to the nearer. */
static void every_f16_boundary(void **state)
{
    for (uint16_t h = 0; h < 0x7c00; h++) {
        const float next = h == 0x7bff ? 65536.0f : f16_to_f32((uint16_t)(h + 1));
        const float mid = 0.5f * (f16_to_f32(h) + next); /* exact: 12 bits */
        const uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
        assert_int_equal(f16_from_f32(mid), even);
        assert_int_equal(f16_from_f32(-mid), even | 0x8000);
        assert_int_equal(f16_from_f32(nextafterf(mid, 0)), h);
        assert_int_equal(f16_from_f32(nextafterf(mid, INFINITY)), h + 1);
    }
    assert_int_equal(f16_from_f32(3e38f), 0x7c00);
    assert_int_equal(f16_from_f32(0x1p-149f), 0);
}

static void every_bf16_code_and_boundary(void **state)
{
    for (uint32_t i = 0; i < 65536; i++) {
        const uint16_t h = (uint16_t)i;
        const float f = bf16_to_f32(h);
        assert_int_equal(f32_bits(f), i << 16);
        if (isnan(f)) {
            assert_true(isnan(bf16_to_f32(bf16_from_f32(f))));
            continue;
        }
        assert_int_equal(bf16_from_f32(f), h);
        if (isinf(f))
            continue;
        const uint32_t mid = i << 16 | 0x8000;
        assert_int_equal(bf16_from_f32(f32_from_bits(mid)), h + (h & 1));
        assert_int_equal(bf16_from_f32(f32_from_bits(mid - 1)), h);
        assert_int_equal(bf16_from_f32(f32_from_bits(mid + 1)), h + 1);
    }
    /* A NaN whose payload is in the low half must not become an infinity. */
    assert_true(isnan(bf16_to_f32(bf16_from_f32(f32_from_bits(0x7f800001)))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_code),
        cmocka_unit_test(every_f16_boundary),
        cmocka_unit_test(every_bf16_code_and_boundary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

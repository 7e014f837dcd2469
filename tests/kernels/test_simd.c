/* SPDX-License-Identifier: MIT
 *
 * kernels/simd/simd.h against loops over lanes; compiled once per instruction set. Skipped
 * where the processor lacks the set. */
#include "kernels/simd/isa.h"
#include "kernels/simd/simd.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

static float x[8 * VL];
static uint8_t bytes[4 * VL];

static int fill(void **state)
{
    for (int i = 0; i < 8 * VL; i++)
        x[i] = (float)(i * i % 31 - 15) * 0.3f;
    for (int i = 0; i < 4 * VL; i++)
        bytes[i] = (uint8_t)(i * 29 + 3);
    return 0;
}

static int32_t word(const uint8_t *p)
{
    int32_t w;
    memcpy(&w, p, sizeof(w));
    return w;
}

static void test_partial_loads(void **state)
{
    uint8_t some[4 * VL];
    for (int n = 0; n <= 4 * VL; n++) {
        memset(some, 0, sizeof(some));
        memcpy(some, bytes, (size_t)n);
        const vi by_bytes = vi_load_bytes_n(bytes, n);
        const vi by_words = vi_load_n(bytes, n / 4);
        const vf floats = vf_load_n(x, n / 4);
        for (int l = 0; l < VL; l++) {
            assert_int_equal(by_bytes[l], word(some + 4 * l));
            assert_int_equal(by_words[l], l < n / 4 ? word(bytes + 4 * l) : 0);
            assert_true(floats[l] == (l < n / 4 ? x[l] : 0));
        }
    }
}

static void test_partial_stores(void **state)
{
    for (int n = 0; n <= VL; n++) {
        float f[VL] = {0};
        uint16_t h[VL] = {0}, f16[VL] = {0};
        vf_store_n(f, vf_load(x), n);
        vf_store_bf16_n(h, vf_load(x), n);
        vf_store_f16_n(f16, vf_load(x), n);
        for (int l = 0; l < VL; l++) {
            assert_true(f[l] == (l < n ? x[l] : 0));
            assert_int_equal(h[l], l < n ? bf16_from_f32(x[l]) : 0);
            assert_int_equal(f16[l], l < n ? f16_from_f32(x[l]) : 0);
        }
    }
}

static void test_conversions(void **state)
{
    uint16_t f16[VL], bf16[VL];
    for (int l = 0; l < VL; l++) {
        f16[l] = f16_from_f32(x[l]);
        bf16[l] = bf16_from_f32(x[l]);
    }
    f16[0] = 0x7c00; /* infinity */
    f16[1] = 0x8001; /* the negative subnormal closest to 0 */
    const vf from_f16 = vf_load_f16(f16), from_bf16 = vf_load_bf16(bf16);
    const vf from_u8 = vf_load_u8(bytes);
    for (int l = 0; l < VL; l++) {
        assert_true(from_f16[l] == f16_to_f32(f16[l]));
        assert_true(from_bf16[l] == bf16_to_f32(bf16[l]));
        assert_true(from_u8[l] == (float)bytes[l]);
    }
}

static void test_bf16_rounding(void **state)
{
    static const uint32_t special[] = {0x7fc00001, 0x7f800001, 0xffa12345, 0x7f800000,
                                       0x7f7fffff, 0x00018000, 0x80007fff, 0x3f808000,
                                       0x3f818000, 0x3f808001, 0x80000000, 0x00000001};
    for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++) {
        const float f = f32_from_bits(special[i]);
        uint16_t h[VL];
        vf_store_bf16(h, vf_set1(f));
        for (int l = 0; l < VL; l++)
            assert_int_equal(h[l], bf16_from_f32(f));
    }
}

/* Ties, both sides of the smallest values of each kind, and what is not finite. */
static void test_f16_rounding(void **state)
{
    static const uint32_t special[] = {
        0x7fc00001, 0x7f800001, 0xffa12345, 0x7f800000, 0xff800000, 0x477fefff, 0x477ff000,
        0x477fe000, 0x3f801000, 0x3f803000, 0x3f801001, 0x38800000, 0x387fffff, 0xb8401000,
        0x33800000, 0x33000000, 0x33000001, 0xb2ffffff, 0x80000000, 0x00000001};
    for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++) {
        const float f = f32_from_bits(special[i]);
        uint16_t h[VL];
        vf_store_f16(h, vf_set1(f));
        for (int l = 0; l < VL; l++)
            assert_int_equal(h[l], f16_from_f32(f));
    }
}

static void test_codes(void **state)
{
    uint8_t code[NIBBLES], pairs[NIBBLES / 2];
    for (int i = 0; i < 256; i++) {
        vf v = vf_set1((float)i);
        v[VL - 1] = (float)(255 - i);
        vf_store_u8(code, v);
        for (int l = 0; l < VL; l++)
            assert_int_equal(code[l], l == VL - 1 ? 255 - i : i);
        for (int k = 0; k < NIBBLES / 2; k++)
            pairs[k] = (uint8_t)(i + 37 * k);
        nibbles_unpack(code, pairs);
        for (int k = 0; k < NIBBLES; k++)
            assert_int_equal(code[k], pairs[k / 2] >> k % 2 * 4 & 15);
        memset(pairs, 0xff, sizeof(pairs));
        nibbles_pack(pairs, code);
        for (int k = 0; k < NIBBLES / 2; k++)
            assert_int_equal(pairs[k], (uint8_t)(i + 37 * k));
    }
}

static void test_masks(void **state)
{
    for (int n = 0; n <= VL; n++) {
        const vf v = vf_select(vm_first(n), vf_set1(1), vf_set1(2));
        assert_int_equal(vm_all(vm_first(n)), n == VL);
        for (int l = 0; l < VL; l++)
            assert_true(v[l] == (l < n ? 1 : 2));
    }
    vf v = vf_load(x);
    assert_true(vm_all(vf_finite(v)));
    v[VL - 1] = INFINITY;
    assert_false(vm_all(vf_finite(v)));
    v[VL - 1] = NAN;
    assert_false(vm_all(vf_finite(v)));
}

static void test_sums(void **state)
{
    float y[4];
    vf_sum4(y, vf_load(x), vf_load(x + VL), vf_load(x + 2 * VL), vf_load(x + 3 * VL));
    for (int i = 0; i < 4; i++) {
        const vf v = vf_load(x + i * VL);
        double sum = 0;
        float least = x[i * VL], most = least;
        for (int l = 0; l < VL; l++) {
            sum += (double)v[l];
            least = v[l] < least ? v[l] : least;
            most = v[l] > most ? v[l] : most;
        }
        assert_true(fabs((double)y[i] - sum) <= 1e-5);
        assert_true(fabs((double)vf_sum(v) - sum) <= 1e-5);
        assert_true(fabs(vf_sum64(v) - sum) <= 1e-12);
        assert_true(vf_hmin(v) == least);
        assert_true(vf_hmax(v) == most);
    }
}

static void test_code_tables(void **state)
{
    const vi codes = vi_load_n(bytes, VL);
    for (int zero = 0; zero < 16; zero++)
        for (int k = 0; k < 8; k++) {
            const vf v = vtable_get(vtable_codes(zero), codes, k);
            for (int l = 0; l < VL; l++) {
                const uint32_t w = (uint32_t)codes[l];
                assert_true(v[l] == (float)((int)(w >> 4 * k & 15) - zero));
            }
        }
}

static void test_int16_products(void **state)
{
    int16_t a[2 * VL], b[2 * VL];
    vi va, vb, acc = (vi){0} + 5;
    for (int l = 0; l < 2 * VL; l++) {
        a[l] = (int16_t)(l % 2 ? 255 - l : l - 255);
        b[l] = (int16_t)(l % 3 ? 32767 - l : l - 32768);
    }
    memcpy(&va, a, sizeof(va));
    memcpy(&vb, b, sizeof(vb));
    acc = vi_dot_int16(acc, va, vb);
    for (int l = 0; l < VL; l++)
        assert_int_equal(acc[l], 5 + a[2 * l] * b[2 * l] + a[2 * l + 1] * b[2 * l + 1]);
}

static void test_exponentials(void **state)
{
    for (float at = -103; at < 88; at += 0.37f) {
        const vf e = vf_exp(vf_set1(at)), s = vf_sigmoid(vf_set1(at));
        const double want = exp((double)at), bound = 3e-7 * want + 0x1p-149;
        assert_true(fabs((double)e[VL - 1] - want) <= bound);
        assert_true(fabs((double)s[0] - 1 / (1 + 1 / want)) <= 3e-7);
    }
    assert_true(vf_exp(vf_set1(100))[0] == INFINITY);
    assert_true(isnan(vf_exp(vf_set1(NAN))[0]));
}

#if VL == 16
static void test_even_before_odd(void **state)
{
    vf v[8];
    for (int i = 0; i < 8; i++)
        v[i] = vf_load(x + i * VL);
    vf_even_before_odd(v);
    for (int i = 0; i < 64; i++) {
        assert_true(v[i / VL][i % VL] == x[2 * i]);
        assert_true(v[4 + i / VL][i % VL] == x[2 * i + 1]);
    }
}
#endif

static bool this_set_is_supported(void)
{
    for (int isa = 0; isa < N_ISAS; isa++)
        if (!strcmp(isa_text((enum isa)isa), ISA_TEXT))
            return isa_supported((enum isa)isa);
    return false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_partial_loads),
        cmocka_unit_test(test_partial_stores),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_bf16_rounding),
        cmocka_unit_test(test_f16_rounding),
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_code_tables),
        cmocka_unit_test(test_int16_products),
        cmocka_unit_test(test_exponentials),
#if VL == 16
        cmocka_unit_test(test_even_before_odd),
#endif
    };
    if (!this_set_is_supported()) {
        printf("this processor has no %s\n", ISA_TEXT);
        return 77;
    }
    return cmocka_run_group_tests(tests, fill, NULL);
}

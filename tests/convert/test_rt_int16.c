/* SPDX-License-Identifier: MIT
 *
 * Products in 16-bit integers, for every instruction set of this machine: rounding to the
 * definition, panels bit for bit, and sums against those of the same integers in f64. */
#include "convert/format/bitpack.h"
#include "convert/runtime/rt_kernels.h"
#include "kernels/base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MAX 400
#define TOKENS 14
#define BLOCKS ((MAX + RT_PAD_COLUMNS - 1) / RT_PAD_COLUMNS)

static const int64_t lengths[] = {1, 2, 7, 8, 31, 64, 127, 128, 129, 200, 256, 300, MAX};

static struct rng rng;

/* RT_PANEL rows of `in` codes, TOKENS vectors, and both as the kernels hold them. */
static struct {
    int64_t in, group, groups;
    int bits;
    uint8_t codes[RT_PANEL][MAX], z[RT_PANEL * MAX], packed[RT_PANEL * MAX / 2 + 64];
    float h[RT_PANEL * MAX], x[TOKENS][MAX];
    int16_t panel[RT_PANEL * (MAX + 1)], fixed[BLOCKS][TOKENS][RT_PAD_COLUMNS];
    float unit[BLOCKS][TOKENS], y[TOKENS + 1][RT_PANEL];
} s;

static void make(int64_t in, int64_t group, int bits)
{
    s.in = in;
    s.group = group;
    s.groups = (in + group - 1) / group;
    s.bits = bits;
    for (int64_t r = 0; r < RT_PANEL; r++) {
        for (int64_t c = 0; c < in; c++)
            s.codes[r][c] = (uint8_t)rng_below(&rng, (uint64_t)1 << bits);
        if (bits == 4)
            bitpack_row(s.packed + r * bitpack_bytes(in, 4), s.codes[r], in, 4);
    }
    for (int64_t i = 0; i < RT_PANEL * s.groups; i++) {
        s.z[i] = (uint8_t)rng_below(&rng, (uint64_t)1 << bits);
        s.h[i] = (float)(0.01 + rng_uniform(&rng));
    }
    for (int64_t t = 0; t < TOKENS; t++)
        for (int64_t c = 0; c < in; c++)
            s.x[t][c] = (float)rng_normal(&rng);
}

static void round_all(const struct rt_kernels *k, int64_t n)
{
    memset(s.fixed, 0x55, sizeof(s.fixed));
    for (int64_t t = 0; t < n; t++)
        k->int16->round(s.fixed[0][t], &s.unit[0][t], TOKENS, s.x[t], s.in);
}

/* X and the unit of a block are what rt_kernels.h says: half a unit off, or a whole one
 * where X would be 2^15. */
static void check_block(const float *x, const int16_t *fixed, float unit, int64_t n)
{
    float most = 0;
    int power;
    for (int64_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    assert_true(frexpf(unit, &power) == 0.5f);
    if (most >= 0x1p-112f)
        assert_true(most < 0x1p15f * unit && most >= 0x1p14f * unit);
    for (int64_t i = 0; i < n; i++) {
        const double off = fabs((double)x[i] / (double)unit - fixed[i]);
        assert_true(off <= 0.5 || (off <= 1 && fixed[i] == 32767));
    }
    for (int64_t i = n; i < RT_PAD_COLUMNS; i++)
        assert_int_equal(fixed[i], 0);
}

static void check_rounding(const struct rt_kernels *k, int64_t in)
{
    static const float scale[] = {1, 1e-28f, 1e-36f, 1e34f, 0};
    for (size_t i = 0; i < ARRAY_LEN(scale); i++) {
        make(in, in, 8);
        for (int64_t c = 0; c < in; c++)
            s.x[0][c] *= scale[i];
        s.x[1][in - 1] = 0x1p10f - 0x1p-13f; /* X would be 2^15 */
        s.x[2][in / 2] = -0x1p10f + 0x1p-13f;
        round_all(k, 3);
        for (int64_t t = 0; t < 3; t++)
            for (int64_t b = 0; b * RT_PAD_COLUMNS < in; b++) {
                const int64_t at = b * RT_PAD_COLUMNS, left = in - at;
                check_block(s.x[t] + at, s.fixed[b][t], s.unit[b][t],
                            left < RT_PAD_COLUMNS ? left : RT_PAD_COLUMNS);
            }
    }
}

/* Rows `row` on of the codes; those from n on repeat the last. */
static void fill_panel(const struct rt_kernels *k, int64_t n)
{
    const struct rt_rows rows = {.codes = s.packed,
                                 .z = s.z,
                                 .h = s.h,
                                 .code_stride = bitpack_bytes(s.in, 4),
                                 .pair_stride = s.groups,
                                 .in = s.in,
                                 .group = s.groups > 1 ? s.group : rt_padded(s.in),
                                 .groups = s.groups};
    memset(s.panel, 0x55, sizeof(s.panel));
    for (int64_t c = 0; s.bits == 4 && c < s.in; c += RT_PAD_COLUMNS)
        k->int16->fill_nibbles(s.panel + c * RT_PANEL, &rows, 0, n, c,
                               s.in - c < RT_PAD_COLUMNS ? s.in : c + RT_PAD_COLUMNS);
    for (int64_t r = 0; s.bits != 4 && r < n; r++)
        k->int16->fill_row(s.panel, r, s.codes[r], s.z + r * s.groups, s.in, s.group);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < s.in; c++)
            assert_int_equal(s.panel[c / 2 * 2 * RT_PANEL + 2 * r + c % 2],
                             s.codes[r][c] - s.z[r * s.groups + c / s.group]);
}

/* All segments: columns of one block and one group. */
static void multiply(const struct rt_kernels *k, int64_t n)
{
    for (int64_t c = 0, to; c < s.in; c = to) {
        const int64_t b = c / RT_PAD_COLUMNS, g = c / s.group;
        float h[RT_PANEL];
        to = (b + 1) * RT_PAD_COLUMNS;
        to = (g + 1) * s.group < to ? (g + 1) * s.group : to;
        to = s.in < to ? s.in : to;
        for (int64_t r = 0; r < RT_PANEL; r++)
            h[r] = s.h[r * s.groups + g];
        k->int16->multiply(&(struct rt_int16_panel){.y = s.y[0],
                                                    .panel = s.panel + c * RT_PANEL,
                                                    .h = h,
                                                    .x = s.fixed[b][0] + c % RT_PAD_COLUMNS,
                                                    .unit = s.unit[b],
                                                    .n = n,
                                                    .pairs = (to - c + 1) / 2,
                                                    .add = c > 0});
    }
}

/* The integers are exact, so only the sums of segments are rounded: one per segment, each
 * by a few 2^-24. */
static void check_product(const struct rt_kernels *k, int64_t in, int64_t group, int bits,
                          int64_t n)
{
    make(in, group, bits);
    round_all(k, n);
    fill_panel(k, RT_PANEL);
    s.y[n][0] = 7;
    multiply(k, n);
    assert_true(s.y[n][0] == 7);
    for (int64_t t = 0; t < n; t++)
        for (int64_t r = 0; r < RT_PANEL; r++) {
            double want = 0, size = 0;
            for (int64_t c = 0; c < in; c++) {
                const int64_t at = r * s.groups + c / group, b = c / RT_PAD_COLUMNS;
                const double p = (double)s.h[at] * (s.codes[r][c] - s.z[at]) *
                                 s.fixed[b][t][c % RT_PAD_COLUMNS] * (double)s.unit[b][t];
                want += p;
                size += fabs(p);
            }
            const bool pass = fabs((double)s.y[t][r] - want) <= 5e-7 * size;
            if (!pass)
                fail_msg("%s, %d columns, groups of %d, %d bits: %.9g, want %.9g", k->name,
                         (int)in, (int)group, bits, (double)s.y[t][r], want);
        }
}

/* The largest codes and activations do not overflow; a number that is not finite shows. */
static void check_extremes(const struct rt_kernels *k)
{
    static const float odd[] = {INFINITY, -INFINITY, NAN};
    make(RT_PAD_COLUMNS, RT_PAD_COLUMNS, 8);
    memset(s.codes, 255, sizeof(s.codes));
    memset(s.z, 0, sizeof(s.z));
    for (int64_t c = 0; c < s.in; c++)
        s.x[0][c] = -0x1p15f + 0.25f;
    s.h[0] = 1;
    round_all(k, 1);
    fill_panel(k, RT_PANEL);
    multiply(k, 1);
    assert_true(s.y[0][0] == -255.0f * RT_PAD_COLUMNS * 0x1p15f);
    for (size_t i = 0; i < ARRAY_LEN(odd); i++) {
        make(MAX, MAX, 4);
        s.x[1][MAX - 1] = odd[i];
        round_all(k, 3);
        fill_panel(k, RT_PANEL);
        multiply(k, 3);
        for (int64_t r = 0; r < RT_PANEL; r++)
            assert_true(isnan(s.y[1][r]) && isfinite(s.y[0][r]) && isfinite(s.y[2][r]));
    }
}

static void check_all(const struct rt_kernels *k)
{
    check_extremes(k);
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        const int64_t in = lengths[i], groups[] = {8, 40, 64, 128, 136, in};
        check_rounding(k, in);
        for (size_t g = 0; g < ARRAY_LEN(groups); g++)
            for (int bits = 2; bits <= 8; bits++)
                check_product(k, in, groups[g], bits, 1 + (in + bits) % (TOKENS - 1));
        check_product(k, in, in, 4, TOKENS - 1);
        make(in, in, 4);
        for (int64_t n = 1; n < RT_PANEL; n += 7)
            fill_panel(k, n);
    }
}

static void test_int16(void **state)
{
    rng_seed(&rng, 6);
    for (enum isa isa = ISA_PLAIN; isa < N_ISAS; isa++)
        if (rt_kernels_of(isa))
            check_all(rt_kernels_of(isa));
    for (enum isa isa = ISA_PLAIN; isa < ISA_AVX512VNNI; isa++)
        assert_true(!rt_kernels_of(isa) || !rt_kernels_of(isa)->int16->faster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_int16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

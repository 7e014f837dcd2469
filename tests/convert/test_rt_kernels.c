/* SPDX-License-Identifier: MIT
 *
 * The runtime's inner loops, every instruction set this machine has, against sums in f64 of
 * the definition's values. Odd lengths, ragged groups, any alignment. */
#include "convert/artifact/bitpack.h"
#include "convert/runtime/rt_kernels.h"
#include "kernels/base/rng.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MAX 300
static const int64_t lengths[] = {1,  2,  3,  7,   15,  16,  17,  31,
                                  32, 33, 64, 127, 128, 129, 255, 300};
static const int64_t groups[] = {1, 2, 5, 8, 16, 31, 32, 64, 128, 300};

static struct rng rng;

static void fill(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rng_normal(&rng);
}

/* |have - want| within what n additions of terms of that size may lose. */
static void near(const struct rt_kernels *k, const char *what, int64_t n, double have,
                 double want, double size)
{
    const bool pass = fabs(have - want) <= 1e-6 * size + 1e-30;
    if (!pass)
        fail_msg("%s %s, n = %d: %.9g, want %.9g", k->name, what, (int)n, have, want);
}

static void check_plain(const struct rt_kernels *k, int64_t n)
{
    static float x[MAX], w[MAX], y[MAX], z[MAX];
    static uint8_t raw[3][4 * MAX + 1];
    const enum dtype type[] = {DT_F32, DT_F16, DT_BF16};
    fill(x, n);
    fill(w, n);
    double want = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        want += (double)w[i] * (double)x[i];
        size += fabs((double)w[i] * (double)x[i]);
    }
    near(k, "dot", n, (double)k->dot(w, x, n), want, size);
    for (int64_t i = 0; i < n; i++) { /* one byte off: any alignment */
        const uint16_t f16 = f16_from_f32(w[i]), bf16 = bf16_from_f32(w[i]);
        memcpy(raw[0] + 1 + 4 * i, &w[i], 4);
        memcpy(raw[1] + 1 + 2 * i, &f16, 2);
        memcpy(raw[2] + 1 + 2 * i, &bf16, 2);
    }
    for (int t = 0; t < 3; t++) {
        k->to_f32(y, raw[t] + 1, type[t], n);
        host_to_f32(z, raw[t] + 1, type[t], n);
        assert_memory_equal(y, z, (size_t)n * sizeof(*y));
        want = 0;
        for (int64_t i = 0; i < n; i++)
            want += (double)y[i] * (double)x[i];
        k->rows_plain(z, raw[t] + 1, type[t], 1, x, n);
        near(k, "rows_plain", n, (double)z[0], want, size);
    }
    memcpy(y, w, sizeof(y));
    k->axpy(y, 0.3f, x, n);
    for (int64_t i = 0; i < n; i++)
        near(k, "axpy", n, (double)y[i], (double)w[i] + (double)0.3f * (double)x[i],
             fabs((double)w[i]) + fabs((double)x[i]));
}

struct packed {
    uint8_t codes[MAX], bytes[MAX + 1], z[MAX], scratch[MAX];
    float h[MAX], w[MAX];
    struct rt_row row;
};

static void make_packed(struct packed *p, int64_t n, int64_t group, int bits)
{
    const uint64_t top = (uint64_t)1 << bits;
    for (int64_t i = 0; i < n; i++)
        p->codes[i] = (uint8_t)rng_below(&rng, top);
    for (int64_t g = 0; g < (n + group - 1) / group; g++) {
        p->h[g] = f16_round((float)(0.01 + rng_uniform(&rng)));
        p->z[g] = (uint8_t)rng_below(&rng, top);
    }
    bitpack_row(p->bytes, p->codes, n, bits);
    for (int64_t i = 0; i < n; i++)
        p->w[i] = quant_weight_value(p->codes[i], p->z[i / group], p->h[i / group]);
    p->row = (struct rt_row){p->bytes, p->h, p->z, n, group, bits};
}

static void check_packed(const struct rt_kernels *k, int64_t n, int64_t group, int bits)
{
    static struct packed p;
    static float x[MAX], w[MAX], parted[MAX + RT_BLOCK], lanes[MAX + RT_BLOCK];
    make_packed(&p, n, group, bits);
    fill(x, n);
    double want = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        want += (double)p.w[i] * (double)x[i];
        size += fabs((double)p.w[i] * (double)x[i]);
    }
    near(k, "dot_codes", n, (double)k->dot_codes(&p.row, x, p.scratch), want, size);
    k->unpack(w, &p.row, p.scratch);
    assert_memory_equal(w, p.w, (size_t)n * sizeof(*w)); /* bit for bit */
    if (bits != 4 || (group % 8 && group < n))
        return;
    k->part(parted, x, n);
    near(k, "dot_nibbles", n, (double)k->dot_nibbles(&p.row, parted, lanes), want, size);
}

/* n_rows rows at once; every row has its own codes, scales and zeros. */
static void check_rows(const struct rt_kernels *k, int64_t in, int64_t group, int64_t n)
{
    static uint8_t codes[11 * MAX], zeros[11 * MAX];
    static float h[11 * MAX], x[MAX], parted[MAX + RT_BLOCK];
    static struct packed p;
    const int64_t row_groups = (in + group - 1) / group;
    const struct rt_rows rows = {codes,
                                 zeros,
                                 h,
                                 bitpack_bytes(in, 4),
                                 bitpack_bytes(row_groups, 4),
                                 in,
                                 row_groups > 1 ? group : rt_parted(in),
                                 row_groups};
    double want[11] = {0}, size[11] = {0};
    float y[11];
    fill(x, in);
    for (int64_t r = 0; r < n; r++) {
        make_packed(&p, in, group, 4);
        memcpy(codes + r * rows.code_stride, p.bytes, (size_t)rows.code_stride);
        memcpy(h + r * row_groups, p.h, (size_t)row_groups * sizeof(*h));
        bitpack_row(zeros + r * rows.zero_stride, p.z, row_groups, 4);
        for (int64_t i = 0; i < in; i++) {
            want[r] += (double)p.w[i] * (double)x[i];
            size[r] += fabs((double)p.w[i] * (double)x[i]);
        }
    }
    k->part(parted, x, in);
    k->rows_nibbles(y, &rows, n, parted);
    for (int64_t r = 0; r < n; r++)
        near(k, "rows_nibbles", in, (double)y[r], want[r], size[r]);
}

static void check_plain_rows(const struct rt_kernels *k, int64_t in, int64_t n)
{
    static float w[7 * MAX], x[MAX], y[7];
    static uint16_t half[7 * MAX];
    fill(x, in);
    for (int type = 0; type < 2; type++) {
        fill(w, n * in);
        for (int64_t i = 0; i < n * in; i++) {
            half[i] = type ? bf16_from_f32(w[i]) : f16_from_f32(w[i]);
            w[i] = type ? bf16_to_f32(half[i]) : f16_to_f32(half[i]);
        }
        k->rows_plain(y, half, type ? DT_BF16 : DT_F16, n, x, in);
        for (int64_t r = 0; r < n; r++) {
            double want = 0, size = 0;
            for (int64_t i = 0; i < in; i++) {
                want += (double)w[r * in + i] * (double)x[i];
                size += fabs((double)w[r * in + i] * (double)x[i]);
            }
            near(k, "rows_plain", in, (double)y[r], want, size);
        }
    }
}

static void check_tile(const struct rt_kernels *k, int64_t in, int64_t n)
{
    static float w[4 * MAX], x[5 * MAX], y[5 * 6];
    fill(w, 4 * in);
    fill(x, n * in);
    k->tile(y, 6, w, in, x, in, n, in);
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < 4; i++) {
            double want = 0, size = 0;
            for (int64_t c = 0; c < in; c++) {
                const double p = (double)w[i * in + c] * (double)x[t * in + c];
                want += p;
                size += fabs(p);
            }
            near(k, "tile", in, (double)y[t * 6 + i], want, size);
        }
}

static void check_kv(const struct rt_kernels *k, int64_t n)
{
    static uint8_t codes[MAX];
    static float s[MAX], delta[MAX], x[MAX];
    fill(s, n);
    fill(delta, n);
    for (int64_t i = 0; i < n; i++)
        codes[i] = (uint8_t)rng_below(&rng, 16);
    k->kv_out(x, codes, 0.25f, -1.7f, s, delta, n);
    for (int64_t i = 0; i < n; i++)
        assert_true(x[i] == quant_kv_out(codes[i], 0.25f, -1.7f, s[i], delta[i]));
}

static void check_all(const struct rt_kernels *k)
{
    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        check_plain(k, lengths[i]);
        check_kv(k, lengths[i]);
        for (int64_t n = 1; n <= 5; n++)
            check_tile(k, lengths[i], n);
        for (int64_t n = 1; n <= 7; n += 3) {
            check_plain_rows(k, lengths[i], n);
            check_rows(k, lengths[i], RT_BLOCK, n + 4);
            check_rows(k, lengths[i], 2 * RT_BLOCK, n);
            check_rows(k, lengths[i], lengths[i], n);
        }
        for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++)
            for (int bits = 2; bits <= 8; bits++)
                check_packed(k, lengths[i], groups[g], bits);
    }
}

static void test_kernels(void **state)
{
    const char *const name[] = {"plain", "avx2", "avx512"};
    rng_seed(&rng, 5);
    for (int i = 0; i < 3; i++) {
        const struct rt_kernels *k = rt_kernels_named(name[i]);
        print_message("%s%s\n", name[i], k ? "" : ": not on this machine");
        if (k)
            check_all(k);
    }
    assert_non_null(rt_kernels_best());
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kernels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

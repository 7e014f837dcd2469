/* SPDX-License-Identifier: MIT
 *
 * The runtime's inner loops, for every instruction set of this machine, compared with f64
 * sums of the definition's values. Lengths are odd, groups are ragged, and alignment
 * varies. */
#include "convert/format/bitpack.h"
#include "convert/runtime/rt_kernels.h"
#include "kernels/base/rng.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MAX 700
static const int64_t lengths[] = {1,  2,  3,   7,   15,  16,  17,  31, 32,
                                  33, 64, 127, 128, 129, 255, 300, MAX};
static const int64_t groups[] = {1, 2, 5, 8, 16, 31, 32, 64, 128, 300};

static struct rng rng;

static void fill(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rng_normal(&rng);
}

/* *want = the exact product, *size = the sum of its terms' sizes. */
static void exact(double *want, double *size, const float *w, const float *x, int64_t n)
{
    *want = *size = 0;
    for (int64_t i = 0; i < n; i++) {
        *want += (double)w[i] * (double)x[i];
        *size += fabs((double)w[i] * (double)x[i]);
    }
}

/* Checks |have - want| against the error of n additions of terms of this size. */
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
    double want, size;
    exact(&want, &size, w, x, n);
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
    static float x[MAX], w[MAX], interleaved[MAX + RT_PAD_COLUMNS],
        lanes[MAX + RT_PAD_COLUMNS];
    make_packed(&p, n, group, bits);
    fill(x, n);
    double want, size;
    exact(&want, &size, p.w, x, n);
    k->unpack(w, &p.row, p.scratch);
    assert_memory_equal(w, p.w, (size_t)n * sizeof(*w)); /* bit for bit */
    if (bits != 4 || (group % 8 && group < n))
        return;
    k->interleave(interleaved, x, n);
    near(k, "dot_nibbles", n, (double)k->dot_nibbles(&p.row, interleaved, lanes), want,
         size);
}

/* Checks the result of fill_nibbles for n rows from `row` on, bit for bit. */
static void check_unpacked(const struct rt_kernels *k, const struct rt_rows *r,
                           const float *w, int64_t row, int64_t n)
{
    static float panel[RT_PANEL * MAX];
    const int64_t first = r->in > RT_PAD_COLUMNS ? RT_PAD_COLUMNS : r->in;
    k->panel->fill_nibbles(panel, r, row, n, 0, first);
    if (first < r->in)
        k->panel->fill_nibbles(panel + first * RT_PANEL, r, row, n, first, r->in);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < r->in; c++)
            assert_true(panel[c * RT_PANEL + i] == w[(row + i) * r->in + c]);
}

/* Rows with their own codes, scales and zeros, and their exact products with x. The codes end
 * where their memory does. */
struct some_rows {
    uint8_t codes[11 * MAX], zeros[11 * MAX];
    float h[11 * MAX], x[MAX], w[11 * MAX];
    double want[11], size[11];
    struct rt_rows rows;
};

static void make_rows(struct some_rows *s, int64_t in, int64_t group, int64_t n, int bits)
{
    static struct packed p;
    const int64_t groups_ = (in + group - 1) / group, bytes = bitpack_bytes(in, bits);
    uint8_t *codes = s->codes + sizeof(s->codes) - n * bytes;
    s->rows = (struct rt_rows){.codes = codes,
                               .z = s->zeros,
                               .h = s->h,
                               .code_stride = bytes,
                               .pair_stride = groups_,
                               .in = in,
                               .group = groups_ > 1 ? group : rt_padded(in),
                               .groups = groups_};
    fill(s->x, in);
    for (int64_t r = 0; r < n; r++) {
        make_packed(&p, in, group, bits);
        memcpy(codes + r * bytes, p.bytes, (size_t)bytes);
        memcpy(s->h + r * groups_, p.h, (size_t)groups_ * sizeof(*p.h));
        memcpy(s->zeros + r * groups_, p.z, (size_t)groups_);
        memcpy(s->w + r * in, p.w, (size_t)in * sizeof(*p.w));
        exact(&s->want[r], &s->size[r], p.w, s->x, in);
    }
}

/* n rows of 4 bits at once. */
static void check_rows(const struct rt_kernels *k, int64_t in, int64_t group, int64_t n)
{
    static struct some_rows s;
    static float interleaved[2 * MAX];
    float y[11];
    make_rows(&s, in, group, n, 4);
    check_unpacked(k, &s.rows, s.w, 0, n);
    check_unpacked(k, &s.rows, s.w, n - 1, 1);
    if (group % RT_PAD_COLUMNS && s.rows.groups > 1)
        return;
    assert_true(rt_interleaved_floats(in) <= 2 * MAX);
    k->interleave_rows(interleaved, s.x, in);
    k->rows_nibbles(y, &s.rows, n, interleaved);
    for (int64_t r = 0; r < n; r++)
        near(k, "rows_nibbles", in, (double)y[r], s.want[r], s.size[r]);
}

/* n rows of bytes at once, then the last alone: its bits do not depend on the others. */
static void check_byte_rows(const struct rt_kernels *k, int64_t in, int64_t group,
                            int64_t n)
{
    static struct some_rows s;
    float y[12], alone[2] = {0, 7};
    make_rows(&s, in, group, n, 8);
    y[n] = 7;
    k->rows_bytes(y, &s.rows, n, s.x);
    for (int64_t r = 0; r < n; r++)
        near(k, "rows_bytes", in, (double)y[r], s.want[r], s.size[r]);
    s.rows.codes += (n - 1) * s.rows.code_stride;
    s.rows.z += (n - 1) * s.rows.pair_stride;
    s.rows.h += (n - 1) * s.rows.pair_stride;
    k->rows_bytes(alone, &s.rows, 1, s.x);
    assert_true(alone[0] == y[n - 1] && alone[1] == 7 && y[n] == 7);
}

/* One row of MAX columns by x: compares rows_nibbles with the sum in f64. */
static float one_row(const struct rt_kernels *k, const float *x, double *want, double *size)
{
    static struct packed p;
    static float interleaved[2 * MAX];
    float y;
    make_packed(&p, MAX, RT_PAD_COLUMNS, 4);
    const struct rt_rows rows = {.codes = p.bytes,
                                 .z = p.z,
                                 .h = p.h,
                                 .code_stride = bitpack_bytes(MAX, 4),
                                 .pair_stride = (MAX + RT_PAD_COLUMNS - 1) / RT_PAD_COLUMNS,
                                 .in = MAX,
                                 .group = RT_PAD_COLUMNS,
                                 .groups = (MAX + RT_PAD_COLUMNS - 1) / RT_PAD_COLUMNS};
    exact(want, size, p.w, x, MAX);
    k->interleave_rows(interleaved, x, MAX);
    k->rows_nibbles(&y, &rows, 1, interleaved);
    return y;
}

/* Vectors that a fixed-point format could lose: one much larger element, tiny elements,
 * nearly the largest, zeros, and NaN. */
static void check_spread(const struct rt_kernels *k)
{
    static const float scale[] = {1e-28f, 1e-32f, 1e34f};
    static const float odd[] = {INFINITY, -INFINITY, NAN};
    static float x[MAX];
    double want, size;
    for (int i = 0; i < 30; i++) {
        fill(x, MAX);
        x[10 * i] *= 4000;
        const float y = one_row(k, x, &want, &size);
        near(k, "rows_nibbles, one large", MAX, (double)y, want, size);
    }
    for (size_t s = 0; s < sizeof(scale) / sizeof(*scale); s++) {
        fill(x, MAX);
        for (int64_t i = 0; i < MAX; i++)
            x[i] *= scale[s];
        const double by = 1 / (double)scale[s], y = (double)one_row(k, x, &want, &size);
        near(k, "rows_nibbles, scaled", MAX, by * y, by * want, by * size);
        for (int64_t i = 0; i < MAX; i++) /* below what F32 holds in full */
            x[i] = 1e-38f * (float)i / MAX;
        assert_true(fabs((double)one_row(k, x, &want, &size) - want) < 1e-34);
    }
    memset(x, 0, sizeof(x));
    assert_true(one_row(k, x, &want, &size) == 0);
    for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) {
        fill(x, MAX);
        x[MAX - 1] = odd[i];
        const float y = one_row(k, x, &want, &size);
        assert_true(isfinite(want) || !isfinite(y));
    }
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
            double want, size;
            exact(&want, &size, w + r * in, x, in);
            near(k, "rows_plain", in, (double)y[r], want, size);
        }
    }
}

/* A panel of `rows` unpacked rows and n vectors; y's other columns stay as they are. */
static void check_panel(const struct rt_kernels *k, int64_t in, int64_t n, int64_t rows)
{
    static float w[RT_PANEL * MAX], x[14 * MAX], panel[RT_PANEL * MAX], y[14 * 40];
    fill(w, rows * in);
    fill(x, n * in);
    fill(y, 14 * 40);
    k->panel->fill_rows(panel, w, in, rows);
    const float behind = y[rows];
    const int64_t half = in / 2;
    const struct rt_panel left = {y, 40, panel, rows, x, in, n, half, false};
    const struct rt_panel right = {
        y, 40, panel + half * RT_PANEL, rows, x + half, in, n, in - half, true};
    k->panel->multiply(&left);
    k->panel->multiply(&right);
    assert_true(y[rows] == behind);
    for (int64_t t = 0; t < n; t++)
        for (int64_t i = 0; i < rows; i++) {
            double want, size;
            exact(&want, &size, w + i * in, x + t * in, in);
            near(k, "panel", in, (double)y[t * 40 + i], want, size);
        }
}

static void check_kv(const struct rt_kernels *k, int64_t n)
{
    static uint8_t codes[MAX], packed[MAX];
    static float s[MAX], delta[MAX], x[MAX + 1];
    fill(s, n);
    fill(delta, n);
    for (int64_t i = 0; i < n; i++)
        codes[i] = (uint8_t)rng_below(&rng, 16);
    k->kv_dequantize(x, codes, 0.25f, -1.7f, (struct rt_channels){s, delta}, n);
    for (int64_t i = 0; i < n; i++)
        assert_true(x[i] == quant_kv_out(codes[i], 0.25f, -1.7f, s[i], delta[i]));
    n = n / 8 * 8;
    bitpack_row(packed, codes, n, 4);
    x[n] = 7;
    k->kv->unpack_values(x, packed, 0.3f, -1.7f, (struct rt_channels){s, delta}, n);
    for (int64_t i = 0; i < n; i++)
        assert_true(x[i] == quant_kv_out(codes[i], 0.3f, -1.7f, s[i], delta[i]));
    assert_true(x[n] == 7);
}

/* A group's codes and pair, bit for bit. One of its channels may lie far outside or be NaN,
 * and all may be alike. */
static void check_pack(const struct rt_kernels *k, int64_t n, int bits, float spread,
                       float far)
{
    static uint8_t codes[MAX + 1];
    static float s[MAX], delta[MAX], x[MAX];
    uint16_t h, m;
    fill(s, n);
    fill(delta, n);
    fill(x, n);
    for (int64_t i = 0; i < n; i++) {
        s[i] = 0.1f + fabsf(s[i]);
        x[i] = spread > 0 ? spread * x[i] : delta[i];
    }
    x[n / 2] += far;
    codes[n] = 77;
    k->kv->quantize(codes, &h, &m, x, (struct rt_channels){s, delta}, n, bits);
    float mn = INFINITY, mx = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        mn = fminf(mn, quant_kv_in(x[i], s[i], delta[i]));
        mx = fmaxf(mx, quant_kv_in(x[i], s[i], delta[i]));
    }
    assert_int_equal(h, quant_kv_scale(mn, mx, bits));
    assert_int_equal(m, quant_kv_min(mn));
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(codes[i], quant_kv_code(quant_kv_in(x[i], s[i], delta[i]),
                                                 f16_to_f32(h), f16_to_f32(m), bits));
    assert_int_equal(codes[n], 77);
}

/* --- attention over packed keys and values ------------------------------------------ */

#define ROWS 4
#define WIDE 128

static void check_fold(const struct rt_kernels *k, int64_t n)
{
    static float q[MAX], s[MAX], delta[MAX], out[MAX + 1];
    const float by = 0.125f;
    double sum = 0, shift = 0, size[2] = {0};
    float have;
    fill(q, n);
    fill(s, n);
    fill(delta, n);
    out[n] = 7;
    const float have_shift =
        k->kv->fold(out, &have, q, (struct rt_channels){s, delta}, by, n);
    for (int64_t i = 0; i < n; i++) {
        assert_true(out[i] == q[i] * by * s[i]);
        sum += (double)out[i];
        size[0] += fabs((double)out[i]);
        shift += (double)(by * q[i]) * (double)delta[i];
        size[1] += fabs((double)(by * q[i]) * (double)delta[i]);
    }
    near(k, "fold: sum", n, (double)have, sum, size[0]);
    near(k, "fold: shift", n, (double)have_shift, shift, size[1]);
    assert_true(out[n] == 7);
}

/* The same keys as columns of a panel, next to columns that stay as they are. */
static void check_unpacked_keys(const struct rt_kernels *k, int64_t d, int64_t group,
                                int64_t width, const uint8_t *words,
                                uint8_t code[RT_KEYS][WIDE], const float *h, const float *m)
{
    static float panel[WIDE * RT_PANEL], s[WIDE], delta[WIDE];
    fill(s, d);
    fill(delta, d);
    panel[RT_KEYS] = 7;
    k->kv->unpack_keys(panel, words, width, h, m, (struct rt_channels){s, delta}, group, d);
    assert_true(panel[RT_KEYS] == 7);
    for (int64_t t = 0; t < width; t++)
        for (int64_t i = 0; i < d; i++) {
            const double hi = (double)h[i / group * RT_TILE + t] * code[t][i];
            const double mi = (double)m[i / group * RT_TILE + t], si = (double)s[i];
            near(k, "unpack_keys", d, (double)panel[i * RT_PANEL + t],
                 si * (hi + mi) + (double)delta[i],
                 fabs(si) * (fabs(hi) + fabs(mi)) + fabs((double)delta[i]));
        }
}

/* Scores of RT_KEYS tokens, or fewer, of a head of d channels. */
static void check_keys(const struct rt_kernels *k, int64_t d, int64_t group, int64_t width,
                       int64_t rows)
{
    static float q[ROWS * (WIDE + 17)], h[16 * RT_TILE], m[16 * RT_TILE];
    static float score[ROWS * RT_TILE];
    static uint8_t code[RT_KEYS][WIDE], row[WIDE], words[RT_KEYS * WIDE];
    const int64_t n = d / group, stride = d + n + 1;
    fill(q, rows * stride);
    fill(h, n * RT_TILE);
    fill(m, n * RT_TILE);
    for (int64_t t = 0; t < width; t++) {
        for (int64_t i = 0; i < d; i++)
            code[t][i] = (uint8_t)rng_below(&rng, 16);
        bitpack_row(row, code[t], d, 4);
        for (int64_t i = 0; i < d / 8; i++)
            memcpy(words + 4 * (i * width + t), row + 4 * i, 4);
    }
    const struct rt_folded f = {q, rows, stride, d, group};
    k->kv->score_keys(score, &f, words, width, h, m);
    check_unpacked_keys(k, d, group, width, words, code, h, m);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < width; t++) {
            const float *qr = q + r * stride;
            double want = (double)qr[d + n], size = fabs(want);
            for (int64_t i = 0; i < d; i++) {
                const double p =
                    (double)qr[i] * code[t][i] * (double)h[i / group * RT_TILE + t];
                want += p;
                size += fabs(p);
            }
            for (int64_t g = 0; g < n; g++) {
                want += (double)qr[d + g] * (double)m[g * RT_TILE + t];
                size += fabs((double)qr[d + g] * (double)m[g * RT_TILE + t]);
            }
            near(k, "score_keys", d, (double)score[r * RT_TILE + t], want, size);
        }
}

/* Adds weighted codes of n tokens to the existing values. */
static void check_values(const struct rt_kernels *k, int64_t channels, int64_t n,
                         int64_t rows)
{
    static float w[ROWS * RT_TILE], acc[ROWS * 8 * RT_KEYS * 2], out[WIDE];
    static uint8_t code[RT_TILE][WIDE], bytes[RT_TILE * WIDE / 2];
    const int64_t words = channels / 8, apart = rt_acc_floats(words);
    fill(w, ROWS * RT_TILE);
    memset(acc, 0, sizeof(acc));
    for (int64_t t = 0; t < n; t++) {
        for (int64_t i = 0; i < channels; i++)
            code[t][i] = (uint8_t)rng_below(&rng, 16);
        bitpack_row(bytes + t * channels / 2, code[t], channels, 4);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = n; t < RT_TILE; t++)
            w[r * RT_TILE + t] = 0;
    k->kv->add_values(acc, apart, w, rows, bytes, n, words);
    k->kv->add_values(acc, apart, w, rows, bytes, n, words);
    for (int64_t r = 0; r < rows; r++) {
        k->kv->collect(out, acc + r * apart, words);
        for (int64_t i = 0; i < channels; i++) {
            double want = 0, size = 0;
            for (int64_t t = 0; t < n; t++) {
                want += 2 * (double)w[r * RT_TILE + t] * code[t][i];
                size += 2 * fabs((double)w[r * RT_TILE + t] * code[t][i]);
            }
            near(k, "add_values", n, (double)out[i], want, size);
        }
    }
}

static void check_exponentials(const struct rt_kernels *k)
{
    static float x[RT_TILE], p[RT_TILE], q[RT_TILE], u[RT_TILE];
    double total = 0;
    fill(x, RT_TILE);
    for (int64_t i = 0; i < RT_TILE; i++)
        x[i] = fminf(20 * x[i], 69);
    x[5] = -INFINITY;
    x[9] = -300;
    x[17] = 70;
    assert_true(k->kv->maximum(x, RT_TILE) == 70);
    const float have = k->kv->exponentials(p, x, 70, RT_TILE);
    for (int64_t i = 0; i < RT_TILE; i++) {
        const double want = exp((double)(x[i] - 70));
        near(k, "exponentials", i, (double)p[i], want < 1.2e-38 ? 0 : want, want);
        total += want;
    }
    near(k, "sum", RT_TILE, (double)have, total, total);
    assert_true(p[5] == 0 && p[9] == 0);
    x[40] = NAN;
    assert_true(isnan(k->kv->exponentials(p, x, 70, RT_TILE)));
    x[40] = 0;
    for (int64_t n = 1; n <= RT_TILE; n += 21) {
        fill(u, n);
        for (int64_t i = 0; i < n; i++)
            p[i] = isinf(x[i]) ? -100 : x[i];
        const double first = (double)p[0], by = (double)u[0];
        const double z = first * (GELU_A + GELU_B * first * first);
        memcpy(q, p, sizeof(p));
        k->kv->gate(GATE_SILU, p, u, n);
        k->kv->gate(GATE_GELU, q, u, n);
        const double silu = first / (1 + exp(-first)) * by;
        const double gelu = first / (1 + exp(-z)) * by;
        near(k, "silu", n, (double)p[0], silu, fabs(silu));
        near(k, "gelu", n, (double)q[0], gelu, fabs(gelu));
    }
}

static void check_scaled(const struct rt_kernels *k)
{
    static float a[RT_TILE], b[RT_TILE], y[RT_TILE + 1];
    fill(a, RT_TILE);
    fill(b, RT_TILE);
    y[48] = 7;
    k->kv->multiply(y, a, b, 48);
    for (int i = 0; i < 48; i++)
        assert_true(y[i] == a[i] * b[i]);
    k->kv->scale(y, 0.7f, 48);
    for (int i = 0; i < 48; i++)
        assert_true(y[i] == a[i] * b[i] * 0.7f);
    assert_true(y[48] == 7);
}

static void check_attention(const struct rt_kernels *k)
{
    check_scaled(k);
    for (int64_t rows = 1; rows <= ROWS; rows++)
        for (int64_t width = 1; width <= RT_KEYS; width += 5) {
            check_keys(k, 64, 64, width, rows);
            check_keys(k, 128, 32, width, rows);
            check_keys(k, 24, 8, width, rows);
            check_keys(k, 80, 80, width, rows);
        }
    for (int64_t rows = 1; rows <= ROWS; rows++)
        for (int64_t n = 1; n <= RT_TILE; n += 7)
            for (int64_t channels = 8; channels <= WIDE; channels += 8)
                check_values(k, channels, n, rows);
    check_exponentials(k);
}

static void check_all(const struct rt_kernels *k)
{
    check_attention(k);
    check_spread(k);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        check_plain(k, lengths[i]);
        check_kv(k, lengths[i]);
        check_fold(k, lengths[i]);
        for (int bits = 2; bits <= 8; bits++) {
            check_pack(k, lengths[i], bits, 3, 0);
            check_pack(k, lengths[i], bits, 1e-3f, 3e8f); /* h and m at their ends */
            check_pack(k, lengths[i], bits, 1e-3f, -3e8f);
            check_pack(k, lengths[i], bits, 0, 0);
            check_pack(k, lengths[i], bits, 3, lengths[i] > 1 ? NAN : 0);
        }
        for (int64_t n = 1; n <= 14; n++)
            check_panel(k, lengths[i], n, 1 + n * 37 % RT_PANEL);
        check_panel(k, lengths[i], 13, RT_PANEL);
        for (int64_t n = 1; n <= 7; n += 3) {
            check_plain_rows(k, lengths[i], n);
            check_rows(k, lengths[i], RT_PAD_COLUMNS, n + 4);
            check_rows(k, lengths[i], 2 * RT_PAD_COLUMNS, n);
            check_rows(k, lengths[i], lengths[i], n);
            check_rows(k, lengths[i], 8, n);
            check_rows(k, lengths[i], 40, n);
            for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++)
                check_byte_rows(k, lengths[i], groups[g], n + 3);
        }
        for (size_t g = 0; g < sizeof(groups) / sizeof(*groups); g++)
            for (int bits = 2; bits <= 8; bits++)
                check_packed(k, lengths[i], groups[g], bits);
    }
}

static void test_kernels(void **state)
{
    rng_seed(&rng, 5);
    for (enum isa isa = ISA_PLAIN; isa < N_ISAS; isa++) {
        const struct rt_kernels *k = rt_kernels_of(isa);
        print_message("%s%s\n", isa_text(isa), k ? "" : ": no kernels for this machine");
        if (!k)
            continue;
        assert_string_equal(k->name, isa_text(isa));
        check_all(k);
    }
    assert_non_null(rt_kernels_best());
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kernels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

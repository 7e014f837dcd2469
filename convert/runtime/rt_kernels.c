/* SPDX-License-Identifier: MIT
 *
 * Products of rows of weights with one vector: the decode path. Compiled once per
 * instruction set with -DISA=plain, avx2, avx512, avx512vnni or neon (kernels/simd/isa.h).
 *
 * Decoding reads every weight once per token, so these loops run at the speed of memory
 * and must not spend instructions on moving codes about. A row stores column 0 in the low
 * half of byte 0, column 1 in the high half, and so on; a 32-bit lane holds 8 columns:
 *
 *             lane 0                     lane 1               ...   lane VL - 1
 *   codes  [ c7 c6 c5 c4 c3 c2 c1 c0 ][ c15 c14 ...  c9  c8 ] ...
 *   >> 4k     c_k in the low 4 bits      c_(8+k)              ...   c_(8(VL-1)+k)
 *   x_k    [ x[k]                    ][ x[8+k]              ] ...  [ x[8(VL-1)+k] ]
 *
 * Codes stay where they are and x is reordered instead, once per product: vector k of an
 * interleaved x holds columns k, 8 + k, 16 + k, ... Then 8 shifts and 8 multiply-adds
 * process RT_VECTOR_COLUMNS = 8 VL columns. With w^ = h (code - z) a lane sums
 * (code - z) x over a group and multiplies by h at its end.
 *
 * ROWS_AT_ONCE rows share each load of x; their sums stay in registers. With AVX512-VNNI,
 * and with the dot products of aarch64, rt_fixed.h replaces these sums by integer ones. */
#include "convert/runtime/rt_kernels.h"

#include "convert/format/bitpack.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <string.h>

/* Two pages: the hardware prefetcher does not cross a page by itself. */
#define PREFETCH_DISTANCE 8192
#define CACHE_LINE 64

/* Prefetches `lines` cache lines in address order, PREFETCH_DISTANCE after p, and returns p
 * advanced by as many. The hardware prefetcher follows one ascending stream, not several
 * interleaved rows. `lines` is what one step consumes; more requests would queue. */
static inline const uint8_t *prefetch_lines(const uint8_t *p, const int lines)
{
    for (int i = 0; i < lines; i++)
        __builtin_prefetch(p + PREFETCH_DISTANCE + i * CACHE_LINE);
    return p + lines * CACHE_LINE;
}

/* --- plain weights ------------------------------------------------------------------ */

static float dot(const float *a, const float *b, int64_t n)
{
    vf s0 = {0}, s1 = {0};
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        s0 = vf_fma(vf_load(a + i), vf_load(b + i), s0);
        s1 = vf_fma(vf_load(a + i + VL), vf_load(b + i + VL), s1);
    }
    float tail = 0;
    for (; i < n; i++)
        tail += a[i] * b[i];
    return vf_sum(s0 + s1) + tail;
}

static void axpy(float *y, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static inline uint16_t half_at(const uint8_t *p, int64_t i)
{
    return (uint16_t)(p[2 * i] | p[2 * i + 1] << 8);
}

static inline vf load_as(const uint8_t *p, int64_t i, const enum dtype t)
{
    if (t == DT_F16)
        return vf_load_f16(p + 2 * i);
    return t == DT_BF16 ? vf_load_bf16(p + 2 * i) : vf_load(p + 4 * i);
}

static inline float value_as(const uint8_t *p, int64_t i, const enum dtype t)
{
    float f;
    if (t == DT_F16)
        return f16_to_f32(half_at(p, i));
    if (t == DT_BF16)
        return bf16_to_f32(half_at(p, i));
    memcpy(&f, p + 4 * i, sizeof(f));
    return f;
}

/* y [n] = n rows (4 or 1) of `in` weights times x. */
INLINE void plain_few(float *y, const uint8_t *w, const enum dtype t, const int n,
                      const float *x, int64_t in)
{
    const int64_t row = in * (t == DT_F32 ? 4 : 2);
    const int lines = n * 2 * VL * (t == DT_F32 ? 4 : 2) / CACHE_LINE;
    const uint8_t *ahead = w;
    vf s[4][2] = {{{0}}};
    float total[4];
    int64_t c = 0;
    for (; c + 2 * VL <= in; c += 2 * VL) {
        ahead = prefetch_lines(ahead, lines);
        const vf x0 = vf_load(x + c), x1 = vf_load(x + c + VL);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            s[i][0] = vf_fma(load_as(w + i * row, c, t), x0, s[i][0]);
            s[i][1] = vf_fma(load_as(w + i * row, c + VL, t), x1, s[i][1]);
        }
    }
    /* One row is summed as four are: its bits do not depend on its neighbours. */
    vf_sum4(total, s[0][0] + s[0][1], s[1][0] + s[1][1], s[2][0] + s[2][1],
            s[3][0] + s[3][1]);
    for (int i = 0; i < n; i++) {
        float tail = 0;
        for (int64_t k = c; k < in; k++)
            tail += value_as(w + i * row, k, t) * x[k];
        y[i] = total[i] + tail;
    }
}

static inline void plain_of(float *y, const uint8_t *w, const enum dtype t, int64_t rows,
                            const float *x, int64_t in)
{
    const int64_t row = in * (t == DT_F32 ? 4 : 2);
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
        plain_few(y + r, w + r * row, t, 4, x, in);
    for (; r < rows; r++)
        plain_few(y + r, w + r * row, t, 1, x, in);
}

static void rows_plain(float *y, const void *w, enum dtype t, int64_t rows, const float *x,
                       int64_t in)
{
    if (t == DT_F16)
        plain_of(y, w, DT_F16, rows, x, in);
    else if (t == DT_BF16)
        plain_of(y, w, DT_BF16, rows, x, in);
    else
        plain_of(y, w, DT_F32, rows, x, in);
}

static void to_f32(float *out, const void *w, enum dtype t, int64_t n)
{
    const uint8_t *p = w;
    int64_t i = 0;
    for (; t == DT_F16 && i + VL <= n; i += VL)
        vf_store(out + i, vf_load_f16(p + 2 * i));
    host_to_f32(out + i, p + i * (int64_t)dtype_bytes(t), t, n - i);
}

/* --- packed weights ----------------------------------------------------------------- */

#if defined(__AVX512F__)
/* out [8][VL] = x [8 VL] interleaved. Splitting even from odd places rotates the lowest bit
 * of a column's number to the front; after three splits the number modulo 8 leads. */
static inline void interleave_vector(float *out, const float *x)
{
    __m512 a[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_loadu_ps(x + i * VL);
    vf_even_before_odd(a);
    vf_even_before_odd(a);
    vf_even_before_odd(a);
    for (int i = 0; i < 8; i++)
        _mm512_storeu_ps(out + i * VL, a[i]);
}
#else
static inline void interleave_vector(float *out, const float *x)
{
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < VL; i++)
            out[k * VL + i] = x[8 * i + k];
}
#endif

static void interleave(float *interleaved, const float *x, int64_t n)
{
    const int64_t whole = n / RT_VECTOR_COLUMNS * RT_VECTOR_COLUMNS;
    for (int64_t b = 0; b < whole; b += RT_VECTOR_COLUMNS)
        interleave_vector(interleaved + b, x + b);
    for (int64_t c = whole; c < rt_padded(n); c++) {
        const int64_t in = c % RT_VECTOR_COLUMNS, column = c - in + in % VL * 8 + in / VL;
        interleaved[c] = column < n ? x[column] : 0;
    }
}

/* Returns in each lane the sum of (q - z) x over its 8 columns. */
static inline vf lane_sums(vi codes, vf zero, const float *x)
{
    vf even = {0}, odd = {0};
    for (int k = 0; k < 8; k += 2) {
        const vf q0 = __builtin_convertvector((codes >> 4 * k) & 15, vf) - zero;
        const vf q1 = __builtin_convertvector((codes >> (4 * k + 4)) & 15, vf) - zero;
        even = vf_fma(q0, vf_load(x + k * VL), even);
        odd = vf_fma(q1, vf_load(x + k * VL + VL), odd);
    }
    return even + odd;
}

/* --- several rows by one vector ----------------------------------------------------- */

/* Rows that share a load of x: as many as fit their sums, codes and tables in registers. */
#define ROWS_AT_ONCE (VREGS == 32 ? 4 : 2)

/* Sums of each row. Named members, since gcc may keep an array in memory. */
struct sums {
    vf a, b, c, d;
};

#if defined(__AVX512VNNI__) || (defined(__ARM_FEATURE_DOTPROD) && !defined(SIMD_PLAIN))
#include "convert/runtime/rt_fixed.h"
#else
/* Adds column k of each lane of up to four rows; x is loaded once for all of them. Even and
 * odd k go to separate sums, so that consecutive additions do not wait for each other. */
#define ROW_STEP(row, sum) s##sum.row = vf_fma(vtable_get(t.row, c.row, k), xk, s##sum.row)
#define STEP(k_, sum)                                                                      \
    do {                                                                                   \
        const int k = k_;                                                                  \
        const vf xk = vf_load(x + k * VL);                                                 \
        ROW_STEP(a, sum);                                                                  \
        ROW_STEP(b, sum);                                                                  \
        if (ROWS_AT_ONCE > 2) {                                                            \
            ROW_STEP(c, sum);                                                              \
            ROW_STEP(d, sum);                                                              \
        }                                                                                  \
    } while (0)

struct tables {
    vtable a, b, c, d;
};
struct codes {
    vi a, b, c, d;
};

static inline struct codes codes_of(const uint8_t *p, int64_t stride, int64_t bytes)
{
    struct codes c = {0};
    c.a = vi_load_bytes_n(p, bytes);
    c.b = vi_load_bytes_n(p + stride, bytes);
    if (ROWS_AT_ONCE > 2) {
        c.c = vi_load_bytes_n(p + 2 * stride, bytes);
        c.d = vi_load_bytes_n(p + 3 * stride, bytes);
    }
    return c;
}

static inline struct tables tables_of(const uint8_t *z, int64_t stride)
{
    struct tables t = {.a = vtable_codes(z[0]), .b = vtable_codes(z[stride])};
    if (ROWS_AT_ONCE > 2) {
        t.c = vtable_codes(z[2 * stride]);
        t.d = vtable_codes(z[3 * stride]);
    }
    return t;
}

/* total += h (even + odd) of one group. */
static inline void scale_group(struct sums *total, const struct sums *s0,
                               const struct sums *s1, const float *h, int64_t stride)
{
    total->a = vf_fma(s0->a + s1->a, vf_set1(h[0]), total->a);
    total->b = vf_fma(s0->b + s1->b, vf_set1(h[stride]), total->b);
    if (ROWS_AT_ONCE > 2) {
        total->c = vf_fma(s0->c + s1->c, vf_set1(h[2 * stride]), total->c);
        total->d = vf_fma(s0->d + s1->d, vf_set1(h[3 * stride]), total->d);
    }
}

/* Writes y[row .. row + ROWS_AT_ONCE). */
static inline void add_rows(float *y, const struct rt_rows *r, int64_t row, const float *x)
{
    const int64_t stride = r->code_stride, groups = r->groups;
    const uint8_t *p = r->codes + row * stride, *z = r->z + row * r->pair_stride;
    const float *h = r->h + row * r->pair_stride;
    int64_t left = r->in;
    const uint8_t *ahead = p;
    struct sums total = {0};
    for (int64_t g = 0; g < groups; g++) {
        const struct tables t = tables_of(z + g, r->pair_stride);
        struct sums s0 = {0}, s1 = {0};
        for (int64_t at = 0; at < r->group && left > 0; at += RT_VECTOR_COLUMNS) {
            const struct codes c = codes_of(p, stride, (left + 1) / 2);
            ahead =
                prefetch_lines(ahead, ROWS_AT_ONCE * RT_VECTOR_COLUMNS / 2 / CACHE_LINE);
            STEP(0, 0);
            STEP(1, 1);
            STEP(2, 0);
            STEP(3, 1);
            STEP(4, 0);
            STEP(5, 1);
            STEP(6, 0);
            STEP(7, 1);
            p += RT_VECTOR_COLUMNS / 2;
            x += RT_VECTOR_COLUMNS;
            left -= RT_VECTOR_COLUMNS;
        }
        scale_group(&total, &s0, &s1, h + g, r->pair_stride);
    }
    if (ROWS_AT_ONCE > 2) {
        vf_sum4(y + row, total.a, total.b, total.c, total.d);
    } else {
        y[row] = vf_sum(total.a);
        y[row + 1] = vf_sum(total.b);
    }
}

/* Without fixed point both kernels read x in the same order. */
static void interleave_rows(float *interleaved, const float *x, int64_t n)
{
    interleave(interleaved, x, n);
}
#endif

/* Computes y [n] with a function that writes at_once rows from `row` on. */
INLINE void all_rows(void (*some)(float *y, const struct rt_rows *r, int64_t row,
                                  const float *x),
                     const int64_t at_once, float *y, const struct rt_rows *r, int64_t n,
                     const float *x)
{
    int64_t row = 0;
    for (; row + at_once <= n; row += at_once)
        some(y, r, row, x);
    if (row == n)
        return;
    /* The rest one by one: with stride 0 a row fills all places. */
    struct rt_rows last = *r;
    float one[4];
    for (last.code_stride = last.pair_stride = 0; row < n; row++) {
        last.codes = r->codes + row * r->code_stride;
        last.z = r->z + row * r->pair_stride;
        last.h = r->h + row * r->pair_stride;
        some(one, &last, 0, x);
        y[row] = one[0];
    }
}

static void rows_nibbles(float *y, const struct rt_rows *r, int64_t n,
                         const float *interleaved)
{
    all_rows(add_rows, ROWS_AT_ONCE, y, r, n, interleaved);
}

/* --- rows of bytes ------------------------------------------------------------------ */

/* Their sums and zeros fit 16 registers too. */
#define BYTE_ROWS 4
#define BYTE_STEP CACHE_LINE /* columns */

/* sum += (code - z) x over VL columns of four rows. */
INLINE void add_bytes(struct sums *sum, const uint8_t *p, int64_t stride,
                      const struct sums *z, vf x)
{
    sum->a = vf_fma(vf_load_u8(p) - z->a, x, sum->a);
    sum->b = vf_fma(vf_load_u8(p + stride) - z->b, x, sum->b);
    sum->c = vf_fma(vf_load_u8(p + 2 * stride) - z->c, x, sum->c);
    sum->d = vf_fma(vf_load_u8(p + 3 * stride) - z->d, x, sum->d);
}

/* The same over n < VL columns. Their codes are copied, since nothing may be read behind
 * the last row. */
static inline void add_last_bytes(struct sums *sum, const uint8_t *p, int64_t stride,
                                  const struct sums *z, const float *x, int64_t n)
{
    uint8_t last[BYTE_ROWS][VL] = {0};
    for (int64_t i = 0; i < BYTE_ROWS; i++)
        memcpy(last[i], p + i * stride, (size_t)n);
    add_bytes(sum, last[0], VL, z, vf_load_n(x, n));
}

/* Writes y[row .. row + BYTE_ROWS). */
static inline void add_byte_rows(float *y, const struct rt_rows *r, int64_t row,
                                 const float *x)
{
    const int64_t stride = r->code_stride, pairs = r->pair_stride;
    const uint8_t *p = r->codes + row * stride, *z = r->z + row * pairs, *ahead = p;
    const float *h = r->h + row * pairs;
    struct sums total = {0};
    for (int64_t g = 0, c = 0; c < r->in; g++, z++, h++) {
        const int64_t end = r->in - c < r->group ? r->in : c + r->group;
        const struct sums zero = {vf_set1(z[0]), vf_set1(z[pairs]), vf_set1(z[2 * pairs]),
                                  vf_set1(z[3 * pairs])};
        struct sums sum = {0};
        for (; c + BYTE_STEP <= end; c += BYTE_STEP) {
            ahead = prefetch_lines(ahead, BYTE_ROWS);
            for (int64_t i = c; i < c + BYTE_STEP; i += VL)
                add_bytes(&sum, p + i, stride, &zero, vf_load(x + i));
        }
        for (; c + VL <= end; c += VL)
            add_bytes(&sum, p + c, stride, &zero, vf_load(x + c));
        if (c < end)
            add_last_bytes(&sum, p + c, stride, &zero, x + c, end - c);
        c = end;
        total.a = vf_fma(sum.a, vf_set1(h[0]), total.a);
        total.b = vf_fma(sum.b, vf_set1(h[pairs]), total.b);
        total.c = vf_fma(sum.c, vf_set1(h[2 * pairs]), total.c);
        total.d = vf_fma(sum.d, vf_set1(h[3 * pairs]), total.d);
    }
    vf_sum4(y + row, total.a, total.b, total.c, total.d);
}

static void rows_bytes(float *y, const struct rt_rows *r, int64_t n, const float *x)
{
    all_rows(add_byte_rows, BYTE_ROWS, y, r, n, x);
}

/* --- one row at a time -------------------------------------------------------------- */

/* Writes h and z of the group of every lane; 0 after the last column. */
static void spread(float *h, float *z, const struct rt_row *r)
{
    const int64_t lanes = rt_padded(r->in) / 8, wide = r->group / 8;
    for (int64_t g = 0, i = 0; i < lanes; g++) {
        const bool there = g * r->group < r->in;
        const float hg = there ? r->h[g] : 0, zg = there ? (float)r->z[g] : 0;
        for (const int64_t end = lanes - i < wide ? lanes : i + wide; i < end; i++) {
            h[i] = hg;
            z[i] = zg;
        }
    }
}

static float dot_nibbles(const struct rt_row *r, const float *interleaved, float *lanes)
{
    struct rt_row row = *r;
    if (row.group >= row.in) /* one group */
        row.group = rt_padded(row.in);
    float *h = lanes, *z = lanes + rt_padded(row.in) / 8;
    const int64_t bytes = (row.in + 1) / 2;
    vf s = {0};
    spread(h, z, &row);
    for (int64_t b = 0; b * RT_VECTOR_COLUMNS < row.in; b++) {
        const vi v = vi_load_bytes_n(row.codes + b * 4 * VL, bytes - b * 4 * VL);
        s = vf_fma(lane_sums(v, vf_load(z + b * VL), interleaved + b * RT_VECTOR_COLUMNS),
                   vf_load(h + b * VL), s);
    }
    return vf_sum(s);
}

static const uint8_t *as_bytes(const struct rt_row *r, uint8_t *bytes)
{
    if (r->bits == 8)
        return r->codes;
    bitpack_unpack_row(bytes, r->codes, r->in, r->bits);
    return bytes;
}

static void unpack(float *w, const struct rt_row *r, uint8_t *bytes)
{
    const uint8_t *q = as_bytes(r, bytes);
    for (int64_t g = 0, c = 0; c < r->in; g++) {
        const int64_t end = r->in - c < r->group ? r->in : c + r->group;
        const float h = r->h[g];
        const uint8_t z = r->z[g];
        for (; c < end; c++)
            w[c] = quant_weight_value(q[c], z, h);
    }
}

/* --- the cache ---------------------------------------------------------------------- */

static void kv_dequantize(float *x, const uint8_t *codes, float h, float m,
                          struct rt_channels c, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = quant_kv_out(codes[i], h, m, c.s[i], c.delta[i]);
}

#define TEXT_OF(isa) #isa
#define TEXT(isa) TEXT_OF(isa)

const struct rt_kernels ISA_NAME(rt_kernels) = {
    .name = TEXT(ISA),
    .dot = dot,
    .axpy = axpy,
    .rows_plain = rows_plain,
    .to_f32 = to_f32,
    .interleave = interleave,
    .interleave_rows = interleave_rows,
    .rows_nibbles = rows_nibbles,
    .dot_nibbles = dot_nibbles,
    .rows_bytes = rows_bytes,
    .unpack = unpack,
    .kv_dequantize = kv_dequantize,
    .panel = &ISA_NAME(rt_panel_kernels),
    .int16 = &ISA_NAME(rt_int16_kernels),
    .kv = &ISA_NAME(rt_kv_kernels),
};

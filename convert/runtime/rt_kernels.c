/* SPDX-License-Identifier: MIT
 *
 * Products with rows of weights. Compiled with -DRT_ISA=plain, avx2, avx512 or avx512vnni
 * and that set's flags. */
#include "convert/runtime/rt_kernels.h"

#include "convert/artifact/bitpack.h"
#include "convert/runtime/rt_vec.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <string.h>

/* Bytes that are asked for ahead of their use: two pages, side the hardware does not look
 * across by itself. */
#define PREFETCH_DISTANCE 8192
#define CACHE_LINE 64

/* The next lines of rows that follow, one after the other: the hardware's own prefetching
 * goes along with an ascending sequence, and not with several rows in turn. Some at a time,
 * as many as are met meanwhile: more would wait for each other. */
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
        s0 = madd(load(a + i), load(b + i), s0);
        s1 = madd(load(a + i + VL), load(b + i + VL), s1);
    }
    float tail = 0;
    for (; i < n; i++)
        tail += a[i] * b[i];
    return sum(s0 + s1) + tail;
}

static void axpy(float *y, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static inline vf load_as(const uint8_t *p, int64_t i, const enum dtype t)
{
    vf v;
    if (t == DT_F16)
        return load_f16(p + 2 * i);
    if (t == DT_BF16)
        return load_bf16(p + 2 * i);
    memcpy(&v, p + 4 * i,
           sizeof(v)); /* not a cast: a checkpoint's tensors start anywhere */
    return v;
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

/* y[0..n) of n rows, 4 or 1, of `in` weights. */
INLINED void plain_few(float *y, const uint8_t *w, const enum dtype t, const int n,
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
        const vf x0 = load(x + c), x1 = load(x + c + VL);
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            s[i][0] = madd(load_as(w + i * row, c, t), x0, s[i][0]);
            s[i][1] = madd(load_as(w + i * row, c + VL, t), x1, s[i][1]);
        }
    }
    /* one row is added up as four are, so that it has the same sum among others */
    sum_of_four(total, s[0][0] + s[0][1], s[1][0] + s[1][1], s[2][0] + s[2][1],
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
    for (; t == DT_F16 && i + VL <= n; i += VL) {
        const vf v = load_f16(p + 2 * i);
        memcpy(out + i, &v, sizeof(v));
    }
    host_to_f32(out + i, p + i * (int64_t)dtype_bytes(t), t, n - i);
}

/* --- packed weights ----------------------------------------------------------------- */

/* Eight nibbles lie in the 32 bits of a lane: shifting all lanes by 4 k brings the codes of
 * columns 8 lane + k down. A block is VL lanes, 8 VL columns; x is interleaved alike, k by k. */
#define VECTOR_COLUMNS (8 * VL)

#if defined(__AVX512F__)
/* out [8][VL]: the k-th vector has columns k, k + 8, ... of 8 VL columns: three times,
 * side brings the lowest three bits of a column's number to the front. */
static inline void interleave_vector(float *out, const float *x)
{
    __m512 a[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_loadu_ps(x + i * VL);
    even_before_odd(a);
    even_before_odd(a);
    even_before_odd(a);
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
    const int64_t whole = n / VECTOR_COLUMNS * VECTOR_COLUMNS;
    for (int64_t b = 0; b < whole; b += VECTOR_COLUMNS)
        interleave_vector(interleaved + b, x + b);
    for (int64_t c = whole; c < rt_padded(n); c++) {
        const int64_t in = c % VECTOR_COLUMNS, column = c - in + in % VL * 8 + in / VL;
        interleaved[c] = column < n ? x[column] : 0;
    }
}

/* sum over the eight columns of each lane of (q - z) x. */
static inline vf lane_sums(vi codes, vf zero, const float *x)
{
    vf even = {0}, odd = {0};
    for (int k = 0; k < 8; k += 2) {
        const vf q0 = __builtin_convertvector((codes >> 4 * k) & 15, vf) - zero;
        const vf q1 = __builtin_convertvector((codes >> (4 * k + 4)) & 15, vf) - zero;
        even = madd(q0, load(x + k * VL), even);
        odd = madd(q1, load(x + k * VL + VL), odd);
    }
    return even + odd;
}

/* The last block of a row may end early: its missing columns meet zeros of x. */
static inline vi load_codes(const uint8_t *p, int64_t bytes)
{
    vi v = {0};
    if (bytes >= (int64_t)sizeof(v)) {
        memcpy(&v, p, sizeof(v));
        return v;
    }
#if defined(__AVX512BW__)
    return (vi)_mm512_maskz_loadu_epi8(((__mmask64)1 << bytes) - 1, p);
#else
    memcpy(&v, p, (size_t)bytes);
    return v;
#endif
}

/* --- several rows by one vector ----------------------------------------------------- */

/* As many rows at a time as share a load of x and still have their sums, codes and tables
 * in registers. */
#define ROWS_AT_ONCE (VL == 16 ? 4 : 2)

/* Rows' sums by name, not in an array: they have to stay in registers. */
struct sums {
    vf a, b, c, d;
};

#if defined(__AVX512VNNI__)
#include "convert/runtime/rt_fixed.h"
#else
/* One block's 8 columns of each lane of up to four rows; x is loaded once for all. */
#define ROW_STEP(row, sum) s##sum.row = madd(look_up(t.row, c.row, k), xk, s##sum.row)
#define STEP(k_, sum)                                                                      \
    do {                                                                                   \
        const int k = k_;                                                                  \
        const vf xk = load(x + k * VL);                                                    \
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
    c.a = load_codes(p, bytes);
    c.b = load_codes(p + stride, bytes);
    if (ROWS_AT_ONCE > 2) {
        c.c = load_codes(p + 2 * stride, bytes);
        c.d = load_codes(p + 3 * stride, bytes);
    }
    return c;
}

static inline struct tables tables_of(const uint8_t *z, int64_t stride)
{
    struct tables t = {.a = code_table(z[0]), .b = code_table(z[stride])};
    if (ROWS_AT_ONCE > 2) {
        t.c = code_table(z[2 * stride]);
        t.d = code_table(z[3 * stride]);
    }
    return t;
}

/* total += h (even + odd) of one group. */
static inline void scale_group(struct sums *total, const struct sums *s0,
                               const struct sums *s1, const float *h, int64_t stride)
{
    total->a = madd(s0->a + s1->a, splat(h[0]), total->a);
    total->b = madd(s0->b + s1->b, splat(h[stride]), total->b);
    if (ROWS_AT_ONCE > 2) {
        total->c = madd(s0->c + s1->c, splat(h[2 * stride]), total->c);
        total->d = madd(s0->d + s1->d, splat(h[3 * stride]), total->d);
    }
}

/* y[0..SHARE) of rows from `row` on. */
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
        for (int64_t at = 0; at < r->group && left > 0; at += VECTOR_COLUMNS) {
            const struct codes c = codes_of(p, stride, (left + 1) / 2);
            ahead = prefetch_lines(ahead, ROWS_AT_ONCE * VECTOR_COLUMNS / 2 / CACHE_LINE);
            STEP(0, 0);
            STEP(1, 1);
            STEP(2, 0);
            STEP(3, 1);
            STEP(4, 0);
            STEP(5, 1);
            STEP(6, 0);
            STEP(7, 1);
            p += VECTOR_COLUMNS / 2;
            x += VECTOR_COLUMNS;
            left -= VECTOR_COLUMNS;
        }
        scale_group(&total, &s0, &s1, h + g, r->pair_stride);
    }
    if (ROWS_AT_ONCE > 2) {
        sum_of_four(y + row, total.a, total.b, total.c, total.d);
    } else {
        y[row] = sum(total.a);
        y[row + 1] = sum(total.b);
    }
}

#define interleave_rows interleave
#endif

static void rows_nibbles(float *y, const struct rt_rows *r, int64_t n,
                         const float *interleaved)
{
    int64_t row = 0;
    for (; row + ROWS_AT_ONCE <= n; row += ROWS_AT_ONCE)
        add_rows(y, r, row, interleaved);
    if (row == n)
        return;
    /* the rest: the last row in the place of those that are not there */
    struct rt_rows last = *r;
    float one[4];
    for (last.code_stride = last.pair_stride = 0; row < n; row++) {
        last.codes = r->codes + row * r->code_stride;
        last.z = r->z + row * r->pair_stride;
        last.h = r->h + row * r->pair_stride;
        add_rows(one, &last, 0, interleaved);
        y[row] = one[0];
    }
}

/* --- one row at a time -------------------------------------------------------------- */

/* h and z of every lane. */
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
    for (int64_t b = 0; b * VECTOR_COLUMNS < row.in; b++) {
        const vi v = load_codes(row.codes + b * 4 * VL, bytes - b * 4 * VL);
        s = madd(lane_sums(v, load(z + b * VL), interleaved + b * VECTOR_COLUMNS),
                 load(h + b * VL), s);
    }
    return sum(s);
}

static const uint8_t *as_bytes(const struct rt_row *r, uint8_t *bytes)
{
    if (r->bits == 8)
        return r->codes;
    bitpack_unpack_row(bytes, r->codes, r->in, r->bits);
    return bytes;
}

static float dot_codes(const struct rt_row *r, const float *x, uint8_t *bytes)
{
    const uint8_t *q = as_bytes(r, bytes);
    vf s = {0};
    float tails = 0;
    for (int64_t g = 0, c = 0; c < r->in; g++) {
        const int64_t end = r->in - c < r->group ? r->in : c + r->group;
        const vf zero = splat(r->z[g]);
        vf v = {0};
        float tail = 0;
        for (; c + VL <= end; c += VL)
            v = madd(from_bytes(load_bytes(q + c)) - zero, load(x + c), v);
        for (; c < end; c++)
            tail += (float)(q[c] - r->z[g]) * x[c];
        s = madd(v, splat(r->h[g]), s);
        tails += tail * r->h[g];
    }
    return sum(s) + tails;
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

/* --- a panel of rows by n vectors ----------------------------------------------------- */

/* words[i] = word i of each of VL rows, 8 columns of each; the n-th row stands for those
 * that are not there. bytes > 0 of each row are there. */
#if defined(__AVX512F__)
static inline void load_words(vi *words, const uint8_t *p, int64_t stride, int64_t n,
                              int64_t bytes)
{
    const __m512i low =
        _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    vi other[16];
    for (int i = 0; i < 16; i++)
        words[i] = load_codes(p + (i < n ? i : n - 1) * stride, bytes);
    /* rows i and i + 8 are interleaved, four times: a transpose */
    for (int stage = 0; stage < 4; stage += 2) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m512i a = (__m512i)words[i], b = (__m512i)words[i + 8];
            other[2 * i] = (vi)_mm512_permutex2var_epi32(a, low, b);
            other[2 * i + 1] = (vi)_mm512_permutex2var_epi32(a, high, b);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const __m512i a = (__m512i)other[i], b = (__m512i)other[i + 8];
            words[2 * i] = (vi)_mm512_permutex2var_epi32(a, low, b);
            words[2 * i + 1] = (vi)_mm512_permutex2var_epi32(a, high, b);
        }
    }
}
#else
static inline void load_words(vi *words, const uint8_t *p, int64_t stride, int64_t n,
                              int64_t bytes)
{
    uint32_t row[VL][VL] = {{0}};
    for (int i = 0; i < VL; i++)
        memcpy(row[i], p + (i < n ? i : n - 1) * stride,
               bytes < 4 * VL ? (size_t)bytes : 4 * VL);
    for (int w = 0; w < VL; w++)
        for (int i = 0; i < VL; i++)
            words[w][i] = (int32_t)row[i][w];
}
#endif

/* Scales and zeros of group g of VL rows, as load_words takes rows. */
static inline void gather_group(vf *h, vf *z, const struct rt_rows *r, int64_t row,
                                int64_t n, int64_t g)
{
    for (int i = 0; i < VL; i++) {
        const int64_t at = row + (i < n ? i : n - 1);
        (*h)[i] = r->h[at * r->pair_stride + g];
        (*z)[i] = (float)r->z[at * r->pair_stride + g];
    }
}

/* 8 columns of VL rows. */
static inline void unpack_word(float *panel, vi words, vf z, vf h, int64_t n)
{
    for (int64_t k = 0; k < n; k++, words >>= 4)
        store(panel + k * RT_PANEL, (__builtin_convertvector(words & 15, vf) - z) * h);
}

/* Columns [from, to) of VL rows from `row` on, n of them there. */
static void unpack_lanes(float *panel, const struct rt_rows *r, int64_t row, int64_t n,
                         int64_t from, int64_t to)
{
    const uint8_t *p = r->codes + row * r->code_stride;
    int64_t end = from; /* of the group */
    vf h = {0}, z = {0};
    for (int64_t b = from; b < to; b += VECTOR_COLUMNS) {
        vi words[VL];
        load_words(words, p + b / 2, r->code_stride, n, (r->in - b + 1) / 2);
        for (int64_t c = b; c < b + VECTOR_COLUMNS && c < to; c += 8) {
            if (c >= end) {
                gather_group(&h, &z, r, row, n, c / r->group);
                end = (c / r->group + 1) * r->group;
            }
            unpack_word(panel + (c - from) * RT_PANEL, words[(c - b) / 8], z, h,
                        to - c < 8 ? to - c : 8);
        }
    }
}

static void panel_nibbles(float *panel, const struct rt_rows *r, int64_t row, int64_t n,
                          int64_t from, int64_t to)
{
    for (int64_t i = 0; i < RT_PANEL; i += VL)
        unpack_lanes(panel + i, r, i < n ? row + i : row + n - 1, i < n ? n - i : 1, from,
                     to);
}

static void panel_rows(float *panel, const float *w, int64_t in, int64_t n)
{
    for (int64_t c = 0; c < in; c++)
        for (int64_t i = 0; i < n; i++)
            panel[c * RT_PANEL + i] = w[i * in + c];
}

/* Vectors of x that meet a panel at a time: their sums, the panel's lanes and one value of
 * x fill the registers. */
#define PANEL_VECTORS (RT_PANEL / VL)
#define PANEL_TOKENS (VL == 16 ? 12 : VL == 8 ? 3 : 1)

/* out [m][RT_PANEL]; x by three rows from each pointer, side is what addresses can do. */
INLINED void panel_few(float *out, int64_t ldo, const float *panel, const float *x,
                       int64_t ldx, int64_t in, bool add, const int m)
{
    vf s[12][PANEL_VECTORS] = {{{0}}};
    const float *at[4] = {x, x + 3 * ldx, x + 6 * ldx, x + 9 * ldx};
    for (int64_t c = 0; c < in; c++) {
        vf w[PANEL_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECTORS; v++)
            w[v] = load(panel + c * RT_PANEL + v * VL);
#pragma GCC unroll 12
        for (int t = 0; t < m; t++) {
            const vf xt = splat(at[t / 3][t % 3 * ldx + c]);
#pragma GCC unroll 8
            for (int v = 0; v < PANEL_VECTORS; v++)
                s[t][v] = madd(w[v], xt, s[t][v]);
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < m; t++)
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECTORS; v++) {
            float *at_v = out + t * ldo + v * VL;
            store(at_v, add ? load(at_v) + s[t][v] : s[t][v]);
        }
}

static void panel_dots(float *out, int64_t ldo, const float *panel, const float *x,
                       int64_t ldx, int64_t n, int64_t in, bool add)
{
    int64_t t = 0;
    for (; t + PANEL_TOKENS <= n; t += PANEL_TOKENS)
        panel_few(out + t * ldo, ldo, panel, x + t * ldx, ldx, in, add, PANEL_TOKENS);
    for (; VL == 16 && t + 4 <= n; t += 4)
        panel_few(out + t * ldo, ldo, panel, x + t * ldx, ldx, in, add, 4);
    for (; t < n; t++)
        panel_few(out + t * ldo, ldo, panel, x + t * ldx, ldx, in, add, 1);
}

static void panel_tile(float *y, int64_t ldy, const float *panel, int64_t rows,
                       const float *x, int64_t ldx, int64_t n, int64_t in, bool add)
{
    float tile[12 * RT_PANEL];
    if (rows == RT_PANEL) {
        panel_dots(y, ldy, panel, x, ldx, n, in, add);
        return;
    }
    for (int64_t t = 0; t < n; t += 12) {
        const int64_t m = n - t < 12 ? n - t : 12;
        panel_dots(tile, RT_PANEL, panel, x + t * ldx, ldx, m, in, false);
        for (int64_t i = 0; i < m; i++)
            for (int64_t k = 0; k < rows; k++)
                y[(t + i) * ldy + k] =
                    (add ? y[(t + i) * ldy + k] : 0) + tile[i * RT_PANEL + k];
    }
}

/* --- the cache ---------------------------------------------------------------------- */

static void kv_dequantize(float *x, const uint8_t *codes, float h, float m, const float *s,
                          const float *delta, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = quant_kv_out(codes[i], h, m, s[i], delta[i]);
}

/* clang-format off */
#define NAME_OF(isa) rt_kernels_##isa
#define TEXT_OF(isa) #isa
#define KV_OF(isa) rt_kv_kernels_##isa
#define TABLE(isa)                                                                         \
    extern const struct rt_kv_kernels KV_OF(isa);                                          \
    extern const struct rt_kernels NAME_OF(isa);                                           \
    const struct rt_kernels NAME_OF(isa) = {                                               \
        TEXT_OF(isa), dot, axpy, rows_plain, to_f32, interleave, interleave_rows, rows_nibbles, dot_nibbles, dot_codes, unpack, panel_nibbles, panel_rows, panel_tile, kv_dequantize, &KV_OF(isa)}
/* clang-format on */
#define EXPANDED(isa) TABLE(isa)
EXPANDED(RT_ISA);

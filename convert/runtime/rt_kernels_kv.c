/* SPDX-License-Identifier: MIT
 *
 * Attention over packed 4-bit keys and values, and the exponentials. Compiled with
 * -DRT_ISA=plain, avx2, avx512 or avx512vnni and that set's flags. The codes are looked up
 * as they are; scales and minima come once a token, s and delta were folded into the query
 * and are into the output. */
#include "convert/runtime/rt_kernels.h"
#include "convert/runtime/rt_vec.h"
#include "kernels/tensor/quant.h"

#include <math.h>

/* The first n of VL words; the others are 0. */
static inline vi load_words(const uint8_t *p, int64_t n)
{
    vi v = {0};
    if (n >= VL) {
        memcpy(&v, p, sizeof(v));
        return v;
    }
#if defined(__AVX512F__)
    return (vi)_mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p);
#else
    memcpy(&v, p, n > 0 ? 4 * (size_t)n : 0);
    return v;
#endif
}

/* --- a query, once ------------------------------------------------------------------ */

static float fold(float *out, float *sum_out, const float *q, const float *s,
                  const float *delta, float by, int64_t n)
{
    vf sums = {0}, shifts = {0};
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf scaled = load(q + i) * by, v = scaled * load(s + i);
        store(out + i, v);
        sums += v;
        shifts = madd(scaled, load(delta + i), shifts);
    }
    float total = sum(sums), shift = sum(shifts);
    for (; i < n; i++) {
        out[i] = q[i] * by * s[i];
        total += out[i];
        shift += q[i] * by * delta[i];
    }
    *sum_out = total;
    return shift;
}

/* --- keys: lanes are tokens --------------------------------------------------------- */

/* Loops over sums are unrolled by word: sums that a loop counts through would live in
 * memory. */

/* s[4 r + j] += codes . q_r of one group, in four parts. */
INLINED void key_group(vf *s, const float *q, int64_t stride, const uint8_t *codes,
                       int64_t width, int64_t left, int64_t words, const int rows)
{
    const vtable table = code_table(0);
    const float *at[4] = {q, q + stride, q + 2 * stride, q + 3 * stride};
    for (int64_t i = 0; i < 8 * words; i += 8, codes += 4 * width) {
        const vi c = load_words(codes, left);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            const vf code = look_up(table, c, k);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                s[4 * r + k % 4] = madd(code, splat(at[r][i + k]), s[4 * r + k % 4]);
        }
    }
}

/* VL tokens, `left` of them there, against rows of the query. */
INLINED void key_lanes(float *score, const struct rt_folded *f, const float *q,
                       const uint8_t *codes, int64_t width, int64_t left, const float *h,
                       const float *m, const int rows)
{
    const int64_t groups = f->d / f->group, words = f->group / 8;
    vf total[4] = {{0}};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        total[r] = splat(q[r * f->stride + f->d + groups]);
    for (int64_t g = 0; g < groups; g++) {
        const vf hg = load(h + g * RT_TILE), mg = load(m + g * RT_TILE);
        vf s[16] = {{0}};
        key_group(s, q + g * f->group, f->stride, codes + g * words * width * 4, width,
                  left, words, rows);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const vf sum4 = (s[4 * r] + s[4 * r + 1]) + (s[4 * r + 2] + s[4 * r + 3]);
            const vf low = madd(mg, splat(q[r * f->stride + f->d + g]), total[r]);
            total[r] = madd(hg, sum4, low);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        store(score + r * RT_TILE, total[r]);
}

static void score_keys(float *score, const struct rt_folded *f, const uint8_t *codes,
                       int64_t width, const float *h, const float *m)
{
    for (int64_t lane = 0; lane < RT_KEYS; lane += VL) {
        const uint8_t *c = codes + 4 * lane;
        const int64_t left = width - lane;
        int64_t r = 0;
        for (; r + 3 <= f->rows; r += 3)
            key_lanes(score + r * RT_TILE + lane, f, f->q + r * f->stride, c, width, left,
                      h + lane, m + lane, 3);
        for (; r < f->rows; r++)
            key_lanes(score + r * RT_TILE + lane, f, f->q + r * f->stride, c, width, left,
                      h + lane, m + lane, 1);
    }
}

/* --- packing ------------------------------------------------------------------------ */

static inline vf choose(vi where, vf yes, vf no)
{
    return (vf)((where & (vi)yes) | (~where & (vi)no));
}

/* The definition's values (kernels/tensor/quant.h), bit for bit; VL channels at a time. */
static inline vf quant_in(const float *x, const float *s, const float *delta)
{
    return (load(x) - load(delta)) / load(s);
}

static inline void least_and_most(float *mn, float *mx, const float *x, const float *s,
                                  const float *delta, int64_t n)
{
    vf low = quant_in(x, s, delta), high = low;
    float lane[2][VL];
    for (int64_t i = VL; i + VL <= n; i += VL) {
        const vf v = quant_in(x + i, s + i, delta + i);
        low = choose((vi)(v < low), v, low);
        high = choose((vi)(v > high), v, high);
    }
    store(lane[0], low);
    store(lane[1], high);
    *mn = lane[0][0];
    *mx = lane[1][0];
    for (int i = 1; i < VL; i++) {
        *mn = lane[0][i] < *mn ? lane[0][i] : *mn;
        *mx = lane[1][i] > *mx ? lane[1][i] : *mx;
    }
}

static void quantize(uint8_t *codes, uint16_t *h_out, uint16_t *m_out, const float *x,
                     const float *s, const float *delta, int64_t n, int bits)
{
    const vf round = splat(12582912.0f); /* 1.5 2^23 */
    const vf top = splat((float)((1 << bits) - 1));
    const int64_t whole = n / VL * VL;
    float mn = quant_kv_in(x[0], s[0], delta[0]), mx = mn;
    if (whole)
        least_and_most(&mn, &mx, x, s, delta, whole);
    for (int64_t i = whole; i < n; i++) {
        const float v = quant_kv_in(x[i], s[i], delta[i]);
        mn = v < mn ? v : mn;
        mx = v > mx ? v : mx;
    }
    *h_out = quant_kv_scale(mn, mx, bits);
    *m_out = quant_kv_min(mn);
    const float h = f16_to_f32(*h_out), m = f16_to_f32(*m_out);
    const int64_t divided = h > 0 ? whole : 0;
    for (int64_t i = 0; i < divided; i += VL) {
        const vf v = (quant_in(x + i, s + i, delta + i) - splat(m)) / splat(h);
        /* clamped before it is rounded: 0 and the highest code are whole, so it is the same
         */
        const vf below = choose((vi)(v < top), v, top);
        const vf q = (choose((vi)(below > 0), below, splat(0)) + round) - round;
        const vb b = __builtin_convertvector(__builtin_convertvector(q, vi), vb);
        memcpy(codes + i, &b, sizeof(b));
    }
    for (int64_t i = divided; i < n; i++)
        codes[i] = quant_kv_code(quant_kv_in(x[i], s[i], delta[i]), h, m, bits);
}

/* --- exponentials ------------------------------------------------------------------- */

/* e^x for x <= 88, within 2 units in the last place; below 2^-126 it is 0. NaN stays. */
static inline vf exp_of(vf x)
{
    const vf least = splat(-87.33654f), round = splat(12582912.0f); /* 1.5 2^23 */
    const vi there = ~(vi)(x < least);
    const vf y = choose(there, x, least);
    const vf n = madd(y, splat(1.44269504f), round) - round;
    vf r = madd(n, splat(-0.693359375f), y);
    r = madd(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = madd(p, r, splat(1.3981999507e-3f));
    p = madd(p, r, splat(8.3334519073e-3f));
    p = madd(p, r, splat(4.1665795894e-2f));
    p = madd(p, r, splat(1.6666665459e-1f));
    p = madd(p, r, splat(5.0000001201e-1f));
    p = madd(p, r * r, r) + 1;
    const vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return choose(there, p * (vf)power, splat(0));
}

static float exponentials(float *p, const float *score, float top, int64_t n)
{
    vf total = {0};
    for (int64_t i = 0; i < n; i += VL) {
        const vf e = exp_of(load(score + i) - splat(top));
        store(p + i, e);
        total += e;
    }
    return sum(total);
}

static float maximum(const float *score, int64_t n)
{
    vf top = load(score);
    float lane[VL], best;
    for (int64_t i = VL; i < n; i += VL) {
        const vf v = load(score + i);
        top = choose((vi)(v > top), v, top);
    }
    store(lane, top);
    best = lane[0];
    for (int i = 1; i < VL; i++)
        best = lane[i] > best ? lane[i] : best;
    return best;
}

static void scale(float *x, float by, int64_t n)
{
    const vf all = splat(by);
    for (int64_t i = 0; i < n; i += VL)
        store(x + i, load(x + i) * all);
}

static void multiply(float *y, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        store(y + i, load(a + i) * load(b + i));
}

static void silu_gate(float *g, const float *u, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf x = load(g + i), low = splat(-88);
        const vf e = exp_of(choose((vi)(-x > -low), -low, -x));
        store(g + i, x / (1 + e) * load(u + i));
    }
    for (; i < n; i++)
        g[i] = g[i] / (1 + expf(-g[i])) * u[i];
}

/* --- values: lanes are words of channels -------------------------------------------- */

/* Words of a token that share a vector with other tokens' must be a power of 2; otherwise
 * a token has its own vectors, the last one not full. */
static inline int64_t tokens_of_vector(int64_t words)
{
    return words < VL && VL % words == 0 ? VL / words : 1;
}

/* How weights of tokens t, t + 1, ... come to the lanes of a vector that they share. */
struct lanes {
#if defined(__AVX512F__)
    __m512i token; /* of each lane */
    __mmask16 tokens;
#else
    int64_t words;
#endif
};

static inline struct lanes lanes_of(int64_t words)
{
#if defined(__AVX512F__)
    const __m512i lane =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const unsigned shift = words < VL ? (unsigned)__builtin_ctzll((uint64_t)words) : 4;
    return (struct lanes){_mm512_srli_epi32(lane, shift),
                          (__mmask16)((1u << (16 >> shift)) - 1)};
#else
    return (struct lanes){words};
#endif
}

static inline vf spread_weights(const float *w, const struct lanes *l)
{
#if defined(__AVX512F__)
    return (vf)_mm512_permutexvar_ps(l->token, _mm512_maskz_loadu_ps(l->tokens, w));
#else
    vf v;
    for (int i = 0; i < VL; i++)
        v[i] = w[i / l->words];
    return v;
#endif
}

/* Words [first, first + VL) of each token, or several tokens at once. */
INLINED void value_lanes(float *acc, int64_t apart, const float *w, const uint8_t *codes,
                         int64_t n, int64_t words, int64_t first, const int rows)
{
    const int64_t step = tokens_of_vector(words);
    const bool shared = step > 1;
    const struct lanes lanes = lanes_of(words);
    const vtable table = code_table(0);
    vf s[24] = {{0}};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            s[8 * r + k] = load(acc + r * apart + k * VL);
    for (int64_t t = 0; t < n; t += step) {
        const int64_t left = shared ? (n - t) * words : words - first;
        const vi c = load_words(codes + 4 * (t * words + first), left);
        vf wt[3];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            wt[r] = shared ? spread_weights(w + r * RT_TILE + t, &lanes)
                           : splat(w[r * RT_TILE + t]);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            const vf code = look_up(table, c, k);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                s[8 * r + k] = madd(code, wt[r], s[8 * r + k]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            store(acc + r * apart + k * VL, s[8 * r + k]);
}

#define QUERIES_AT_ONCE (VL == 16 ? 3 : 1) /* rows whose sums fit into the registers */

static void add_values(float *acc, int64_t apart, const float *w, int64_t rows,
                       const uint8_t *codes, int64_t n, int64_t words)
{
    for (int64_t first = 0; first < words; first += VL, acc += 8 * VL) {
        int64_t r = 0;
        for (; r + QUERIES_AT_ONCE <= rows; r += QUERIES_AT_ONCE)
            value_lanes(acc + r * apart, apart, w + r * RT_TILE, codes, n, words, first,
                        QUERIES_AT_ONCE);
        for (; r < rows; r++)
            value_lanes(acc + r * apart, apart, w + r * RT_TILE, codes, n, words, first, 1);
    }
}

static void collect(float *out, const float *acc, int64_t words)
{
    const int64_t step = tokens_of_vector(words);
    for (int64_t i = 0; i < words; i++)
        for (int k = 0; k < 8; k++) {
            const float *a = acc + i / VL * 8 * VL + k * VL + i % VL;
            out[8 * i + k] = a[0];
            for (int64_t t = 1; t < step; t++)
                out[8 * i + k] += a[t * words];
        }
}

#define NAME_OF(isa) rt_kv_kernels_##isa
#define TABLE(isa)                                                                         \
    extern const struct rt_kv_kernels NAME_OF(isa);                                        \
    const struct rt_kv_kernels NAME_OF(isa) = {                                            \
        fold,     score_keys, exponentials, maximum,   scale,                              \
        multiply, add_values, collect,      silu_gate, quantize}
#define EXPANDED(isa) TABLE(isa)
EXPANDED(RT_ISA);

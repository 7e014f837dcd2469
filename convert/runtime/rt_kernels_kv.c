/* SPDX-License-Identifier: MIT
 *
 * Attention over packed 4-bit keys and values, the quantizer of new ones, and the
 * exponentials. Compiled once per instruction set, like rt_kernels.c.
 *
 * rt_attn_packed.c factors s, delta, h and m out of the sums over codes, so these loops
 * only look codes up and multiply. The two layouts of codes (rt_priv.h draws them) decide
 * what a lane is:
 *
 *   score_keys   lane = token      word i of RT_KEYS tokens side by side:
 *                                  [ t0 | t1 | t2 | ... ], 8 channels in each word.
 *                A query's channel is broadcast and multiplied with the codes of all
 *                tokens; the sum over channels needs no horizontal step.
 *
 *   add_values   lane = word       the words of a token, then those of the next:
 *                                  [ t0: w0 w1 .. | t1: w0 w1 .. | ... ]
 *                A token's weight is broadcast to its words. Shift k of a vector holds
 *                channels 8 word + k, so a group has 8 accumulators per vector of words.
 *                Groups narrower than a vector share it: VL / words tokens at once, and
 *                `collect` adds their lanes up. */
#include "convert/runtime/rt_kernels.h"
#include "kernels/simd/simd.h"
#include "kernels/tensor/quant.h"
#include "kernels/tensor/rounder.h"

#include <math.h>

/* --- folding s and delta into a query ------------------------------------------------ */

static float fold(float *out, float *sum_out, const float *q, struct rt_channels ch,
                  float by, int64_t n)
{
    vf sums = {0}, shifts = {0};
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf scaled = vf_load(q + i) * by, v = scaled * vf_load(ch.s + i);
        vf_store(out + i, v);
        sums += v;
        shifts = vf_fma(scaled, vf_load(ch.delta + i), shifts);
    }
    float total = vf_sum(sums), shift = vf_sum(shifts);
    for (; i < n; i++) {
        out[i] = q[i] * by * ch.s[i];
        total += out[i];
        shift += q[i] * by * ch.delta[i];
    }
    *sum_out = total;
    return shift;
}

/* --- keys: lanes are tokens --------------------------------------------------------- */

/* VL tokens and up to three queries, whose sums stay in registers together. Loops over sums
 * are unrolled by a pragma: indexed by a loop variable, sums would live in memory. */
struct key_lanes {
    const struct rt_folded *f;
    const float *q;       /* first of the queries */
    float *score;         /* of that query and the first token */
    const uint8_t *codes; /* word 0 of the first token */
    int64_t width;        /* words from one word of a token to its next */
    int64_t left;         /* tokens that exist: 0 and more than VL are possible */
    const float *h, *m;   /* [groups][RT_TILE] from the first token on */
};

/* s[4 r + j] += codes . q_r over one group, in four sums (channels modulo 4). */
INLINE void key_group(vf *s, const struct key_lanes *j, int64_t g, const int rows)
{
    const vtable table = vtable_codes(0);
    const int64_t words = j->f->group / 8, stride = j->f->stride;
    const uint8_t *codes = j->codes + g * words * j->width * 4;
    const float *q = j->q + g * j->f->group;
    const float *at[4] = {q, q + stride, q + 2 * stride, q + 3 * stride};
    for (int64_t i = 0; i < 8 * words; i += 8, codes += 4 * j->width) {
        const vi c = vi_load_n(codes, j->left);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            const vf code = vtable_get(table, c, k);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                s[4 * r + k % 4] = vf_fma(code, vf_set1(at[r][i + k]), s[4 * r + k % 4]);
        }
    }
}

/* score = sum delta q + sum over groups of (h sum (s q) code + m sum (s q)). */
INLINE void score_lanes(const struct key_lanes *j, const int rows)
{
    const struct rt_folded *f = j->f;
    const int64_t groups = f->d / f->group;
    vf total[4] = {{0}};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        total[r] = vf_set1(j->q[r * f->stride + f->d + groups]);
    for (int64_t g = 0; g < groups; g++) {
        const vf h = vf_load(j->h + g * RT_TILE), m = vf_load(j->m + g * RT_TILE);
        vf s[16] = {{0}};
        key_group(s, j, g, rows);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const vf dot = (s[4 * r] + s[4 * r + 1]) + (s[4 * r + 2] + s[4 * r + 3]);
            const vf low = vf_fma(m, vf_set1(j->q[r * f->stride + f->d + g]), total[r]);
            total[r] = vf_fma(h, dot, low);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        vf_store(j->score + r * RT_TILE, total[r]);
}

static void score_keys(float *score, const struct rt_folded *f, const uint8_t *codes,
                       int64_t width, const float *h, const float *m)
{
    for (int64_t lane = 0; lane < RT_KEYS; lane += VL) {
        struct key_lanes j = {.f = f,
                              .q = f->q,
                              .score = score + lane,
                              .codes = codes + 4 * lane,
                              .width = width,
                              .left = width > lane ? width - lane : 0,
                              .h = h + lane,
                              .m = m + lane};
        int64_t r = 0;
        for (; r + 3 <= f->rows; r += 3, j.q += 3 * f->stride, j.score += 3 * RT_TILE)
            score_lanes(&j, 3);
        for (; r < f->rows; r++, j.q += f->stride, j.score += RT_TILE)
            score_lanes(&j, 1);
    }
}

static void unpack_keys(float *panel, const uint8_t *codes, int64_t width, const float *h,
                        const float *m, struct rt_channels ch, int64_t group, int64_t d)
{
    const vtable table = vtable_codes(0);
    for (int64_t lane = 0; lane < RT_KEYS; lane += VL) {
        const int64_t left = width > lane ? width - lane : 0;
        const uint8_t *at = codes + 4 * lane;
        for (int64_t i = 0; i < d; i += 8, at += 4 * width) {
            const int64_t pair = i / group * RT_TILE + lane;
            const vf hi = vf_load(h + pair), mi = vf_load(m + pair);
            const vi c = vi_load_n(at, left);
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) {
                const vf x = vf_fma(vtable_get(table, c, k), hi, mi);
                vf_store(panel + (i + k) * RT_PANEL + lane,
                         vf_fma(x, vf_set1(ch.s[i + k]), vf_set1(ch.delta[i + k])));
            }
        }
    }
}

/* Returns the words that hold the codes of channels [i, i + VL) of n, one in each lane. */
static inline vi words_of(const uint8_t *codes, int64_t i, int64_t n)
{
    int32_t word;
    memcpy(&word, codes + i / 8 * 4, sizeof(word));
    vi v = (vi){0} + word;
#if VL > 8
    static const int32_t second[VL] = {0,  0,  0,  0,  0,  0,  0,  0,
                                       -1, -1, -1, -1, -1, -1, -1, -1};
    vi high;
    memcpy(&high, second, sizeof(high));
    if (n - i > 8)
        memcpy(&word, codes + i / 8 * 4 + 4, sizeof(word));
    v = (v & ~high) | (((vi){0} + word) & high);
#endif
    return v;
}

/* x^ in the order of quant_kv_out, bit for bit. */
static void unpack_values(float *x, const uint8_t *codes, float h, float m,
                          struct rt_channels c, int64_t n)
{
    const vi lane = __builtin_convertvector(vf_iota(), vi);
    for (int64_t i = 0; i < n; i += VL) {
        const vi shift = ((lane + (int32_t)(i % 8)) & 7) * 4;
        const vi code = words_of(codes, i, n) >> shift & 15;
        const vf low = vf_mul(vf_set1(h), __builtin_convertvector(code, vf));
        const vf v = vf_mul(f32_get(c.s, i, n), vf_add(vf_set1(m), low));
        f32_put(x, i, n, vf_add(v, f32_get(c.delta, i, n)));
    }
}

/* --- quantizing a key or value
 * --------------------------------------------------------- */

/* quant_kv_in of VL channels, bit for bit: a division, as the definition has it. */
static inline vf quant_in(const float *x, struct rt_channels c, int64_t i)
{
    return (vf_load(x + i) - vf_load(c.delta + i)) / vf_load(c.s + i);
}

/* *mn and *mx = the extremes of themselves and x~ of n channels, whole vectors. A NaN is none
 * unless they begin with it. */
static inline void min_and_max(float *mn, float *mx, const float *x, struct rt_channels c,
                               int64_t n)
{
    vf low = vf_set1(*mn), high = vf_set1(*mx);
    float lane[2][VL];
    for (int64_t i = 0; i + VL <= n; i += VL) {
        const vf v = quant_in(x, c, i);
        low = vf_select(vf_lt(v, low), v, low);
        high = vf_select(vf_lt(high, v), v, high);
    }
    vf_store(lane[0], low);
    vf_store(lane[1], high);
    *mn = lane[0][0];
    *mx = lane[1][0];
    for (int i = 1; i < VL; i++) {
        *mn = lane[0][i] < *mn ? lane[0][i] : *mn;
        *mx = lane[1][i] > *mx ? lane[1][i] : *mx;
    }
}

static void quantize(uint8_t *codes, uint16_t *h_out, uint16_t *m_out, const float *x,
                     struct rt_channels c, int64_t n, int bits)
{
    const vf round = vf_set1(ROUNDER);
    const vf top = vf_set1((float)((1 << bits) - 1));
    const int64_t whole = n / VL * VL;
    float mn = quant_kv_in(x[0], c.s[0], c.delta[0]), mx = mn;
    if (whole)
        min_and_max(&mn, &mx, x, c, whole);
    for (int64_t i = whole; i < n; i++) {
        const float v = quant_kv_in(x[i], c.s[i], c.delta[i]);
        mn = v < mn ? v : mn;
        mx = v > mx ? v : mx;
    }
    *h_out = quant_kv_scale(mn, mx, bits);
    *m_out = quant_kv_min(mn);
    const float h = f16_to_f32(*h_out), m = f16_to_f32(*m_out);
    const int64_t divided = h > 0 ? whole : 0;
    for (int64_t i = 0; i < divided; i += VL) {
        const vf v = (quant_in(x, c, i) - vf_set1(m)) / vf_set1(h);
        /* Clamping before rounding is the same, since both bounds are integers. NaN gives 0. */
        const vf above = vf_select(vf_lt(vf_set1(0), v), v, vf_set1(0));
        const vf q = (vf_select(vf_lt(above, top), above, top) + round) - round;
        const vu8 b = __builtin_convertvector(__builtin_convertvector(q, vi), vu8);
        memcpy(codes + i, &b, sizeof(b));
    }
    for (int64_t i = divided; i < n; i++)
        codes[i] = quant_kv_code(quant_kv_in(x[i], c.s[i], c.delta[i]), h, m, bits);
}

/* --- exponentials ------------------------------------------------------------------- */

/* Returns e^x for x <= 88, within 2 units in the last place; 0 where it is below 2^-126,
 * NaN for NaN. With n = round(x / ln 2) and r = x - n ln 2, e^x = 2^n p(r). ln 2 is
 * subtracted in two parts, so that r keeps its digits; 2^n is built from exponent bits.
 * Scores need no subnormal results, so this is cheaper than vf_exp. */
static inline vf exp_of(vf x)
{
    const vf least = vf_set1(-87.33654f), round = vf_set1(ROUNDER);
    const vm tiny = vf_lt(x, least);
    const vf y = vf_select(tiny, least, x);
    const vf n = vf_fma(y, vf_set1(1.44269504f), round) - round;
    vf r = vf_fma(n, vf_set1(-0.693359375f), y);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(p, r * r, r) + 1;
    const vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return vf_select(tiny, vf_set1(0), p * (vf)power);
}

static float exponentials(float *p, const float *score, float top, int64_t n)
{
    vf total = {0};
    for (int64_t i = 0; i < n; i += VL) {
        const vf e = exp_of(vf_load(score + i) - vf_set1(top));
        vf_store(p + i, e);
        total += e;
    }
    return vf_sum(total);
}

static float maximum(const float *score, int64_t n)
{
    vf top = vf_load(score);
    for (int64_t i = VL; i < n; i += VL) {
        const vf v = vf_load(score + i);
        top = vf_select(vf_lt(top, v), v, top);
    }
    return vf_hmax(top);
}

static void scale(float *x, float by, int64_t n)
{
    const vf all = vf_set1(by);
    for (int64_t i = 0; i < n; i += VL)
        vf_store(x + i, vf_load(x + i) * all);
}

static void multiply(float *y, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        vf_store(y + i, vf_load(a + i) * vf_load(b + i));
}

static void silu_gate(float *g, const float *u, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf x = vf_load(g + i), low = vf_set1(-88);
        const vf e = exp_of(vf_select(vf_lt(-low, -x), -low, -x));
        vf_store(g + i, x / (1 + e) * vf_load(u + i));
    }
    for (; i < n; i++)
        g[i] = g[i] / (1 + expf(-g[i])) * u[i];
}

/* x / (1 + exp(-z)), z = x (A + B x^2). The exponent is clamped to 88, below which F32 has the
 * quotient. */
static void gelu_gate(float *g, const float *u, int64_t n)
{
    const float a = (float)GELU_A, b = (float)GELU_B;
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf x = vf_load(g + i), high = vf_set1(88), z = x * (a + b * x * x);
        const vf e = exp_of(vf_select(vf_lt(high, -z), high, -z));
        vf_store(g + i, x / (1 + e) * vf_load(u + i));
    }
    for (; i < n; i++)
        g[i] = g[i] / (1 + expf(-g[i] * (a + b * g[i] * g[i]))) * u[i];
}

static void gate(enum gate_act act, float *g, const float *u, int64_t n)
{
    if (act == GATE_SILU)
        silu_gate(g, u, n);
    else
        gelu_gate(g, u, n);
}

/* --- values: lanes are words of channels -------------------------------------------- */

/* Returns how many tokens share a vector. Only a power of two of words divides one; else a
 * token has vectors of its own, the last of them partly filled. */
static inline int64_t tokens_of_vector(int64_t words)
{
    return words < VL && VL % words == 0 ? VL / words : 1;
}

/* Broadcasts the weights of tokens t, t + 1, ... to the lanes that hold their words. */
struct lanes {
#if defined(__AVX512F__)
    __m512i token;    /* of each lane, from t on */
    __mmask16 tokens; /* that share the vector */
#else
    int64_t words;
#endif
};

static inline struct lanes weight_lanes(int64_t words)
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

/* One vector of words and up to QUERIES_AT_ONCE queries. */
struct value_lanes {
    float *acc;           /* [8][VL] of the first query */
    int64_t apart;        /* floats from one query's accumulators to the next's */
    const float *w;       /* [RT_TILE] of the first query */
    const uint8_t *codes; /* [n][words] */
    int64_t n, words, first;
};

/* acc += w_t code_t over n tokens: words [first, first + VL) of each, or all words of
 * several tokens at once. */
INLINE void add_value_lanes(const struct value_lanes *j, const int rows)
{
    const int64_t step = tokens_of_vector(j->words), words = j->words;
    const bool shared = step > 1;
    const struct lanes lanes = weight_lanes(words);
    const vtable table = vtable_codes(0);
    vf s[24] = {{0}};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            s[8 * r + k] = vf_load(j->acc + r * j->apart + k * VL);
    for (int64_t t = 0; t < j->n; t += step) {
        const int64_t left = shared ? (j->n - t) * words : words - j->first;
        const vi c = vi_load_n(j->codes + 4 * (t * words + j->first), left);
        vf wt[3];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            wt[r] = shared ? spread_weights(j->w + r * RT_TILE + t, &lanes)
                           : vf_set1(j->w[r * RT_TILE + t]);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            const vf code = vtable_get(table, c, k);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                s[8 * r + k] = vf_fma(code, wt[r], s[8 * r + k]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            vf_store(j->acc + r * j->apart + k * VL, s[8 * r + k]);
}

/* Queries whose accumulators fit into the registers. */
#define QUERIES_AT_ONCE (VREGS == 32 ? 3 : 1)

static void add_values(float *acc, int64_t apart, const float *w, int64_t rows,
                       const uint8_t *codes, int64_t n, int64_t words)
{
    for (int64_t first = 0; first < words; first += VL, acc += 8 * VL) {
        struct value_lanes j = {acc, apart, w, codes, n, words, first};
        int64_t r = 0;
        for (; r + QUERIES_AT_ONCE <= rows; r += QUERIES_AT_ONCE) {
            add_value_lanes(&j, QUERIES_AT_ONCE);
            j.acc += QUERIES_AT_ONCE * apart;
            j.w += QUERIES_AT_ONCE * RT_TILE;
        }
        for (; r < rows; r++, j.acc += apart, j.w += RT_TILE)
            add_value_lanes(&j, 1);
    }
}

/* Channel 8 i + k is in lane i of accumulator k, once for every token of the vector. */
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

const struct rt_kv_kernels ISA_NAME(rt_kv_kernels) = {
    .fold = fold,
    .score_keys = score_keys,
    .unpack_keys = unpack_keys,
    .unpack_values = unpack_values,
    .exponentials = exponentials,
    .maximum = maximum,
    .scale = scale,
    .multiply = multiply,
    .add_values = add_values,
    .collect = collect,
    .gate = gate,
    .quantize = quantize,
};

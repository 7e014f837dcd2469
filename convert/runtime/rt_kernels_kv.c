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
#include "convert/runtime/rt_vec.h"
#include "kernels/tensor/quant.h"

#include <math.h>

/* Loads n of VL words; the others are 0. */
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

/* --- folding s and delta into a query ------------------------------------------------ */

static float fold(float *out, float *sum_out, const float *q, struct rt_channels ch,
                  float by, int64_t n)
{
    vf sums = {0}, shifts = {0};
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vf scaled = load(q + i) * by, v = scaled * load(ch.s + i);
        store(out + i, v);
        sums += v;
        shifts = madd(scaled, load(ch.delta + i), shifts);
    }
    float total = sum(sums), shift = sum(shifts);
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
    int64_t left;         /* tokens that exist, may exceed VL */
    const float *h, *m;   /* [groups][RT_TILE] from the first token on */
};

/* s[4 r + j] += codes . q_r over one group, in four sums (channels modulo 4). */
INLINED void key_group(vf *s, const struct key_lanes *j, int64_t g, const int rows)
{
    const vtable table = code_table(0);
    const int64_t words = j->f->group / 8, stride = j->f->stride;
    const uint8_t *codes = j->codes + g * words * j->width * 4;
    const float *q = j->q + g * j->f->group;
    const float *at[4] = {q, q + stride, q + 2 * stride, q + 3 * stride};
    for (int64_t i = 0; i < 8 * words; i += 8, codes += 4 * j->width) {
        const vi c = load_words(codes, j->left);
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) {
            const vf code = look_up(table, c, k);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                s[4 * r + k % 4] = madd(code, splat(at[r][i + k]), s[4 * r + k % 4]);
        }
    }
}

/* score = sum delta q + sum over groups of (h sum (s q) code + m sum (s q)). */
INLINED void score_lanes(const struct key_lanes *j, const int rows)
{
    const struct rt_folded *f = j->f;
    const int64_t groups = f->d / f->group;
    vf total[4] = {{0}};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        total[r] = splat(j->q[r * f->stride + f->d + groups]);
    for (int64_t g = 0; g < groups; g++) {
        const vf h = load(j->h + g * RT_TILE), m = load(j->m + g * RT_TILE);
        vf s[16] = {{0}};
        key_group(s, j, g, rows);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const vf dot = (s[4 * r] + s[4 * r + 1]) + (s[4 * r + 2] + s[4 * r + 3]);
            const vf low = madd(m, splat(j->q[r * f->stride + f->d + g]), total[r]);
            total[r] = madd(h, dot, low);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
        store(j->score + r * RT_TILE, total[r]);
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
                              .left = width - lane,
                              .h = h + lane,
                              .m = m + lane};
        int64_t r = 0;
        for (; r + 3 <= f->rows; r += 3, j.q += 3 * f->stride, j.score += 3 * RT_TILE)
            score_lanes(&j, 3);
        for (; r < f->rows; r++, j.q += f->stride, j.score += RT_TILE)
            score_lanes(&j, 1);
    }
}

/* --- quantizing a key or value --------------------------------------------------------- */

/* Selects yes where the mask is all ones, no where it is 0. */
static inline vf choose(vi where, vf yes, vf no)
{
    return (vf)((where & (vi)yes) | (~where & (vi)no));
}

/* quant_kv_in of VL channels, bit for bit: a division, as the definition has it. */
static inline vf quant_in(const float *x, struct rt_channels c, int64_t i)
{
    return (load(x + i) - load(c.delta + i)) / load(c.s + i);
}

static inline void min_and_max(float *mn, float *mx, const float *x, struct rt_channels c,
                               int64_t n)
{
    vf low = quant_in(x, c, 0), high = low;
    float lane[2][VL];
    for (int64_t i = VL; i + VL <= n; i += VL) {
        const vf v = quant_in(x, c, i);
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
                     struct rt_channels c, int64_t n, int bits)
{
    /* Adding and subtracting 1.5 2^23 rounds to nearest, ties to even. */
    const vf round = splat(12582912.0f);
    const vf top = splat((float)((1 << bits) - 1));
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
        const vf v = (quant_in(x, c, i) - splat(m)) / splat(h);
        /* Clamping before rounding is the same, since both bounds are integers. */
        const vf below = choose((vi)(v < top), v, top);
        const vf q = (choose((vi)(below > 0), below, splat(0)) + round) - round;
        const vb b = __builtin_convertvector(__builtin_convertvector(q, vi), vb);
        memcpy(codes + i, &b, sizeof(b));
    }
    for (int64_t i = divided; i < n; i++)
        codes[i] = quant_kv_code(quant_kv_in(x[i], c.s[i], c.delta[i]), h, m, bits);
}

/* --- exponentials ------------------------------------------------------------------- */

/* Returns e^x for x <= 88, within 2 units in the last place; 0 where it is below 2^-126, NaN
 * for NaN. With n = round(x / ln 2) and r = x - n ln 2, e^x = 2^n p(r). ln 2 is subtracted
 * in two parts, so that r keeps its digits; 2^n is built from exponent bits. */
static inline vf exp_of(vf x)
{
    const vf least = splat(-87.33654f), round = splat(12582912.0f); /* 1.5 2^23 */
    const vi normal = ~(vi)(x < least);
    const vf y = choose(normal, x, least);
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
    return choose(normal, p * (vf)power, splat(0));
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
INLINED void add_value_lanes(const struct value_lanes *j, const int rows)
{
    const int64_t step = tokens_of_vector(j->words), words = j->words;
    const bool shared = step > 1;
    const struct lanes lanes = lanes_of(words);
    const vtable table = code_table(0);
    vf s[24] = {{0}};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            s[8 * r + k] = load(j->acc + r * j->apart + k * VL);
    for (int64_t t = 0; t < j->n; t += step) {
        const int64_t left = shared ? (j->n - t) * words : words - j->first;
        const vi c = load_words(j->codes + 4 * (t * words + j->first), left);
        vf wt[3];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
            wt[r] = shared ? spread_weights(j->w + r * RT_TILE + t, &lanes)
                           : splat(j->w[r * RT_TILE + t]);
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
            store(j->acc + r * j->apart + k * VL, s[8 * r + k]);
}

#define QUERIES_AT_ONCE (VL == 16 ? 3 : 1) /* whose accumulators fit into the registers */

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

#define NAME_OF(isa) rt_kv_kernels_##isa
#define TABLE(isa)                                                                         \
    extern const struct rt_kv_kernels NAME_OF(isa);                                        \
    const struct rt_kv_kernels NAME_OF(isa) = {.fold = fold,                               \
                                               .score_keys = score_keys,                   \
                                               .exponentials = exponentials,               \
                                               .maximum = maximum,                         \
                                               .scale = scale,                             \
                                               .multiply = multiply,                       \
                                               .add_values = add_values,                   \
                                               .collect = collect,                         \
                                               .silu_gate = silu_gate,                     \
                                               .quantize = quantize}
#define EXPANDED(isa) TABLE(isa)
EXPANDED(RT_ISA);

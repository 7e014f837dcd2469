/* SPDX-License-Identifier: MIT
 *
 * Caches of other engines against a second implementation. Blocks are packed and unpacked as
 * llama.cpp's ggml lays them out, from the format's definition: a half scale, a half minimum for
 * Q4_1, and 16 bytes that hold codes i and i + 16. Gradients are compared with differences of a
 * surrogate in f64, in which the rounding errors of all codes are held fixed. */
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "kernels/dev_engine.h"
#include "kernels/tensor/engine_block.h"
#include "kernels/tensor/hadamard.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { K = 2, T = 5, D_MAX = 256 };

/* --- the format ---------------------------------------------------------------------- */

struct packed_q4 {
    uint16_t d, m;
    uint8_t qs[16];
};

static uint8_t code4(float u)
{
    const int8_t q = (int8_t)u;
    return (uint8_t)(q < 15 ? q : 15);
}

static void pack(struct packed_q4 *b, const float *x, bool q4_1)
{
    float lo = x[0], hi = x[0], far = 0;
    for (int i = 0; i < 32; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
        far = fabsf(far) < fabsf(x[i]) ? x[i] : far;
    }
    const float d = q4_1 ? (hi - lo) / 15 : far / -8, id = d != 0 ? 1.0f / d : 0;
    *b = (struct packed_q4){f16_from_f32(d), f16_from_f32(q4_1 ? lo : 0), {0}};
    for (int i = 0; i < 16; i++) {
        const float base = q4_1 ? lo : 0, half = q4_1 ? 0.5f : 8.5f;
        const float low = (x[i] - base) * id, high = (x[i + 16] - base) * id;
        b->qs[i] = (uint8_t)(code4(low + half) | code4(high + half) << 4);
    }
}

static void unpack(float *x, const struct packed_q4 *b, bool q4_1)
{
    const float d = f16_to_f32(b->d), m = f16_to_f32(b->m);
    for (int i = 0; i < 16; i++) {
        const int low = b->qs[i] & 15, high = b->qs[i] >> 4;
        x[i] = q4_1 ? (float)low * d + m : (float)(low - 8) * d;
        x[i + 16] = q4_1 ? (float)high * d + m : (float)(high - 8) * d;
    }
}

/* --- one head ------------------------------------------------------------------------ */

struct head_case {
    int64_t d;
    enum kv_target target;
    enum kv_side side;
    bool interleaved, smooth;
    enum dtype type;
};

static int64_t rotation(const struct head_case *c)
{
    return c->side == KV_K ? c->d : 64;
}

/* y = R P x and back: llama.cpp's channel 2 i + p is channel p d / 2 + i. */
static void to_engine(float *y, const float *x, const struct head_case *c)
{
    for (int64_t i = 0; i < c->d / 2; i++)
        for (int64_t p = 0; p < 2; p++)
            y[c->interleaved ? 2 * i + p : p * c->d / 2 + i] = x[p * c->d / 2 + i];
    for (int64_t i = 0; i < c->d; i += rotation(c))
        hadamard_f32(y + i, rotation(c));
}

static void from_engine(float *x, float *y, const struct head_case *c)
{
    for (int64_t i = 0; i < c->d; i += rotation(c))
        hadamard_f32(y + i, rotation(c));
    for (int64_t i = 0; i < c->d / 2; i++)
        for (int64_t p = 0; p < 2; p++)
            x[p * c->d / 2 + i] = y[c->interleaved ? 2 * i + p : p * c->d / 2 + i];
}

static void expected(float *out, const float *x, const float *s, const float *shift,
                     const struct head_case *c)
{
    float y[D_MAX];
    to_engine(y, x, c);
    for (int64_t i = 0; c->smooth && i < c->d; i++)
        y[i] = (y[i] - shift[i]) / s[i];
    for (int64_t i = 0; i < c->d; i += 32) {
        struct packed_q4 b;
        pack(&b, y + i, c->target == TARGET_Q4_1);
        unpack(y + i, &b, c->target == TARGET_Q4_1);
    }
    for (int64_t i = 0; c->smooth && i < c->d; i++)
        y[i] = s[i] * y[i] + shift[i];
    from_engine(out, y, c);
}

/* --- data ---------------------------------------------------------------------------- */

struct data {
    float x[T * K * D_MAX], g[T * K * D_MAX], s[K * D_MAX], shift[K * D_MAX];
};

/* Token 0 is random, 1 all zero, 2 constant, 3 of two magnitudes with ties, 4 wide. */
static void fill(struct data *x, const struct head_case *c)
{
    struct rng r;
    rng_seed(&r, 5);
    for (int64_t i = 0; i < T * K * c->d; i++) {
        const float u = (float)rng_uniform(&r) - 0.5f;
        const float kind[T] = {u, 0, 0.75f, u > 0 ? 1.0f : -1.0f, 3000 * u * u * u};
        x->x[i] = kind[i / (K * c->d)];
        if (c->type == DT_BF16)
            x->x[i] = bf16_to_f32(bf16_from_f32(x->x[i]));
        x->g[i] = (float)rng_uniform(&r) - 0.5f;
    }
    for (int64_t i = 0; i < K * c->d; i++) {
        x->s[i] = 0.5f + (float)rng_uniform(&r);
        x->shift[i] = (float)rng_uniform(&r) - 0.5f;
    }
}

static void put(void *to, const float *x, int64_t n, enum dtype t)
{
    for (int64_t i = 0; i < n; i++)
        if (t == DT_F32)
            ((float *)to)[i] = x[i];
        else
            ((uint16_t *)to)[i] = bf16_from_f32(x[i]);
}

static struct dev *open_device(const char *name)
{
    struct dev *d = NULL;
    const struct dev_settings settings = {.name = name, .threads = 2};
    assert_int_equal(dev_open(&d, &settings), OK);
    return d;
}

static const char *const device[] = {"ref", "cpu"};

/* --- the forward pass ---------------------------------------------------------------- */

static void check_forward(const struct head_case *c, const char *name)
{
    static struct data x;
    static float have[T * K * D_MAX], want[D_MAX];
    const int64_t n = T * K * c->d;
    struct dev *d = open_device(name);
    fill(&x, c);
    put(have, x.x, n, c->type);
    const struct tensor in = tensor_3d(have, c->type, T, K, c->d);
    const struct tensor s = tensor_1d(x.s, DT_F32, K * c->d);
    const struct tensor shift = tensor_1d(x.shift, DT_F32, K * c->d);
    const struct engine_quant p = {.x = &in,
                                   .s = c->smooth ? &s : NULL,
                                   .shift = c->smooth ? &shift : NULL,
                                   .target = c->target,
                                   .side = c->side,
                                   .interleaved = c->interleaved};
    assert_int_equal(dev_fake_quant_engine(d, &in, &p), OK);
    for (int64_t h = 0; h < T * K; h++) {
        float row[D_MAX];
        expected(want, x.x + h * c->d, x.s + h % K * c->d, x.shift + h % K * c->d, c);
        put(row, want, c->d, c->type);
        const size_t bytes = (size_t)c->d * dtype_bytes(c->type);
        assert_memory_equal((char *)have + (size_t)h * bytes, row, bytes);
    }
    dev_close(&d);
}

/* --- gradients ----------------------------------------------------------------------- */

/* A block's codes, what rounding added to x~ / d of those that are not limited, and what fp16
 * added to the values. */
struct held {
    int code[32];
    double off[32], half[32];
    bool limited[32];
    int far, lo, hi;
};

/* The value of channel i when x moves but the errors stay. */
static double moved(const double *x, const struct held *h, int i, bool q4_1)
{
    const double d = q4_1 ? (x[h->hi] - x[h->lo]) / 15 : x[h->far] / -8;
    return h->half[i] + (h->limited[i] ? 7 * d : x[i] + h->off[i] * d);
}

static void hold(struct held *h, const float *x, bool q4_1)
{
    struct packed_q4 b;
    *h = (struct held){{0}, {0}, {0}, {0}, 0, 0, 0};
    pack(&b, x, q4_1);
    for (int i = 0; i < 32; i++) {
        h->code[i] = (b.qs[i % 16] >> (i < 16 ? 0 : 4)) & 15;
        h->far = fabsf(x[i]) > fabsf(x[h->far]) ? i : h->far;
        h->lo = x[i] < x[h->lo] ? i : h->lo;
        h->hi = x[i] > x[h->hi] ? i : h->hi;
    }
    const double d =
        q4_1 ? ((double)x[h->hi] - (double)x[h->lo]) / 15 : (double)x[h->far] / -8;
    for (int i = 0; i < 32; i++) {
        const double u = d == 0 ? 0 : (double)(x[i] - (q4_1 ? x[h->lo] : 0)) / d;
        h->off[i] = (double)h->code[i] - (q4_1 ? 0 : 8) - u;
        h->limited[i] = !q4_1 && u >= 7.5;
    }
    float value[32];
    double exact[32];
    unpack(value, &b, q4_1);
    for (int i = 0; i < 32; i++)
        exact[i] = (double)x[i];
    for (int i = 0; i < 32; i++)
        h->half[i] = (double)value[i] - moved(exact, h, i, q4_1);
}

/* sum g x^ of a head as a function of x, log s and shift, with the codes of the head's own. */
static double surrogate(const double *x, const double *ls, const double *shift,
                        const float *g, const struct held *h, const struct head_case *c)
{
    double y[D_MAX], gr[D_MAX], sum = 0;
    const int64_t n = rotation(c);
    for (int64_t i = 0; i < c->d; i++) {
        const int64_t at = c->interleaved ? i % 2 * c->d / 2 + i / 2 : i;
        y[i] = x[at];
        gr[i] = (double)g[at];
    }
    for (int64_t i = 0; i < c->d; i += n) {
        hadamard_f64(y + i, n, 1);
        hadamard_f64(gr + i, n, 1);
    }
    for (int64_t i = 0; i < c->d; i++)
        y[i] = (y[i] - shift[i]) / exp(ls[i]);
    for (int64_t i = 0; i < c->d; i++) {
        const double v =
            moved(y + i / 32 * 32, &h[i / 32], (int)(i % 32), c->target == TARGET_Q4_1);
        sum += gr[i] * (exp(ls[i]) * v + shift[i]);
    }
    return sum;
}

/* d surrogate / d *at, by a central difference. The surrogate is smooth: its error is far below
 * the tolerance. */
static double slope(double *at, const double *x, const double *ls, const double *shift,
                    const float *g, const struct held *h, const struct head_case *c)
{
    const double own = *at, step = 1e-4;
    *at = own + step;
    const double above = surrogate(x, ls, shift, g, h, c);
    *at = own - step;
    const double below = surrogate(x, ls, shift, g, h, c);
    *at = own;
    return (above - below) / (2 * step);
}

/* The gradients of token 0, the random one. */
static void check_backward(const struct head_case *c, const char *name)
{
    static struct data x;
    static float dx[K * D_MAX], dls[K * D_MAX], dshift[K * D_MAX];
    struct dev *d = open_device(name);
    fill(&x, c);
    memset(dls, 0, sizeof(dls));
    memset(dshift, 0, sizeof(dshift));
    const int64_t C = K * c->d;
    const struct tensor in = tensor_3d(x.x, DT_F32, 1, K, c->d),
                        g = tensor_3d(x.g, DT_F32, 1, K, c->d),
                        to = tensor_3d(dx, DT_F32, 1, K, c->d),
                        s = tensor_1d(x.s, DT_F32, C),
                        shift = tensor_1d(x.shift, DT_F32, C),
                        ls_grad = tensor_1d(dls, DT_F32, C),
                        shift_grad = tensor_1d(dshift, DT_F32, C);
    const struct engine_quant p = {.x = &in,
                                   .s = &s,
                                   .shift = &shift,
                                   .target = c->target,
                                   .side = c->side,
                                   .interleaved = c->interleaved};
    const struct kv_grads grads = {.dx = &to, .dls = &ls_grad, .dshift = &shift_grad};
    assert_int_equal(dev_fake_quant_engine_bwd(d, &grads, &g, &p), OK);
    for (int64_t head = 0; head < K; head++) {
        struct held h[D_MAX / 32];
        float y[D_MAX];
        double xs[D_MAX], ls[D_MAX], sh[D_MAX];
        const int64_t at = head * c->d;
        to_engine(y, x.x + at, c);
        for (int64_t i = 0; i < c->d; i++) {
            xs[i] = (double)x.x[at + i];
            ls[i] = log((double)x.s[at + i]);
            sh[i] = (double)x.shift[at + i];
            y[i] = (y[i] - x.shift[at + i]) / x.s[at + i];
        }
        for (int64_t i = 0; i < c->d; i += 32)
            hold(&h[i / 32], y + i, c->target == TARGET_Q4_1);
        /* Gradients are of size 1 to 10; f32 sums of 32 to 256 terms lose less than 1e-5. */
        for (int64_t i = 0; i < c->d; i++) {
            double *const of[] = {&xs[i], &ls[i], &sh[i]};
            const float have[] = {dx[at + i], dls[at + i], dshift[at + i]};
            for (int k = 0; k < 3; k++) {
                const double want = slope(of[k], xs, ls, sh, x.g + at, h, c);
                assert_true(fabs((double)have[k] - want) <= 2e-4 * (1 + fabs(want)));
            }
        }
    }
    dev_close(&d);
}

static void each_case(void (*check)(const struct head_case *c, const char *name), bool bf16)
{
    for (size_t dev = 0; dev < ARRAY_LEN(device); dev++)
        for (int64_t d = 64; d <= D_MAX; d *= 2)
            for (int v = 0; v < (bf16 ? 32 : 16); v++) {
                const struct head_case c = {.d = d,
                                            .target = v & 1 ? TARGET_Q4_1 : TARGET_Q4_0,
                                            .side = v & 2 ? KV_V : KV_K,
                                            .interleaved = v & 4,
                                            .smooth = v & 8,
                                            .type = v & 16 ? DT_BF16 : DT_F32};
                check(&c, device[dev]);
            }
}

static void test_forward(void **state)
{
    (void)state;
    each_case(check_forward, true);
}

static void test_backward(void **state)
{
    (void)state;
    each_case(check_backward, false);
}

/* --- FP8 ----------------------------------------------------------------------------- */

/* The value of a positive code: bits 6 to 3 are the exponent with bias 7, bits 2 to 0 the
 * fraction. */
static double fp8_value(int code)
{
    const int exponent = code >> 3, fraction = code & 7;
    return exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
}

/* Searches all codes for the nearest value; of two, the one of the even code. */
static double fp8_nearest(double x)
{
    int best = 0;
    for (int code = 0; code < 127; code++) { /* code 127 is NaN */
        const double gap = fabs(fabs(x) - fp8_value(code));
        const double least = fabs(fabs(x) - fp8_value(best));
        if (gap < least || (gap == least && code % 2 == 0))
            best = code;
    }
    return copysign(fp8_value(best), x);
}

/* Neither order nor rotation: every value by itself, with one scale. Values of d = 6 show that
 * heads need not be a power of two. The gradient passes where the value is in range. */
static void test_fp8(void **state)
{
    (void)state;
    enum { D = 6, N = 2 * K * D };
    const float scale = 0.03f;
    for (size_t dev = 0; dev < ARRAY_LEN(device); dev++) {
        struct dev *d = open_device(device[dev]);
        float x[N], y[N], g[N], dx[N];
        struct rng r;
        rng_seed(&r, 3);
        for (int i = 0; i < N; i++) {
            const float u = (float)rng_uniform(&r) - 0.5f;
            x[i] = i % 5 ? u : 80 * u; /* up to 40, FP8 holds 448 * 0.03 = 13.44 */
            g[i] = (float)rng_uniform(&r);
        }
        const struct tensor in = tensor_3d(x, DT_F32, 2, K, D),
                            to = tensor_3d(y, DT_F32, 2, K, D),
                            up = tensor_3d(g, DT_F32, 2, K, D),
                            down = tensor_3d(dx, DT_F32, 2, K, D);
        const struct engine_quant p = {
            .x = &in, .scale = scale, .target = TARGET_FP8, .interleaved = false};
        const struct kv_grads grads = {.dx = &down};
        assert_int_equal(dev_fake_quant_engine(d, &to, &p), OK);
        assert_int_equal(dev_fake_quant_engine_bwd(d, &grads, &up, &p), OK);
        int beyond = 0;
        for (int i = 0; i < N; i++) {
            assert_true(y[i] == (float)fp8_nearest((double)(x[i] / scale)) * scale);
            const bool held = fabsf(x[i] / scale) <= 448;
            assert_true(dx[i] == (held ? g[i] : 0));
            beyond += !held;
        }
        assert_true(beyond > 0 && beyond < N / 2);
        dev_close(&d);
    }
}

/* A scale must be positive and finite, and there is nothing to smooth beside it. */
static void test_fp8_refused(void **state)
{
    (void)state;
    struct dev *d = open_device("ref");
    float x[64] = {0}, s[64] = {0};
    const struct tensor in = tensor_3d(x, DT_F32, 1, 1, 64), of = tensor_1d(s, DT_F32, 64);
    const float scale[] = {0, -1, NAN, INFINITY, 1};
    for (size_t i = 0; i < ARRAY_LEN(scale); i++) {
        const bool smooth = i == ARRAY_LEN(scale) - 1;
        const struct engine_quant p = {.x = &in,
                                       .s = smooth ? &of : NULL,
                                       .shift = smooth ? &of : NULL,
                                       .scale = scale[i],
                                       .target = TARGET_FP8};
        assert_int_equal(dev_fake_quant_engine(d, &in, &p), ERR_SHAPE);
    }
    dev_close(&d);
}

/* The rotation is llama.cpp's: a matrix that doubles, [[m, m], [m, -m]], from 1 / sqrt(n). */
static void test_rotation(void **state)
{
    (void)state;
    static float m[64 * 64];
    m[0] = 0.125f;
    for (int s = 1; s < 64; s *= 2)
        for (int i = 0; i < s; i++)
            for (int j = 0; j < s; j++) {
                m[(i + s) * 64 + j] = m[i * 64 + j + s] = m[i * 64 + j];
                m[(i + s) * 64 + j + s] = -m[i * 64 + j];
            }
    for (int j = 0; j < 64; j++) {
        float x[64] = {0};
        x[j] = 1;
        hadamard_f32(x, 64);
        for (int i = 0; i < 64; i++)
            assert_true(x[i] == m[i * 64 + j]);
    }
}

/* Values beyond fp16 stay finite, and so do those whose step has no inverse. */
static void test_extremes(void **state)
{
    (void)state;
    static const float value[] = {3e38f, -3e38f, 1e7f, 1e-38f, 1e-45f};
    struct dev *d = open_device("ref");
    for (size_t v = 0; v < ARRAY_LEN(value); v++)
        for (int target = TARGET_Q4_0; target <= TARGET_Q4_1; target++) {
            float x[64] = {0}, g[64], dx[64];
            x[0] = value[v];
            for (int i = 0; i < 64; i++)
                g[i] = 1;
            const struct tensor in = tensor_3d(x, DT_F32, 1, 1, 64),
                                up = tensor_3d(g, DT_F32, 1, 1, 64),
                                down = tensor_3d(dx, DT_F32, 1, 1, 64);
            const struct engine_quant p = {
                .x = &in, .target = (enum kv_target)target, .side = KV_V};
            const struct kv_grads grads = {.dx = &down};
            assert_int_equal(dev_fake_quant_engine_bwd(d, &grads, &up, &p), OK);
            assert_int_equal(dev_fake_quant_engine(d, &in, &p), OK);
            for (int i = 0; i < 64; i++)
                assert_true(isfinite(x[i]) && isfinite(dx[i]));
        }
    dev_close(&d);
}

/* NaN has code 0 in every format, in a block of its own as well. Without a rotation it spoils no
 * other channel: they are rounded as if it were a value between the ends. */
static void test_nan(void **state)
{
    (void)state;
    static const enum kv_target blocks[] = {TARGET_Q4_0, TARGET_Q4_1, TARGET_QUANTO4,
                                            TARGET_VLLM_INT4};
    float x[2][64], y[2][64], only[64];
    for (int i = 0; i < 64; i++) {
        x[0][i] = x[1][i] = (float)(i * 29 % 64) - 20.3f;
        only[i] = NAN;
    }
    x[1][5] = NAN;
    for (size_t i = 0; i < ARRAY_LEN(blocks); i++) {
        const int64_t n = engine_block_values(blocks[i], 64);
        const struct engine_block b = engine_block_of(x[1], n, blocks[i]);
        const struct engine_block c = engine_block_of(only, n, blocks[i]);
        assert_int_equal(engine_block_round(&b, NAN), 0);
        assert_int_equal(engine_block_round(&c, NAN), 0);
        assert_true(c.zero >= 0 && c.zero <= 15);
    }
    for (size_t i = 0; i < ARRAY_LEN(device); i++) {
        struct dev *d = open_device(device[i]);
        for (int k = 0; k < 2; k++) {
            const struct tensor in = tensor_3d(x[k], DT_F32, 1, 1, 64),
                                to = tensor_3d(y[k], DT_F32, 1, 1, 64);
            const struct engine_quant p = {
                .x = &in, .target = TARGET_QUANTO4, .side = KV_V};
            assert_int_equal(dev_fake_quant_engine(d, &to, &p), OK);
        }
        for (int k = 0; k < 64; k++)
            assert_true(y[1][k] == (k == 5 ? -20.3f : y[0][k]));
        dev_close(&d);
    }
}

/* Shapes that llama.cpp's cache does not have. */
static void test_refused(void **state)
{
    (void)state;
    struct dev *d = open_device("ref");
    float x[192] = {0};
    const int64_t width[] = {32, 96, 64};
    for (size_t i = 0; i < ARRAY_LEN(width); i++) {
        const struct tensor in = tensor_3d(x, DT_F32, 1, 1, width[i]);
        const struct engine_quant p = {
            .x = &in, .target = width[i] == 64 ? TARGET_WKVQ : TARGET_Q4_0};
        assert_int_equal(dev_fake_quant_engine(d, &in, &p), ERR_SHAPE);
    }
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),  cmocka_unit_test(test_backward),
        cmocka_unit_test(test_rotation), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_nan),      cmocka_unit_test(test_refused),
        cmocka_unit_test(test_fp8),      cmocka_unit_test(test_fp8_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

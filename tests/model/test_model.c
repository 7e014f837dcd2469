/* SPDX-License-Identifier: MIT
 *
 * The simulation of the whole model against a second implementation of its definition: a
 * decoder in f64 that processes one token after another with a cache. */
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/model/quantized_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* --- the definition ----------------------------------------------------------------- */

/* One layer's cache: keys and values of every token so far, before and after the
 * quantizer. */
struct cache {
    double k[T][C], v[T][C], kq[T][C], vq[T][C];
};

struct naive {
    const struct quantized *m;
    bool quant_w, quant_kv;
    bool by_channel; /* keys in blocks of KV_GROUP tokens */
    int64_t chunk;
    struct cache cache[LAYERS];
};

static double weight(const struct naive *n, int layer, int l, int64_t r, int64_t c)
{
    const struct host_mat *m = &n->m->f.blocks[layer].lin[l];
    const float w = ((const float *)m->data)[r * m->cols + c];
    if (!n->quant_w)
        return (double)w;
    const struct qlinear *q = &n->m->q[layer].lin[l];
    const int64_t g = r * q->groups + c / W_GROUP;
    const float h = f16_to_f32(q->scales[g]);
    const uint8_t z = q->zeros[g];
    return (double)quant_weight_value(quant_weight_code(w, h, z, W_BITS), z, h);
}

static void project(const struct naive *n, int layer, int l, double *y, const double *x)
{
    for (int64_t r = 0; r < arch_out(&n->m->f.arch, l); r++) {
        y[r] = 0;
        for (int64_t c = 0; c < arch_in(&n->m->f.arch, l); c++)
            y[r] += weight(n, layer, l, r, c) * x[c];
    }
}

static void norm(double *y, const double *x, const struct host_mat *gain)
{
    double sum = 0;
    for (int c = 0; c < D; c++)
        sum += x[c] * x[c];
    for (int c = 0; c < D; c++)
        y[c] = x[c] / sqrt(sum / D + 1e-5) * (double)((const float *)gain->data)[c];
}

static void rotate(double *x, int heads, int64_t t)
{
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < HD / 2; i++) {
            double *a = x + h * HD + i, *b = a + HD / 2;
            const double angle = (double)t * pow(10000, -2.0 * i / HD);
            const double a0 = *a, b0 = *b;
            *a = a0 * cos(angle) - b0 * sin(angle);
            *b = b0 * cos(angle) + a0 * sin(angle);
        }
}

/* The definition rounds a number as the simulation does only if it is further from the middle
 * between two results than F32's errors reach, whatever the processor's order of sums. steps: the
 * number in units of what it is rounded to. */
static void check_no_tie(double steps, double margin)
{
    const double from_tie = fabs(steps - floor(steps) - 0.5);
    const bool clear = from_tie >= margin;
    if (!clear)
        fail_msg("a number is %.1e steps from a tie: take another window_seed", from_tie);
}

/* Returns x in units of the last place that fp16 has for it, at least that of subnormals. */
static double f16_steps(float x)
{
    const int exponent = x == 0 || ilogbf(x) < -14 ? -14 : ilogbf(x);
    return (double)ldexpf(x, 10 - exponent);
}

/* *h, *m = scale and minimum of the values between mn and mx. */
static void group_grid(float *h, float *m, float mn, float mx, int bits)
{
    *h = f16_to_f32(quant_kv_scale(mn, mx, bits));
    *m = f16_round(mn);
    check_no_tie(f16_steps((mx - mn) / (float)((1 << bits) - 1)), 1e-3);
    check_no_tie(f16_steps(mn), 1e-3);
}

static uint8_t code_of(float x, float h, float m, int bits)
{
    check_no_tie(((double)x - (double)m) / (double)h, 1e-4);
    return quant_kv_code(x, h, m, bits);
}

static void quantize(double *xq, const double *x, const float *s, const float *delta,
                     struct kv_format f)
{
    if (f.bits == 16)
        memcpy(xq, x, C * sizeof(*x));
    for (int head = 0; f.bits < 16 && head < C; head += HD)
        for (int g = head; g < head + HD; g += (int)f.group_size) {
            const int end = (int)fmin(g + (double)f.group_size, head + HD);
            float mn = INFINITY, mx = -INFINITY;
            for (int c = g; c < end; c++) {
                mn = fminf(mn, quant_kv_in((float)x[c], s[c], delta[c]));
                mx = fmaxf(mx, quant_kv_in((float)x[c], s[c], delta[c]));
            }
            float h, m;
            group_grid(&h, &m, mn, mx, f.bits);
            for (int c = g; c < end; c++) {
                const float xt = quant_kv_in((float)x[c], s[c], delta[c]);
                xq[c] =
                    (double)quant_kv_out(code_of(xt, h, m, f.bits), h, m, s[c], delta[c]);
            }
        }
}

/* Quantizes the keys of the block that token t completes, channel by channel. */
static void quantize_block(double kq[T][C], double k[T][C], int64_t t, struct kv_format f)
{
    if (f.bits == 16)
        memcpy(kq[t], k[t], sizeof(kq[t]));
    for (int c = 0; c < C && f.bits < 16 && (t + 1) % f.group_size == 0; c++) {
        float mn = INFINITY, mx = -INFINITY;
        for (int64_t j = t - f.group_size + 1; j <= t; j++) {
            mn = fminf(mn, (float)k[j][c]);
            mx = fmaxf(mx, (float)k[j][c]);
        }
        float h, m;
        group_grid(&h, &m, mn, mx, f.bits);
        for (int64_t j = t - f.group_size + 1; j <= t; j++) {
            const uint8_t q = code_of((float)k[j][c], h, m, f.bits);
            kq[j][c] = (double)quant_kv_out(q, h, m, 1, 0);
        }
    }
}

/* Token t attends over the cache: its own chunk in full precision, earlier tokens
 * quantized; by channel only blocks that were full before its chunk. */
static void attend(const struct naive *n, const struct cache *k, double *o, const double *q,
                   int64_t t, struct kv_format keys)
{
    int64_t own = n->chunk > 1 ? t / n->chunk * n->chunk : t;
    if (n->by_channel && keys.bits < 16)
        own = own / keys.group_size * keys.group_size;
    for (int h = 0; h < H; h++) {
        const int at = h / (H / K) * HD;
        double e[T], sum = 0, acc[HD] = {0};
        for (int64_t j = 0; j <= t; j++) {
            const double *key = (n->quant_kv && j < own ? k->kq[j] : k->k[j]) + at;
            double s = 0;
            for (int c = 0; c < HD; c++)
                s += q[h * HD + c] * key[c];
            e[j] = exp(s / sqrt(HD));
            sum += e[j];
        }
        for (int64_t j = 0; j <= t; j++)
            for (int c = 0; c < HD; c++)
                acc[c] +=
                    e[j] / sum * (n->quant_kv && j < own ? k->vq[j] : k->v[j])[at + c];
        memcpy(o + h * HD, acc, sizeof(acc));
    }
}

static void decode_layer(struct naive *n, int layer, double *x, int64_t t)
{
    const struct block_src *b = &n->m->f.blocks[layer];
    const struct block_quant *bq = &n->m->q[layer];
    struct cache *k = &n->cache[layer];
    const struct kv_format kf = kv_format(&bq->kv, layer, KV_K);
    double y[D], q[H * HD], o[H * HD], gate[F], up[F];
    norm(y, x, &b->norm[GAIN_ATTENTION]);
    project(n, layer, LIN_Q, q, y);
    project(n, layer, LIN_K, k->k[t], y);
    project(n, layer, LIN_V, k->v[t], y);
    rotate(q, H, t);
    rotate(k->k[t], K, t);
    if (n->by_channel)
        quantize_block(k->kq, k->k, t, kf);
    else
        quantize(k->kq[t], k->k[t], bq->k_scale, bq->k_shift, kf);
    quantize(k->vq[t], k->v[t], bq->v_scale, bq->v_shift, kv_format(&bq->kv, layer, KV_V));
    attend(n, k, o, q, t, kf);
    project(n, layer, LIN_O, y, o);
    for (int c = 0; c < D; c++)
        x[c] += y[c];
    norm(y, x, &b->norm[GAIN_MLP]);
    project(n, layer, LIN_GATE, gate, y);
    project(n, layer, LIN_UP, up, y);
    for (int f = 0; f < F; f++)
        gate[f] *= up[f] / (1 + exp(-gate[f]));
    project(n, layer, LIN_DOWN, y, gate);
    for (int c = 0; c < D; c++)
        x[c] += y[c];
}

/* logits [V] of the token at position t. */
static void decode(struct naive *n, double *logits, int32_t id, int64_t t)
{
    const struct fixture *f = &n->m->f;
    double x[D], y[D];
    for (int c = 0; c < D; c++)
        x[c] = (double)((const float *)f->embed.data)[id * D + c];
    for (int layer = 0; layer < LAYERS; layer++)
        decode_layer(n, layer, x, t);
    norm(y, x, &f->final_norm);
    for (int v = 0; v < V; v++) {
        logits[v] = 0;
        for (int c = 0; c < D; c++)
            logits[v] += y[c] * (double)((const float *)f->head.data)[v * D + c];
    }
}

/* nll [T - 1] and logits [T][V] of one window; the caches stay in n. */
static void decode_window(struct naive *n, float *nll, float *logits, const int32_t *ids)
{
    for (int64_t t = 0; t < T; t++) {
        double x[V], sum = 0;
        decode(n, x, ids[t], t);
        for (int v = 0; v < V; v++) {
            sum += exp(x[v]);
            logits[t * V + v] = (float)x[v];
        }
        if (t < T - 1)
            nll[t] = (float)(log(sum) - x[ids[t + 1]]);
    }
}

/* --- tests -------------------------------------------------------------------------- */

/* F32 against f64 through two blocks; all codes must be equal. */
#define TOLERANCE 2e-6

/* The same logits piece by piece, in any order. whole: the logits of all windows. Products
 * of other shapes may round differently. */
static void check_pieces(const struct model_run *r, const int32_t *ids, const float *whole)
{
    struct model_states *s;
    float piece[3 * V];
    must(model_states_open(&s, r, ids, WINDOWS, T));
    for (int w = WINDOWS - 1; w >= 0; w--)
        for (int64_t t = 0, n; t < T; t += n) {
            n = T - t < 3 ? T - t : 3;
            must(model_states_logits(s, w, t, n, piece));
            check_error("piece", max_error(piece, whole + (w * T + t) * V, n * V),
                        TOLERANCE);
        }
    assert_int_equal(model_states_logits(s, 0, T - 1, 2, piece), ERR_SHAPE);
    err_clear();
    model_states_close(&s);
    assert_null(s);
}

/* Keys by channel, values by token. */
static void by_channel(struct quantized *m)
{
    for (int i = 0; i < LAYERS; i++) {
        m->q[i].kv.method = KV_CHANNEL;
        for (int c = 0; c < C; c++) {
            m->q[i].v_scale[c] = 1;
            m->q[i].v_shift[c] = 0;
        }
    }
}

enum cache_kind { PLAIN_CACHE, TOKEN_CACHE, CHANNEL_CACHE, MIXED_CACHE, MIXED_CHANNEL };

/* Formats that differ between layers, and between keys and values. */
static struct mix *mix_of(enum cache_kind kind)
{
    static const char *const text[] = {"", "", "", "0.k=3:6, 0.v=16, 1.k=5, 1.v=2:3",
                                       "v=8:6, 0.k=16, 1.k=3:3"};
    struct mix *m;
    must(mix_parse(&m, MIX_KV, text[kind], ERR_USAGE, "test"));
    return m;
}

static void check_against_naive(const char *device, bool quant_w, enum cache_kind kind,
                                int64_t chunk)
{
    const bool quant_kv = kind != PLAIN_CACHE;
    struct mix *mixed = mix_of(kind);
    struct quantized m;
    quantized_open(&m);
    if (kind == CHANNEL_CACHE || kind == MIXED_CHANNEL)
        by_channel(&m);
    for (int i = 0; i < LAYERS; i++) {
        for (int l = 0; l < N_LIN && !quant_w; l++)
            qlinear_free(&m.q[i].lin[l]);
        m.q[i].kv.bits = quant_kv ? KV_BITS : 16;
        m.q[i].kv.mixed = mixed;
    }
    struct dev *d = open_dev(device);
    const struct model_run r = {.dev = d,
                                .arch = &m.f.arch,
                                .src = &m.f.source,
                                .quant = quant_w || quant_kv ? &m.quant : NULL,
                                .act = DT_F32,
                                .chunk = chunk};
    float nll[WINDOWS * (T - 1)], logits[WINDOWS * T * V];
    must(model_nll(&r, m.ids, WINDOWS, T, nll));
    must(model_logits(&r, m.ids, WINDOWS, T, logits));
    check_pieces(&r, m.ids, logits);
    for (int w = 0; w < WINDOWS; w++) {
        struct naive n = {.m = &m,
                          .quant_w = quant_w,
                          .quant_kv = quant_kv,
                          .by_channel = m.q[0].kv.method == KV_CHANNEL,
                          .chunk = chunk <= 0 ? T : chunk};
        float want[T - 1], want_logits[T * V];
        decode_window(&n, want, want_logits, m.ids + w * T);
        check_error("nll", max_error(nll + w * (T - 1), want, T - 1), TOLERANCE);
        check_error("logits", max_error(logits + w * T * V, want_logits, T * V), TOLERANCE);
    }
    dev_close(&d);
    quantized_close(&m);
    mix_free(mixed);
}

static void check_on(const char *device)
{
    check_against_naive(device, false, PLAIN_CACHE, 1);
    check_against_naive(device, true, PLAIN_CACHE, 1);
    check_against_naive(device, true, TOKEN_CACHE, 1);
    check_against_naive(device, false, TOKEN_CACHE, 1);
    check_against_naive(device, true, TOKEN_CACHE, 4); /* chunks of 4, 4, 1 */
    check_against_naive(device, true, TOKEN_CACHE, T - 1);
    check_against_naive(device, true, TOKEN_CACHE, T);
    check_against_naive(device, true, TOKEN_CACHE, 0); /* one chunk */
    check_against_naive(device, true, CHANNEL_CACHE, 1);
    check_against_naive(device, true, CHANNEL_CACHE, 4);
    check_against_naive(device, false, CHANNEL_CACHE, T);
    check_against_naive(device, false, MIXED_CACHE, 1);
    check_against_naive(device, true, MIXED_CACHE, 4);
    check_against_naive(device, true, MIXED_CHANNEL, 1);
    check_against_naive(device, false, MIXED_CHANNEL, 4);
}

static void simulation_is_token_by_token(void **state)
{
    check_on("ref");
}

static void simulation_is_token_by_token_on_cpu(void **state)
{
    check_on("cpu");
}

static void same_cache(const float *got, double want[T][C])
{
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) {
            const bool pass = fabs((double)got[t * C + c] - want[t][c]) <= 1e-5;
            assert_true(pass);
        }
}

/* chunk as in struct naive: T for one chunk. */
static void check_caches(struct quantized *m, bool quant, int64_t chunk)
{
    struct dev *d = open_dev("ref");
    const struct model_run r = {.dev = d,
                                .arch = &m->f.arch,
                                .src = &m->f.source,
                                .quant = quant ? &m->quant : NULL,
                                .act = DT_F32,
                                .chunk = chunk == T ? 0 : chunk};
    struct naive n = {.m = m, .quant_w = quant, .quant_kv = quant, .chunk = chunk};
    float nll[T - 1], logits[T * V], k[LAYERS * T * C], v[LAYERS * T * C],
        only[LAYERS * T * C];
    decode_window(&n, nll, logits, m->ids);
    must(model_kv(&r, m->ids, T, k, v));
    must(model_kv(&r, m->ids, T, NULL, only));
    assert_memory_equal(v, only, sizeof(v));
    for (int i = 0; i < LAYERS; i++) {
        same_cache(k + i * T * C, quant ? n.cache[i].kq : n.cache[i].k);
        same_cache(v + i * T * C, quant ? n.cache[i].vq : n.cache[i].v);
    }
    dev_close(&d);
}

static void caches_are_those_of_decode(void **state)
{
    struct quantized m;
    quantized_open(&m);
    check_caches(&m, true, 1);
    check_caches(&m, true, T);
    check_caches(&m, false, 1);
    quantized_close(&m);
}

static void watch(void *ctx, double share)
{
    double *last = ctx;
    const bool pass = share > *last && share <= 1;
    assert_true(pass);
    *last = share;
}

static void progress_ends_at_one(void **state)
{
    struct quantized m;
    quantized_open(&m);
    struct dev *d = open_dev("ref");
    double last = 0;
    const struct model_run r = {.dev = d,
                                .arch = &m.f.arch,
                                .src = &m.f.source,
                                .act = DT_F32,
                                .progress = watch,
                                .progress_ctx = &last};
    float nll[WINDOWS * (T - 1)];
    must(model_nll(&r, m.ids, WINDOWS, T, nll));
    assert_true(last == 1);
    dev_close(&d);
    quantized_close(&m);
}

static void refused(const struct model_run *r, const struct quantized *m, int64_t tokens,
                    enum err e, const char *words)
{
    float nll[T];
    err_clear();
    assert_int_equal(model_nll(r, m->ids, 1, tokens, nll), e);
    if (!strstr(err_text(), words))
        fail_msg("'%s' lacks '%s'", err_text(), words);
    err_clear();
}

static void bad_input_is_refused(void **state)
{
    struct quantized m;
    quantized_open(&m);
    struct dev *d = open_dev("ref");
    struct model_run r = {.dev = d,
                          .arch = &m.f.arch,
                          .src = &m.f.source,
                          .quant = &m.quant,
                          .act = DT_F32,
                          .chunk = 1};
    refused(&r, &m, 1, ERR_USAGE, "1 tokens");
    refused(&r, &m, 65, ERR_SUPPORT, "max_position_embeddings");
    m.ids[3] = V;
    refused(&r, &m, T, ERR_FORMAT, "token 3 has id 31, the model has 31 tokens");
    m.ids[3] = -1;
    refused(&r, &m, T, ERR_FORMAT, "token 3 has id -1");
    m.ids[3] = 0;
    m.q[1].lin[LIN_O].groups++;
    refused(&r, &m, T, ERR_MISMATCH, "block 1: self_attn.o_proj: scales are for");
    m.q[1].lin[LIN_O].groups--;
    m.q[0].n_channels++;
    refused(&r, &m, T, ERR_MISMATCH, "block 0: KV parameters are for 13 channels");
    m.q[0].n_channels--;
    m.f.head.cols++;
    refused(&r, &m, T, ERR_FORMAT, "head: shape");
    m.f.head.cols--;
    dev_close(&d);
    quantized_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(simulation_is_token_by_token),
        cmocka_unit_test(simulation_is_token_by_token_on_cpu),
        cmocka_unit_test(caches_are_those_of_decode),
        cmocka_unit_test(progress_ends_at_one),
        cmocka_unit_test(bad_input_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

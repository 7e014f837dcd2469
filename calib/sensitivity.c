/* SPDX-License-Identifier: MIT
 *
 * Backward visits the blocks from the last to the first. In each block the visits of its
 * windows add to X, G and the stored keys and values; when all windows are through, every
 * format is evaluated from these sums and the block's weights, and the sums start again:
 *
 *   visit_window   activations of a window: keys and values are stored
 *   visit_grad     gradients of that window, five times: G, |g_t|^2, then X weighted by it
 *   visit_block    losses of all formats, projections by rows, the cache by tokens, and keys by
 *                  channels under KV_CHANNEL
 */
#include "calib/sensitivity.h"

#include "calib/fakequant.h"
#include "calib/model/model_grad.h"
#include "calib/start/inputs.h"
#include "calib/start/kv_search.h"
#include "kernels/base/mem.h"
#include "kernels/base/pool.h"
#include "kernels/tensor/hadamard.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <string.h>

/* The block in work; arrays are host memory. Names follow the formulas of the header. */
struct measure {
    struct sensitivity *out;
    struct dev *dev;
    const struct arch *arch;
    struct pool *pool;
    int64_t n, T, window;          /* windows, tokens of one, the one in work */
    const struct block_acts *acts; /* of that window */
    double *x2[N_LIN];             /* [in] X */
    double *g2[N_LIN];             /* [out] G */
    double *token_g2;              /* [T] |g_t|^2 in the window and projection in work */
    float *side[2];                /* [n*T][K*d] keys, values */
    double *side_g2[2];            /* [n*T][K] squared norm of their gradients */
    float *stage;                  /* [T][widest] */
    float *weights;                /* the largest projection */
    double *parts;                 /* [rows or tokens][formats] */
};

static int64_t channels(const struct arch *a)
{
    return a->n_kv * a->head_dim;
}

/* --- sums over tokens --------------------------------------------------------------- */

/* stage [T][n] = x [T,n] F32. */
static enum err download(struct measure *m, const struct tensor *x)
{
    const int64_t T = x->dim[0], n = x->dim[1];
    const size_t row = (size_t)n * sizeof(float);
    if (x->ld == n)
        return dev_download(m->dev, m->stage, x->data, (size_t)T * row);
    for (int64_t t = 0; t < T; t++)
        TRY(dev_download(m->dev, m->stage + t * n, (const float *)x->data + t * x->ld,
                         row));
    return OK;
}

/* Adds g [T,out] to G of projection l and sets the tokens' |g_t|^2. Squares of single
 * tokens, not of their sum: the Fisher information is the mean of g g^T. */
static enum err add_grad(struct measure *m, int l, const struct tensor *g)
{
    const int64_t n = g->dim[1];
    TRY(download(m, g));
    for (int64_t t = 0; t < m->T; t++) {
        m->token_g2[t] = 0;
        for (int64_t c = 0; c < n; c++) {
            const double v = (double)m->stage[t * n + c];
            m->g2[l][c] += v * v;
            m->token_g2[t] += v * v;
        }
    }
    return OK;
}

/* Adds x [T,in], weighted by the |g_t|^2 of add_grad, to X of projection l. */
static enum err add_input(struct measure *m, int l, const struct tensor *x)
{
    const int64_t n = x->dim[1];
    TRY(download(m, x));
    for (int64_t t = 0; t < m->T; t++)
        for (int64_t c = 0; c < n; c++) {
            const double v = (double)m->stage[t * n + c];
            m->x2[l][c] += m->token_g2[t] * (v * v);
        }
    return OK;
}

/* Adds the projections that read input i of the window; g stacks their output gradients. */
static enum err add_stacked(struct measure *m, enum lin_input i, const struct tensor *g)
{
    const struct tensor x = input_acts(m->acts, m->arch, i);
    int64_t at = 0;
    for (int l = 0; l < N_LIN; l++) {
        const int64_t out = arch_out(m->arch, l);
        if (input_of(l) != i)
            continue;
        const struct tensor part = tensor_cols(*g, at, out);
        TRY(add_grad(m, l, &part));
        TRY(add_input(m, l, &x));
        at += out;
    }
    return OK;
}

/* --- keys and values ---------------------------------------------------------------- */

static void rotate(const struct measure *m, float *x)
{
    const int64_t d = m->arch->head_dim;
    for (int64_t i = 0; i < m->T * m->arch->n_kv; i++)
        hadamard_f32(x + i * d, d);
}

/* Stores the window's keys or values. kv.rotate of values is part of the weights already,
 * that of keys is applied here. */
static enum err keep_side(struct measure *m, int side, const struct block_acts *acts)
{
    const struct arch *a = m->arch;
    const int64_t C = channels(a), H = a->n_heads * a->head_dim;
    const struct tensor x = tensor_cols(acts->qkv, side == KV_K ? H : H + C, C);
    float *to = m->side[side] + m->window * m->T * C;
    TRY(download(m, &x));
    memcpy(to, m->stage, (size_t)(m->T * C) * sizeof(*to));
    if (side == KV_K && (m->out->spec.rotate & ROTATE_K))
        rotate(m, to);
    return OK;
}

/* Stores the squared norms of the gradients per head, which no rotation changes. */
static enum err keep_side_grad(struct measure *m, int side, const struct tensor *dqkv)
{
    const struct arch *a = m->arch;
    const int64_t C = channels(a), H = a->n_heads * a->head_dim, d = a->head_dim;
    const struct tensor g = tensor_cols(*dqkv, side == KV_K ? H : H + C, C);
    double *to = m->side_g2[side] + m->window * m->T * a->n_kv;
    TRY(download(m, &g));
    for (int64_t i = 0; i < m->T * a->n_kv; i++) {
        to[i] = 0;
        for (int64_t c = 0; c < d; c++) {
            const double v = (double)m->stage[i * d + c];
            to[i] += v * v;
        }
    }
    return OK;
}

/* --- visits ------------------------------------------------------------------------- */

static enum err visit_window(void *ctx, int64_t block, const struct block_acts *acts)
{
    struct measure *m = ctx;
    (void)block;
    m->acts = acts;
    TRY(keep_side(m, KV_K, acts));
    return keep_side(m, KV_V, acts);
}

static enum err visit_grad(void *ctx, enum block_grad what, const struct tensor *g)
{
    struct measure *m = ctx;
    switch (what) {
    case BLOCK_GRAD_DOWN:
        return add_stacked(m, INPUT_DOWN, g);
    case BLOCK_GRAD_GATE_UP:
        return add_stacked(m, INPUT_GATE_UP, g);
    case BLOCK_GRAD_O:
        return add_stacked(m, INPUT_O, g);
    case BLOCK_GRAD_ATTENTION:
        TRY(keep_side_grad(m, KV_K, g));
        return keep_side_grad(m, KV_V, g);
    case BLOCK_GRAD_QKV:
        m->window++; /* the last gradient of a window */
        return add_stacked(m, INPUT_QKV, g);
    }
    return OK;
}

/* --- weights ------------------------------------------------------------------------ */

struct rows {
    const struct measure *m;
    const float *w;   /* [out][in] */
    const double *x2; /* [in] */
    int64_t in;
};

/* Returns sum_i X_i (w_i - w^_i)^2 of one group, rounded to nearest without clipping. */
static double group_error(const float *w, const double *x2, int64_t n, int bits,
                          int scale_bits)
{
    float lo = 0, hi = 0;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        lo = fminf(lo, w[i]);
        hi = fmaxf(hi, w[i]);
    }
    const float h = f16_to_f32(quant_weight_scale(lo, hi, bits, scale_bits));
    const uint8_t z = quant_weight_zero(lo, h, bits);
    for (int64_t i = 0; i < n; i++) {
        const uint8_t q = quant_weight_code(w[i], h, z, bits);
        const double e = (double)w[i] - (double)quant_weight_value(q, z, h);
        sum += x2[i] * (e * e);
    }
    return sum;
}

/* Returns the error of row r in a format: the sum over its groups. */
static double row_error(const struct rows *j, int64_t r, const struct mix_format *f)
{
    const int64_t g = weight_group(j->in, f->group_size);
    double sum = 0;
    for (int64_t i = 0; i < j->in; i += g) {
        const int64_t n = j->in - i < g ? j->in - i : g;
        sum +=
            group_error(j->w + r * j->in + i, j->x2 + i, n, f->bits, j->m->out->scale_bits);
    }
    return sum;
}

static void measure_row(void *ctx, int64_t r, int thread)
{
    const struct rows *j = ctx;
    const struct sensitivity *s = j->m->out;
    (void)thread;
    for (int f = 0; f < s->n_weight; f++)
        j->m->parts[r * s->n_weight + f] = row_error(j, r, &s->weight_format[f]);
}

/* Losses of all formats for projection l: sum_o G_o parts_o / (2 N sum_o G_o). X holds
 * |g_t|^2, which sums over all outputs, so the weights of the rows must sum to 1. tokens is
 * N: the last token of a window predicts nothing. */
static enum err measure_lin(struct measure *m, int64_t block, int l,
                            const struct host_mat *w)
{
    struct sensitivity *s = m->out;
    const int64_t out = arch_out(m->arch, l), in = arch_in(m->arch, l);
    const double tokens = (double)(m->n * (m->T - 1));
    double *loss = s->weight + (block * N_LIN + l) * s->n_weight;
    struct rows j = {.m = m, .w = m->weights, .x2 = m->x2[l], .in = in};
    host_to_f32(m->weights, w->data, w->dtype, out * in);
    pool_run(m->pool, out, measure_row, &j);
    double all = 0;
    for (int64_t r = 0; r < out; r++)
        all += m->g2[l][r];
    for (int f = 0; f < s->n_weight; f++) {
        double sum = 0;
        for (int64_t r = 0; r < out; r++)
            sum += m->g2[l][r] * m->parts[r * s->n_weight + f];
        loss[f] = all > 0 ? sum / (2 * tokens * all) : 0;
    }
    return OK;
}

/* --- cache -------------------------------------------------------------------------- */

struct tokens {
    const struct measure *m;
    const float *x;         /* [n*T][K*d] */
    const double *g2;       /* [n*T][K] */
    const float *s, *delta; /* [K*d] */
};

/* Returns the squared error |K_th - K^_th|^2 of one group of channels, after smoothing,
 * rounding and their inverse. */
static double channels_error(const float *x, const float *s, const float *delta, int64_t n,
                             int bits)
{
    float mn = INFINITY, mx = -INFINITY;
    double sum = 0;
    for (int64_t c = 0; c < n; c++) {
        const float xt = quant_kv_in(x[c], s[c], delta[c]);
        mn = fminf(mn, xt);
        mx = fmaxf(mx, xt);
    }
    const float h = f16_to_f32(quant_kv_scale(mn, mx, bits));
    const float m = f16_to_f32(quant_kv_min(mn));
    for (int64_t c = 0; c < n; c++) {
        const uint8_t q = quant_kv_code(quant_kv_in(x[c], s[c], delta[c]), h, m, bits);
        const double e = (double)x[c] - (double)quant_kv_out(q, h, m, s[c], delta[c]);
        sum += e * e;
    }
    return sum;
}

/* Returns the error of token t, its heads weighted by their gradients. */
static double token_error(const struct tokens *j, int64_t t, const struct mix_format *f)
{
    const struct arch *a = j->m->arch;
    const int64_t d = a->head_dim, g = kv_group(d, f->group_size);
    double sum = 0;
    for (int64_t k = 0; k < a->n_kv; k++) {
        double error = 0;
        for (int64_t c = 0; c < d; c += g)
            error += channels_error(j->x + t * channels(a) + k * d + c, j->s + k * d + c,
                                    j->delta + k * d + c, d - c < g ? d - c : g, f->bits);
        sum += j->g2[t * a->n_kv + k] * error;
    }
    return sum;
}

/* Returns the error of channel c over tokens t to t + n - 1, which share a scale and minimum. */
static double block_error(const struct tokens *j, int64_t t, int64_t n, int64_t c, int bits)
{
    const struct arch *a = j->m->arch;
    const int64_t C = channels(a);
    const float *x = j->x + t * C + c;
    const double *g2 = j->g2 + t * a->n_kv + c / a->head_dim;
    float mn = INFINITY, mx = -INFINITY;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        mn = fminf(mn, x[i * C]);
        mx = fmaxf(mx, x[i * C]);
    }
    const float h = f16_to_f32(quant_kv_scale(mn, mx, bits));
    const float m = f16_to_f32(quant_kv_min(mn));
    for (int64_t i = 0; i < n; i++) {
        const uint8_t q = quant_kv_code(x[i * C], h, m, bits);
        const double e = (double)x[i * C] - (double)quant_kv_out(q, h, m, 1, 0);
        sum += g2[i * a->n_kv] * (e * e);
    }
    return sum;
}

/* Item i: channel i % C in window i / C. Tokens at the end that fill no block count as one, since
 * in a longer text they would be part of one. */
static void measure_channel(void *ctx, int64_t i, int thread)
{
    const struct tokens *j = ctx;
    const struct sensitivity *s = j->m->out;
    const int64_t C = channels(j->m->arch), T = j->m->T, begin = i / C * T;
    (void)thread;
    for (int f = 0; f < s->n_kv; f++) {
        const int64_t n = s->kv_format[f].group_size;
        double *sum = &j->m->parts[i * s->n_kv + f];
        *sum = 0;
        for (int64_t t = 0; t < T; t += n)
            *sum += block_error(j, begin + t, T - t < n ? T - t : n, i % C,
                                s->kv_format[f].bits);
    }
}

static void measure_token(void *ctx, int64_t t, int thread)
{
    const struct tokens *j = ctx;
    const struct sensitivity *s = j->m->out;
    (void)thread;
    for (int f = 0; f < s->n_kv; f++)
        j->m->parts[t * s->n_kv + f] = token_error(j, t, &s->kv_format[f]);
}

/* Sets s and delta, p[0] and p[1] of p [4][C], to the start values of calibration. */
static void start_smoothing(const struct measure *m, float *p, const float *x)
{
    const int64_t C = channels(m->arch), rows = m->n * m->T;
    float *s = p, *delta = p + C, *mn = p + 2 * C, *mx = p + 3 * C;
    for (int64_t c = 0; c < C; c++) {
        s[c] = 1;
        delta[c] = 0;
        mn[c] = mx[c] = x[c];
    }
    if (m->out->spec.method != KV_CHANNEL_TOKEN)
        return;
    for (int64_t i = C; i < rows * C; i++) {
        mn[i % C] = fminf(mn[i % C], x[i]);
        mx[i % C] = fmaxf(mx[i % C], x[i]);
    }
    kv_smooth(s, delta, mn, mx, C, KV_ALPHA);
    for (int64_t c = 0; c < C; c++)
        s[c] = expf(s[c]);
}

/* Losses of all formats for the keys or values of a block: sum_th |g_th|^2 |K_th - K^_th|^2
 * / (2 N d). The d spreads a head's squared gradient over its channels evenly. */
static enum err measure_side(struct measure *m, int64_t block, int side)
{
    struct sensitivity *s = m->out;
    const int64_t C = channels(m->arch), rows = m->n * m->T;
    const bool by_channel = side == KV_K && s->spec.method == KV_CHANNEL;
    const int64_t items = by_channel ? m->n * C : rows;
    const double tokens = (double)(m->n * (m->T - 1));
    double *loss = s->kv + (block * 2 + side) * s->n_kv;
    float *p = NULL;
    TRY(mem_alloc(&p, 4 * (size_t)C, sizeof(*p)));
    start_smoothing(m, p, m->side[side]);
    struct tokens j = {m, m->side[side], m->side_g2[side], p, p + C};
    pool_run(m->pool, items, by_channel ? measure_channel : measure_token, &j);
    mem_free(p);
    for (int f = 0; f < s->n_kv; f++) {
        double sum = 0;
        for (int64_t i = 0; i < items; i++)
            sum += m->parts[i * s->n_kv + f];
        loss[f] = sum / (2 * tokens * (double)m->arch->head_dim);
    }
    return OK;
}

/* --- a block ------------------------------------------------------------------------ */

static void begin_block(struct measure *m)
{
    m->window = 0;
    for (int l = 0; l < N_LIN; l++) {
        for (int64_t c = 0; c < arch_in(m->arch, l); c++)
            m->x2[l][c] = 0;
        for (int64_t c = 0; c < arch_out(m->arch, l); c++)
            m->g2[l][c] = 0;
    }
}

static enum err visit_block(void *ctx, int64_t block, const struct block_src *src)
{
    struct measure *m = ctx;
    for (int l = 0; l < N_LIN; l++)
        TRY(measure_lin(m, block, l, &src->lin[l]));
    TRY(measure_side(m, block, KV_K));
    TRY(measure_side(m, block, KV_V));
    begin_block(m);
    return OK;
}

static bool visit_stop(void *ctx)
{
    const struct measure *m = ctx;
    return m->out->stop && m->out->stop(m->out->stop_ctx);
}

/* --- the pass ----------------------------------------------------------------------- */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static enum err open_measure(struct measure *m)
{
    const struct arch *a = m->arch;
    const struct sensitivity *s = m->out;
    const size_t rows = (size_t)(m->n * m->T);
    int64_t widest = channels(a), largest = 0,
            most = m->n * larger(m->T, channels(a)) * s->n_kv;
    for (int l = 0; l < N_LIN; l++) {
        const int64_t out = arch_out(a, l), in = arch_in(a, l);
        widest = larger(widest, larger(out, in));
        largest = larger(largest, out * in);
        most = larger(most, out * s->n_weight);
        TRY(mem_calloc(&m->g2[l], (size_t)out, sizeof(*m->g2[l])));
        TRY(mem_calloc(&m->x2[l], (size_t)in, sizeof(*m->x2[l])));
    }
    TRY(mem_alloc(&m->token_g2, (size_t)m->T, sizeof(*m->token_g2)));
    for (int i = 0; i < 2; i++) {
        TRY(mem_alloc(&m->side[i], rows * (size_t)channels(a), sizeof(*m->side[i])));
        TRY(mem_alloc(&m->side_g2[i], rows * (size_t)a->n_kv, sizeof(*m->side_g2[i])));
    }
    TRY(mem_alloc(&m->stage, (size_t)(m->T * widest), sizeof(*m->stage)));
    TRY(mem_alloc(&m->weights, (size_t)largest, sizeof(*m->weights)));
    TRY(mem_alloc(&m->parts, (size_t)most, sizeof(*m->parts)));
    return pool_open(&m->pool, dev_threads(m->dev));
}

static void close_measure(struct measure *m)
{
    pool_close(&m->pool);
    for (int l = 0; l < N_LIN; l++) {
        mem_free(m->x2[l]);
        mem_free(m->g2[l]);
    }
    mem_free(m->token_g2);
    for (int i = 0; i < 2; i++) {
        mem_free(m->side[i]);
        mem_free(m->side_g2[i]);
    }
    mem_free(m->stage);
    mem_free(m->weights);
    mem_free(m->parts);
}

enum err sensitivity_measure(struct sensitivity *s, struct dev *d, const struct arch *a,
                             const struct model_source *src,
                             const struct model_windows *text)
{
    struct measure m = {.out = s, .dev = d, .arch = a, .n = text->n, .T = text->T};
    const struct model_visitor v = {.ctx = &m,
                                    .window = visit_window,
                                    .grad = visit_grad,
                                    .block = visit_block,
                                    .stop = visit_stop};
    const size_t layers = (size_t)a->n_layers;
    TRY(dev_attn_check(d, a->head_dim));
    FAIL_IF(a->n_experts, ERR_SUPPORT,
            "the sensitivity of projections is not measured for a mixture of experts");
    TRY(mem_calloc(&s->weight, layers * N_LIN * (size_t)s->n_weight, sizeof(*s->weight)));
    TRY(mem_calloc(&s->kv, layers * 2 * (size_t)s->n_kv, sizeof(*s->kv)));
    enum err err = open_measure(&m);
    if (!err)
        err = model_backward(&s->nll, d, a, src, text, &v);
    close_measure(&m);
    return err;
}

void sensitivity_free(struct sensitivity *s)
{
    mem_free(s->weight);
    mem_free(s->kv);
    s->weight = s->kv = NULL;
}

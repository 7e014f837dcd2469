/* SPDX-License-Identifier: MIT
 *
 * Converts a checkpoint's tensors to the stacked matrices of a block. */
#include "calib/model/weights.h"

#include "calib/model/carve.h"

#include <inttypes.h>
#include <stdio.h>

/* Returns the type of projections first .. last together. */
static enum dtype type_of(const enum dtype lin[N_LIN], int first, int last)
{
    for (int l = first; l < last; l++)
        if (lin[l] != lin[last])
            return DT_F32;
    return lin[last];
}

static void layout(struct block_weights *w, struct carve *c, const struct arch *a,
                   const enum dtype lin[N_LIN], enum dtype router)
{
    const int64_t D = a->d_model, F = arch_out(a, LIN_GATE), d = a->head_dim;
    const int64_t heads = a->n_heads + 2 * a->n_kv;
    w->wqkv = carve_2d(c, type_of(lin, LIN_Q, LIN_V), heads * d, D);
    w->wo = carve_2d(c, lin[LIN_O], D, a->n_heads * d);
    w->wgu = carve_2d(c, type_of(lin, LIN_GATE, LIN_UP), 2 * F, D);
    w->wdown = carve_2d(c, lin[LIN_DOWN], arch_out(a, LIN_DOWN), a->d_ff);
    if (a->n_experts)
        w->router = carve_2d(c, router, a->n_experts, D);
    if (a->qkv_bias)
        w->bqkv = carve_1d(c, DT_F32, heads * d);
    if (a->o_bias)
        w->bo = carve_1d(c, DT_F32, D);
    if (a->mlp_bias) {
        w->bgu = carve_1d(c, DT_F32, 2 * F);
        w->bdown = carve_1d(c, DT_F32, D);
    }
    for (int g = 0; g < N_BLOCK_GAINS; g++) {
        const int64_t n = arch_gain(a, 0, (enum norm_gain)g);
        if (n)
            w->norm[g] = carve_1d(c, DT_F32, n);
    }
}

static size_t bytes_of(const struct arch *a, const enum dtype lin[N_LIN], enum dtype router)
{
    struct block_weights w = {0};
    struct carve c = {0};
    layout(&w, &c, a, lin, router);
    return c.used;
}

static enum err alloc_of(struct block_weights *w, struct dev *d, const struct arch *a,
                         const enum dtype lin[N_LIN], enum dtype router)
{
    struct block_weights fresh = {.dev = d};
    TRY(dev_alloc(d, &fresh.memory, bytes_of(a, lin, router)));
    struct carve c = {.base = fresh.memory};
    layout(&fresh, &c, a, lin, router);
    *w = fresh;
    return OK;
}

static void fill(enum dtype lin[N_LIN], enum dtype act)
{
    for (int l = 0; l < N_LIN; l++)
        lin[l] = act;
}

size_t block_weights_bytes(const struct arch *a, enum dtype act)
{
    enum dtype lin[N_LIN];
    fill(lin, act);
    return bytes_of(a, lin, act);
}

enum err block_weights_alloc(struct block_weights *w, struct dev *d, const struct arch *a,
                             enum dtype act)
{
    enum dtype lin[N_LIN];
    fill(lin, act);
    return alloc_of(w, d, a, lin, act);
}

size_t block_weights_bytes_as(const struct arch *a, const enum dtype stored[N_LIN])
{
    return bytes_of(a, stored, DT_F32);
}

enum err block_weights_alloc_as(struct block_weights *w, struct dev *d,
                                const struct arch *a, const enum dtype stored[N_LIN])
{
    return alloc_of(w, d, a, stored, DT_F32);
}

void block_weights_free(struct block_weights *w)
{
    if (w->dev)
        dev_free(w->dev, w->memory);
    *w = (struct block_weights){0};
}

struct tensor block_weights_lin(const struct block_weights *w, const struct arch *a, int l)
{
    const int64_t q = arch_out(a, LIN_Q), kv = arch_out(a, LIN_K);
    switch (l) {
    case LIN_Q:
        return tensor_rows(w->wqkv, 0, q);
    case LIN_K:
        return tensor_rows(w->wqkv, q, kv);
    case LIN_V:
        return tensor_rows(w->wqkv, q + kv, kv);
    case LIN_O:
        return w->wo;
    case LIN_GATE:
        return tensor_rows(w->wgu, 0, arch_out(a, LIN_GATE));
    case LIN_UP:
        return tensor_rows(w->wgu, arch_out(a, LIN_GATE), arch_out(a, LIN_UP));
    default:
        return w->wdown;
    }
}

/* Returns rows [first, first + n) of a bias vector; data NULL if there is no bias. */
static struct tensor bias_rows(const struct tensor *b, int64_t first, int64_t n)
{
    return b->data ? tensor_rows(*b, first, n) : *b;
}

struct tensor block_weights_bias(const struct block_weights *w, const struct arch *a, int l)
{
    const int64_t q = arch_out(a, LIN_Q), kv = arch_out(a, LIN_K);
    switch (l) {
    case LIN_Q:
        return bias_rows(&w->bqkv, 0, q);
    case LIN_K:
        return bias_rows(&w->bqkv, q, kv);
    case LIN_V:
        return bias_rows(&w->bqkv, q + kv, kv);
    case LIN_O:
        return w->bo;
    case LIN_GATE:
        return bias_rows(&w->bgu, 0, a->d_ff);
    case LIN_UP:
        return bias_rows(&w->bgu, a->d_ff, a->d_ff);
    default:
        return w->bdown;
    }
}

/* --- loading ------------------------------------------------------------------------ */

enum err host_mat_check(const struct host_mat *m, const char *what, int64_t rows,
                        int64_t cols)
{
    const char *name = m->name ? m->name : what;
    FAIL_IF(!host_mat_given(m), ERR_FORMAT, "%s: tensor is missing", name);
    FAIL_IF(m->dtype != DT_F32 && m->dtype != DT_F16 && m->dtype != DT_BF16, ERR_FORMAT,
            "%s: type %s, want F32, F16 or BF16", name, dtype_name(m->dtype));
    FAIL_IF(m->rows != rows || m->cols != cols, ERR_FORMAT,
            "%s: shape [%" PRId64 ", %" PRId64 "], want [%" PRId64 ", %" PRId64 "]", name,
            m->rows, m->cols, rows, cols);
    return OK;
}

const void *host_mat_row(const struct host_mat *m, int64_t r)
{
    const size_t bytes = (size_t)m->cols * dtype_bytes(m->dtype);
    if (m->data)
        return (const char *)m->data + (size_t)r * bytes;
    return (const char *)m->part[r / m->part_rows] + (size_t)(r % m->part_rows) * bytes;
}

/* Uploads part by part. */
static enum err upload_parts(struct dev *d, const struct tensor *dst,
                             const struct host_mat *m)
{
    for (int64_t r = 0; r < m->rows; r += m->part_rows) {
        const struct tensor to = tensor_rows(*dst, r, m->part_rows);
        const struct host_mat part = {
            host_mat_row(m, r), m->dtype, m->part_rows, m->cols, m->name, NULL, 0};
        TRY(host_mat_upload(d, &to, &part));
    }
    return OK;
}

enum err host_mat_upload(struct dev *d, const struct tensor *dst, const struct host_mat *m)
{
    if (!m->data)
        return upload_parts(d, dst, m);
    return dev_upload_as(d, dst, m->data, m->dtype);
}

void host_mat_set_gain(struct host_mat *norm, const float *gain)
{
    if (!gain)
        return;
    norm->data = gain;
    norm->dtype = DT_F32;
}

void block_src_set_gains(struct block_src *src, const struct block_quant *q)
{
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        host_mat_set_gain(&src->norm[g], q->gain[g]);
}

enum err host_gain_upload(struct dev *d, const struct tensor *dst, const struct host_mat *m,
                          const struct arch *a)
{
    const int64_t n = tensor_count(dst);
    float *gain = NULL;
    if (!a->gain_plus_one)
        return host_mat_upload(d, dst, m);
    TRY(mem_alloc(&gain, (size_t)n, sizeof(*gain)));
    host_to_f32(gain, m->data, m->dtype, n);
    for (int64_t i = 0; i < n; i++)
        gain[i] += 1;
    const enum err err = dev_upload(d, dst->data, gain, (size_t)n * sizeof(*gain));
    mem_free(gain);
    return err;
}

size_t source_rotated_bytes(const struct arch *a, const struct kv_spec *kv)
{
    const int64_t v = arch_out(a, LIN_V) * (arch_in(a, LIN_V) + 1);
    const int64_t o = arch_out(a, LIN_O) * arch_in(a, LIN_O);
    return kv->rotate & ROTATE_V ? (size_t)(v + o) * sizeof(float) : 0;
}

static enum err load_vec(const struct block_weights *w, const struct tensor *dst,
                         const struct host_mat *m, const char *what)
{
    TRY(host_mat_check(m, what, dst->dim[0], 1));
    return host_mat_upload(w->dev, dst, m);
}

static enum err load_biases(struct block_weights *w, const struct arch *a,
                            const struct block_src *src)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor b = block_weights_bias(w, a, l);
        char what[64];
        snprintf(what, sizeof(what), "%s bias", lin_module[l]);
        if (b.data)
            TRY(load_vec(w, &b, &src->bias[l], what));
    }
    return OK;
}

static enum err load_gain(struct block_weights *w, const struct arch *a,
                          const struct block_src *src, enum norm_gain g)
{
    const struct tensor *dst = &w->norm[g];
    TRY(host_mat_check(&src->norm[g], arch_norm_module(a, g), dst->dim[0], 1));
    return host_gain_upload(w->dev, dst, &src->norm[g], a);
}

enum err block_weights_load(struct block_weights *w, const struct arch *a, int64_t layer,
                            const struct block_src *src)
{
    w->layer = layer;
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor dst = block_weights_lin(w, a, l);
        TRY(host_mat_check(&src->lin[l], arch_lin_module(a, l), arch_out(a, l),
                           arch_in(a, l)));
        TRY(host_mat_upload(w->dev, &dst, &src->lin[l]));
    }
    if (a->n_experts) {
        TRY(host_mat_check(&src->router, "router", a->n_experts, a->d_model));
        TRY(host_mat_upload(w->dev, &w->router, &src->router));
    }
    TRY(load_biases(w, a, src));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        if (w->norm[g].data)
            TRY(load_gain(w, a, src, (enum norm_gain)g));
    return OK;
}

static enum err convert(struct dev *d, const struct tensor *to, const struct tensor *from)
{
    return to->data ? dev_copy(d, to, from) : OK;
}

enum err block_weights_convert(struct block_weights *w, const struct block_weights *x)
{
    w->layer = x->layer;
    TRY(convert(w->dev, &w->wqkv, &x->wqkv));
    TRY(convert(w->dev, &w->wo, &x->wo));
    TRY(convert(w->dev, &w->wgu, &x->wgu));
    TRY(convert(w->dev, &w->wdown, &x->wdown));
    TRY(convert(w->dev, &w->router, &x->router));
    TRY(convert(w->dev, &w->bqkv, &x->bqkv));
    TRY(convert(w->dev, &w->bo, &x->bo));
    TRY(convert(w->dev, &w->bgu, &x->bgu));
    TRY(convert(w->dev, &w->bdown, &x->bdown));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        TRY(convert(w->dev, &w->norm[g], &x->norm[g]));
    return OK;
}

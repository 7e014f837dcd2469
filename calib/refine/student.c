/* SPDX-License-Identifier: MIT */
#include "calib/refine/student.h"

#include "calib/model/carve.h"
#include "calib/model/model.h"
#include "kernels/base/mem.h"
#include "kernels/dev_refine.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static int64_t channels(const struct arch *a)
{
    return a->n_kv * a->head_dim;
}

static bool learns_cache(const struct block_quant *q)
{
    return q->kv.method == KV_CHANNEL_TOKEN;
}

/* --- layout ------------------------------------------------------------------------- */

/* Codes of up to 4 bits lie two a byte. */
static int64_t code_bytes(const struct qlinear *q)
{
    return q->format.bits <= 4 ? (q->in + 1) / 2 : q->in;
}

static void layout_fixed(struct student *st, struct carve *c,
                         const struct block_quant *layers)
{
    int64_t most = 1;
    for (int64_t b = 0; b < st->arch->n_layers; b++)
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *q = &layers[b].lin[l];
            struct student_lin *to = &st->layer[b].lin[l];
            if (!q->scales)
                continue;
            to->format = q->format;
            to->codes = carve_2d(c, DT_U8, q->out, code_bytes(q));
            to->base = carve_2d(c, DT_F16, q->out, q->groups);
            to->zeros = carve_2d(c, DT_U8, q->out, q->groups);
            most = q->out * q->groups > most ? q->out * q->groups : most;
        }
    st->scales = carve_1d(c, DT_F16, most);
}

/* View of n floats at *at of p, and of g. */
static void take(struct student *st, int64_t *at, struct tensor *p, struct tensor *g,
                 int64_t rows, int64_t cols)
{
    *p = tensor_2d((float *)st->p.data + *at, DT_F32, rows, cols);
    *g = tensor_2d((float *)st->g.data + *at, DT_F32, rows, cols);
    if (rows == 1) {
        *p = tensor_1d(p->data, DT_F32, cols);
        *g = tensor_1d(g->data, DT_F32, cols);
    }
    *at += rows * cols;
}

static void take_scales(struct student *st, int64_t *at, const struct block_quant *layers)
{
    for (int64_t b = 0; b < st->arch->n_layers; b++)
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *q = &layers[b].lin[l];
            struct student_lin *to = &st->layer[b].lin[l];
            if (!q->scales)
                continue;
            take(st, at, &to->u, &to->du, q->out, q->groups);
            to->u = tensor_2d(to->u.data, DT_F32, q->out, q->groups);
            to->du = tensor_2d(to->du.data, DT_F32, q->out, q->groups);
        }
}

static void take_norms(struct student *st, int64_t *at)
{
    const struct arch *a = st->arch;
    for (int64_t b = 0; b < a->n_layers; b++)
        for (int i = 0; i < (a->qk_norm ? 4 : 2); i++)
            take(st, at, &st->layer[b].norm[i], &st->layer[b].dnorm[i], 1,
                 i < 2 ? a->d_model : a->head_dim);
    take(st, at, &st->final_norm, &st->dfinal, 1, a->d_model);
}

static void take_cache(struct student *st, int64_t *at, const struct block_quant *layers,
                       enum refine_kind kind)
{
    for (int64_t b = 0; b < st->arch->n_layers; b++)
        for (int i = 0; i < 2 && learns_cache(&layers[b]); i++) {
            struct student_layer *y = &st->layer[b];
            if (kind == REFINE_SMOOTH)
                take(st, at, &y->smooth[i], &y->dsmooth[i], 1, channels(st->arch));
            else
                take(st, at, &y->shift[i], &y->dshift[i], 1, channels(st->arch));
        }
}

/* Views of p and g; the number of floats in first[N_REFINE_KINDS]. */
static void take_all(struct student *st, const struct block_quant *layers)
{
    int64_t at = 0;
    take_scales(st, &at, layers);
    st->first[REFINE_NORMS] = at;
    take_norms(st, &at);
    st->first[REFINE_SMOOTH] = at;
    take_cache(st, &at, layers, REFINE_SMOOTH);
    st->first[REFINE_SHIFT] = at;
    take_cache(st, &at, layers, REFINE_SHIFT);
    st->first[N_REFINE_KINDS] = at;
}

static void layout_work(struct student *st, struct carve *c)
{
    for (int64_t b = 0; b <= st->arch->n_layers; b++)
        st->states[b] = carve_2d(c, DT_F32, st->T, st->arch->d_model);
    for (int i = 0; i < 2; i++)
        st->kv_s[i] = carve_1d(c, DT_F32, channels(st->arch));
    st->kv_grad = carve_1d(c, DT_F32, 4 * channels(st->arch));
}

/* --- codes -------------------------------------------------------------------------- */

/* Codes of row r, chosen ones or those that follow from the source weight. */
static void row_codes(uint8_t *codes, float *w, const struct qlinear *q,
                      const struct host_mat *m, int64_t r)
{
    const int64_t G = qlinear_group(q);
    if (q->codes) {
        memcpy(codes, q->codes + r * q->in, (size_t)q->in);
        return;
    }
    host_to_f32(w, (const char *)m->data + (size_t)(r * q->in) * dtype_bytes(m->dtype),
                m->dtype, q->in);
    for (int64_t c = 0; c < q->in; c++) {
        const int64_t g = r * q->groups + c / G;
        codes[c] =
            quant_weight_code(w[c], f16_to_f32(q->scales[g]), q->zeros[g], q->format.bits);
    }
}

static void pack_row(uint8_t *to, const uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i += 2)
        to[i / 2] = (uint8_t)(codes[i] | (i + 1 < n ? codes[i + 1] << 4 : 0));
}

/* All rows of one projection: stage has room for them, row for one. */
static enum err load_codes(struct student *st, struct student_lin *to,
                           const struct qlinear *q, const struct host_mat *m,
                           uint8_t *stage, float *row)
{
    const int64_t bytes = code_bytes(q);
    uint8_t *codes = (uint8_t *)(row + q->in);
    for (int64_t r = 0; r < q->out; r++) {
        row_codes(codes, row, q, m, r);
        if (bytes == q->in)
            memcpy(stage + r * bytes, codes, (size_t)bytes);
        else
            pack_row(stage + r * bytes, codes, q->in);
    }
    TRY(dev_upload(st->dev, to->codes.data, stage, (size_t)(q->out * bytes)));
    return dev_sync(st->dev);
}

static enum err load_lin(struct student *st, struct student_lin *to,
                         const struct qlinear *q, const struct host_mat *m)
{
    const size_t groups = (size_t)(q->out * q->groups);
    uint8_t *stage = NULL;
    float *row = NULL;
    enum err err = OK;
    TRY(host_mat_check(m, "projection", q->out, q->in));
    TRY_OUT(mem_alloc(&stage, (size_t)(q->out * code_bytes(q)), 1));
    TRY_OUT(mem_alloc(&row, 2 * (size_t)q->in, sizeof(*row)));
    TRY_OUT(load_codes(st, to, q, m, stage, row));
    TRY_OUT(dev_upload(st->dev, to->base.data, q->scales, groups * sizeof(*q->scales)));
    TRY_OUT(dev_upload(st->dev, to->zeros.data, q->zeros, groups));
    TRY_OUT(dev_sync(st->dev));
out:
    mem_free(stage);
    mem_free(row);
    return err;
}

/* --- start values ------------------------------------------------------------------- */

static enum err load_cache(struct student *st, struct student_layer *y,
                           const struct block_quant *q)
{
    const int64_t C = channels(st->arch);
    const float *const s[] = {q->k_scale, q->v_scale};
    const float *const shift[] = {q->k_shift, q->v_shift};
    float *ls = NULL;
    enum err err = OK;
    FAIL_IF(q->n_channels != C, ERR_MISMATCH,
            "KV parameters are for %" PRId64 " channels, the model has %" PRId64,
            q->n_channels, C);
    TRY(mem_alloc(&ls, (size_t)C, sizeof(*ls)));
    for (int i = 0; i < 2; i++) {
        for (int64_t c = 0; c < C; c++)
            ls[c] = logf(s[i][c]);
        TRY_OUT(dev_upload(st->dev, y->smooth[i].data, ls, (size_t)C * sizeof(*ls)));
        TRY_OUT(dev_upload(st->dev, y->shift[i].data, shift[i], (size_t)C * sizeof(*ls)));
        TRY_OUT(dev_sync(st->dev));
    }
out:
    mem_free(ls);
    return err;
}

static enum err load_layer(struct student *st, int64_t b, const struct block_quant *q)
{
    struct student_layer *y = &st->layer[b];
    struct block_src src;
    y->kv = q->kv;
    TRY(st->src->block(st->src->ctx, b, &src));
    for (int l = 0; l < N_LIN; l++)
        if (y->lin[l].codes.data)
            TRY(load_lin(st, &y->lin[l], &q->lin[l], &src.lin[l]));
    block_src_set_gains(&src, q);
    const struct host_mat *const norm[] = {&src.norm1, &src.norm2, &src.q_norm,
                                           &src.k_norm};
    for (int i = 0; i < 4; i++)
        if (y->norm[i].data)
            TRY(host_mat_upload(st->dev, &y->norm[i], norm[i]));
    if (learns_cache(q))
        TRY(load_cache(st, y, q));
    if (st->src->release)
        st->src->release(st->src->ctx, b);
    return OK;
}

static enum err load_all(struct student *st, const struct block_quant *layers)
{
    struct host_mat embed, norm, head;
    TRY(dev_zero(st->dev, st->p.data,
                 5 * (size_t)st->first[N_REFINE_KINDS] * sizeof(float)));
    for (int64_t b = 0; b < st->arch->n_layers; b++) {
        const enum err err = load_layer(st, b, &layers[b]);
        if (err)
            return err_add(err, "layer %" PRId64 ": ", b);
    }
    TRY(st->src->ends(st->src->ctx, &embed, &norm, &head));
    TRY(host_mat_check(&norm, "final norm", st->arch->d_model, 1));
    host_mat_set_gain(&norm, layers[st->arch->n_layers - 1].gain[GAIN_FINAL]);
    return host_mat_upload(st->dev, &st->final_norm, &norm);
}

/* --- opening ------------------------------------------------------------------------ */

static enum err open_params(struct student *st, const struct block_quant *layers)
{
    struct carve c = {0};
    layout_fixed(st, &c, layers);
    TRY(dev_alloc(st->dev, &st->fixed, c.used));
    c = (struct carve){.base = st->fixed};
    layout_fixed(st, &c, layers);
    take_all(st, layers);
    const int64_t n = st->first[N_REFINE_KINDS];
    TRY(dev_alloc(st->dev, &st->params, 5 * (size_t)n * sizeof(float)));
    struct tensor *const all[] = {&st->p, &st->g, &st->m, &st->v, &st->best};
    for (int i = 0; i < 5; i++)
        *all[i] = tensor_1d((float *)st->params + i * n, DT_F32, n);
    take_all(st, layers);
    return OK;
}

/* Room for a cache in any format that a layer has. */
static const struct kv_spec any_kv = {.bits = 8, .key_stage = KEY_PRE_ROPE};

static enum err open_work(struct student *st)
{
    const struct arch *a = st->arch;
    struct carve c = {0};
    TRY(mem_alloc(&st->states, (size_t)a->n_layers + 1, sizeof(*st->states)));
    layout_work(st, &c);
    TRY(dev_alloc(st->dev, &st->memory, c.used));
    c = (struct carve){.base = st->memory};
    layout_work(st, &c);
    TRY(block_weights_alloc(&st->w, st->dev, a, st->act));
    TRY(block_weights_alloc(&st->dw, st->dev, a, DT_F32));
    TRY(block_acts_alloc(&st->acts, st->dev, a, st->T, st->act, &any_kv));
    TRY(block_scratch_open(&st->scratch, st->dev, a, st->T, st->act));
    TRY(block_rope_alloc(&st->cos, &st->sin, st->dev, a, st->T));
    st->acts.cos = st->cos;
    st->acts.sin = st->sin;
    return OK;
}

size_t student_work_bytes(const struct arch *a, int64_t T, enum dtype act)
{
    const size_t row = (size_t)T * sizeof(float);
    return block_weights_bytes(a, act) + block_weights_bytes(a, DT_F32) +
           block_acts_bytes(a, T, act, true) + block_scratch_bytes(a, T, act) +
           (size_t)a->head_dim * row +                     /* rope */
           (size_t)((a->n_layers + 2) * a->d_model) * row; /* states and their gradient */
}

enum err student_open(struct student *st, struct dev *d, const struct arch *a,
                      const struct model_source *src, const struct block_quant *layers,
                      const struct refine_settings *s)
{
    *st = (struct student){.dev = d,
                           .arch = a,
                           .src = src,
                           .scale_bits = s->scale_bits,
                           .T = s->seqlen,
                           .act = s->act};
    TRY(arch_check_length(a, s->seqlen));
    TRY(mem_calloc(&st->layer, (size_t)a->n_layers, sizeof(*st->layer)));
    TRY(open_params(st, layers));
    TRY(open_work(st));
    return load_all(st, layers);
}

void student_close(struct student *st)
{
    block_weights_free(&st->w);
    block_weights_free(&st->dw);
    block_acts_free(&st->acts);
    block_scratch_close(&st->scratch);
    if (st->dev) {
        dev_free(st->dev, st->cos.data);
        dev_free(st->dev, st->memory);
        dev_free(st->dev, st->params);
        dev_free(st->dev, st->fixed);
    }
    mem_free(st->states);
    mem_free(st->layer);
    *st = (struct student){0};
}

/* --- a layer ------------------------------------------------------------------------ */

/* Scales of a projection as the parameters have them now, in st->scales. */
static enum err scales_now(struct student *st, const struct student_lin *q,
                           struct tensor *scales)
{
    *scales = tensor_2d(st->scales.data, DT_F16, q->base.dim[0], q->base.dim[1]);
    return dev_scale_steps(st->dev, scales, &q->base, &q->u, st->scale_bits);
}

static enum err weights_of(struct student *st, int64_t b, const struct block_src *src)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct student_lin *q = &st->layer[b].lin[l];
        const struct tensor w = block_weights_lin(&st->w, st->arch, l);
        struct tensor scales;
        if (!q->codes.data) {
            TRY(host_mat_upload(st->dev, &w, &src->lin[l]));
            continue;
        }
        TRY(scales_now(st, q, &scales));
        TRY(dev_dequantize(st->dev, &w, &q->codes, &scales, &q->zeros,
                           q->format.group_size));
    }
    return OK;
}

/* Biases do not learn. */
static enum err biases_of(struct student *st, const struct block_src *src)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor b = block_weights_bias(&st->w, st->arch, l);
        if (b.data)
            TRY(host_mat_upload(st->dev, &b, &src->bias[l]));
    }
    return OK;
}

static enum err copy_vector(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    const struct tensor to = tensor_2d(y->data, DT_F32, 1, tensor_count(x));
    const struct tensor from = tensor_2d(x->data, DT_F32, 1, tensor_count(x));
    return dev_copy(d, &to, &from);
}

static enum err cache_of(struct student *st, int64_t b)
{
    const struct student_layer *y = &st->layer[b];
    struct tensor *const s[] = {&st->kv.k_s, &st->kv.v_s};
    struct tensor *const shift[] = {&st->kv.k_shift, &st->kv.v_shift};
    st->kv = (struct block_kv){.spec = y->kv, .layer = b, .chunk = 1};
    for (int i = 0; i < 2 && y->smooth[i].data; i++) {
        TRY(dev_exp(st->dev, &st->kv_s[i], &y->smooth[i]));
        *s[i] = st->kv_s[i];
        *shift[i] = y->shift[i];
    }
    return OK;
}

/* Weights, norms and cache settings of layer b as the parameters have them now. */
static enum err enter_layer(struct student *st, int64_t b)
{
    const struct student_layer *y = &st->layer[b];
    struct tensor *const norm[] = {&st->w.norm1, &st->w.norm2, &st->w.q_norm,
                                   &st->w.k_norm};
    struct block_src src;
    TRY(st->src->block(st->src->ctx, b, &src));
    TRY(weights_of(st, b, &src));
    TRY(biases_of(st, &src));
    for (int i = 0; i < 4; i++)
        if (y->norm[i].data)
            TRY(copy_vector(st->dev, norm[i], &y->norm[i]));
    return cache_of(st, b);
}

enum err student_forward(struct student *st, const int32_t *ids)
{
    struct host_mat embed, norm, head;
    TRY(st->src->ends(st->src->ctx, &embed, &norm, &head));
    TRY(model_embed(st->dev, &st->states[0], &embed, ids));
    for (int64_t b = 0; b < st->arch->n_layers; b++) {
        TRY(enter_layer(st, b));
        TRY(block_forward(&st->acts, st->scratch, st->arch, &st->w, &st->kv,
                          &st->states[b + 1], &st->states[b]));
    }
    return OK;
}

/* --- gradients ---------------------------------------------------------------------- */

static struct block_grads grads_of(struct student *st, int64_t b)
{
    const struct student_layer *y = &st->layer[b];
    const int64_t C = channels(st->arch);
    struct block_grads g = {.dwqkv = st->dw.wqkv,
                            .dwo = st->dw.wo,
                            .dwgu = st->dw.wgu,
                            .dwdown = st->dw.wdown,
                            .dnorm1 = y->dnorm[0],
                            .dnorm2 = y->dnorm[1],
                            .dq_norm = y->dnorm[2],
                            .dk_norm = y->dnorm[3]};
    struct tensor *const kv[] = {&g.k_dls, &g.v_dls, &g.k_dshift, &g.v_dshift};
    for (int i = 0; i < 4 && y->smooth[0].data; i++)
        *kv[i] = tensor_1d((float *)st->kv_grad.data + i * C, DT_F32, C);
    return g;
}

static enum err add_vector(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    const struct tensor to = tensor_2d(y->data, DT_F32, 1, tensor_count(x));
    const struct tensor from = tensor_2d(x->data, DT_F32, 1, tensor_count(x));
    return dev_add(d, &to, &to, &from);
}

static enum err collect(struct student *st, int64_t b, const struct block_grads *g)
{
    const struct student_layer *y = &st->layer[b];
    const struct tensor *const from[] = {&g->k_dls, &g->v_dls, &g->k_dshift, &g->v_dshift};
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor dw = block_weights_lin(&st->dw, st->arch, l);
        const struct tensor w = block_weights_lin(&st->w, st->arch, l);
        if (y->lin[l].codes.data)
            TRY(dev_group_dot(st->dev, &y->lin[l].du, &dw, &w,
                              y->lin[l].format.group_size));
    }
    for (int i = 0; i < 4 && y->smooth[0].data; i++)
        TRY(add_vector(st->dev, i < 2 ? &y->dsmooth[i] : &y->dshift[i - 2], from[i]));
    return OK;
}

enum err student_backward(struct student *st, const struct tensor *dx)
{
    for (int64_t b = st->arch->n_layers - 1; b >= 0; b--) {
        const struct block_grads g = grads_of(st, b);
        TRY(enter_layer(st, b));
        TRY(block_forward(&st->acts, st->scratch, st->arch, &st->w, &st->kv,
                          &st->states[b + 1], &st->states[b]));
        TRY(block_backward_full(&st->acts, st->scratch, st->arch, &st->w, &st->kv, &g, dx,
                                dx));
        TRY(collect(st, b, &g));
    }
    return OK;
}

/* --- export ------------------------------------------------------------------------- */

static enum err export_codes(struct student *st, const struct student_lin *from,
                             struct qlinear *q)
{
    const int64_t bytes = code_bytes(q);
    uint8_t *stage = NULL;
    enum err err = OK;
    if (q->codes)
        return OK;
    TRY(qlinear_alloc_codes(q));
    TRY(mem_alloc(&stage, (size_t)(q->out * bytes), 1));
    TRY_OUT(dev_download(st->dev, stage, from->codes.data, (size_t)(q->out * bytes)));
    for (int64_t i = 0; i < q->out * q->in; i++) {
        const int64_t r = i / q->in, c = i % q->in;
        const uint8_t x = stage[r * bytes + (bytes == q->in ? c : c / 2)];
        q->codes[i] = bytes == q->in ? x : (uint8_t)(x >> (c % 2 * 4) & 15);
    }
out:
    mem_free(stage);
    return err;
}

static enum err export_lin(struct student *st, const struct student_lin *from,
                           struct qlinear *q)
{
    struct tensor scales;
    TRY(export_codes(st, from, q));
    TRY(scales_now(st, from, &scales));
    return dev_download(st->dev, q->scales, scales.data,
                        (size_t)(q->out * q->groups) * sizeof(*q->scales));
}

static enum err export_cache(struct student *st, const struct student_layer *y,
                             struct block_quant *q)
{
    const size_t bytes = (size_t)channels(st->arch) * sizeof(float);
    float *const s[] = {q->k_scale, q->v_scale}, *const shift[] = {q->k_shift, q->v_shift};
    for (int i = 0; i < 2 && y->smooth[i].data; i++) {
        TRY(dev_exp(st->dev, &st->kv_s[i], &y->smooth[i]));
        TRY(dev_download(st->dev, s[i], st->kv_s[i].data, bytes));
        TRY(dev_download(st->dev, shift[i], y->shift[i].data, bytes));
    }
    return OK;
}

static enum err export_gain(struct student *st, float **to, const struct tensor *x)
{
    const size_t n = (size_t)tensor_count(x);
    if (!*to)
        TRY(mem_alloc(to, n, sizeof(**to)));
    return dev_download(st->dev, *to, x->data, n * sizeof(**to));
}

static enum err export_layer(struct student *st, int64_t b, struct block_quant *q)
{
    const struct student_layer *y = &st->layer[b];
    for (int l = 0; l < N_LIN; l++)
        if (y->lin[l].codes.data)
            TRY(export_lin(st, &y->lin[l], &q->lin[l]));
    for (int i = 0; i < 4; i++)
        if (y->norm[i].data)
            TRY(export_gain(st, &q->gain[i], &y->norm[i]));
    return export_cache(st, y, q);
}

enum err student_export(struct student *st, struct block_quant *layers)
{
    const int64_t n = st->arch->n_layers;
    for (int64_t b = 0; b < n; b++)
        TRY(export_layer(st, b, &layers[b]));
    return export_gain(st, &layers[n - 1].gain[GAIN_FINAL], &st->final_norm);
}

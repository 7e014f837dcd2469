/* SPDX-License-Identifier: MIT
 *
 * Makes a student: lays out its memory, and fills it from calibrated layers. One allocation holds
 * what is fixed or integer, by kind, so that all codes are one tensor to save and to restore:
 *
 *   fixed   | codes of all projections | scales and zeros | routers and biases |
 *           | offsets, if codes learn |
 *   params  | p | g | m | v | best |    each: u of all groups, gains, log s, shift */
#include "calib/refine/student_priv.h"

#include "calib/model/carve.h"
#include "calib/model/model.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static bool learns_cache(const struct block_quant *q)
{
    return q->kv.method == KV_CHANNEL_TOKEN;
}

/* --- layout ------------------------------------------------------------------------- */

/* Carves a region for one tensor of every quantized projection, and returns it as a whole. */
static struct tensor layout_region(struct student *st, struct carve *c,
                                   const struct block_quant *layers, enum dtype type,
                                   struct tensor *(*view)(struct student_lin *to),
                                   int64_t (*cols)(const struct qlinear *q))
{
    const size_t begin = c->used;
    for (int64_t b = 0; b < st->arch->n_layers; b++)
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *q = &layers[b].lin[l];
            if (q->scales)
                *view(&st->layer[b].lin[l]) = carve_2d(c, type, q->out, cols(q));
        }
    return tensor_1d(c->base ? (char *)c->base + begin : NULL, type,
                     (int64_t)((c->used - begin) / dtype_bytes(type)));
}

static struct tensor *view_codes(struct student_lin *to)
{
    return &to->codes;
}

static struct tensor *view_offset(struct student_lin *to)
{
    return &to->offset;
}

static int64_t in_of(const struct qlinear *q)
{
    return q->in;
}

static void layout_scales(struct student *st, struct carve *c,
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
            to->base = carve_2d(c, DT_F16, q->out, q->groups);
            to->zeros = carve_2d(c, DT_U8, q->out, q->groups);
            most = q->out * q->groups > most ? q->out * q->groups : most;
        }
    st->scales = carve_1d(c, DT_F16, most);
}

static void layout_unlearned(struct student *st, struct carve *c)
{
    const struct arch *a = st->arch;
    for (int64_t b = 0; b < a->n_layers; b++) {
        struct student_layer *y = &st->layer[b];
        if (a->n_experts)
            y->router = carve_2d(c, st->act, a->n_experts, a->d_model);
        for (int l = 0; l < N_LIN; l++)
            if (arch_has_bias(a, l))
                y->bias[l] = carve_1d(c, DT_F32, arch_out(a, l));
    }
}

static void layout_fixed(struct student *st, struct carve *c,
                         const struct block_quant *layers)
{
    st->codes = layout_region(st, c, layers, DT_U8, view_codes, student_code_bytes);
    layout_scales(st, c, layers);
    layout_unlearned(st, c);
    if (st->learns_codes)
        st->offsets = layout_region(st, c, layers, DT_F16, view_offset, in_of);
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
        for (int g = 0; g < N_BLOCK_GAINS; g++) {
            const int64_t n = arch_gain(a, b, (enum norm_gain)g);
            if (n)
                take(st, at, &st->layer[b].norm[g], &st->layer[b].dnorm[g], 1, n);
        }
    take(st, at, &st->final_norm, &st->dfinal, 1, a->d_model);
}

static void take_cache(struct student *st, int64_t *at, const struct block_quant *layers,
                       enum refine_kind kind)
{
    for (int64_t b = 0; b < st->arch->n_layers; b++)
        for (int i = 0; i < 2 && learns_cache(&layers[b]); i++) {
            struct student_layer *y = &st->layer[b];
            if (kind == REFINE_SMOOTH)
                take(st, at, &y->smooth[i], &y->dsmooth[i], 1, student_channels(st->arch));
            else
                take(st, at, &y->shift[i], &y->dshift[i], 1, student_channels(st->arch));
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

static int64_t floats_of(const struct tensor *x, int n)
{
    int64_t floats = 0;
    for (int i = 0; i < n; i++)
        floats += x[i].data ? tensor_count(&x[i]) : 0;
    return floats;
}

/* Returns the floats of the gradients of the layer, or final norm, that has most. */
static int64_t most_floats(const struct student *st)
{
    int64_t most = st->arch->d_model;
    for (int64_t b = 0; b < st->arch->n_layers; b++) {
        const struct student_layer *y = &st->layer[b];
        int64_t n = floats_of(y->dnorm, N_BLOCK_GAINS) + floats_of(y->dsmooth, 2) +
                    floats_of(y->dshift, 2);
        for (int l = 0; l < N_LIN; l++)
            n += floats_of(&y->lin[l].du, 1);
        most = n > most ? n : most;
    }
    return most;
}

static void layout_work(struct student *st, struct carve *c)
{
    for (int64_t i = 0; i < st->batch * (st->arch->n_layers + 1); i++)
        st->states[i] = carve_2d(c, DT_F32, st->T, st->arch->d_model);
    for (int i = 0; i < 2; i++)
        st->kv_s[i] = carve_1d(c, DT_F32, student_channels(st->arch));
    st->one = carve_1d(c, DT_F32, most_floats(st));
}

/* --- codes -------------------------------------------------------------------------- */

/* Codes of row r, chosen ones or those that follow from the source weight w [in]. */
static void row_codes(uint8_t *codes, const float *w, const struct qlinear *q, int64_t r)
{
    const int64_t G = qlinear_group(q);
    if (q->codes) {
        memcpy(codes, q->codes + r * q->in, (size_t)q->in);
        return;
    }
    for (int64_t c = 0; c < q->in; c++) {
        const int64_t g = r * q->groups + c / G;
        codes[c] =
            quant_weight_code(w[c], f16_to_f32(q->scales[g]), q->zeros[g], q->format.bits);
    }
}

/* The offsets at which row r's codes begin: where the source weight lies inside its code's
 * interval. Chosen codes begin half as far from the interval's middle. A weight that was rounded
 * across the edge is then not at the edge, where the first step would undo the choice. */
static void row_offsets(uint16_t *offset, const uint8_t *codes, const float *w,
                        const struct qlinear *q, int64_t r)
{
    const int64_t G = qlinear_group(q);
    const float share = q->codes ? 0.5f : 1;
    for (int64_t c = 0; c < q->in; c++) {
        const int64_t g = r * q->groups + c / G;
        const float place = w[c] / f16_to_f32(q->scales[g]) + (float)q->zeros[g];
        const float x = share * (place - (float)codes[c]);
        offset[c] = f16_from_f32(x < -0.5f ? -0.5f : x > 0.5f ? 0.5f : x);
    }
}

static void pack_row(uint8_t *to, const uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i += 2)
        to[i / 2] = (uint8_t)(codes[i] | (i + 1 < n ? codes[i + 1] << 4 : 0));
}

/* Host memory of one projection while it is loaded. */
struct lin_stage {
    uint8_t *codes;   /* [out][student_code_bytes] */
    uint16_t *offset; /* [out][in], or NULL */
    float *w;         /* [in] */
    uint8_t *row;     /* [in] */
};

static void stage_row(struct lin_stage *s, const struct qlinear *q,
                      const struct host_mat *m, int64_t r)
{
    const int64_t bytes = student_code_bytes(q);
    host_to_f32(s->w, host_mat_row(m, r), m->dtype, q->in);
    row_codes(s->row, s->w, q, r);
    if (bytes == q->in)
        memcpy(s->codes + r * bytes, s->row, (size_t)bytes);
    else
        pack_row(s->codes + r * bytes, s->row, q->in);
    if (s->offset)
        row_offsets(s->offset + r * q->in, s->row, s->w, q, r);
}

static enum err upload_lin(struct student *st, struct student_lin *to,
                           const struct qlinear *q, const struct lin_stage *s)
{
    const size_t groups = (size_t)(q->out * q->groups), all = (size_t)(q->out * q->in);
    TRY(dev_upload(st->dev, to->codes.data, s->codes,
                   (size_t)(q->out * student_code_bytes(q))));
    if (s->offset)
        TRY(dev_upload(st->dev, to->offset.data, s->offset, all * sizeof(*s->offset)));
    TRY(dev_upload(st->dev, to->base.data, q->scales, groups * sizeof(*q->scales)));
    TRY(dev_upload(st->dev, to->zeros.data, q->zeros, groups));
    return dev_sync(st->dev);
}

static enum err load_lin(struct student *st, struct student_lin *to,
                         const struct qlinear *q, const struct host_mat *m)
{
    struct lin_stage s = {0};
    enum err err = OK;
    TRY(host_mat_check(m, "projection", q->out, q->in));
    TRY_OUT(mem_alloc(&s.codes, (size_t)(q->out * student_code_bytes(q)), 1));
    TRY_OUT(mem_alloc(&s.w, (size_t)q->in, sizeof(*s.w)));
    TRY_OUT(mem_alloc(&s.row, (size_t)q->in, 1));
    if (st->learns_codes)
        TRY_OUT(mem_alloc(&s.offset, (size_t)(q->out * q->in), sizeof(*s.offset)));
    for (int64_t r = 0; r < q->out; r++)
        stage_row(&s, q, m, r);
    err = upload_lin(st, to, q, &s);
out:
    mem_free(s.codes);
    mem_free(s.offset);
    mem_free(s.w);
    mem_free(s.row);
    return err;
}

/* --- start values ------------------------------------------------------------------- */

static enum err load_cache(struct student *st, struct student_layer *y,
                           const struct block_quant *q)
{
    const int64_t C = student_channels(st->arch);
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

static enum err load_unlearned(struct student *st, const struct student_layer *y,
                               const struct block_src *src)
{
    if (y->router.data)
        TRY(host_mat_upload(st->dev, &y->router, &src->router));
    for (int l = 0; l < N_LIN; l++)
        if (y->bias[l].data)
            TRY(host_mat_upload(st->dev, &y->bias[l], &src->bias[l]));
    return OK;
}

static enum err load_layer(struct student *st, int64_t b, const struct block_quant *q)
{
    struct student_layer *y = &st->layer[b];
    struct block_src src;
    y->kv = q->kv;
    y->kv_scale[KV_K] = q->k_scale[0];
    y->kv_scale[KV_V] = q->v_scale[0];
    TRY(st->src->block(st->src->ctx, b, &src));
    for (int l = 0; l < N_LIN; l++) {
        if (y->lin[l].codes.data)
            TRY(load_lin(st, &y->lin[l], &q->lin[l], &src.lin[l]));
        else
            y->asks = true;
    }
    TRY(load_unlearned(st, y, &src));
    block_src_set_gains(&src, q);
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        if (y->norm[g].data)
            TRY(host_gain_upload(st->dev, &y->norm[g], &src.norm[g], st->arch));
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
    return host_gain_upload(st->dev, &st->final_norm, &norm, st->arch);
}

/* --- opening ------------------------------------------------------------------------ */

static enum err open_params(struct student *st, const struct block_quant *layers)
{
    struct carve c = {0};
    layout_fixed(st, &c, layers);
    TRY(dev_alloc(st->dev, &st->fixed, c.used));
    c = (struct carve){.base = st->fixed};
    layout_fixed(st, &c, layers);
    TRY(dev_zero(st->dev, st->fixed,
                 c.used)); /* what is between the tensors is saved, too */
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

size_t student_acts_bytes(const struct arch *a, const struct refine_settings *s)
{
    return (size_t)(s->batch * a->n_layers) * block_acts_bytes(a, s->seqlen, s->act, true);
}

static enum err open_acts(struct student *st, struct block_acts *acts)
{
    TRY(block_acts_alloc(acts, st->dev, st->arch, st->T, st->act, &any_kv));
    acts->cos = st->cos;
    acts->sin = st->sin;
    return OK;
}

static enum err open_kept(struct student *st)
{
    const int64_t n = st->batch * st->arch->n_layers;
    TRY(mem_calloc(&st->kept, (size_t)n, sizeof(*st->kept)));
    for (int64_t i = 0; i < n; i++)
        TRY(open_acts(st, &st->kept[i]));
    return OK;
}

/* Returns whether the sum of the gradients of weights needs memory of its own. */
static bool sums_weights(const struct student *st)
{
    return st->learns_codes && st->batch > 1 && !st->share->ranks;
}

static enum err open_work(struct student *st, bool keep)
{
    const struct arch *a = st->arch;
    struct carve c = {0};
    TRY(mem_alloc(&st->states, (size_t)(st->batch * (a->n_layers + 1)),
                  sizeof(*st->states)));
    layout_work(st, &c);
    TRY(dev_alloc(st->dev, &st->memory, c.used));
    c = (struct carve){.base = st->memory};
    layout_work(st, &c);
    TRY(block_weights_alloc(&st->w, st->dev, a, st->act));
    TRY(block_weights_alloc(&st->dw, st->dev, a, DT_F32));
    st->dw_sum = st->dw;
    if (sums_weights(st)) {
        st->dw_sum = (struct block_weights){0};
        TRY(block_weights_alloc(&st->dw_sum, st->dev, a, DT_F32));
    }
    TRY(block_scratch_open(&st->scratch, st->dev, a, st->T, st->act));
    TRY(block_rope_alloc(&st->cos, &st->sin, st->dev, a, st->T));
    TRY(open_acts(st, &st->acts));
    return keep ? open_kept(st) : OK;
}

size_t student_work_bytes(const struct arch *a, const struct refine_settings *s,
                          bool shared)
{
    const size_t row = (size_t)s->seqlen * sizeof(float);
    const size_t gradients = s->lr_round > 0 && s->batch > 1 && !shared ? 2 : 1;
    return block_weights_bytes(a, s->act) + gradients * block_weights_bytes(a, DT_F32) +
           block_acts_bytes(a, s->seqlen, s->act, true) +
           block_scratch_bytes(a, s->seqlen, s->act) +
           (size_t)a->head_dim * row + /* rope */
           (size_t)(s->batch * (a->n_layers + 2) * a->d_model) *
               row; /* states, their gradients */
}

enum err student_open(struct student *st, struct dev *d, const struct arch *a,
                      const struct model_source *src, const struct block_quant *layers,
                      const struct refine_settings *s, struct share *share)
{
    struct refine_settings own = *s; /* with this process's windows of a batch */
    own.batch = share->to - share->from;
    *st = (struct student){.dev = d,
                           .arch = a,
                           .src = src,
                           .share = share,
                           .scale_bits = s->scale_bits,
                           .T = s->seqlen,
                           .batch = own.batch,
                           .learns_codes = s->lr_round > 0,
                           .act = s->act};
    TRY(arch_check_length(a, s->seqlen));
    TRY(mem_calloc(&st->layer, (size_t)a->n_layers, sizeof(*st->layer)));
    TRY(open_params(st, layers));
    TRY(open_work(st, student_acts_bytes(a, &own) <= s->acts_bytes));
    return load_all(st, layers);
}

void student_close(struct student *st)
{
    block_weights_free(&st->w);
    if (st->dw_sum.memory != st->dw.memory)
        block_weights_free(&st->dw_sum);
    block_weights_free(&st->dw);
    for (int64_t i = 0; st->kept && i < st->batch * st->arch->n_layers; i++)
        block_acts_free(&st->kept[i]);
    mem_free(st->kept);
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

/* SPDX-License-Identifier: MIT
 *
 * Passes of the student, forward and backward. All parameters are one vector p. The forms
 * that the block's operations need are made from it when a layer is entered:
 *
 *   h = fp16(h0 exp(u)), w^ = (code - zero) h      s = exp(log s)      gains, shift as they are
 *
 * The gradients take the way back: dL/du = sum over the group of (dL/dw^) w^, because dw^/du =
 * w^ where fp16's rounding is passed straight through. */
#include "calib/refine/student.h"

#include "calib/model/model.h"
#include "calib/refine/student_priv.h"
#include "kernels/base/mem.h"
#include "kernels/dev_refine.h"

#include <inttypes.h>

/* --- a layer ------------------------------------------------------------------------ */

/* Scales of a projection as the parameters have them now, in st->scales. */
static enum err scales_now(struct student *st, const struct student_lin *q,
                           struct tensor *scales)
{
    *scales = tensor_2d(st->scales.data, DT_F16, q->base.dim[0], q->base.dim[1]);
    return dev_scale_steps(st->dev, scales, &q->base, &q->u, st->scale_bits);
}

/* Writes the projections of layer b that have codes. */
static enum err packed_weights(struct student *st, int64_t b)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct student_lin *q = &st->layer[b].lin[l];
        const struct tensor w = block_weights_lin(&st->w, st->arch, l);
        struct tensor scales;
        if (!q->codes.data)
            continue;
        TRY(scales_now(st, q, &scales));
        TRY(dev_dequantize(st->dev, &w, &q->codes, &scales, &q->zeros,
                           q->format.group_size));
    }
    return OK;
}

/* Writes the projections of layer b that are unquantized, from the source. */
static enum err source_weights(struct student *st, int64_t b)
{
    struct block_src src;
    if (!st->layer[b].asks)
        return OK;
    TRY(st->src->block(st->src->ctx, b, &src));
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor w = block_weights_lin(&st->w, st->arch, l);
        if (!st->layer[b].lin[l].codes.data)
            TRY(host_mat_upload(st->dev, &w, &src.lin[l]));
    }
    source_drop(st->src, b);
    return OK;
}

static enum err copy_vector(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    const struct tensor to = tensor_2d(y->data, DT_F32, 1, tensor_count(x));
    const struct tensor from = tensor_2d(x->data, DT_F32, 1, tensor_count(x));
    return dev_copy(d, &to, &from);
}

/* What does not learn: biases, and the router of experts. */
static enum err fixed_of(struct student *st, const struct student_layer *y)
{
    if (y->router.data)
        TRY(dev_copy(st->dev, &st->w.router, &y->router));
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor b = block_weights_bias(&st->w, st->arch, l);
        if (b.data)
            TRY(copy_vector(st->dev, &b, &y->bias[l]));
    }
    return OK;
}

/* Sets up the fake-quantized cache of layer b. chunk 1 is decoding: every token sees the
 * past quantized, as it will be served. */
static enum err cache_of(struct student *st, int64_t b)
{
    const struct student_layer *y = &st->layer[b];
    struct tensor *const s[] = {&st->kv.k_s, &st->kv.v_s};
    struct tensor *const shift[] = {&st->kv.k_shift, &st->kv.v_shift};
    st->kv = (struct block_kv){.spec = y->kv,
                               .layer = b,
                               .scale = {y->kv_scale[KV_K], y->kv_scale[KV_V]},
                               .chunk = 1};
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
    st->w.layer = b;
    TRY(packed_weights(st, b));
    TRY(source_weights(st, b));
    TRY(fixed_of(st, y));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        if (y->norm[g].data)
            TRY(copy_vector(st->dev, &st->w.norm[g], &y->norm[g]));
    return cache_of(st, b);
}

const struct tensor *student_state(const struct student *st, int64_t i, int64_t b)
{
    return &st->states[i * (st->arch->n_layers + 1) + b];
}

/* Returns where the activations of window i in layer b are. */
static struct block_acts *acts_of(struct student *st, int64_t i, int64_t b)
{
    return st->kept ? &st->kept[i * st->arch->n_layers + b] : &st->acts;
}

static enum err forward_layer(struct student *st, int64_t i, int64_t b)
{
    return block_forward(acts_of(st, i, b), st->scratch, st->arch, &st->w, &st->kv,
                         student_state(st, i, b + 1), student_state(st, i, b));
}

enum err student_forward(struct student *st, const int32_t *const *ids, int64_t n)
{
    struct host_mat embed, norm, head;
    TRY(st->src->ends(st->src->ctx, &embed, &norm, &head));
    for (int64_t i = 0; i < n; i++)
        TRY(model_embed(st->dev, st->arch, student_state(st, i, 0), &embed, ids[i]));
    for (int64_t b = 0; b < st->arch->n_layers; b++) {
        TRY(enter_layer(st, b));
        for (int64_t i = 0; i < n; i++)
            TRY(forward_layer(st, i, b));
    }
    return OK;
}

/* --- gradients ---------------------------------------------------------------------- */

/* Where the backward of a layer writes the gradients of one window. */
static struct block_grads grads_of(const struct student *st,
                                   const struct student_grads *one)
{
    struct block_grads g = {.dwqkv = st->dw.wqkv,
                            .dwo = st->dw.wo,
                            .dwgu = st->dw.wgu,
                            .dwdown = st->dw.wdown,
                            .k_dls = one->dsmooth[0],
                            .v_dls = one->dsmooth[1],
                            .k_dshift = one->dshift[0],
                            .v_dshift = one->dshift[1]};
    memcpy(g.dnorm, one->dnorm, sizeof(g.dnorm));
    return g;
}

/* Takes the gradients of a layer's weights to its scales. */
static enum err scale_grads(struct student *st, const struct student_grads *one, int64_t b)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct student_lin *q = &st->layer[b].lin[l];
        const struct tensor dw = block_weights_lin(&st->dw, st->arch, l);
        const struct tensor w = block_weights_lin(&st->w, st->arch, l);
        if (q->codes.data)
            TRY(dev_group_dot(st->dev, &one->du[l], &dw, &w, q->format.group_size));
    }
    return OK;
}

/* Moves the codes of layer b against the gradients of its weights. */
static enum err step_codes(struct student *st, int64_t b)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct student_lin *q = &st->layer[b].lin[l];
        const struct tensor dw = block_weights_lin(&st->dw_sum, st->arch, l);
        if (q->offset.data && st->code_step > 0)
            TRY(dev_code_step(st->dev, &q->codes, &q->offset, &dw, q->format.bits,
                              st->code_step));
    }
    return OK;
}

static enum err backward_window(struct student *st, const struct tensor *dx, int64_t b,
                                int64_t i)
{
    struct student_grads one;
    TRY(student_begin_window(st, &one, b));
    const struct block_grads g = grads_of(st, &one);
    if (!st->kept)
        TRY(forward_layer(st, i, b));
    TRY(block_backward_full(acts_of(st, i, b), st->scratch, st->arch, &st->w, &st->kv, &g,
                            dx, dx));
    TRY(scale_grads(st, &one, b));
    return student_end_window(st, b, i);
}

enum err student_backward(struct student *st, const struct tensor *dx, int64_t n)
{
    for (int64_t b = st->arch->n_layers - 1; b >= 0; b--) {
        TRY(enter_layer(st, b));
        for (int64_t i = 0; i < n; i++)
            TRY(backward_window(st, &dx[i], b, i));
        TRY(student_sum_windows(st, b));
        TRY(step_codes(st, b));
    }
    return OK;
}

/* --- export ------------------------------------------------------------------------- */

static enum err export_codes(struct student *st, const struct student_lin *from,
                             struct qlinear *q)
{
    const int64_t bytes = student_code_bytes(q);
    uint8_t *stage = NULL;
    enum err err = OK;
    if (q->codes && !st->learns_codes)
        return OK;
    if (!q->codes)
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
    const size_t bytes = (size_t)student_channels(st->arch) * sizeof(float);
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
    TRY(dev_download(st->dev, *to, x->data, n * sizeof(**to)));
    if (!st->arch->gain_plus_one)
        return OK;
    TRY(dev_sync(st->dev));
    for (size_t i = 0; i < n; i++)
        (*to)[i] -= 1;
    return OK;
}

static enum err export_layer(struct student *st, int64_t b, struct block_quant *q)
{
    const struct student_layer *y = &st->layer[b];
    for (int l = 0; l < N_LIN; l++)
        if (y->lin[l].codes.data)
            TRY(export_lin(st, &y->lin[l], &q->lin[l]));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        if (y->norm[g].data)
            TRY(export_gain(st, &q->gain[g], &y->norm[g]));
    return export_cache(st, y, q);
}

enum err student_export(struct student *st, struct block_quant *layers)
{
    const int64_t n = st->arch->n_layers;
    for (int64_t b = 0; b < n; b++)
        TRY(export_layer(st, b, &layers[b]));
    return export_gain(st, &layers[n - 1].gain[GAIN_FINAL], &st->final_norm);
}

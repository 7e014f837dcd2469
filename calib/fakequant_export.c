/* SPDX-License-Identifier: MIT
 *
 * Converts a block's quantizer on the device to the struct that is handed over, and
 * back; and finds the experts that have learned nothing. */
#include "calib/fakequant.h"

#include "calib/fakequant_round.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <string.h>

/* Codes of GPTQ, which do not follow from weight and scale. */
static enum err export_codes(const struct fakequant *f, struct qlinear *q, int l)
{
    const struct qlinear *from = &f->fixed[l];
    FAIL_IF(!from->codes, ERR_SHAPE, "%s: exported before its codes were chosen",
            arch_lin_module(f->arch, l));
    TRY(qlinear_alloc_codes(q));
    memcpy(q->codes, from->codes, (size_t)from->out * (size_t)from->in);
    return OK;
}

enum err fakequant_scales(const struct fakequant *f, struct qlinear *q, int l)
{
    const size_t n = (size_t)tensor_count(&f->scales[l]);
    TRY(dev_download(f->dev, q->scales, f->scales[l].data, n * sizeof(*q->scales)));
    return dev_download(f->dev, q->zeros, f->zeros[l].data, n);
}

static enum err export_lin(struct fakequant *f, struct qlinear *q, int l)
{
    TRY(qlinear_alloc(q, arch_out(f->arch, l), arch_in(f->arch, l), f->format[l]));
    TRY(fakequant_scales(f, q, l));
    if (f->learn_round)
        return round_codes(f, q, l);
    return f->gptq ? export_codes(f, q, l) : OK;
}

/* The same smoothing in every channel is one scale for the tensor. */
static void export_tensor_scales(const struct fakequant *f, struct block_quant *q)
{
    for (int64_t c = 0; c < q->n_channels; c++) {
        q->k_scale[c] = f->kv.scale[KV_K];
        q->v_scale[c] = f->kv.scale[KV_V];
    }
}

static enum err export_kv(struct fakequant *f, struct block_quant *q)
{
    const size_t bytes = (size_t)q->n_channels * sizeof(float);
    TRY(dev_download(f->dev, q->k_scale, f->kv.k_s.data, bytes));
    TRY(dev_download(f->dev, q->v_scale, f->kv.v_s.data, bytes));
    TRY(dev_download(f->dev, q->k_shift, f->kv.k_shift.data, bytes));
    return dev_download(f->dev, q->v_shift, f->kv.v_shift.data, bytes);
}

/* Fills a struct of its own first, so that *q is whole or unchanged. */
enum err fakequant_export(struct fakequant *f, struct block_quant *q)
{
    struct block_quant fresh = {0};
    enum err err = OK;
    TRY_OUT(block_quant_alloc(&fresh, f->arch->n_kv * f->arch->head_dim));
    fresh.kv = f->kv.spec;
    for (int l = 0; l < N_LIN; l++)
        if (f->format[l].bits < 16)
            TRY_OUT(export_lin(f, &fresh.lin[l], l));
    if (kv_target_has_scales(f->kv.spec.target))
        export_tensor_scales(f, &fresh);
    else if (kv_quantizes_layer(&f->kv.spec, f->kv.layer) &&
             f->kv.spec.method == KV_CHANNEL_TOKEN)
        TRY_OUT(export_kv(f, &fresh));
    *q = fresh;
    return OK;
out:
    block_quant_free(&fresh);
    return err;
}

/* Writes the values (q - z) h of chosen codes to w, projection l of master or wq. */
static enum err write_values(const struct fakequant *f, const struct tensor *w,
                             const struct qlinear *q, int l)
{
    FAIL_IF(!q->codes || q->in != w->dim[1], ERR_MISMATCH,
            "%s: saved codes do not fit the model", arch_lin_module(f->arch, l));
    return dev_upload_values(f->dev, w, q);
}

static enum err import_scales(struct fakequant *f, const struct qlinear *q, int l)
{
    const int64_t n = tensor_count(&f->scales[l]);
    FAIL_IF(!qlinear_fits(q, arch_out(f->arch, l), arch_in(f->arch, l), f->format[l]),
            ERR_MISMATCH, "%s: saved scales do not fit the model and its format",
            arch_lin_module(f->arch, l));
    TRY(dev_upload(f->dev, f->scales[l].data, q->scales, (size_t)n * sizeof(*q->scales)));
    return dev_upload(f->dev, f->zeros[l].data, q->zeros, (size_t)n);
}

enum err fakequant_take_given(struct fakequant *f, const struct block_src *src)
{
    for (int l = 0; l < N_LIN; l++) {
        if (f->format[l].bits >= 16)
            continue;
        FAIL_IF(!src->given[l], ERR_MISMATCH, "%s: the checkpoint stores no codes of it",
                arch_lin_module(f->arch, l));
        TRY(import_scales(f, src->given[l], l));
    }
    return dev_sync(f->dev);
}

/* Takes over *q, whose scales and codes GPTQ chose, and makes them what apply computes: with the
 * codes' values as weights, rounding finds these codes again, as (q - z) h / h is q - z up to an
 * error far below 1/2. */
enum err fakequant_fix(struct fakequant *f, int l, struct qlinear *q)
{
    qlinear_free(&f->fixed[l]);
    f->fixed[l] = *q;
    *q = (struct qlinear){0};
    TRY(import_scales(f, &f->fixed[l], l));
    const struct tensor w = block_weights_lin(&f->master, f->arch, l);
    return write_values(f, &w, &f->fixed[l], l);
}

static enum err import_lin(struct fakequant *f, const struct qlinear *q, int l)
{
    const struct tensor w = block_weights_lin(&f->master, f->arch, l);
    const struct tensor wq = block_weights_lin(&f->wq, f->arch, l);
    TRY(import_scales(f, q, l));
    if (weight_chooses_codes(&f->weights))
        return write_values(f, &wq, q, l);
    const struct weight_quant p = {
        .w = &w, .bits = f->format[l].bits, .group_size = f->format[l].group_size};
    return dev_fake_quant_stored(f->dev, &wq, &f->scales[l], &f->zeros[l], &p);
}

enum err fakequant_import(struct fakequant *f, const struct block_quant *q)
{
    for (int l = 0; l < N_LIN; l++)
        if (f->format[l].bits < 16)
            TRY(import_lin(f, &q->lin[l], l));
    if (!f->quantize_kv)
        return dev_sync(f->dev);
    const size_t bytes = (size_t)(f->arch->n_kv * f->arch->head_dim) * sizeof(float);
    f->kv.scale[KV_K] = q->k_scale[0];
    f->kv.scale[KV_V] = q->v_scale[0];
    TRY(dev_upload(f->dev, f->kv.k_s.data, q->k_scale, bytes));
    TRY(dev_upload(f->dev, f->kv.v_s.data, q->v_scale, bytes));
    TRY(dev_upload(f->dev, f->kv.k_shift.data, q->k_shift, bytes));
    TRY(dev_upload(f->dev, f->kv.v_shift.data, q->v_shift, bytes));
    return dev_sync(f->dev);
}

/* --- experts that no token reached --------------------------------------------------- */

/* sigma of it is 1 in F32. */
#define NO_CLIPPING 40.0f

/* Rows of expert e in x [out, n] of projection l. */
static struct tensor rows_of_expert(const struct fakequant *f, const struct tensor *x,
                                    int l, int64_t e)
{
    const int64_t n = arch_out(f->arch, l) / f->arch->n_experts;
    return tensor_rows(*x, e * n, n);
}

/* Returns the second moments of a or b, which lie as the parameters do. */
static struct tensor moments_of(const struct fakequant *f, const struct tensor *param)
{
    const int64_t at = (const float *)param->data - (const float *)f->p.data;
    return tensor_2d((float *)f->v.data + at, DT_F32, param->dim[0], param->dim[1]);
}

/* *still = no value of x is apart from 0, unless it was false before. */
static enum err is_still(struct fakequant *f, bool *still, const struct tensor *x)
{
    const size_t n = (size_t)tensor_count(x);
    float *host = NULL;
    if (!*still)
        return OK;
    TRY(mem_alloc(&host, n, sizeof(*host)));
    const enum err err = dev_download(f->dev, host, x->data, n * sizeof(*host));
    for (size_t i = 0; i < n && !err; i++)
        *still = *still && host[i] == 0;
    mem_free(host);
    return err;
}

/* Looks at expert e's part of projection l: AdamW's second moments of the clipping, which any
 * gradient but 0 leaves above 0, or else the offsets of the rounding. */
static enum err look_at_expert(struct fakequant *f, bool *still, int l, int64_t e)
{
    if (f->learn_weights) {
        const struct tensor a = moments_of(f, &f->a[l]), b = moments_of(f, &f->b[l]);
        const struct tensor of_a = rows_of_expert(f, &a, l, e);
        const struct tensor of_b = rows_of_expert(f, &b, l, e);
        TRY(is_still(f, still, &of_a));
        return is_still(f, still, &of_b);
    }
    const struct tensor v = fakequant_offsets(f, l, false);
    const struct tensor of_v = rows_of_expert(f, &v, l, e);
    return is_still(f, still, &of_v);
}

enum err fakequant_unreached(struct fakequant *f, bool *unreached)
{
    for (int64_t e = 0; e < f->arch->n_experts; e++) {
        bool still = true, learns = false;
        for (int l = LIN_GATE; l <= LIN_DOWN; l++) {
            if (f->format[l].bits >= 16 || !(f->learn_weights || f->learn_round))
                continue;
            learns = true;
            TRY(look_at_expert(f, &still, l, e));
        }
        unreached[e] = learns && still;
    }
    return OK;
}

static enum err fill(struct fakequant *f, const struct tensor *x, float value)
{
    const int64_t n = tensor_count(x);
    float *host = NULL;
    TRY(mem_alloc(&host, (size_t)n, sizeof(*host)));
    for (int64_t i = 0; i < n; i++)
        host[i] = value;
    const enum err err = dev_upload(f->dev, x->data, host, (size_t)n * sizeof(*host));
    mem_free(host);
    return err;
}

enum err fakequant_clip_none(struct fakequant *f, const bool *unreached)
{
    for (int64_t e = 0; e < f->arch->n_experts && f->learn_weights; e++)
        for (int l = LIN_GATE; unreached[e] && l <= LIN_DOWN; l++) {
            if (f->format[l].bits >= 16)
                continue;
            const struct tensor a = rows_of_expert(f, &f->a[l], l, e);
            const struct tensor b = rows_of_expert(f, &f->b[l], l, e);
            TRY(fill(f, &a, NO_CLIPPING));
            TRY(fill(f, &b, NO_CLIPPING));
        }
    return OK;
}

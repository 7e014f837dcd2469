/* SPDX-License-Identifier: MIT
 *
 * Between a block's quantizer on the device and the hand-over struct on the host. */
#include "calib/fakequant.h"

#include <inttypes.h>
#include <string.h>

static enum err export_lin(struct fakequant *f, struct qlinear *q, int l)
{
    const struct tensor *scales = &f->scales[l];
    const int64_t n = tensor_count(scales);
    TRY(qlinear_alloc(q, arch_out(f->arch, l), arch_in(f->arch, l), f->weights.group_size));
    TRY(dev_download(f->dev, q->scales, scales->data, (size_t)n * sizeof(*q->scales)));
    return dev_download(f->dev, q->zeros, f->zeros[l].data, (size_t)n);
}

static enum err export_kv(struct fakequant *f, struct block_quant *q)
{
    const size_t bytes = (size_t)q->n_channels * sizeof(float);
    TRY(dev_download(f->dev, q->k_scale, f->kv.k_s.data, bytes));
    TRY(dev_download(f->dev, q->v_scale, f->kv.v_s.data, bytes));
    TRY(dev_download(f->dev, q->k_shift, f->kv.k_delta.data, bytes));
    return dev_download(f->dev, q->v_shift, f->kv.v_delta.data, bytes);
}

enum err fakequant_export(struct fakequant *f, struct block_quant *q)
{
    struct block_quant fresh = {0};
    enum err err = OK;
    TRY_OUT(block_quant_alloc(&fresh, f->arch->n_kv * f->arch->head_dim));
    fresh.weights = f->weights;
    fresh.kv = f->kv.spec;
    for (int l = 0; l < N_LIN && f->quantize_weights; l++)
        TRY_OUT(export_lin(f, &fresh.lin[l], l));
    if (f->quantize_kv && f->kv.spec.method == KV_CHANNEL_TOKEN)
        TRY_OUT(export_kv(f, &fresh));
    *q = fresh;
    return OK;
out:
    block_quant_free(&fresh);
    return err;
}

static enum err import_lin(struct fakequant *f, const struct qlinear *q, int l)
{
    const int64_t n = tensor_count(&f->scales[l]);
    FAIL_IF(!q->scales || q->out * q->groups != n, ERR_MISMATCH,
            "%s: saved scales do not fit the model", lin_module[l]);
    TRY(dev_upload(f->dev, f->scales[l].data, q->scales, (size_t)n * sizeof(*q->scales)));
    TRY(dev_upload(f->dev, f->zeros[l].data, q->zeros, (size_t)n));
    const struct tensor w = block_weights_lin(&f->master, f->arch, l);
    const struct tensor wq = block_weights_lin(&f->wq, f->arch, l);
    return dev_wq_apply(f->dev, &wq, &f->scales[l], &f->zeros[l], &w, f->weights.bits,
                        f->weights.group_size);
}

enum err fakequant_import(struct fakequant *f, const struct block_quant *q)
{
    for (int l = 0; l < N_LIN && f->quantize_weights; l++)
        TRY(import_lin(f, &q->lin[l], l));
    if (!f->quantize_kv)
        return dev_sync(f->dev);
    const size_t bytes = (size_t)(f->arch->n_kv * f->arch->head_dim) * sizeof(float);
    TRY(dev_upload(f->dev, f->kv.k_s.data, q->k_scale, bytes));
    TRY(dev_upload(f->dev, f->kv.v_s.data, q->v_scale, bytes));
    TRY(dev_upload(f->dev, f->kv.k_delta.data, q->k_shift, bytes));
    TRY(dev_upload(f->dev, f->kv.v_delta.data, q->v_shift, bytes));
    return dev_sync(f->dev);
}

/* SPDX-License-Identifier: MIT
 *
 * Learned rounding: q = clamp(round(W / h + v) + z, 0, Q) with an offset v in [-0.5, 0.5]
 * per weight. v = 0 rounds to nearest; the two ends reach the next code in either
 * direction. */
#include "calib/fakequant_round.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <math.h>

enum err round_open(struct fakequant *f)
{
    TRY(block_weights_alloc(&f->offset, f->dev, f->arch, DT_F32));
    return block_weights_alloc(&f->offset_best, f->dev, f->arch, DT_F32);
}

void round_close(struct fakequant *f)
{
    block_weights_free(&f->offset);
    block_weights_free(&f->offset_best);
}

size_t round_bytes(const struct fakequant *f)
{
    return f->learn_round ? 2 * block_weights_bytes(f->arch, DT_F32) : 0;
}

struct tensor fakequant_offsets(const struct fakequant *f, int l, bool best)
{
    if (!f->learn_round)
        return (struct tensor){0};
    return block_weights_lin(best ? &f->offset_best : &f->offset, f->arch, l);
}

static size_t f32_bytes(const struct tensor *t)
{
    return (size_t)tensor_count(t) * sizeof(float);
}

enum err round_zero(struct fakequant *f)
{
    for (int l = 0; l < N_LIN; l++)
        for (int best = 0; best < 2; best++) {
            const struct tensor v = fakequant_offsets(f, l, best);
            TRY(dev_zero(f->dev, v.data, f32_bytes(&v)));
        }
    return OK;
}

enum err round_copy(struct fakequant *f, bool to_best)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor to = fakequant_offsets(f, l, to_best);
        const struct tensor from = fakequant_offsets(f, l, !to_best);
        TRY(dev_copy(f->dev, &to, &from));
    }
    return OK;
}

/* Returns an offset that gives the code, or the end nearest to it. With u = w / h the code
 * is `away` = code - z - u from the weight, and any v within 0.5 of away rounds to it:
 *
 *   -0.5 ........ 0 ...... border ===== end = 0.5        away > 0
 *                           offsets that give the code
 *
 * The middle between border and end is chosen, so that learning can still go either way. */
static float offset_to(float w, uint8_t code, float h, uint8_t z, int bits)
{
    if (quant_weight_code(w, h, z, bits) == code)
        return 0;
    const float away = (float)((int)code - (int)z) - w / h;
    const float end = away > 0 ? 0.5f : -0.5f;
    const float border = quant_clamp(away - end, -0.5f, 0.5f);
    return 0.5f * (border + end);
}

static void start_rows(float *v, const float *w, const struct qlinear *q)
{
    const int64_t G = qlinear_group(q);
    for (int64_t r = 0; r < q->out; r++)
        for (int64_t c = 0; c < q->in; c++) {
            const int64_t i = r * q->in + c, g = r * q->groups + c / G;
            v[i] = offset_to(w[i], q->codes[i], f16_to_f32(q->scales[g]), q->zeros[g],
                             q->format.bits);
        }
}

enum err fakequant_start_at(struct fakequant *f, int l, const struct qlinear *q)
{
    const struct tensor w = block_weights_lin(&f->master, f->arch, l);
    const struct tensor v = fakequant_offsets(f, l, false);
    float *host = NULL;
    enum err err = OK;
    TRY(mem_alloc(&host, 2 * (size_t)tensor_count(&w), sizeof(*host)));
    float *host_v = host + tensor_count(&w);
    TRY_OUT(dev_download_f32(f->dev, host, &w));
    start_rows(host_v, host, q);
    TRY_OUT(dev_upload(f->dev, v.data, host_v, f32_bytes(&v)));
    err = dev_sync(f->dev);
out:
    mem_free(host);
    return err;
}

static void code_rows(struct qlinear *q, const float *w, const float *v)
{
    const int64_t G = qlinear_group(q);
    for (int64_t r = 0; r < q->out; r++)
        for (int64_t c = 0; c < q->in; c++) {
            const int64_t i = r * q->in + c, g = r * q->groups + c / G;
            q->codes[i] = quant_weight_code_offset(w[i], v[i], f16_to_f32(q->scales[g]),
                                                   q->zeros[g], q->format.bits);
        }
}

enum err round_codes(const struct fakequant *f, struct qlinear *q, int l)
{
    const struct tensor w = block_weights_lin(&f->master, f->arch, l);
    const struct tensor v = fakequant_offsets(f, l, false);
    float *host = NULL;
    enum err err = OK;
    TRY(qlinear_alloc_codes(q));
    TRY(mem_alloc(&host, 2 * (size_t)tensor_count(&w), sizeof(*host)));
    float *host_v = host + tensor_count(&w);
    TRY_OUT(dev_download_f32(f->dev, host, &w));
    TRY_OUT(dev_download(f->dev, host_v, v.data, f32_bytes(&v)));
    code_rows(q, host, host_v);
out:
    mem_free(host);
    return err;
}

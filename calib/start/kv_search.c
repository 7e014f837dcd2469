/* SPDX-License-Identifier: MIT
 *
 * Start values of the cache's smoothing, and the search of their exponent. Per channel, over
 * the calibration set,
 *
 *   delta = (max + min) / 2      s = (max |x - delta|)^alpha, geometric mean 1
 *
 * alpha 0 leaves the channels as they are, alpha 1 gives all of them the same width. Between
 * them lies the least error: wide channels no longer set the scale of their group, and the
 * errors of narrow ones do not grow by a large s. */
#include "calib/start/kv_search.h"

#include "calib/model/carve.h"
#include "kernels/base/mem.h"
#include "kernels/dev_engine.h"

#include <math.h>

/* alpha = 0, 1/8, ..., 1. */
static float grid(int i)
{
    return (float)i / (KV_SEARCH_GRID - 1);
}

static void layout(struct kv_search *k, struct carve *c, const struct arch *a)
{
    const int64_t C = a->n_kv * a->head_dim;
    for (int side = KV_K; side <= KV_V; side++) {
        for (int i = 0; i < KV_SEARCH_GRID; i++)
            k->s[side][i] = carve_1d(c, DT_F32, C);
        k->delta[side] = carve_1d(c, DT_F32, C);
    }
}

size_t kv_search_bytes(const struct arch *a)
{
    struct kv_search k;
    struct carve c = {0};
    layout(&k, &c, a);
    return c.used;
}

enum err kv_search_open(struct kv_search *k, struct dev *d, const struct arch *a)
{
    *k = (struct kv_search){.dev = d, .arch = a};
    TRY(dev_alloc(d, &k->memory, kv_search_bytes(a)));
    struct carve c = {.base = k->memory};
    layout(k, &c, a);
    return OK;
}

void kv_search_close(struct kv_search *k)
{
    if (k->dev)
        dev_free(k->dev, k->memory);
    *k = (struct kv_search){0};
}

/* Works with log s. Only ratios of s inside a group matter to the codes, so the mean of log
 * s is taken out: the stored factors then stay near 1 and far from overflow. */
void kv_smooth(float *ls, float *delta, const float *mn, const float *mx, int64_t n,
               float alpha)
{
    double sum = 0, least = INFINITY;
    int64_t moving = 0;
    for (int64_t c = 0; c < n; c++) {
        delta[c] = mx[c] / 2 + mn[c] / 2;
        const double width =
            fmax((double)mx[c] - (double)delta[c], (double)delta[c] - (double)mn[c]);
        /* A channel that never changed has no width. It must not get log 0, so it takes the
         * smallest s of the others below. */
        ls[c] = width > 0 ? (float)((double)alpha * log(width)) : NAN;
        if (!(width > 0))
            continue;
        sum += (double)ls[c];
        least = fmin(least, (double)ls[c]);
        moving++;
    }
    const double mean = moving ? sum / (double)moving : 0;
    for (int64_t c = 0; c < n; c++)
        ls[c] = moving ? (float)((isnan(ls[c]) ? least : (double)ls[c]) - mean) : 0;
}

/* Uploads s for every alpha, and delta; host [2 C] is scratch. */
static enum err begin_side(struct kv_search *k, int side, const float *mn, const float *mx,
                           float *host)
{
    const int64_t C = tensor_count(&k->delta[side]);
    const size_t bytes = (size_t)C * sizeof(*host);
    for (int i = 0; i < KV_SEARCH_GRID; i++) {
        kv_smooth(host, host + C, mn, mx, C, grid(i));
        for (int64_t c = 0; c < C; c++)
            host[c] = expf(host[c]);
        TRY(dev_upload(k->dev, k->s[side][i].data, host, bytes));
        TRY(dev_sync(k->dev));
        k->sample[side][i] = k->error[side][i] = 0;
    }
    TRY(dev_upload(k->dev, k->delta[side].data, host + C, bytes));
    return dev_sync(k->dev);
}

enum err kv_search_begin(struct kv_search *k, const float *const mn[2],
                         const float *const mx[2])
{
    float *host = NULL;
    enum err err = mem_alloc(&host, 2 * (size_t)tensor_count(&k->delta[0]), sizeof(*host));
    for (int side = KV_K; side <= KV_V && !err; side++)
        err = begin_side(k, side, mn[side], mx[side], host);
    mem_free(host);
    return err;
}

/* Sets the errors of all alphas for x [T,K*d]; y of the same shape is scratch. The error is
 * that of the cache, mean (x^ - x)^2. The block's own output would need a forward pass for
 * each alpha. */
static enum err measure_side(struct kv_search *k, int side, const struct block_kv *kv,
                             const struct tensor *y, const struct tensor *x)
{
    const struct kv_format f = kv_format(&kv->spec, kv->layer, (enum kv_side)side);
    const struct tensor to = tensor_heads(*y, k->arch->n_kv);
    const struct tensor from = tensor_heads(*x, k->arch->n_kv);
    const int64_t group = kv_group(k->arch->head_dim, f.group_size);
    for (int i = 0; i < KV_SEARCH_GRID && f.bits < 16; i++) {
        const struct kv_quant p = {.x = &from,
                                   .s = &k->s[side][i],
                                   .shift = &k->delta[side],
                                   .bits = f.bits,
                                   .group_size = group};
        const struct engine_quant engine = {.x = &from,
                                            .s = p.s,
                                            .shift = p.shift,
                                            .target = kv->spec.target,
                                            .side = (enum kv_side)side};
        TRY(kv->spec.target ? dev_fake_quant_engine(k->dev, &to, &engine)
                            : dev_fake_quant_kv(k->dev, &to, &p));
        const struct loss_inputs mse = {.y = y, .t = x, .kind = LOSS_MSE, .weight = 1};
        TRY(dev_loss(k->dev, &k->sample[side][i], NULL, &mse));
    }
    return OK;
}

enum err kv_search_measure(struct kv_search *k, const struct block_acts *x,
                           const struct block_kv *kv)
{
    const struct tensor keys = block_keys(x, k->arch, &kv->spec);
    const struct tensor values = block_values(x, k->arch);
    if (!kv->spec.target) /* else keys have no smoothing */
        TRY(measure_side(k, KV_K, kv, &x->kq, &keys));
    return measure_side(k, KV_V, kv, &x->vq, &values);
}

enum err kv_search_add(struct kv_search *k, struct share *share, int64_t i, int64_t n)
{
    return share_add(share, &k->error[0][0], &k->sample[0][0], 2 * KV_SEARCH_GRID, i, n);
}

/* The paper's 0.5 wins ties, and wins where every error is NaN. */
void kv_search_finish(float alpha[2], const struct kv_search *k)
{
    for (int side = KV_K; side <= KV_V; side++) {
        int best = (KV_SEARCH_GRID - 1) / 2;
        for (int i = 0; i < KV_SEARCH_GRID; i++)
            if (k->error[side][i] < k->error[side][best])
                best = i;
        alpha[side] = grid(best);
    }
}

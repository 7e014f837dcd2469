/* SPDX-License-Identifier: MIT */
#include "tests/model/quantized_fixture.h"

#include "kernels/base/rng.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <string.h>

static enum err quant_block(void *ctx, int64_t i, const struct block_quant **q)
{
    *q = &((struct quantized *)ctx)->q[i];
    return OK;
}

static void fill_lin(struct qlinear *lin, const struct host_mat *m)
{
    must(qlinear_alloc(lin, m->rows, m->cols, (struct lin_format){W_BITS, W_GROUP}));
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t g = 0; g < lin->groups; g++) {
            float lo = 0, hi = 0;
            for (int64_t c = g * W_GROUP; c < (g + 1) * W_GROUP && c < m->cols; c++) {
                lo = fminf(lo, ((const float *)m->data)[r * m->cols + c]);
                hi = fmaxf(hi, ((const float *)m->data)[r * m->cols + c]);
            }
            const uint16_t scale = quant_weight_scale(lo, hi, W_BITS, 11);
            lin->scales[r * lin->groups + g] = scale;
            lin->zeros[r * lin->groups + g] =
                quant_weight_zero(lo, f16_to_f32(scale), W_BITS);
        }
}

static void fill_channels(struct rng *r, float *s, float *delta)
{
    for (int c = 0; c < C; c++) {
        s[c] = (float)(0.6 + rng_uniform(r));
        delta[c] = (float)(0.3 * rng_normal(r));
    }
}

/* Of each window's tokens: windows without a tie, see check_no_tie() of test_model.c. */
static const uint64_t window_seed[WINDOWS] = {181, 423, 430};

void quantized_open(struct quantized *m)
{
    const struct arch a = {.n_layers = LAYERS,
                           .n_heads = H,
                           .n_kv = K,
                           .head_dim = HD,
                           .d_model = D,
                           .d_ff = F,
                           .vocab = V,
                           .max_positions = 64,
                           .norm_eps = 1e-5f,
                           .rope_theta = 10000};
    struct rng r;
    rng_seed(&r, 5);
    memset(m, 0, sizeof(*m));
    fixture_open(&m->f, a, 4);
    for (int i = 0; i < LAYERS; i++) {
        struct block_quant *q = &m->q[i];
        must(block_quant_alloc(q, C));
        q->kv = (struct kv_spec){.method = KV_CHANNEL_TOKEN,
                                 .bits = KV_BITS,
                                 .group_size = KV_GROUP,
                                 .past_only = true,
                                 .window = 1};
        for (int l = 0; l < N_LIN; l++)
            fill_lin(&q->lin[l], &m->f.blocks[i].lin[l]);
        fill_channels(&r, q->k_scale, q->k_shift);
        fill_channels(&r, q->v_scale, q->v_shift);
    }
    m->quant = (struct model_quant){.ctx = m, .block = quant_block};
    for (int w = 0; w < WINDOWS; w++) {
        rng_seed(&r, window_seed[w]);
        for (int t = 0; t < T; t++)
            m->ids[w * T + t] = (int32_t)rng_below(&r, V);
    }
}

void quantized_close(struct quantized *m)
{
    for (int i = 0; i < LAYERS; i++)
        block_quant_free(&m->q[i]);
    fixture_close(&m->f);
}

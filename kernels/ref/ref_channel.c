/* SPDX-License-Identifier: MIT
 *
 * Fake quantization of keys per channel, in blocks of tokens, and its gradient. A group
 * is a block's values of one channel, quantized by kernels/tensor/quant.h with s = 1,
 * shift = 0. */
#include "kernels/ref/ref.h"

#include "kernels/tensor/quant.h"

/* Tokens [begin, end) of channel c. */
struct block {
    int64_t c, begin, end;
    int64_t at_min, at_max; /* the first token with the minimum, the maximum */
    float h, m;
};

static float at(const struct tensor *x, int64_t t, int64_t c)
{
    return ref_get(x, t * x->ld + c);
}

/* The first token that holds an extreme counts: only one gets the path through h, as in the
 * gradient of a maximum. */
static struct block block_of(const struct tensor *x, int64_t c, int64_t begin, int64_t end,
                             int bits)
{
    struct block b = {c, begin, end, begin, begin, 0, 0};
    for (int64_t t = begin + 1; t < end; t++) {
        if (at(x, t, c) < at(x, b.at_min, c))
            b.at_min = t;
        if (at(x, t, c) > at(x, b.at_max, c))
            b.at_max = t;
    }
    b.h = f16_to_f32(quant_kv_scale(at(x, b.at_min, c), at(x, b.at_max, c), bits));
    b.m = f16_to_f32(quant_kv_min(at(x, b.at_min, c)));
    return b;
}

static void ref_fake_quant_kv_channel(struct dev *d, const struct tensor *xq,
                                      const struct tensor *x, int bits, int64_t tokens)
{
    const int64_t C = tensor_width(x), whole = x->dim[0] / tokens * tokens;
    for (int64_t begin = 0; begin < whole; begin += tokens)
        for (int64_t c = 0; c < C; c++) {
            const struct block b = block_of(x, c, begin, begin + tokens, bits);
            for (int64_t t = b.begin; t < b.end; t++) {
                const uint8_t q = quant_kv_code(at(x, t, c), b.h, b.m, bits);
                ref_set(xq, t * xq->ld + c, (double)quant_kv_out(q, b.h, b.m, 1, 0));
            }
        }
    for (int64_t t = whole; t < x->dim[0]; t++)
        for (int64_t c = 0; c < C; c++)
            ref_set(xq, t * xq->ld + c, (double)at(x, t, c));
}

/* dx = g, plus dL/dh / Q at the maximum and minus it at the minimum: the path through h. */
static void block_grad(const struct tensor *dx, const struct tensor *dxq,
                       const struct tensor *x, const struct block *b, int bits,
                       bool accumulate)
{
    const double Q = (double)((1 << bits) - 1), h = (double)b->h, m = (double)b->m;
    double dh = 0;
    for (int64_t t = b->begin; t < b->end && h > 0 && b->h < QUANT_SCALE_MAX; t++) {
        const float v = at(x, t, b->c);
        const double q = (double)quant_kv_code(v, b->h, b->m, bits);
        dh += (double)at(dxq, t, b->c) * (q - ((double)v - m) / h);
    }
    for (int64_t t = b->begin; t < b->end; t++) {
        double g = (double)at(dxq, t, b->c);
        g += t == b->at_max ? dh / Q : 0;
        g -= t == b->at_min ? dh / Q : 0;
        ref_put(dx, t * dx->ld + b->c, g, accumulate);
    }
}

/* The tokens after the last whole block are copied in the forward, so their gradient is
 * dxq. */
static void ref_fake_quant_kv_channel_bwd(struct dev *d, const struct tensor *dx,
                                          const struct tensor *dxq, const struct tensor *x,
                                          int bits, int64_t tokens, bool accumulate)
{
    const int64_t C = tensor_width(x), whole = x->dim[0] / tokens * tokens;
    for (int64_t begin = 0; begin < whole; begin += tokens)
        for (int64_t c = 0; c < C; c++) {
            const struct block b = block_of(x, c, begin, begin + tokens, bits);
            block_grad(dx, dxq, x, &b, bits, accumulate);
        }
    for (int64_t t = whole; t < x->dim[0]; t++)
        for (int64_t c = 0; c < C; c++)
            ref_put(dx, t * dx->ld + c, (double)at(dxq, t, c), accumulate);
}

void ref_fill_channel(struct dev_ops *o)
{
    o->fake_quant_kv_channel = ref_fake_quant_kv_channel;
    o->fake_quant_kv_channel_bwd = ref_fake_quant_kv_channel_bwd;
}

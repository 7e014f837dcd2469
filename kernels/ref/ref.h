/* SPDX-License-Identifier: MIT
 *
 * The reference implementation, which defines every operation: plain loops with f64
 * accumulation. Signatures are those of kernels/dev_ops.h, contracts those of
 * kernels/dev.h. Attention and the KV gradient allocate working memory for each call. */
#ifndef WKVQ_REF_H
#define WKVQ_REF_H

#include "kernels/base/half.h"
#include "kernels/dev_ops.h"

/* Element i of the memory of an act tensor, or of an F16 one. ref_set() rounds to its type,
 * ref_put() may add. */
static inline float ref_get(const struct tensor *x, int64_t i)
{
    const uint16_t *half = x->data;
    if (x->dtype == DT_F32)
        return ((const float *)x->data)[i];
    return x->dtype == DT_F16 ? f16_to_f32(half[i]) : bf16_to_f32(half[i]);
}

static inline void ref_set(const struct tensor *x, int64_t i, double v)
{
    if (x->dtype == DT_F32)
        ((float *)x->data)[i] = (float)v;
    else
        ((uint16_t *)x->data)[i] = bf16_from_f32((float)v);
}

static inline void ref_put(const struct tensor *x, int64_t i, double v, bool accumulate)
{
    ref_set(x, i, accumulate ? v + (double)ref_get(x, i) : v);
}

void ref_fill_norm(struct dev_ops *o);
void ref_fill_attn(struct dev_ops *o);
void ref_fill_quant(struct dev_ops *o);
void ref_fill_channel(struct dev_ops *o);
void ref_fill_engine(struct dev_ops *o);
void ref_fill_train(struct dev_ops *o);
void ref_fill_mlp(struct dev_ops *o);
void ref_fill_refine(struct dev_ops *o);

#endif

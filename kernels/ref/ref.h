/* SPDX-License-Identifier: MIT
 *
 * The reference operations: the definition of each. Signatures as in kernels/dev_ops.h,
 * contracts as in kernels/dev.h. Plain loops, f64 accumulation; attention and the KV
 * gradient take working memory for the length of a call. */
#ifndef WKVQ_REF_H
#define WKVQ_REF_H

#include "kernels/base/half.h"
#include "kernels/dev_ops.h"

/* Element i behind the start of x's memory, whatever the act type. */
static inline float ref_get(const struct tensor *x, int64_t i)
{
    return x->dtype == DT_F32 ? ((const float *)x->data)[i]
                              : bf16_to_f32(((const uint16_t *)x->data)[i]);
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

/* Elements of one row (all dimensions behind the first). */
static inline int64_t ref_width(const struct tensor *x)
{
    int64_t w = 1;
    for (int i = 1; i < x->n_dims; i++)
        w *= x->dim[i];
    return w;
}

void ref_fill_norm(struct dev_ops *o);
void ref_fill_attn(struct dev_ops *o);
void ref_fill_quant(struct dev_ops *o);
void ref_fill_channel(struct dev_ops *o);
void ref_fill_train(struct dev_ops *o);
void ref_fill_mlp(struct dev_ops *o);

#endif

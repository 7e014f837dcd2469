/* SPDX-License-Identifier: MIT
 *
 * The caches of other engines, head by head (kernels/engine_head.h). */
#include "kernels/ref/ref.h"

#include "kernels/engine_head.h"

static void ref_fake_quant_engine(struct dev *d, const struct tensor *xq,
                                  const struct engine_quant *p)
{
    for (int64_t head = 0; head < p->x->dim[1]; head++)
        for (int64_t t = 0; t < p->x->dim[0]; t++)
            engine_head(xq, p, t, head);
}

static void ref_fake_quant_engine_bwd(struct dev *d, const struct kv_grads *grads,
                                      const struct tensor *dxq,
                                      const struct engine_quant *p)
{
    for (int64_t head = 0; head < p->x->dim[1]; head++)
        for (int64_t t = 0; t < p->x->dim[0]; t++)
            engine_head_bwd(grads, dxq, p, t, head);
}

void ref_fill_engine(struct dev_ops *o)
{
    o->fake_quant_engine = ref_fake_quant_engine;
    o->fake_quant_engine_bwd = ref_fake_quant_engine_bwd;
}

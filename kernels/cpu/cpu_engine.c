/* SPDX-License-Identifier: MIT
 *
 * The caches of other engines (kernels/engine_head.h), on all threads. A unit of work is a token
 * in the forward pass, and a head in the backward pass, whose sums over tokens are thereby those
 * of the reference. */
#include "kernels/cpu/cpu.h"
#include "kernels/engine_head.h"

struct engine {
    const struct engine_quant *p;
    const struct tensor *xq; /* dxq in backward */
    const struct kv_grads *grads;
};

static void engine_token(const void *ctx, int64_t t)
{
    const struct engine *k = ctx;
    for (int64_t head = 0; head < k->p->x->dim[1]; head++)
        engine_head(k->xq, k->p, t, head);
}

static void cpu_fake_quant_engine(struct dev *d, const struct tensor *xq,
                                  const struct engine_quant *p)
{
    const struct engine k = {.p = p, .xq = xq};
    cpu_run_rows(d, p->x->dim[0], 16 * tensor_width(p->x), engine_token, &k);
}

static void engine_bwd(const void *ctx, int64_t head)
{
    const struct engine *k = ctx;
    for (int64_t t = 0; t < k->p->x->dim[0]; t++)
        engine_head_bwd(k->grads, k->xq, k->p, t, head);
}

static void cpu_fake_quant_engine_bwd(struct dev *d, const struct kv_grads *grads,
                                      const struct tensor *dxq,
                                      const struct engine_quant *p)
{
    const struct engine k = {.p = p, .xq = dxq, .grads = grads};
    cpu_run_rows(d, p->x->dim[1], 32 * p->x->dim[0] * p->x->dim[2], engine_bwd, &k);
}

void ISA_NAME(cpu_fill_engine)(struct dev_ops *o)
{
    o->fake_quant_engine = cpu_fake_quant_engine;
    o->fake_quant_engine_bwd = cpu_fake_quant_engine_bwd;
}

/* SPDX-License-Identifier: MIT
 *
 * The checks of kernels/dev_engine.h's contracts, then one table call each. */
#include "kernels/dev_engine.h"

#include "kernels/dev_begin.h"
#include "kernels/engine_head.h"

#include <math.h>

enum err dev_engine_check(const struct dev *d, enum kv_target target)
{
    FAIL_IF(target != TARGET_WKVQ && !d->ops.fake_quant_engine, ERR_SUPPORT,
            "kv.target: the device %s does not simulate the cache of another engine; set "
            "run.device to cpu",
            d->ops.name);
    return OK;
}

/* An act tensor [T,K,d] of x's shape. */
static bool like(const struct tensor *y, const struct tensor *x)
{
    bool same = y && y->data && (y->dtype == DT_F32 || y->dtype == DT_BF16) &&
                x->n_dims == 3 && y->n_dims == 3;
    for (int i = 0; same && i < 3; i++)
        same = y->dim[i] == x->dim[i];
    return same && y->ld >= x->dim[1] * x->dim[2];
}

/* Both are F32 with a value for each channel of x, or both are NULL. */
static bool of_channels(const struct tensor *a, const struct tensor *b,
                        const struct tensor *x)
{
    const struct tensor *const both[] = {a, b};
    for (int i = 0; i < 2 && (a || b); i++)
        if (!both[i] || both[i]->dtype != DT_F32 ||
            tensor_count(both[i]) != x->dim[1] * x->dim[2])
            return false;
    return true;
}

static bool fits(const struct engine_quant *p)
{
    const struct tensor *x = p->x;
    return like(x, x) && p->target != TARGET_WKVQ && engine_head_fits(p) &&
           of_channels(p->s, p->shift, x) &&
           (!kv_target_has_scales(p->target) ||
            (!p->s && p->scale > 0 && isfinite(p->scale)));
}

enum err dev_fake_quant_engine(struct dev *d, const struct tensor *xq,
                               const struct engine_quant *p)
{
    OP_BEGIN(fake_quant_engine, started);
    WANT(fits(p) && like(xq, p->x),
         "fake_quant_engine: want xq, x [T,K,d], d as the target's check says, s and shift "
         "[K*d] or neither or a scale, and a target");
    d->ops.fake_quant_engine(d, xq, p);
    OP_END(DEV_FAKE_QUANT, started);
}

enum err dev_fake_quant_engine_bwd(struct dev *d, const struct kv_grads *grads,
                                   const struct tensor *dxq, const struct engine_quant *p)
{
    OP_BEGIN(fake_quant_engine_bwd, started);
    WANT(
        fits(p) && like(dxq, p->x) && like(grads->dx, p->x),
        "fake_quant_engine_bwd: want dx, dxq, x [T,K,d], d as the target's check says, s and "
        "shift [K*d] or neither or a scale, and a target");
    WANT(of_channels(grads->dls, grads->dshift, p->x) && (!grads->dls || p->s),
         "fake_quant_engine_bwd: want dls, dshift [K*d] or neither, with s and shift");
    WANT(!grads->accumulate || grads->dx->data != dxq->data,
         "fake_quant_engine_bwd: dx is dxq while accumulating");
    d->ops.fake_quant_engine_bwd(d, grads, dxq, p);
    OP_END(DEV_FAKE_QUANT, started);
}

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
    return is_act(y) && is_3d(x) && same_shape(y, x);
}

static bool fits(const struct engine_quant *p)
{
    const struct tensor *x = p->x;
    return like(x, x) && p->target != TARGET_WKVQ && engine_head_fits(p) &&
           per_channel(p->s, p->shift, x) &&
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
    WANT(per_channel(grads->dls, grads->dshift, p->x) && (!grads->dls || p->s),
         "fake_quant_engine_bwd: want dls, dshift [K*d] or neither, with s and shift");
    WANT(!grads->accumulate || grads->dx->data != dxq->data,
         "fake_quant_engine_bwd: dx is dxq while accumulating");
    d->ops.fake_quant_engine_bwd(d, grads, dxq, p);
    OP_END(DEV_FAKE_QUANT, started);
}

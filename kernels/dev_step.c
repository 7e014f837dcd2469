/* SPDX-License-Identifier: MIT
 *
 * On a device that does not record, work is called each time. One in host memory reads the rates of
 * AdamW there. */
#include "kernels/dev_step.h"

#include "kernels/dev_begin.h"

#include <math.h>
#include <string.h>

enum err dev_repeat(struct dev *d, int64_t key, enum err (*work)(void *ctx), void *ctx)
{
    FAIL_IF(d->failed, d->failed, "repeat: device %s has already failed", d->ops.name);
    return d->ops.repeat && !d->synchronous ? d->ops.repeat(d, key, work, ctx) : work(ctx);
}

void dev_forget(struct dev *d)
{
    if (d->ops.forget)
        d->ops.forget(d);
}

enum err dev_put(struct dev *d, void *dst, const void *host_src, size_t bytes)
{
    FAIL_IF(d->failed, d->failed, "put: device %s has already failed", d->ops.name);
    WANT(dst && host_src && (uintptr_t)dst % 4 == 0,
         "put: want a source, and dst aligned to 4");
    WANT(bytes > 0 && bytes <= DEV_PUT_BYTES && bytes % 4 == 0,
         "put: want 4 to %d bytes, a multiple of 4", DEV_PUT_BYTES);
    if (!d->ops.memory) {
        memcpy(dst, host_src, bytes);
        return OK;
    }
    OP_BEGIN(put, started);
    d->ops.put(d, dst, host_src, bytes);
    OP_END(DEV_COPY, started);
}

struct adamw_rates dev_adamw_rates(const struct adamw *o)
{
    return (struct adamw_rates){.lr = o->lr,
                                .fix1 = (float)(1 - pow((double)o->beta1, (double)o->step)),
                                .fix2 = (float)(1 - pow((double)o->beta2, (double)o->step)),
                                .step = o->step};
}

static void adamw_here(struct dev *d, const struct tensor *p, const struct tensor *g,
                       const struct tensor *m, const struct tensor *v,
                       const struct adamw *o)
{
    struct adamw now = *o;
    if (o->unless && *o->unless)
        return;
    if (o->rates) {
        now.lr = o->rates->lr;
        now.step = o->rates->step;
    }
    d->ops.adamw(d, p, g, m, v, &now);
}

enum err dev_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                   const struct tensor *m, const struct tensor *v, const struct adamw *o)
{
    OP_BEGIN(adamw, started);
    WANT(is_f32(p) && contiguous(p) && vec(g, tensor_count(p)) && vec(m, tensor_count(p)) &&
             vec(v, tensor_count(p)) && (o->rates || o->step >= 1),
         "adamw: want p, g, m, v F32 of one size, step >= 1");
    if (d->ops.memory)
        d->ops.adamw(d, p, g, m, v, o);
    else
        adamw_here(d, p, g, m, v, o);
    OP_END(DEV_OPTIMIZER, started);
}

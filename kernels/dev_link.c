/* SPDX-License-Identifier: MIT */
#include "kernels/dev_link.h"

#include "kernels/dev_begin.h"

bool dev_link(struct dev *d, const struct ranks *r, char about[DEV_LINK_TEXT])
{
    about[0] = '\0';
    if (!d->ops.link || d->link_tried || d->failed)
        return d->linked;
    d->link_tried = true;
    d->linked = d->ops.link(d, r, about);
    return d->linked;
}

void dev_unlink(struct dev *d)
{
    if (d->linked)
        d->ops.unlink(d);
    d->linked = false;
}

bool dev_linked(const struct dev *d)
{
    return d->linked;
}

enum err dev_transfer(struct dev *d, float *const *to, const int64_t *to_n,
                      const float *const *from, const int64_t *from_n)
{
    OP_BEGIN(transfer, started);
    WANT(d->linked, "transfer: the device is not linked");
    d->ops.transfer(d, to, to_n, from, from_n);
    OP_END(DEV_COPY, started);
}

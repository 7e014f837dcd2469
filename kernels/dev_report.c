/* SPDX-License-Identifier: MIT
 *
 * On a device that works in host memory, every operation waits, and the report is written by the
 * operations that wait on any device. */
#include "kernels/dev_report.h"

#include "kernels/dev_begin.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

size_t dev_report_bytes(int64_t n)
{
    return (size_t)n * sizeof(double) + sizeof(int32_t);
}

enum err dev_report_open(struct dev_report *r, struct dev *d, int64_t n)
{
    void *memory = NULL;
    *r = (struct dev_report){.dev = d, .n = n};
    TRY(dev_alloc(d, &memory, dev_report_bytes(n)));
    r->loss = memory;
    r->bad = (int32_t *)(r->loss + n);
    for (int i = 0; i < REPORT_SLOTS; i++)
        TRY(dev_host_alloc(d, &r->copy[i], dev_report_bytes(n)));
    return dev_zero(d, memory, dev_report_bytes(n));
}

void dev_report_close(struct dev_report *r)
{
    if (!r->dev)
        return;
    dev_free(r->dev, r->loss); /* first: it waits for copies that are queued */
    for (int i = 0; i < REPORT_SLOTS; i++)
        dev_host_free(r->dev, r->copy[i]);
    *r = (struct dev_report){0};
}

enum err dev_report_loss(struct dev_report *r, int64_t at, const struct tensor *dy,
                         const struct loss_inputs *in)
{
    struct dev *d = r->dev;
    WANT(at >= 0 && at < r->n, "report: loss %" PRId64 " of %" PRId64, at, r->n);
    if (!d->ops.loss_to) {
        TRY(dev_loss(d, &r->loss[at], dy, in));
        if (!isfinite(r->loss[at]))
            *r->bad = 1;
        return OK;
    }
    OP_BEGIN(loss_to, started);
    TRY(dev_check_loss(dy, in));
    d->ops.loss_to(d, &r->loss[at], r->bad, dy, in);
    OP_END(DEV_LOSS, started);
}

enum err dev_report_check(struct dev_report *r, const struct tensor *x)
{
    struct dev *d = r->dev;
    bool finite;
    if (!d->ops.find_bad) {
        TRY(dev_all_finite(d, &finite, x));
        if (!finite)
            *r->bad = 1;
        return OK;
    }
    OP_BEGIN(find_bad, started);
    WANT(is_act(x), "report: want an act tensor");
    d->ops.find_bad(d, r->bad, x);
    OP_END(DEV_OPTIMIZER, started);
}

static enum err check_slot(int slot)
{
    WANT(slot >= 0 && slot < REPORT_SLOTS, "report: slot %d of %d", slot, REPORT_SLOTS);
    return OK;
}

enum err dev_report_send(struct dev_report *r, int slot)
{
    struct dev *d = r->dev;
    TRY(check_slot(slot));
    if (!d->ops.send) {
        memcpy(r->copy[slot], r->loss, dev_report_bytes(r->n));
        return OK;
    }
    OP_BEGIN(send, started);
    d->ops.send(d, r->copy[slot], r->loss, dev_report_bytes(r->n), slot);
    OP_END(DEV_COPY, started);
}

enum err dev_report_read(struct dev_report *r, int slot, const double **loss, bool *bad)
{
    struct dev *d = r->dev;
    TRY(check_slot(slot));
    FAIL_IF(d->failed, d->failed, "report: device %s has already failed", d->ops.name);
    if (d->ops.sent)
        d->ops.sent(d, slot);
    *loss = r->copy[slot];
    *bad = *(const int32_t *)(*loss + r->n) != 0;
    return d->failed;
}

/* SPDX-License-Identifier: MIT
 *
 * Training steps whose results are read one step late, where a device queues work:
 *
 *   host     queue 0 | queue 1 | read 0 | queue 2 | read 1 | ...
 *   device             step 0           | step 1           | step 2
 *
 * Losses and the test for finite values stay on the device until a copy of them is read
 * (kernels/dev_report.h). After a value that is not finite the device moves no parameter any more,
 * so the state stays the one that led to it. The host then takes that step once more and waits for
 * each result, which names sample and tensor, and saves the state, as on any device.
 *
 * What a step computes is the same each time, so the device can start all of it by one call
 * (kernels/dev_step.h). The rates and the sample are put to fixed places before it. */
#include "calib/batch/batch_sum.h"
#include "calib/calibration.h"
#include "calib/cost.h"
#include "calib/model/carve.h"
#include "kernels/base/clock.h"

#include <inttypes.h>

static void place(struct late *l, struct carve *c, const struct arch *a,
                  const struct calib_settings *s, int64_t n_targets)
{
    l->rates = carve_bytes(c, N_FQ_KINDS * sizeof(*l->rates));
    l->target = carve_2d(c, s->act, n_targets * s->seqlen, a->d_model);
}

size_t late_bytes(const struct arch *a, const struct calib_settings *s, int64_t n_targets)
{
    struct carve c = {0};
    struct late l;
    place(&l, &c, a, s, n_targets);
    return c.used;
}

enum err late_open(struct calibration *c)
{
    struct late *l = &c->late;
    if (!recon_reads_late(&c->recon, &c->fq, c->share.ranks))
        return OK;
    TRY(dev_alloc(c->dev, &l->memory, late_bytes(c->arch, c->s, c->n_targets)));
    struct carve at = {.base = l->memory};
    place(l, &at, c->arch, c->s, c->n_targets);
    return OK;
}

void late_close(struct calibration *c)
{
    dev_forget(c->dev);
    dev_free(c->dev, c->late.memory);
    c->late = (struct late){0};
}

/* Where target j of the block in work stands. */
static struct tensor target_place(const struct calibration *c, int64_t j)
{
    struct tensor t = c->late.target;
    const int64_t T = c->s->seqlen, i = (c->block + j) % c->n_targets;
    t.data = (char *)t.data + (size_t)(i * T * t.ld) * dtype_bytes(t.dtype);
    t.dim[0] = T;
    return t;
}

/* recon_targets: target j of the sample in work. */
static enum err placed_target(void *ctx, struct tensor *t, int64_t j)
{
    *t = target_place(ctx, j);
    return OK;
}

/* Queues copies of sample i to its places, and starts bringing the next one to the device. */
static enum err place_sample(struct calibration *c, int64_t i)
{
    const int64_t n = recon_reach(&c->recon, c->block);
    c->sample = i;
    TRY(stream_read(&c->x, &c->recon.x, i));
    for (int64_t j = c->s->crr_terms == TERMS_ALL ? 0 : n; j <= n; j++) {
        const struct tensor to = target_place(c, j);
        TRY(stream_read(calib_target(c, c->block + j), &to, i));
    }
    return calib_prefetch_sample(c, i + 1);
}

/* Sample i of the n of a step. */
struct part_of_step {
    struct calibration *c;
    struct fq_step move;
    int64_t i, n;
};

/* Queues what a step computes for a sample: before the first one the weights, after the last one
 * the move of the parameters. */
static enum err compute(void *ctx)
{
    const struct part_of_step *p = ctx;
    struct calibration *c = p->c;
    const struct recon_targets t = {c, placed_target, 1.0f / (float)p->n, true,
                                    p->i * recon_terms(&c->recon, c->block)};
    double none;
    if (p->i == 0)
        TRY(fakequant_apply(&c->fq));
    TRY(recon_loss(&c->recon, &none, &c->fq, c->src, c->block, &t, true));
    TRY(fakequant_add_sample(&c->fq, p->i, p->n));
    TRY(fakequant_report_gradients(&c->fq, &c->recon.report));
    return p->i == p->n - 1 ? fakequant_step(&c->fq, &p->move) : OK;
}

/* The host reads which experts a token reaches, so their operations are not the same each time. */
static enum err queue_part(struct part_of_step *p)
{
    struct calibration *c = p->c;
    TRY(place_sample(c, c->at.step * c->s->batch + p->i));
    if (c->arch->n_experts)
        return compute(p);
    return dev_repeat(c->dev, p->i * (c->s->batch + 1) + p->n, compute, p);
}

/* Queues a step of n samples. *stop: the caller asked to stop between two of them. */
static enum err queue_step(struct calibration *c, int64_t n, bool *stop)
{
    struct part_of_step p = {.c = c, .move = calib_next_move(c), .n = n};
    p.move.unless = c->recon.report.bad;
    p.move.rates = c->late.rates;
    *stop = false;
    TRY(fakequant_put_rates(&c->fq, &p.move));
    for (; p.i < n && !*stop; p.i++) {
        TRY(queue_part(&p));
        *stop = p.i < n - 1 && calib_stop_asked(c);
    }
    return OK;
}

/* The loss of a step with n samples, in the order in which a step that waits adds it up. */
static double step_loss(const struct calibration *c, const double *loss, int64_t n)
{
    const int64_t terms = recon_terms(&c->recon, c->block);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double sample = 0;
        for (int64_t k = 0; k < terms; k++)
            sample += loss[i * terms + k];
        sum += sample;
    }
    return sum;
}

/* Takes a step again that met a value that is not finite. The parameters are those before it. */
static enum err repeat(struct calibration *c, int64_t step)
{
    c->at.step = step;
    TRY(calib_train_step(c));
    FAIL(ERR_NUMERIC,
         "block %" PRId64 ", epoch %" PRId64 ", step %" PRId64
         ": a value was not finite, but all are when the step is repeated; the device does "
         "not compute the same bits twice",
         c->block, c->at.epoch, step);
}

/* Reads the oldest report. timed: the time since the last reading is that of a step. */
static enum err read_step(struct calibration *c, bool timed)
{
    struct late *l = &c->late;
    const int64_t step = l->step[l->first].step, n = l->step[l->first].n;
    const double *loss;
    bool bad;
    TRY(dev_report_read(&c->recon.report, l->first, &loss, &bad));
    if (bad)
        return repeat(c, step);
    l->first = (l->first + 1) % REPORT_SLOTS;
    l->queued--;
    c->sample = step * c->s->batch + n - 1;
    calib_step_done(c, n, timed ? l->read : -1, step_loss(c, loss, n));
    l->read = clock_s();
    return OK;
}

/* The last step may have been done for long when the one before it is read, so its time counts only
 * where there is no other. */
enum err late_settle(struct calibration *c)
{
    const bool timed = c->tokens_per_s <= 0 || calib_epoch_steps(c->s) == 1;
    while (c->late.queued)
        TRY(read_step(c, timed));
    return OK;
}

static enum err settle_and_stop(struct calibration *c)
{
    TRY(late_settle(c));
    return calib_stopped(c);
}

enum err late_train_step(struct calibration *c)
{
    struct late *l = &c->late;
    const int slot = (l->first + l->queued) % REPORT_SLOTS;
    const int64_t n = calib_step_samples(c, c->at.step);
    bool stop;
    if (!l->queued)
        l->read = clock_s();
    TRY(queue_step(c, n, &stop));
    if (stop)
        return settle_and_stop(c);
    TRY(dev_report_send(&c->recon.report, slot));
    l->step[slot].step = c->at.step++;
    l->step[slot].n = n;
    l->queued++;
    if (l->queued == REPORT_SLOTS)
        TRY(read_step(c, true));
    return calib_stop_asked(c) ? settle_and_stop(c) : OK;
}

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
 * each result, which names sample and tensor, and saves the state, as on any device. */
#include "calib/calibration.h"
#include "kernels/base/clock.h"

#include <inttypes.h>

/* Queues losses and gradients of the n samples of a step. *stop: the caller asked to stop between
 * two samples. */
static enum err queue_samples(struct calibration *c, int64_t n, bool *stop)
{
    const int64_t terms = recon_terms(&c->recon, c->block);
    double none;
    *stop = false;
    for (int64_t i = 0; i < n && !*stop; i++) {
        TRY(calib_sample_loss(c, &none, c->at.step * c->s->batch + i, 1.0f / (float)n, true,
                              i * terms));
        TRY(fakequant_add_sample(&c->fq, i, n));
        TRY(fakequant_report_gradients(&c->fq, &c->recon.report));
        *stop = i < n - 1 && calib_stop_asked(c);
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
    TRY(fakequant_apply(&c->fq));
    TRY(queue_samples(c, n, &stop));
    if (stop)
        return settle_and_stop(c);
    TRY(calib_move_parameters(c, c->recon.report.bad));
    TRY(dev_report_send(&c->recon.report, slot));
    l->step[slot].step = c->at.step++;
    l->step[slot].n = n;
    l->queued++;
    if (l->queued == REPORT_SLOTS)
        TRY(read_step(c, true));
    return calib_stop_asked(c) ? settle_and_stop(c) : OK;
}

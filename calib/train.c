/* SPDX-License-Identifier: MIT
 *
 * Trains one block: epochs of AdamW steps on calibration.batch samples each. The loss over
 * the same first samples is measured at the start and after every epoch, and the best
 * parameters are kept. */
#include "calib/batch/batch_sum.h"
#include "calib/calibration.h"
#include "calib/cost.h"
#include "kernels/base/clock.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

void calib_take_time(struct calibration *c)
{
    const double now = clock_s();
    c->at.stats.seconds += now - c->clock;
    c->at.stats.seconds_gemm += dev_gemm_seconds(c->dev, true);
    c->clock = now;
}

void calib_notify(struct calibration *c, enum calib_event_kind kind, double loss)
{
    if (!c->io->event)
        return;
    const struct calib_event e = {.kind = kind,
                                  .block = c->block,
                                  .n_blocks = c->arch->n_layers,
                                  .epoch = c->at.epoch,
                                  .epochs = c->s->epochs,
                                  .sample = c->sample,
                                  .samples = kind == CALIB_EVAL ? calib_eval_samples(c->s)
                                                                : c->s->samples,
                                  .loss = loss,
                                  .done = c->units_done / c->units_total,
                                  .restored = c->units_restored / c->units_total,
                                  .tokens_per_s = c->tokens_per_s,
                                  .stats = kind == CALIB_BLOCK ? &c->at.stats : NULL};
    c->io->event(c->io->ctx, &e);
}

bool calib_stop_asked(const struct calibration *c)
{
    return c->io->stop && c->io->stop(c->io->ctx);
}

struct stream *calib_target(struct calibration *c, int64_t block)
{
    return &c->target[(block + c->n_targets) % c->n_targets];
}

/* recon_targets: target j of the sample in work. */
static enum err stage_target(void *ctx, struct tensor *t, int64_t j)
{
    struct calibration *c = ctx;
    return stream_stage(calib_target(c, c->block + j), t,
                        share_local(&c->share, c->sample));
}

enum err calib_prefetch_sample(struct calibration *c, int64_t at)
{
    TRY(stream_load(&c->x, at));
    for (int64_t j = 0; j < c->n_targets; j++)
        TRY(stream_load(&c->target[j], at));
    TRY(stream_prefetch(&c->x, at));
    for (int64_t j = 0; j < c->n_targets; j++)
        TRY(stream_prefetch(&c->target[j], at));
    return OK;
}

/* *loss of sample i with the applied parameters, times weight; with grads also their
 * gradients. */
static enum err sample_loss(struct calibration *c, double *loss, int64_t i, float weight,
                            bool grads)
{
    const struct recon_targets t = {c, stage_target, weight, false, 0};
    const int64_t at = share_local(&c->share, i);
    c->sample = i;
    TRY(stream_read(&c->x, &c->recon.x, at));
    TRY(calib_prefetch_sample(c, at + 1));
    return recon_loss(&c->recon, loss, &c->fq, c->src, c->block, &t, grads);
}

enum err calib_stopped_if(const struct calibration *c, bool stop)
{
    FAIL_IF(stop, ERR_STOPPED,
            "stopped with %" PRId64 " of %" PRId64 " blocks finished and saved",
            c->n_finished, c->arch->n_layers);
    return OK;
}

enum err calib_stopped(struct calibration *c)
{
    if (calib_learns(c->s, c->block))
        TRY(calib_save_partial(c));
    FAIL(ERR_STOPPED,
         "stopped in block %" PRId64 " of %" PRId64 ", epoch %" PRId64 ", step %" PRId64,
         c->block + 1, c->arch->n_layers, c->at.epoch, c->at.step);
}

/* Saves the state that led to a non-finite value and reports where it is. */
static enum err not_finite(struct calibration *c, const char *what)
{
    if (calib_learns(c->s, c->block))
        TRY(calib_save_partial(c));
    FAIL(ERR_NUMERIC,
         "block %" PRId64 ", epoch %" PRId64 ", step %" PRId64 " (sample %" PRId64
         "): the %s is not finite; the learning rates or the range of run.compute do not "
         "suit this block, or its weights are damaged",
         c->block, c->at.epoch, c->at.step, c->sample, what);
}

/* *sum = the losses of samples first .. first + n in their order, from all ranks, as they stand
 * in c->share.loss. */
static enum err sum_losses(struct calibration *c, double *sum, int64_t first, int64_t n)
{
    share_losses(&c->share, first, n);
    *sum = 0;
    for (int64_t k = 0; k < n; k++) {
        c->sample = first + k;
        if (!isfinite(c->share.loss[k]))
            return not_finite(c, "loss");
        *sum += c->share.loss[k];
    }
    return OK;
}

/* *mean = loss over the samples that are measured, with the current parameters. A step's
 * own loss is of its samples alone, and from before the step: it cannot tell which parameters are
 * best. */
static enum err measured_loss(struct calibration *c, double *mean)
{
    const int64_t n = calib_eval_samples(c->s);
    const double unit = (double)(recon_reach(&c->recon, c->block) + 1);
    const double units = c->units_done + (double)n * unit;
    double *loss = c->share.loss;
    TRY(fakequant_apply(&c->fq));
    for (int64_t i = 0; i < n; i++) {
        if (!share_own(&c->share, i))
            continue;
        TRY(sample_loss(c, &loss[i], i, 1, false));
        c->units_done += unit;
        calib_notify(c, CALIB_EVAL, loss[i]);
        if (!c->share.ranks && isfinite(loss[i]) && calib_stop_asked(c))
            return calib_stopped(c);
    }
    c->units_done = units;
    TRY(sum_losses(c, mean, 0, n));
    *mean /= (double)n;
    return c->share.ranks && share_any(&c->share, calib_stop_asked(c)) ? calib_stopped(c)
                                                                       : OK;
}

/* Returns the learning rate of a step, counted from 0 over all epochs: base (1 + cos(pi
 * step / steps)) / 2 falls from base to nearly 0 (Loshchilov, Hutter 2017), without
 * restarts. */
static float rate(const struct calibration *c, float base, int64_t step)
{
    if (c->s->schedule == SCHEDULE_CONSTANT)
        return base;
    const double total = (double)(c->s->epochs * calib_epoch_steps(c->s));
    return (float)((double)base * (0.5 + 0.5 * cos(M_PI * (double)step / total)));
}

/* Returns the rate of the rounding offsets. By default an offset can cross its whole range,
 * from one end to the other, in all steps together at a constant rate. */
static float round_rate(const struct calibration *c)
{
    if (c->s->lr_round > 0)
        return c->s->lr_round;
    return 1 / (float)(c->s->epochs * calib_epoch_steps(c->s));
}

/* Returns the rate of the shift, which does not learn where no bias could hold it. */
static float shift_rate(const struct calibration *c)
{
    return c->s->kv.target && !arch_holds_value_shift(c->arch) ? 0 : c->s->lr_shift;
}

int64_t calib_step_samples(const struct calibration *c, int64_t step)
{
    const int64_t left = c->s->samples - step * c->s->batch;
    return left < c->s->batch ? left : c->s->batch;
}

/* Gradients are checked before the parameters move, so a failure saves the state that led to
 * it. */
static enum err check_gradients(struct calibration *c)
{
    bool bad;
    char name[128], what[160];
    TRY(fakequant_bad_gradient(&c->fq, name, sizeof(name), &bad));
    if (!bad)
        return OK;
    snprintf(what, sizeof(what), "gradient of the %s", name);
    return not_finite(c, what);
}

/* Keeps the gradients of sample i of a step for their sum over the samples of all ranks. */
static enum err keep_gradients(struct calibration *c, int64_t i)
{
    const struct tensor *grad[FQ_SUMS];
    fakequant_gradients(&c->fq, grad);
    return share_keep(&c->share, c->dev, grad, FQ_SUMS, i);
}

/* The block's gradients = their sums over the n samples of a step, as fakequant_add_sample() adds
 * them up. */
static enum err sum_gradients(struct calibration *c, int64_t n)
{
    const struct tensor *grad[FQ_SUMS];
    fakequant_gradients(&c->fq, grad);
    return share_sum(&c->share, c->dev, grad, FQ_SUMS, n);
}

/* Adds loss and gradients of sample i of the n of a step, which count 1 / n each. */
static enum err add_sample(struct calibration *c, int64_t i, int64_t n)
{
    double *loss = &c->share.loss[i];
    TRY(sample_loss(c, loss, c->at.step * c->s->batch + i, 1.0f / (float)n, true));
    if (c->share.ranks)
        return keep_gradients(c, i);
    if (!isfinite(*loss))
        return not_finite(c, "loss");
    TRY(fakequant_add_sample(&c->fq, i, n));
    return check_gradients(c);
}

/* Leaves the step's gradients and mean loss on every rank. */
static enum err add_samples(struct calibration *c, double *loss, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!share_own(&c->share, i))
            continue;
        TRY(add_sample(c, i, n));
        if (!c->share.ranks && i < n - 1 && calib_stop_asked(c))
            return calib_stopped(c);
    }
    TRY(sum_losses(c, loss, c->at.step * c->s->batch, n));
    if (!c->share.ranks)
        return OK;
    TRY(sum_gradients(c, n));
    return check_gradients(c);
}

struct fq_step calib_next_move(const struct calibration *c)
{
    const int64_t step = c->at.epoch * calib_epoch_steps(c->s) + c->at.step;
    return (struct fq_step){
        .lr = {rate(c, c->s->lr_clip, step), rate(c, c->s->lr_smooth, step),
               rate(c, shift_rate(c), step), rate(c, round_rate(c), step)},
        .weight_decay = c->s->weight_decay,
        .step = step + 1}; /* AdamW counts its steps from 1. */
}

void calib_step_done(struct calibration *c, int64_t n, double begin, double loss)
{
    const double rate_now = (double)(n * c->s->seqlen) / (clock_s() - begin);
    c->units_done +=
        (double)(COST_STEP_PASSES * n * (recon_reach(&c->recon, c->block) + 1));
    if (begin >= 0)
        c->tokens_per_s =
            c->tokens_per_s > 0 ? 0.9 * c->tokens_per_s + 0.1 * rate_now : rate_now;
    calib_notify(c, CALIB_STEP, loss);
}

/* One step: W^ from the parameters, the mean loss of its samples, the gradients, AdamW. A
 * stop between samples leaves the step undone. */
enum err calib_train_step(struct calibration *c)
{
    const int64_t n = calib_step_samples(c, c->at.step);
    const double begin = clock_s();
    double loss = 0;
    const struct fq_step move = calib_next_move(c);
    TRY(fakequant_apply(&c->fq));
    TRY(add_samples(c, &loss, n));
    TRY(fakequant_step(&c->fq, &move));
    TRY(dev_sync(c->dev));
    c->at.step++;
    calib_step_done(c, n, begin, loss);
    return share_any(&c->share, calib_stop_asked(c)) ? calib_stopped(c) : OK;
}

/* The start is the first candidate for the best, so training never ends with a larger loss
 * than it began with. */
static enum err measure_start(struct calibration *c)
{
    struct calib_block_stats *s = &c->at.stats;
    TRY(measured_loss(c, &s->start_loss));
    s->best_loss = s->start_loss;
    c->at.measured = true;
    return fakequant_keep_best(&c->fq);
}

/* Measures the epoch, keeps its parameters if they are the best so far, and saves the
 * block. */
static enum err end_epoch(struct calibration *c)
{
    struct calib_block_stats *s = &c->at.stats;
    double loss;
    TRY(measured_loss(c, &loss));
    s->epoch_loss[s->n_epochs++] = loss;
    c->at.epoch++;
    c->at.step = 0;
    if (loss < s->best_loss) {
        s->best_loss = loss;
        s->best_epoch = c->at.epoch;
        TRY(fakequant_keep_best(&c->fq));
    }
    calib_notify(c, CALIB_EPOCH, loss);
    return calib_save_partial(c);
}

static enum err save_if_due(struct calibration *c)
{
    if (!c->io->save_seconds || clock_s() - c->saved < c->io->save_seconds)
        return OK;
    TRY(late_settle(c));
    return calib_save_partial(c);
}

static enum err train(struct calibration *c)
{
    const bool late = c->late.rates;
    dev_forget(c->dev); /* the steps of the block before */
    c->saved = clock_s();
    while (c->at.epoch < c->s->epochs) {
        while (c->at.step < calib_epoch_steps(c->s)) {
            TRY(late ? late_train_step(c) : calib_train_step(c));
            TRY(save_if_due(c));
        }
        TRY(late_settle(c));
        TRY(end_epoch(c));
    }
    if (!c->s->epochs) /* no step says which experts tokens reach */
        return OK;
    if (!c->fq.gptq) /* which has named them */
        TRY(fakequant_unreached(&c->fq, c->at.stats.unreached));
    TRY(fakequant_restore_best(&c->fq));
    return fakequant_clip_none(&c->fq, c->at.stats.unreached);
}

enum err calib_train_block(struct calibration *c)
{
    if (!calib_quantizes(c->s, c->block))
        return OK;
    if (!c->at.measured)
        TRY(measure_start(c));
    if (calib_learns(c->s, c->block))
        TRY(train(c));
    return fakequant_apply(&c->fq);
}

double calib_units_done(const struct calibration *c)
{
    const struct block_cost b = cost_of_block(c->arch, c->s, c->block);
    const double gathered = c->fq.gptq ? 0 : b.gather; /* GPTQ's codes are not saved */
    const double epoch = (double)c->at.epoch;
    const double in_epoch =
        fmin((double)(c->at.step * c->s->batch) / (double)c->s->samples, 1);
    return gathered + b.scan + (c->at.measured + epoch) * b.measure +
           (epoch + in_epoch) * b.epoch;
}

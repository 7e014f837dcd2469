/* SPDX-License-Identifier: MIT
 *
 * Training of one block: epochs of single-sample AdamW steps, the loss over the whole set
 * at the start and after every epoch, and the best of them kept. */
#include "calib/run.h"
#include "kernels/base/clock.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

void run_take_time(struct run *r)
{
    const double now = clock_s();
    r->at.stats.seconds += now - r->clock;
    r->at.stats.seconds_gemm += dev_gemm_seconds(r->dev, true);
    r->clock = now;
}

void run_event(struct run *r, enum calib_event_kind kind, double loss)
{
    if (!r->io->event)
        return;
    const struct calib_event e = {.kind = kind,
                                  .block = r->block,
                                  .n_blocks = r->arch->n_layers,
                                  .epoch = r->at.epoch,
                                  .epochs = r->s->epochs,
                                  .sample = r->sample,
                                  .samples = r->s->samples,
                                  .loss = loss,
                                  .done = r->units_done / r->units_total,
                                  .tokens_per_s = r->tokens_per_s,
                                  .stats = kind == CALIB_BLOCK ? &r->at.stats : NULL};
    r->io->event(r->io->ctx, &e);
}

bool run_stop(const struct run *r)
{
    return r->io->stop && r->io->stop(r->io->ctx);
}

static enum err stage_target(void *ctx, struct tensor *t, int64_t j)
{
    struct run *r = ctx;
    return stream_stage(&r->target[(r->block + j) % r->n_targets], t, r->sample);
}

/* Loss of sample i with the applied parameters; grads: their gradients too. */
static enum err sample_loss(struct run *r, double *loss, int64_t i, bool grads)
{
    const struct recon_targets t = {r, stage_target};
    r->sample = i;
    TRY(stream_read(&r->x, &r->r.x, i));
    TRY(stream_prefetch(&r->x, i + 1));
    for (int64_t j = 0; j < r->n_targets; j++)
        TRY(stream_prefetch(&r->target[j], i + 1));
    return recon_loss(&r->r, loss, &r->f, r->src, r->block, &t, grads);
}

static enum err stopped(struct run *r)
{
    if (fakequant_learns(&r->f, r->block))
        TRY(run_save_partial(r));
    FAIL(ERR_STOPPED, "stopped in block %" PRId64 ", epoch %" PRId64 ", step %" PRId64,
         r->block, r->at.epoch, r->at.step);
}

/* Save what led to a non-finite value, then say where it is. */
static enum err not_finite(struct run *r, const char *what)
{
    if (fakequant_learns(&r->f, r->block))
        TRY(run_save_partial(r));
    FAIL(ERR_NUMERIC,
         "block %" PRId64 ", epoch %" PRId64 ", step %" PRId64 " (sample %" PRId64
         "): the %s is not finite; lower the learning rates, or look at the checkpoint's "
         "values in this block",
         r->block, r->at.epoch, r->at.step, r->sample, what);
}

/* Mean loss over the set with the present parameters. */
static enum err set_loss(struct run *r, double *mean)
{
    double sum = 0, loss;
    TRY(fakequant_apply(&r->f));
    for (int64_t i = 0; i < r->s->samples; i++) {
        TRY(sample_loss(r, &loss, i, false));
        if (!isfinite(loss))
            return not_finite(r, "loss");
        sum += loss;
        r->units_done += (double)(recon_reach(&r->r, r->block) + 1);
        run_event(r, CALIB_EVAL, loss);
        if (run_stop(r))
            return stopped(r);
    }
    *mean = sum / (double)r->s->samples;
    return OK;
}

static float rate(const struct run *r, float base, int64_t step)
{
    if (r->s->schedule == SCHEDULE_CONSTANT)
        return base;
    const double total = (double)(r->s->epochs * r->s->samples);
    return (float)((double)base * (0.5 + 0.5 * cos(M_PI * (double)step / total)));
}

/* Unless it is given: over all steps an offset can just go from one end to the other
 * when the rate is constant, half of that when it falls. */
static float round_rate(const struct run *r)
{
    if (r->s->lr_round > 0)
        return r->s->lr_round;
    return 1 / (float)(r->s->epochs * r->s->samples);
}

static enum err train_step(struct run *r)
{
    const int64_t step = r->at.epoch * r->s->samples + r->at.step;
    const double begin = clock_s();
    const float lr[N_FQ_RATES] = {
        rate(r, r->s->lr_clip, step), rate(r, r->s->lr_smooth, step),
        rate(r, r->s->lr_shift, step), rate(r, round_rate(r), step)};
    double loss;
    bool bad;
    char name[128];
    TRY(fakequant_apply(&r->f));
    TRY(sample_loss(r, &loss, r->at.step, true));
    if (!isfinite(loss))
        return not_finite(r, "loss");
    TRY(fakequant_bad_gradient(&r->f, name, sizeof(name), &bad));
    if (bad) {
        char what[160];
        snprintf(what, sizeof(what), "gradient of the %s", name);
        return not_finite(r, what);
    }
    TRY(fakequant_step(&r->f, lr, r->s->weight_decay, step + 1));
    TRY(dev_sync(r->dev));
    r->at.step++;
    r->units_done += 3 * (double)(recon_reach(&r->r, r->block) + 1);
    const double rate_now = (double)r->s->seqlen / (clock_s() - begin);
    r->tokens_per_s =
        r->tokens_per_s > 0 ? 0.9 * r->tokens_per_s + 0.1 * rate_now : rate_now;
    run_event(r, CALIB_STEP, loss);
    return run_stop(r) ? stopped(r) : OK;
}

static enum err measure_start(struct run *r)
{
    struct calib_block_stats *s = &r->at.stats;
    TRY(set_loss(r, &s->start_loss));
    s->best_loss = s->start_loss;
    r->at.measured = true;
    return fakequant_keep_best(&r->f);
}

static enum err end_epoch(struct run *r)
{
    struct calib_block_stats *s = &r->at.stats;
    double loss;
    TRY(set_loss(r, &loss));
    s->epoch_loss[s->n_epochs++] = loss;
    r->at.epoch++;
    r->at.step = 0;
    if (loss < s->best_loss) {
        s->best_loss = loss;
        s->best_epoch = r->at.epoch;
        TRY(fakequant_keep_best(&r->f));
    }
    run_event(r, CALIB_EPOCH, loss);
    return run_save_partial(r);
}

static enum err train(struct run *r)
{
    while (r->at.epoch < r->s->epochs) {
        while (r->at.step < r->s->samples)
            TRY(train_step(r));
        TRY(end_epoch(r));
    }
    return fakequant_restore_best(&r->f);
}

enum err run_train_block(struct run *r)
{
    if (!fakequant_quantizes(&r->f, r->block))
        return OK;
    if (!r->at.measured)
        TRY(measure_start(r));
    if (fakequant_learns(&r->f, r->block))
        TRY(train(r));
    return fakequant_apply(&r->f);
}

int run_scans_kv(const struct run *r, int64_t block)
{
    if (r->s->kv.method != KV_CHANNEL_TOKEN || !kv_quantizes_layer(&r->s->kv, block))
        return 0;
    return r->kv.dev ? 2 : 1;
}

bool run_gathers(const struct run *r)
{
    return r->search.dev || r->f.gptq_start;
}

/* A training step is a forward pass and two of backward, through the whole chain. */
double run_block_units(const struct run *r, int64_t block)
{
    const double chain = (double)(recon_reach(&r->r, block) + 1);
    const double epochs = fakequant_learns(&r->f, block) ? (double)r->s->epochs : 0;
    if (!fakequant_quantizes(&r->f, block))
        return 0;
    return (double)r->s->samples *
           (chain * (1 + 4 * epochs) + run_scans_kv(r, block) + run_gathers(r) + r->f.gptq);
}

double run_units_so_far(const struct run *r)
{
    const double chain = (double)(recon_reach(&r->r, r->block) + 1);
    const double samples = (double)r->s->samples;
    return chain * ((r->at.measured + 4 * (double)r->at.epoch) * samples +
                    3 * (double)r->at.step) +
           (run_scans_kv(r, r->block) + run_gathers(r)) * samples;
}

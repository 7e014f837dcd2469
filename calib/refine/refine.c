/* SPDX-License-Identifier: MIT
 *
 * The loop of refinement: the teacher's states once, then steps of AdamW over batches of
 * windows, with a look at the guard's windows at the start, after every quarter of the steps
 * and at the end. */
#include "calib/model/model.h"
#include "calib/refine/refine_priv.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "kernels/dev_engine.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define WARM_UP 0.1 /* share of the steps in which rates rise */
#define BETA1 0.9f
#define BETA2 0.95f
#define EPSILON 1e-8f

static int64_t steps_of_epoch(const struct refine_settings *s)
{
    return (s->samples + s->batch - 1) / s->batch;
}

/* Returns whether any process is asked to stop. All of them call it. */
static bool stopped(const struct refine *r)
{
    return share_any(&r->share, r->io->stop && r->io->stop(r->io->ctx));
}

static enum err refine_stopped(const struct refine *r)
{
    FAIL(ERR_STOPPED, "stopped at step %" PRId64 " of refinement", r->step);
}

static void tell(struct refine *r, double loss, double guard)
{
    const struct refine_event e = {.step = r->step,
                                   .steps = r->steps,
                                   .loss = loss,
                                   .guard = guard,
                                   .start = r->out->start,
                                   .done = r->units_done / r->units_total};
    if (r->io->event)
        r->io->event(r->io->ctx, &e);
}

/* --- the teacher -------------------------------------------------------------------- */

/* A window of this process through the layer in w. */
static enum err teacher_window(struct refine *r, const struct block_weights *w, int64_t i)
{
    const struct tensor *x = student_state(&r->st, 0, 0),
                        *out = student_state(&r->st, 0, 1);
    TRY(stream_read(&r->teacher, x, i));
    if (share_own(&r->share, i + 1))
        TRY(stream_prefetch(&r->teacher, i + 1));
    TRY(block_forward(&r->st.acts, r->st.scratch, r->arch, w, NULL, out, x));
    return stream_write(&r->teacher, i, out);
}

/* Layer b of the full-precision model over all windows. */
static enum err teacher_layer(struct refine *r, int64_t b)
{
    const struct model_source *full = source_full(r->src);
    const int64_t n = r->teacher.samples;
    struct block_src src;
    TRY(full->block(full->ctx, b, &src));
    TRY(block_weights_load(&r->st.w, r->arch, b, &src));
    for (int64_t i = 0; i < n; i++) {
        if (share_own(&r->share, i))
            TRY(teacher_window(r, &r->st.w, i));
        r->units_done += 1 / (double)r->arch->n_layers;
        const bool ends_batch = i + 1 == n || (i + 1) % r->s->batch == 0;
        if (ends_batch && stopped(r))
            return refine_stopped(r);
    }
    tell(r, NAN, NAN);
    if (full->release)
        full->release(full->ctx, b);
    return OK;
}

static enum err embed_windows(struct refine *r, const struct host_mat *embed)
{
    const struct tensor *x = student_state(&r->st, 0, 0);
    for (int64_t i = 0; i < r->teacher.samples; i++) {
        if (!share_own(&r->share, i))
            continue;
        TRY(model_embed(r->dev, r->arch, x, embed, r->tokens + i * r->s->seqlen));
        TRY(stream_write(&r->teacher, i, x));
    }
    return OK;
}

/* Leaves the normalized last state of every window in every process, because any process may learn
 * from it in some epoch. */
static enum err last_states(struct refine *r, const struct tensor *gain)
{
    const struct tensor *x = student_state(&r->st, 0, 0),
                        *out = student_state(&r->st, 0, 1);
    for (int64_t i = 0; i < r->teacher.samples; i++) {
        if (share_own(&r->share, i)) {
            TRY(stream_read(&r->teacher, x, i));
            TRY(model_last(r->dev, r->arch, out, &r->distill.s, x, gain));
        }
        TRY(share_sample(&r->share, r->dev, out, i));
        TRY(stream_write(&r->teacher, i, out));
    }
    return dev_sync(r->dev);
}

/* Full-precision states of all windows, layer by layer: each layer is loaded once, and a
 * window's state replaces the one before it. What stays is the normalized last state, D
 * wide. Logits would be V wide, so the head is applied again in every step. Each process computes
 * its share of the windows. */
static enum err teacher_states(struct refine *r)
{
    const struct model_source *full = source_full(r->src);
    struct host_mat embed, norm, head;
    const bool behind = r->arch->norms == NORMS_BEHIND;
    const struct tensor *gain = /* room; the next layer overwrites it */
        &r->st.w.norm[behind ? GAIN_MLP_OUT : GAIN_MLP];
    TRY(full->ends(full->ctx, &embed, &norm, &head));
    TRY(embed_windows(r, &embed));
    for (int64_t b = 0; b < r->arch->n_layers; b++)
        TRY(teacher_layer(r, b));
    TRY(host_gain_upload(r->dev, gain, &norm, r->arch));
    return last_states(r, gain);
}

/* --- the loss ----------------------------------------------------------------------- */

static const int32_t *window(const struct refine *r, int64_t i)
{
    return r->tokens + i * r->s->seqlen;
}

/* Takes windows first[0..n) through the student, which is the quantized model with the
 * parameters as they are now. */
static enum err forward(struct refine *r, const int64_t *first, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        r->ids[i] = window(r, first[i]);
    return student_forward(&r->st, r->ids, n);
}

/* Mean KL and CE of window i, which went through the student as number `slot`. g: also its
 * gradients. */
static enum err window_loss(struct refine *r, double loss[2], int64_t i, int64_t slot,
                            const struct distill_grads *g)
{
    struct tensor teacher;
    TRY(stream_stage(&r->teacher, &teacher, i));
    const struct distill_pair p = {student_state(&r->st, slot, r->arch->n_layers),
                                   &r->st.final_norm, &teacher, window(r, i)};
    return distill_loss(&r->distill, loss, &p, g);
}

/* *loss of a window, and the gradients of its last states, in r->dx[slot], and of the final norm.
 * They are those of the mean over the batch, so the rates do not depend on the size of a batch. */
static enum err learn_from(struct refine *r, double *loss, int64_t i, int64_t slot)
{
    const int64_t last = r->arch->n_layers;
    struct student_grads one;
    double sums[2];
    TRY(student_begin_window(&r->st, &one, last));
    const struct distill_grads g = {&r->dx[slot], &one.dnorm[0], r->s->kl, r->s->ce,
                                    1 / (float)r->s->batch};
    TRY(window_loss(r, sums, i, slot, &g));
    *loss = ((double)r->s->kl * sums[0] + (double)r->s->ce * sums[1]) / (double)r->s->batch;
    return student_end_window(&r->st, last, slot);
}

/* --- steps -------------------------------------------------------------------------- */

/* An order of the samples for each epoch, by Fisher and Yates. It follows from seed and
 * epoch alone, so a resumed run needs no saved order. */
static void shuffle(struct refine *r, int64_t epoch)
{
    struct rng g;
    if (r->epoch_of_order == epoch)
        return;
    rng_seed(&g, r->s->seed + (uint64_t)epoch);
    for (int64_t i = 0; i < r->s->samples; i++)
        r->order[i] = i;
    for (int64_t i = r->s->samples - 1; i > 0; i--) {
        const int64_t j = (int64_t)rng_below(&g, (uint64_t)i + 1), x = r->order[i];
        r->order[i] = r->order[j];
        r->order[j] = x;
    }
    r->epoch_of_order = epoch;
}

static const char *const kind_name[N_REFINE_KINDS] = {"weight scales", "norms", "smoothing",
                                                      "shift"};

/* Rates rise linearly over the first tenth of the steps, w, because AdamW's moments are not
 * means of many gradients yet. Then they fall as base (1 + cos(pi (t - w) / (steps - w))) /
 * 2, from base to 0. */
static float rate(const struct refine *r, float base)
{
    const double warm = ceil(WARM_UP * (double)r->steps), at = (double)r->step;
    if (at < warm)
        return base * (float)((at + 1) / warm);
    return base * (float)(0.5 + 0.5 * cos(M_PI * (at - warm) / ((double)r->steps - warm)));
}

static struct tensor kind_of(const struct refine *r, struct tensor x, int kind)
{
    return tensor_rows(x, r->st.first[kind], r->st.first[kind + 1] - r->st.first[kind]);
}

/* One step of AdamW for each kind of parameter, without weight decay. Gradients are checked
 * first, so a bad one is named before it spoils the parameters. */
static enum err update(struct refine *r)
{
    struct student *st = &r->st;
    for (int k = 0; k < N_REFINE_KINDS; k++) {
        if (r->s->lr[k] <= 0 || st->first[k] == st->first[k + 1])
            continue;
        const struct tensor p = kind_of(r, st->p, k), g = kind_of(r, st->g, k);
        const struct tensor m = kind_of(r, st->m, k), v = kind_of(r, st->v, k);
        const struct adamw o = {rate(r, r->s->lr[k]), BETA1, BETA2, EPSILON, 0,
                                r->step + 1};
        bool finite;
        TRY(dev_all_finite(r->dev, &finite, &g));
        FAIL_IF(!finite, ERR_NUMERIC,
                "refinement, step %" PRId64
                ": a gradient of the %s is not finite; start again with lower rates in "
                "refine.lr_*",
                r->step + 1, kind_name[k]);
        TRY(dev_adamw(r->dev, &p, &g, &m, &v, &o));
    }
    return OK;
}

/* Writes which windows the next step takes. A last, shorter batch of an epoch is filled from the
 * beginning of the epoch's order. */
static void choose_batch(struct refine *r)
{
    const int64_t per_epoch = steps_of_epoch(r->s), first = r->step % per_epoch;
    shuffle(r, r->step / per_epoch);
    for (int64_t k = 0; k < r->s->batch; k++)
        r->chosen[k] = r->order[(first * r->s->batch + k) % r->s->samples];
}

/* Mean loss of the chosen windows, and the gradients of their last states. */
static enum err batch_loss(struct refine *r, double *loss)
{
    double *each = r->share.loss;
    for (int64_t k = r->share.from; k < r->share.to; k++)
        TRY(learn_from(r, &each[k], r->chosen[k], k - r->share.from));
    share_losses(&r->share, 0, r->s->batch);
    *loss = 0;
    for (int64_t k = 0; k < r->s->batch; k++) {
        *loss += each[k];
        FAIL_IF(!isfinite(*loss), ERR_NUMERIC,
                "refinement, step %" PRId64 ", window %" PRId64
                ": the loss is not finite; start again with lower rates in refine.lr_*",
                r->step + 1, r->chosen[k]);
    }
    return student_sum_windows(&r->st, r->arch->n_layers);
}

/* One batch: forward, loss, backward, update. It counts as four passes per window: forward,
 * its repetition in the backward (unless activations are kept), and two for the
 * gradients. */
static enum err take_step(struct refine *r)
{
    const int64_t own = r->share.to - r->share.from;
    double loss;
    choose_batch(r);
    TRY(forward(r, r->chosen + r->share.from, own));
    r->st.code_step = rate(r, r->s->lr_round);
    TRY(batch_loss(r, &loss));
    TRY(student_backward(&r->st, r->dx, own));
    r->units_done += 4 * (double)r->s->batch;
    TRY(update(r));
    TRY(dev_sync(r->dev));
    r->step++;
    tell(r, loss, NAN);
    return OK;
}

/* --- the guard ---------------------------------------------------------------------- */

/* Adds the divergence of guard windows [first, first + n), n at most a batch. */
static enum err guard_batch(struct refine *r, double *sum, int64_t first, int64_t n)
{
    const struct share *h = &r->share;
    const int64_t end = h->to < n ? h->to : n, own = end - h->from;
    double loss[2];
    for (int64_t k = 0; k < own; k++)
        r->chosen[k] = first + h->from + k;
    if (own > 0)
        TRY(forward(r, r->chosen, own));
    for (int64_t k = 0; k < own; k++) {
        TRY(window_loss(r, loss, r->chosen[k], k, NULL));
        h->loss[h->from + k] = loss[0];
    }
    share_losses(&r->share, 0, n);
    for (int64_t k = 0; k < n; k++)
        *sum += h->loss[k];
    r->units_done += (double)n;
    return stopped(r) ? refine_stopped(r) : OK;
}

/* Mean divergence over the guard's windows. KL alone judges, whatever the training loss is:
 * the guard asks how close the student is to the full-precision model. */
static enum err guard_loss(struct refine *r, double *mean)
{
    const int64_t end = r->s->samples + r->s->guard;
    double sum = 0;
    for (int64_t i = r->s->samples; i < end; i += r->s->batch)
        TRY(guard_batch(r, &sum, i, end - i < r->s->batch ? end - i : r->s->batch));
    *mean = sum / (double)r->s->guard;
    FAIL_IF(!isfinite(*mean), ERR_NUMERIC,
            "refinement, step %" PRId64 ": the loss on the guard's windows is not finite",
            r->step);
    return OK;
}

static enum err copy_params(struct refine *r, const struct tensor *y,
                            const struct tensor *x)
{
    const int64_t n = tensor_count(x);
    const struct tensor to = tensor_2d(y->data, DT_F32, 1, n),
                        from = tensor_2d(x->data, DT_F32, 1, n);
    return dev_copy(r->dev, &to, &from);
}

static size_t code_bytes(const struct refine *r)
{
    return r->best_codes ? (size_t)r->st.codes.dim[0] : 0;
}

static enum err keep_best(struct refine *r)
{
    TRY(copy_params(r, &r->st.best, &r->st.p));
    return r->best_codes
               ? dev_download(r->dev, r->best_codes, r->st.codes.data, code_bytes(r))
               : OK;
}

static enum err restore_best(struct refine *r)
{
    TRY(copy_params(r, &r->st.p, &r->st.best));
    return r->best_codes
               ? dev_upload(r->dev, r->st.codes.data, r->best_codes, code_bytes(r))
               : OK;
}

/* Measures the guard and keeps the parameters if they are the best so far. The start is the
 * first candidate. */
static enum err look(struct refine *r)
{
    double now = 0;
    TRY(guard_loss(r, &now));
    if (r->step == 0)
        r->out->start = r->out->best = now;
    if (r->step == 0 || now < r->out->best) {
        r->out->best = now;
        r->out->best_step = r->step;
        TRY(keep_best(r));
    }
    tell(r, NAN, now);
    return OK;
}

/* The guard is asked after these steps. */
static bool looks_after(const struct refine *r, int64_t step)
{
    for (int64_t k = 1; k <= REFINE_LOOKS; k++)
        if (step == r->steps * k / REFINE_LOOKS)
            return true;
    return false;
}

/* --- the run ------------------------------------------------------------------------ */

static enum err open_teacher(struct refine *r)
{
    const struct calib_settings as = {.samples = r->s->samples + r->s->guard,
                                      .seqlen = r->s->seqlen,
                                      .act = r->s->act,
                                      .memory_bytes = r->s->memory_bytes};
    size_t bytes;
    TRY(stream_bytes(&bytes, r->arch, &as));
    return stream_open(&r->teacher, r->io->streams, r->dev, r->arch, &as, "teacher",
                       stream_place_of(&as, (double)bytes));
}

static enum err open_ends(struct refine *r)
{
    r->served = r->src;
    if (r->s->head.bits >= 16)
        return OK;
    TRY(ends_source_open(&r->ends, r->src, r->s->head, dev_threads(r->dev)));
    r->served = &r->ends.source;
    return OK;
}

static enum err open_run(struct refine *r, const struct block_quant *layers)
{
    const int64_t T = r->s->seqlen, D = r->arch->d_model;
    const int64_t batch = r->s->batch;
    TRY(share_open(&r->share, r->io->ranks, batch, batch, "refine.batch"));
    const int64_t own = r->share.to - r->share.from;
    TRY(open_ends(r));
    TRY(student_open(&r->st, r->dev, r->arch, r->served, layers, r->s, &r->share));
    TRY(mem_alloc(&r->order, (size_t)r->s->samples, sizeof(*r->order)));
    TRY(mem_alloc(&r->chosen, (size_t)batch, sizeof(*r->chosen)));
    TRY(mem_alloc(&r->ids, (size_t)own, sizeof(*r->ids)));
    TRY(mem_alloc(&r->dx, (size_t)own, sizeof(*r->dx)));
    TRY(dev_alloc(r->dev, &r->dx_memory, (size_t)(own * T * D) * sizeof(float)));
    for (int64_t i = 0; i < own; i++)
        r->dx[i] = tensor_2d((float *)r->dx_memory + i * T * D, DT_F32, T, D);
    if (r->st.learns_codes)
        TRY(mem_alloc(&r->best_codes, (size_t)r->st.codes.dim[0], 1));
    TRY(distiller_open(&r->distill, r->dev, r->arch, r->served, source_full(r->src), T,
                       r->s->act));
    TRY(open_teacher(r));
    return share_link(&r->share, r->dev, student_gradients_most(&r->st),
                      block_later_bytes(r->arch, T, r->s->act));
}

static void close_run(struct refine *r)
{
    stream_close(&r->teacher);
    distiller_close(&r->distill);
    dev_free(r->dev, r->dx_memory);
    student_close(&r->st);
    ends_source_close(&r->ends);
    share_close(&r->share);
    mem_free(r->best_codes);
    mem_free(r->dx);
    mem_free(r->ids);
    mem_free(r->chosen);
    mem_free(r->order);
}

static enum err check(const struct refine_settings *s)
{
    const struct {
        const char *key;
        int64_t value, lo, hi;
    } count[] = {{"samples", s->samples, 1, REFINE_SAMPLES_MAX},
                 {"seqlen", s->seqlen, RANGE_REFINE_SEQLEN},
                 {"epochs", s->epochs, RANGE_REFINE_EPOCHS},
                 {"batch", s->batch, RANGE_REFINE_BATCH},
                 {"guard", s->guard, RANGE_REFINE_GUARD}};
    for (size_t i = 0; i < ARRAY_LEN(count); i++)
        FAIL_IF(count[i].value < count[i].lo || count[i].value > count[i].hi, ERR_USAGE,
                "refine.%s is %" PRId64 ", want %" PRId64 " to %" PRId64, count[i].key,
                count[i].value, count[i].lo, count[i].hi);
    return OK;
}

/* Saves the last step before the run stops. */
static enum err save_and_stop(struct refine *r)
{
    TRY(refine_save(r));
    return refine_stopped(r);
}

static bool save_is_due(const struct refine *r)
{
    const double seconds = r->io->streams->save_seconds;
    return seconds > 0 && clock_s() - r->saved >= seconds;
}

/* What follows a step: a look at the guard and a saved state where they are due. */
static enum err after_step(struct refine *r)
{
    const bool looks = looks_after(r, r->step);
    if (stopped(r))
        return save_and_stop(r);
    if (looks) {
        const enum err err = look(r);
        if (err)
            return err == ERR_STOPPED ? save_and_stop(r) : err;
    }
    return looks || save_is_due(r) ? refine_save(r) : OK;
}

/* A run that stopped between a step and the look behind it looks when it is resumed. A second look
 * at the same parameters changes nothing. */
static enum err steps(struct refine *r, bool restored)
{
    if (!restored || looks_after(r, r->step))
        TRY(look(r));
    r->saved = clock_s();
    while (r->step < r->steps) {
        TRY(take_step(r));
        TRY(after_step(r));
    }
    return restore_best(r);
}

enum err refine_run(struct refine_result *out, struct dev *d, const struct arch *a,
                    const struct model_source *src, struct block_quant *layers,
                    const struct refine_settings *s, const int32_t *tokens,
                    const struct refine_io *io)
{
    enum err err = OK;
    *out = (struct refine_result){0};
    struct refine r = {.dev = d,
                       .arch = a,
                       .src = src,
                       .s = s,
                       .io = io,
                       .tokens = tokens,
                       .out = out,
                       .epoch_of_order = -1};
    bool restored;
    TRY(check(s));
    TRY(dev_attn_check(d, a->head_dim));
    for (int64_t i = 0; i < a->n_layers; i++)
        TRY(dev_engine_check(d, layers[i].kv.target));
    r.steps = s->epochs * steps_of_epoch(s);
    r.units_total = (double)(s->samples + s->guard) +
                    (double)((REFINE_LOOKS + 1) * s->guard) +
                    4 * (double)(r.steps * s->batch);
    TRY_OUT(open_run(&r, layers));
    /* First, so that progress begins where the last run ended. */
    TRY_OUT(refine_restore(&r, &restored));
    TRY_OUT(teacher_states(&r));
    TRY_OUT(steps(&r, restored));
    TRY_OUT(student_export(&r.st, layers));
    out->steps = r.steps;
out:
    close_run(&r);
    return err;
}

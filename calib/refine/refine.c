/* SPDX-License-Identifier: MIT
 *
 * The loop of refinement: the teacher's states once, then steps of AdamW over batches of
 * windows, with a look at the guard's windows at the start, after every quarter of the steps
 * and at the end. */
#include "calib/refine/refine.h"

#include "calib/model/ends.h"
#include "calib/model/model.h"
#include "calib/refine/distill.h"
#include "calib/refine/student.h"
#include "calib/streams.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define STEPS_PER_SAVE 8
#define WARM_UP 0.1 /* share of the steps in which rates rise */
#define BETA1 0.9f
#define BETA2 0.95f
#define EPSILON 1e-8f

struct refine {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src; /* what is quantized */
    /* The student's source: src, or where the head is quantized src with the quantized ends. */
    const struct model_source *served;
    struct ends_source ends;
    const struct refine_settings *s;
    const struct refine_io *io;
    const int32_t *tokens;
    struct student st;
    struct stream teacher; /* normalized last hidden states, act */
    int64_t *order;        /* [samples] of the epoch in work */
    int64_t epoch_of_order;
    struct distiller distill;
    struct tensor *dx; /* [batch] [T,D] F32 */
    void *dx_memory;
    int64_t *chosen;     /* [batch] windows in work */
    const int32_t **ids; /* [batch] their tokens */
    uint8_t *best_codes; /* host, as st.codes; NULL: codes are fixed */
    struct refine_result *out;
    int64_t step, steps;
    double units_done, units_total; /* windows through the model once, forward */
};

static int64_t steps_of_epoch(const struct refine_settings *s)
{
    return (s->samples + s->batch - 1) / s->batch;
}

static bool stopped(const struct refine *r)
{
    return r->io->stop && r->io->stop(r->io->ctx);
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

/* Layer b of the full-precision model over all windows. */
static enum err teacher_layer(struct refine *r, struct block_weights *w,
                              const struct tensor *x, const struct tensor *out, int64_t b)
{
    const struct model_source *full = source_full(r->src);
    struct block_src src;
    TRY(full->block(full->ctx, b, &src));
    TRY(block_weights_load(w, r->arch, b, &src));
    for (int64_t i = 0; i < r->teacher.samples; i++) {
        TRY(stream_read(&r->teacher, x, i));
        TRY(stream_prefetch(&r->teacher, i + 1));
        TRY(block_forward(&r->st.acts, r->st.scratch, r->arch, w, NULL, out, x));
        TRY(stream_write(&r->teacher, i, out));
        r->units_done += 1 / (double)r->arch->n_layers;
        FAIL_IF(stopped(r), ERR_STOPPED, "stopped at step %" PRId64 " of refinement",
                r->step);
    }
    tell(r, NAN, NAN);
    if (full->release)
        full->release(full->ctx, b);
    return OK;
}

/* Full-precision states of all windows, layer by layer: each layer is loaded once, and a
 * window's state replaces the one before it. What stays is the normalized last state, D
 * wide. Logits would be V wide, so the head is applied again in every step. */
static enum err teacher_states(struct refine *r)
{
    const struct model_source *full = source_full(r->src);
    struct host_mat embed, norm, head;
    const struct tensor *x = student_state(&r->st, 0, 0),
                        *out = student_state(&r->st, 0, 1);
    struct tensor *const gain = &r->st.w.norm1; /* room; the next layer overwrites it */
    TRY(full->ends(full->ctx, &embed, &norm, &head));
    for (int64_t i = 0; i < r->teacher.samples; i++) {
        TRY(model_embed(r->dev, r->arch, x, &embed, r->tokens + i * r->s->seqlen));
        TRY(stream_write(&r->teacher, i, x));
    }
    for (int64_t b = 0; b < r->arch->n_layers; b++)
        TRY(teacher_layer(r, &r->st.w, x, out, b));
    TRY(host_mat_upload(r->dev, gain, &norm));
    for (int64_t i = 0; i < r->teacher.samples; i++) {
        TRY(stream_read(&r->teacher, x, i));
        TRY(model_last(r->dev, r->arch, out, &r->distill.s, x, gain));
        TRY(stream_write(&r->teacher, i, out));
    }
    return dev_sync(r->dev);
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

/* Mean KL and CE of window i, which went through the student as number `slot` of a batch.
 * grads: also the gradient of its last states, in r->dx[slot]. It is that of the mean over
 * the batch, so the rates do not depend on the size of a batch. */
static enum err window_loss(struct refine *r, double loss[2], int64_t i, int64_t slot,
                            bool grads)
{
    struct tensor teacher;
    TRY(stream_stage(&r->teacher, &teacher, i));
    const struct distill_pair p = {student_state(&r->st, slot, r->arch->n_layers),
                                   &r->st.final_norm, &teacher, window(r, i)};
    const struct distill_grads g = {&r->dx[slot], &r->st.dfinal, r->s->kl, r->s->ce,
                                    1 / (float)r->s->batch};
    return distill_loss(&r->distill, loss, &p, grads ? &g : NULL);
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
    *loss = 0;
    for (int64_t k = 0; k < r->s->batch; k++) {
        double sums[2];
        TRY(window_loss(r, sums, r->chosen[k], k, true));
        *loss +=
            ((double)r->s->kl * sums[0] + (double)r->s->ce * sums[1]) / (double)r->s->batch;
        FAIL_IF(!isfinite(*loss), ERR_NUMERIC,
                "refinement, step %" PRId64 ", window %" PRId64
                ": the loss is not finite; start again with lower rates in refine.lr_*",
                r->step + 1, r->chosen[k]);
    }
    return OK;
}

/* One batch: forward, loss, backward, update. It counts as four passes per window: forward,
 * its repetition in the backward (unless activations are kept), and two for the
 * gradients. */
static enum err take_step(struct refine *r)
{
    double loss;
    choose_batch(r);
    TRY(dev_zero(r->dev, r->st.g.data, (size_t)tensor_count(&r->st.g) * sizeof(float)));
    TRY(forward(r, r->chosen, r->s->batch));
    TRY(batch_loss(r, &loss));
    r->st.round_step = rate(r, r->s->lr_round);
    TRY(student_backward(&r->st, r->dx, r->s->batch));
    r->units_done += 4 * (double)r->s->batch;
    TRY(update(r));
    TRY(dev_sync(r->dev));
    r->step++;
    tell(r, loss, NAN);
    return OK;
}

/* --- the guard ---------------------------------------------------------------------- */

/* Adds the divergence of guard windows [first, first + n). */
static enum err guard_batch(struct refine *r, double *sum, int64_t first, int64_t n)
{
    double loss[2];
    for (int64_t i = 0; i < n; i++)
        r->chosen[i] = first + i;
    TRY(forward(r, r->chosen, n));
    for (int64_t i = 0; i < n; i++) {
        TRY(window_loss(r, loss, first + i, i, false));
        *sum += loss[0];
    }
    r->units_done += (double)n;
    FAIL_IF(stopped(r), ERR_STOPPED, "stopped at step %" PRId64 " of refinement", r->step);
    return OK;
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

/* --- saving ------------------------------------------------------------------------- */

enum {
    SAVED_STEP,
    SAVED_GUARD,
    SAVED_P,
    SAVED_M,
    SAVED_V,
    SAVED_BEST,
    SAVED_CODES, /* the last three only where codes learn */
    SAVED_OFFSETS,
    SAVED_BEST_CODES,
    N_SAVED
};
static const char *const saved_name[N_SAVED] = {
    "refine.step", "refine.guard", "refine.p",       "refine.m",         "refine.v",
    "refine.best", "refine.codes", "refine.offsets", "refine.best_codes"};

static int saved_count(const struct refine *r)
{
    return r->best_codes ? N_SAVED : SAVED_CODES;
}

/* The tensors on the device that are saved. */
static const struct tensor *saved_tensor(const struct refine *r, int i)
{
    const struct tensor *const all[] = {&r->st.p,    &r->st.m,     &r->st.v,
                                        &r->st.best, &r->st.codes, &r->st.offsets};
    return all[i - SAVED_P];
}

static size_t bytes_of(const struct tensor *x)
{
    return (size_t)tensor_count(x) * dtype_bytes(x->dtype);
}

static enum err save_all(struct refine *r, struct named_tensor *t)
{
    int64_t position[] = {r->step, r->out->best_step};
    double loss[] = {r->out->start, r->out->best};
    t[SAVED_STEP].t = tensor_1d(position, DT_I64, 2);
    t[SAVED_GUARD].t = tensor_1d(loss, DT_I64, 2); /* the bits of two doubles */
    for (int i = SAVED_P; i < saved_count(r) && i < SAVED_BEST_CODES; i++) {
        const struct tensor *from = saved_tensor(r, i);
        TRY(mem_alloc(&t[i].t.data, bytes_of(from), 1));
        TRY(dev_download(r->dev, t[i].t.data, from->data, bytes_of(from)));
        t[i].t = tensor_1d(t[i].t.data, from->dtype, tensor_count(from));
    }
    if (r->best_codes)
        t[SAVED_BEST_CODES].t = tensor_1d(r->best_codes, DT_U8, r->st.codes.dim[0]);
    for (int i = 0; i < saved_count(r); i++)
        snprintf(t[i].name, sizeof(t[i].name), "%s", saved_name[i]);
    return r->io->save(r->io->ctx, t, saved_count(r));
}

static enum err save(struct refine *r)
{
    struct named_tensor *t = NULL;
    if (!r->io->save)
        return OK;
    TRY(mem_calloc(&t, N_SAVED, sizeof(*t)));
    const enum err err = save_all(r, t);
    for (int i = SAVED_P; i < SAVED_BEST_CODES; i++)
        mem_free(t[i].t.data);
    mem_free(t);
    return err;
}

static const struct tensor *find(const struct named_tensor *t, int n, int what,
                                 int64_t size, enum dtype type)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(t[i].name, saved_name[what]) && t[i].t.dtype == type &&
            tensor_count(&t[i].t) == size)
            return &t[i].t;
    return NULL;
}

static enum err restore_tensor(struct refine *r, const struct named_tensor *t, int n,
                               int what)
{
    const struct tensor *to =
        what == SAVED_BEST_CODES ? &r->st.codes : saved_tensor(r, what);
    const struct tensor *x = find(t, n, what, tensor_count(to), to->dtype);
    FAIL_IF(!x, ERR_MISMATCH, "the saved refinement has no '%s' of this model's size",
            saved_name[what]);
    if (what == SAVED_BEST_CODES) {
        memcpy(r->best_codes, x->data, bytes_of(x));
        return OK;
    }
    return dev_upload(r->dev, to->data, x->data, bytes_of(x));
}

static enum err restore(struct refine *r, bool *restored)
{
    const struct named_tensor *t = NULL;
    int n = 0;
    *restored = false;
    if (r->io->load)
        TRY(r->io->load(r->io->ctx, &t, &n));
    if (!n)
        return OK;
    const struct tensor *position = find(t, n, SAVED_STEP, 2, DT_I64);
    const struct tensor *loss = find(t, n, SAVED_GUARD, 2, DT_I64);
    FAIL_IF(!position || !loss, ERR_MISMATCH, "the saved refinement lacks its position");
    r->step = ((const int64_t *)position->data)[0];
    r->out->best_step = ((const int64_t *)position->data)[1];
    r->out->start = ((const double *)loss->data)[0];
    r->out->best = ((const double *)loss->data)[1];
    FAIL_IF(r->step < 0 || r->step > r->steps, ERR_MISMATCH,
            "the saved refinement is at step %" PRId64 " of %" PRId64, r->step, r->steps);
    for (int i = SAVED_P; i < saved_count(r); i++)
        TRY(restore_tensor(r, t, n, i));
    TRY(dev_sync(r->dev));
    r->units_done += 4 * (double)(r->step * r->s->batch);
    *restored = true;
    return OK;
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
    TRY(open_ends(r));
    TRY(student_open(&r->st, r->dev, r->arch, r->served, layers, r->s));
    TRY(mem_alloc(&r->order, (size_t)r->s->samples, sizeof(*r->order)));
    TRY(mem_alloc(&r->chosen, (size_t)r->s->batch, sizeof(*r->chosen)));
    TRY(mem_alloc(&r->ids, (size_t)r->s->batch, sizeof(*r->ids)));
    TRY(mem_alloc(&r->dx, (size_t)r->s->batch, sizeof(*r->dx)));
    TRY(dev_alloc(r->dev, &r->dx_memory, (size_t)(r->s->batch * T * D) * sizeof(float)));
    for (int64_t i = 0; i < r->s->batch; i++)
        r->dx[i] = tensor_2d((float *)r->dx_memory + i * T * D, DT_F32, T, D);
    if (r->st.learns_codes)
        TRY(mem_alloc(&r->best_codes, (size_t)r->st.codes.dim[0], 1));
    TRY(distiller_open(&r->distill, r->dev, r->arch, r->served, source_full(r->src), T,
                       r->s->act));
    return open_teacher(r);
}

static void close_run(struct refine *r)
{
    stream_close(&r->teacher);
    distiller_close(&r->distill);
    dev_free(r->dev, r->dx_memory);
    student_close(&r->st);
    ends_source_close(&r->ends);
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

static enum err steps(struct refine *r, bool restored)
{
    if (!restored)
        TRY(look(r));
    while (r->step < r->steps) {
        TRY(take_step(r));
        const bool looked = looks_after(r, r->step), stop = stopped(r);
        if (looked)
            TRY(look(r));
        if (looked || stop || r->step % STEPS_PER_SAVE == 0)
            TRY(save(r));
        FAIL_IF(stop, ERR_STOPPED, "stopped at step %" PRId64 " of refinement", r->step);
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
    r.steps = s->epochs * steps_of_epoch(s);
    r.units_total = (double)(s->samples + s->guard) +
                    (double)((REFINE_LOOKS + 1) * s->guard) +
                    4 * (double)(r.steps * s->batch);
    TRY_OUT(open_run(&r, layers));
    /* First, so that progress begins where the last run ended. */
    TRY_OUT(restore(&r, &restored));
    TRY_OUT(teacher_states(&r));
    TRY_OUT(steps(&r, restored));
    TRY_OUT(student_export(&r.st, layers));
    out->steps = r.steps;
out:
    close_run(&r);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * Runs the refinement itself and times what lies between its events, so that nothing is written
 * twice. It is stopped after the last step, before anything is saved. */
#include "tools/bench/bench_refine.h"

#include "convert/artifact/writer.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <math.h>
#include <string.h>

struct timing {
    struct dev *dev;
    double begin, part[N_DEV_PARTS]; /* at the last event */
    double *step_s, *part_s;         /* [steps], [N_DEV_PARTS][steps] */
    int64_t steps, done;             /* done: -1 before the warm-up */
    const struct ranks *ranks;
    struct ranks_cost spent, sum; /* at the last event; of the steps that are measured */
    double sum_s;
};

/* Takes what the ranks spent since the last event. */
static void take_cost(struct timing *t, bool measured)
{
    struct ranks_cost now, was = t->spent;
    if (!t->ranks)
        return;
    t->ranks->cost(&now);
    t->spent = now;
    if (!measured)
        return;
    t->sum.wait_s += now.wait_s - was.wait_s;
    t->sum.transfer_s += now.transfer_s - was.transfer_s;
    t->sum.sent_bytes += now.sent_bytes - was.sent_bytes;
}

static void event(void *ctx, const struct refine_event *e)
{
    struct timing *t = ctx;
    const double now = clock_s();
    const bool step = isfinite(e->loss);
    const bool measured = step && t->done >= 0 && t->done < t->steps;
    for (int i = 0; i < N_DEV_PARTS; i++) {
        const double part = dev_part_seconds(t->dev, (enum dev_part)i);
        if (measured)
            t->part_s[i * t->steps + t->done] = part - t->part[i];
        t->part[i] = part;
    }
    if (measured) {
        t->step_s[t->done] = now - t->begin;
        t->sum_s += now - t->begin;
    }
    take_cost(t, measured);
    t->done += step;
    t->begin = now;
}

static bool stop(void *ctx)
{
    const struct timing *t = ctx;
    return t->done >= t->steps;
}

static enum err stream_open(void *ctx, const char *name, size_t bytes, bool on_disk,
                            void **out)
{
    return mem_alloc(out, bytes, 1);
}

static void stream_close(void *ctx, void *p)
{
    mem_free(p);
}

static enum err random_tokens(int32_t **out, int64_t n, int64_t vocab)
{
    struct rng r;
    TRY(mem_alloc(out, (size_t)n, sizeof(**out)));
    rng_seed(&r, 1);
    for (int64_t i = 0; i < n; i++)
        (*out)[i] = (int32_t)rng_below(&r, (uint64_t)vocab);
    return OK;
}

static enum err run(struct timing *t, const struct bench_weights *w,
                    struct block_quant *layers, const struct refine_settings *s)
{
    const struct calib_io streams = {.stream_open = stream_open,
                                     .stream_close = stream_close};
    const struct refine_io io = {&streams, t, event, stop, NULL, NULL, t->ranks};
    struct refine_result result;
    int32_t *tokens = NULL;
    TRY(random_tokens(&tokens, (s->samples + s->guard) * s->seqlen, w->arch.vocab));
    enum err err =
        refine_run(&result, t->dev, &w->arch, &w->source, layers, s, tokens, &io);
    mem_free(tokens);
    if (err == ERR_STOPPED && t->done >= t->steps) {
        err_clear();
        err = OK;
    }
    return err;
}

/* Makes the layers, which share the memory of the first. */
static enum err make_layers(struct block_quant **out, const struct bench_weights *w,
                            const struct weight_spec *weights, const struct kv_spec *kv)
{
    struct block_quant *layers;
    struct block_src src;
    TRY(mem_calloc(&layers, (size_t)w->arch.n_layers, sizeof(*layers)));
    *out = layers;
    TRY(w->source.block(w->source.ctx, 0, &src));
    TRY(quant_block_rtn(&layers[0], &w->arch, &src, 0, weights, kv));
    for (int64_t i = 1; i < w->arch.n_layers; i++)
        layers[i] = layers[0];
    return OK;
}

static void take_medians(struct bench_refine *out, const struct timing *t)
{
    out->step_s = bench_median(t->step_s, t->steps);
    const double n = (double)t->steps;
    out->mean_s = t->sum_s / n;
    out->cost = (struct ranks_cost){t->sum.wait_s / n, t->sum.transfer_s / n,
                                    t->sum.sent_bytes / n};
    for (int i = 0; i < N_DEV_PARTS; i++)
        out->part_s[i] = bench_median(t->part_s + i * t->steps, t->steps);
}

enum err bench_refine_step(struct bench_refine *out, struct dev *d,
                           const struct bench_weights *w, const struct weight_spec *weights,
                           const struct kv_spec *kv, const struct refine_settings *s,
                           int64_t steps, const struct ranks *ranks)
{
    enum err err = OK;
    struct timing t = {.dev = d, .steps = steps, .done = -1, .ranks = ranks};
    struct refine_settings own = *s;
    struct block_quant *layers = NULL;
    own.samples = 2 * own.batch;
    own.guard = 1;
    own.epochs =
        steps + 1; /* twice as many steps as are measured; the run stops before its end */
    TRY_OUT(mem_calloc(&t.step_s, (size_t)steps, sizeof(*t.step_s)));
    TRY_OUT(mem_calloc(&t.part_s, (size_t)(N_DEV_PARTS * steps), sizeof(*t.part_s)));
    TRY_OUT(make_layers(&layers, w, weights, kv));
    TRY_OUT(run(&t, w, layers, &own));
    take_medians(out, &t);
out:
    if (layers)
        block_quant_free(&layers[0]);
    mem_free(layers);
    mem_free(t.step_s);
    mem_free(t.part_s);
    return err;
}

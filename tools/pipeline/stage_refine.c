/* SPDX-License-Identifier: MIT */
#include "calib/refine/refine.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/stop.h"
#include "tools/pipeline/ranks/stage_ranks.h"
#include "tools/pipeline/stages.h"

/* The context of refine_run's callbacks. */
struct hooks {
    struct job *j;
    struct state *s;
};

static void event(void *ctx, const struct refine_event *e)
{
    const struct hooks *h = ctx;
    progress_refine(h->j->progress, e);
}

static bool stop(void *ctx)
{
    const struct hooks *h = ctx;
    return stop_asked(h->j->progress);
}

static enum err save(void *ctx, const struct named_tensor *t, int n)
{
    const struct hooks *h = ctx;
    return state_save_refining(h->s, t, n);
}

static enum err load(void *ctx, const struct named_tensor **t, int *n)
{
    const struct hooks *h = ctx;
    return state_load_refining(h->s, t, n);
}

static enum err refine(struct state_refinement *out, struct job *j, struct state *s,
                       struct block_quant *layers)
{
    struct hooks h = {j, s};
    struct refine_result r;
    struct calib_io streams;
    state_calib_io(&streams, s, NULL, NULL, NULL);
    struct refine_io io = {&streams, &h, event, stop, save, load, j->ranks};
    if (stage_is_worker(j)) {
        io.event = NULL;
        io.save = NULL;
    }
    TRY(refine_run(&r, j->dev, &j->arch, hf_source(j->model), layers, &j->refine,
                   j->refine_windows, &io));
    *out = (struct state_refinement){r.start, r.best, r.best_step, r.steps};
    if (!r.best_step && !stage_is_worker(j))
        log_warn(
            "refinement gained nothing on the guard's windows, so the calibrated values "
            "are kept; try smaller rates (refine.lr_scales, ...) or more windows "
            "(refine.samples)");
    return OK;
}

static void free_layers(struct block_quant *layers, int64_t n)
{
    for (int64_t i = 0; layers && i < n; i++)
        block_quant_free(&layers[i]);
    mem_free(layers);
}

enum err stage_refine(struct job *j, struct state *s)
{
    enum err err = OK;
    struct block_quant *layers = NULL;
    struct state_refinement result;
    if (!recipe_refines(&j->recipe) || state_refined(s))
        return OK;
    TRY(mem_calloc(&layers, (size_t)j->arch.n_layers, sizeof(*layers)));
    for (int64_t i = 0; i < j->arch.n_layers; i++)
        TRY_OUT(state_load_calibrated(&layers[i], s, i));
    if (stage_is_worker(j)) {
        err = refine(&result, j, s, layers);
        goto out;
    }
    TRY_OUT(stage_call(j, s));
    stop_watch(STOP_AT_STEP);
    progress_phase(j->progress, "refine");
    err = refine(&result, j, s, layers);
    progress_end(j->progress);
    stop_watch(STOP_AT_ONCE);
    stage_part(j, err);
    if (!err)
        err = state_save_refined(s, layers, &result);
out:
    free_layers(layers, j->arch.n_layers);
    return err;
}

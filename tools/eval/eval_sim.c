/* SPDX-License-Identifier: MIT */
#include "tools/eval/eval_sim.h"

#include "convert/artifact/writer.h"
#include "kernels/dev_engine.h"

static enum err load_rtn(struct eval_sim *s, int64_t i)
{
    struct block_src src;
    const struct recipe *r = &s->e->job->recipe;
    struct weight_spec w = recipe_weight_spec(r);
    struct kv_spec kv = recipe_kv_spec(r);
    w.method = WEIGHT_RTN;
    if (kv.method == KV_CHANNEL_TOKEN)
        kv.method = KV_TOKEN;
    TRY(s->run.src->block(s->run.src->ctx, i, &src));
    return quant_block_rtn(&s->current, &s->e->job->arch, &src, i, &w, &kv);
}

/* Replaces the cache that q was calibrated for by an engine's, which does not know its smoothing
 * and shift. What a fold learned for another engine's cache is no longer for its channels. */
static void take_target(struct block_quant *q, int target)
{
    if ((int)q->kv.target == target)
        return;
    q->kv = kv_target_spec((enum kv_target)target);
    for (int64_t i = 0; i < q->n_channels; i++) {
        q->k_scale[i] = q->v_scale[i] = 1;
        q->k_shift[i] = q->v_shift[i] = 0;
    }
}

/* Loads the quantization of block i. */
static enum err load_block(void *ctx, int64_t i, const struct block_quant **q)
{
    struct eval_sim *s = ctx;
    const struct eval *e = s->e;
    block_quant_free(&s->current);
    if (e->artifact) {
        TRY(artifact_block_quant(&s->current, e->artifact, i));
        for (int l = 0; l < N_LIN; l++)
            qlinear_free(&s->current.lin[l]); /* artifact_source unpacks them */
    } else if (e->state) {
        TRY(state_load_block(&s->current, e->state, i));
    } else {
        TRY(load_rtn(s, i));
    }
    if (e->job->recipe.target)
        take_target(&s->current, e->job->recipe.target);
    if (e->kv_bits) /* always 16, which cmd_eval checks */
        kv_set_unquantized(&s->current.kv);
    *q = &s->current;
    return OK;
}

/* Returns the checkpoint's weights as calibration quantized them. */
static enum err rotate_values(struct eval *e)
{
    const struct recipe *r = e->state ? state_recipe(e->state) : &e->job->recipe;
    const struct kv_spec as_is = {.rotate = ROTATE_NONE};
    const struct kv_spec kv = e->state || e->rtn ? recipe_kv_spec(r) : as_is;
    return e->artifact ? OK : hf_rotate_values(e->job->model, &kv);
}

/* A checkpoint's embedding and head, quantized where its weights are. */
static enum err open_source(struct eval_sim *s)
{
    const struct eval *e = s->e;
    const struct weight_spec none = {0};
    const struct recipe *r = e->state ? state_recipe(e->state) : &e->job->recipe;
    if (e->artifact)
        return OK;
    const struct weight_spec w = e->state || e->rtn ? recipe_weight_spec(r) : none;
    return ends_source_open(&s->ends, hf_source(e->job->model), head_format(&w),
                            dev_threads(e->job->dev));
}

enum err eval_sim_open(struct eval_sim *s, struct eval *e)
{
    const bool quantized = e->artifact || e->state || e->rtn;
    *s = (struct eval_sim){.e = e};
    TRY(dev_attn_check(e->job->dev, e->job->arch.head_dim));
    TRY(dev_engine_check(e->job->dev, eval_target(e)));
    TRY(rotate_values(e));
    TRY(open_source(s));
    s->quant = (struct model_quant){.ctx = s, .block = load_block};
    s->run = (struct model_run){
        .dev = e->job->dev,
        .arch = &e->job->arch,
        .src = e->artifact ? artifact_source(e->artifact) : &s->ends.source,
        .quant = quantized ? &s->quant : NULL,
        .act = e->job->settings.act,
        .chunk = e->chunk,
        .act_bits = eval_act_bits(e),
    };
    return OK;
}

void eval_sim_close(struct eval_sim *s)
{
    block_quant_free(&s->current);
    ends_source_close(&s->ends);
}

int64_t eval_sim_windows(const struct eval *e, int64_t T)
{
    const double one = 8.0 * (double)T * (double)e->job->arch.d_model;
    const int64_t n = (int64_t)((double)recipe_memory(&e->job->recipe) / 4 / one);
    return n < 1 ? 1 : n;
}

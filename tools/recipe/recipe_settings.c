/* SPDX-License-Identifier: MIT
 *
 * Converts a recipe to a calibration's settings on a device. */
#include "tools/recipe/recipe.h"

#include <inttypes.h>

enum dtype recipe_act(const struct recipe *r, const struct dev *d)
{
    if (r->compute != COMPUTE_AUTO)
        return r->compute == COMPUTE_BF16 ? DT_BF16 : DT_F32;
    if (d)
        return dev_preferred_act(d);
    return r->device == DEVICE_CUDA ? DT_BF16 : DT_F32;
}

/* Enough to keep the epochs that all samples would keep (docs/decisions.md). */
#define AUTO_EVAL_SAMPLES 16

int64_t recipe_eval_samples(const struct recipe *r)
{
    const int64_t n = r->eval_samples == RECIPE_AUTO ? AUTO_EVAL_SAMPLES : r->eval_samples;
    return n < r->samples ? n : 0;
}

static bool keys_by_channel(const struct recipe *r)
{
    return recipe_quantizes_kv(r) && r->kv_method == KV_CHANNEL;
}

static bool learns_fold(const struct recipe *r)
{
    return r->target && r->kv_method == KV_CHANNEL_TOKEN;
}

bool recipe_makes_artifact(const struct recipe *r)
{
    return !keys_by_channel(r) && !learns_fold(r);
}

enum err recipe_check_runtime(const struct recipe *r)
{
    FAIL_IF(keys_by_channel(r), ERR_SUPPORT,
            "kv.method is channel, but the packed runtime quantizes per token; simulate "
            "it by `wkvq calibrate`, then `wkvq eval --state`");
    FAIL_IF(
        learns_fold(r), ERR_SUPPORT,
        "kv.target is %s and no weights are quantized, so smoothing and shift of values are "
        "learned for the weights: let `wkvq calibrate` do so, then `wkvq fold`",
        kv_target_name[r->target]);
    return OK;
}

enum err recipe_check_packed(const struct recipe *r)
{
    TRY(recipe_check_runtime(r));
    FAIL_IF(
        r->activation_bits < 16, ERR_SUPPORT,
        "activations.bits is %d, but the packed runtime rounds inputs as the artifact says; "
        "make one by `wkvq quantize --set activations.bits=%d`",
        (int)r->activation_bits, (int)r->activation_bits);
    return OK;
}

enum err recipe_check_cpu(const struct recipe *r, const char *what)
{
    FAIL_IF(r->device != DEVICE_CPU, ERR_USAGE,
            "run.device is %s, but %s runs on the CPU; give --device cpu", recipe_device(r),
            what);
    return OK;
}

enum dtype recipe_runtime_act(const struct recipe *r)
{
    return r->compute == COMPUTE_BF16 ? DT_BF16 : DT_F32;
}

enum err recipe_check_layers(const struct recipe *r, const struct arch *a)
{
    TRY(mix_check_layers(r->weight_mix, a->n_layers, ERR_USAGE, "weights.mixed"));
    return mix_check_layers(r->kv_mix, a->n_layers, ERR_USAGE, "kv.mixed");
}

struct calib_settings recipe_settings(const struct recipe *r, const struct dev *d)
{
    return (struct calib_settings){
        .samples = r->samples,
        .seqlen = r->seqlen,
        .epochs = r->epochs,
        .batch = r->batch,
        .eval_samples = recipe_eval_samples(r),
        .seed = (uint64_t)r->seed,
        .weights = recipe_weight_spec(r),
        .weights_init = (enum start_values)r->weight_init,
        .gptq = {.damp = r->damp, .act_order = r->act_order},
        .kv = recipe_kv_spec(r),
        .kv_init = (enum start_values)r->kv_init,
        .crr_blocks = r->crr_blocks,
        .crr_terms = (enum crr_terms)r->crr_terms,
        .crr_loss = (enum loss_kind)r->crr_loss,
        .lr_round = (float)r->lr_round,
        .lr_clip = (float)r->lr_clip,
        .lr_smooth = (float)r->lr_smooth,
        .lr_shift = (float)r->lr_shift,
        .weight_decay = (float)r->weight_decay,
        .schedule = (enum lr_schedule)r->schedule,
        .act = recipe_act(r, d),
        .memory_bytes = recipe_memory(r),
    };
}

bool recipe_refines(const struct recipe *r)
{
    return r->refine.samples > 0;
}

enum err recipe_check_refine(const struct recipe *r)
{
    const struct weight_spec w = recipe_weight_spec(r);
    if (!recipe_refines(r))
        return OK;
    FAIL_IF(r->activation_bits < 16, ERR_SUPPORT,
            "activations.bits is %d, but refinement leaves activations unquantized; set "
            "refine.samples to 0",
            (int)r->activation_bits);
    FAIL_IF(
        keys_by_channel(r), ERR_SUPPORT,
        "kv.method is channel, but refinement simulates a cache quantized per token; set "
        "refine.samples to 0");
    FAIL_IF(
        learns_fold(r), ERR_SUPPORT,
        "kv.target is %s and no weights are quantized: there is a fold to learn, but nothing "
        "to refine; set refine.samples to 0",
        kv_target_name[r->target]);
    TRY(kv_target_check_length("refine.seqlen", (enum kv_target)r->target,
                               r->refine.seqlen));
    FAIL_IF(!recipe_quantizes_kv(r) && !weight_quantizes(&w), ERR_USAGE,
            "refine.samples is %" PRId64
            ", but neither weights nor cache are quantized, so "
            "there is nothing to refine",
            r->refine.samples);
    return OK;
}

static enum recipe_learn learns(const struct recipe *r)
{
    if (r->refine.learn != LEARN_AUTO)
        return (enum recipe_learn)r->refine.learn;
    return r->weight_method == WEIGHT_GIVEN ? LEARN_GIVEN : LEARN_CACHE;
}

/* kv.learn: false keeps the cache's start values, unless refine.learn names the cache itself. */
static bool refines_cache(const struct recipe *r)
{
    const enum recipe_learn what = learns(r);
    const bool kept = r->refine.learn == LEARN_AUTO && !r->learn;
    return !kept && (what == LEARN_GIVEN || what >= LEARN_CACHE);
}

struct refine_settings recipe_refine_settings(const struct recipe *r, const struct dev *d)
{
    const struct weight_spec w = recipe_weight_spec(r);
    const enum recipe_learn what = learns(r);
    const bool norms = what == LEARN_GIVEN || what >= LEARN_NORMS, cache = refines_cache(r);
    return (struct refine_settings){
        .samples = r->refine.samples,
        .guard = r->refine.guard,
        .seqlen = r->refine.seqlen,
        .epochs = r->refine.epochs,
        .batch = r->refine.batch,
        .lr = {[REFINE_SCALES] = what >= LEARN_SCALES ? (float)r->refine.lr_scales : 0,
               [REFINE_NORMS] = norms ? (float)r->refine.lr_norms : 0,
               [REFINE_SMOOTH] = cache ? (float)r->refine.lr_smooth : 0,
               [REFINE_SHIFT] = cache ? (float)r->refine.lr_shift : 0},
        .lr_round = what >= LEARN_ROUNDING ? (float)r->refine.lr_round : 0,
        .kl = (float)(1 - r->refine.ce),
        .ce = (float)r->refine.ce,
        .scale_bits = (int)r->scale_bits,
        .head = head_format(&w),
        .act = recipe_act(r, d),
        .seed = (uint64_t)r->seed,
        .memory_bytes = recipe_memory(r),
    };
}

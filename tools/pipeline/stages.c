/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/stages.h"

#include "config.h"
#include "convert/format/manifest.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/dev_engine.h"
#include "tools/cli/hub_cache.h"
#include "tools/cli/stop.h"
#include "tools/pipeline/license.h"
#include "tools/pipeline/preflight.h"
#include "tools/pipeline/ranks/stage_ranks.h"
#include "tools/state/state_diff.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Resumes with what the state began with where this run leaves the choice: the type, on
 * whatever device, and the samples that are measured. */
static enum err adopt_from_state(struct job *j, const char *state_dir)
{
    struct state_look look;
    TRY(state_look(&look, state_dir));
    if (!look.is)
        return OK;
    if (j->recipe.compute == COMPUTE_AUTO)
        j->recipe.compute = look.compute;
    if (j->recipe.eval_samples == RECIPE_AUTO)
        j->recipe.eval_samples = look.eval_samples;
    return OK;
}

/* Saves an artifact's blocks as those of a calibration. */
static enum err import(const struct job *j, struct state *s)
{
    struct calib_io io;
    state_calib_io(&io, s, NULL, NULL, NULL);
    for (int64_t i = state_done(s); i < state_blocks(s); i++) {
        const struct calib_block_stats none = {.block = i};
        struct block_quant q = {0};
        TRY(artifact_block_quant(&q, j->import->artifact, i));
        const enum err err = io.save_block(io.ctx, i, &q, &none);
        block_quant_free(&q);
        TRY(err);
    }
    return OK;
}

static enum err calibrate(struct job *j, struct state *s)
{
    struct calib_io io;
    state_note_device(s, dev_name(j->dev));
    state_calib_io(&io, s, progress_calib, stop_asked, j->progress);
    io.ranks = j->ranks;
    TRY(stage_call(j, s));
    stop_watch(STOP_AT_STEP);
    progress_phase(j->progress, "calibrate");
    const enum err err = calib_run(j->dev, &j->arch, hf_source(j->model), &j->settings,
                                   j->windows, state_done(s), &io);
    progress_end(j->progress);
    stop_watch(STOP_AT_ONCE);
    if (err)
        stage_part(j, err);
    return err;
}

enum err stage_calibrate(struct state **out, struct job *j, const char *state_dir)
{
    struct state *s = NULL;
    json_t *identity = NULL;
    TRY(job_identity(&identity, j));
    enum err err = state_open(&s, state_dir, &j->arch, identity);
    json_decref(identity);
    TRY(err);
    stop_keeps(state_dir);
    const int64_t done = state_done(s);
    if (done && !j->import)
        log_info("%s: %" PRId64 " of %" PRId64 " blocks are calibrated%s", state_dir, done,
                 state_blocks(s), done < state_blocks(s) ? "; resuming" : "");
    if (done < state_blocks(s))
        err = j->import ? import(j, s) : calibrate(j, s);
    if (!err && !state_removing(s))
        err = stage_refine(j, s);
    if (!err)
        stage_dismiss(j);
    if (err == ERR_STOPPED && !*err_text())
        err = err_set(err, __FILE__, __LINE__,
                      "interrupted; the finished work is saved in %s", state_dir);
    if (err) {
        state_close(&s);
        return err;
    }
    *out = s;
    return OK;
}

/* Adds the experts of a block that calibration did not reach, if there are any. */
static void add_unreached(json_t **list, const struct calib_block_stats *st)
{
    json_t *experts = json_array();
    for (int64_t e = 0; e < ARCH_MAX_EXPERTS; e++)
        if (st->unreached[e])
            json_array_append_new(experts, json_integer(e));
    if (json_array_size(experts)) {
        if (!*list)
            *list = json_array();
        json_array_append_new(*list, json_pack("{s:I, s:O}", "layer", (json_int_t)st->block,
                                               "experts", experts));
    }
    json_decref(experts);
}

void calib_summary_free(struct calib_summary *sum)
{
    json_decref(sum->unreached);
    *sum = (struct calib_summary){0};
}

void calib_summary_say_unreached(const struct calib_summary *sum,
                                 void (*say)(const char *line))
{
    size_t i, k;
    json_t *layer, *e;
    json_array_foreach(sum->unreached, i, layer)
    {
        const json_t *experts = json_object_get(layer, "experts");
        char *line = NULL;
        size_t n;
        FILE *f = open_memstream(&line, &n);
        if (!f)
            return;
        fprintf(f, "unreached   layer %lld: %zu experts, rounded to nearest:",
                (long long)json_integer_value(json_object_get(layer, "layer")),
                json_array_size(experts));
        json_array_foreach(experts, k, e)
            fprintf(f, " %lld", (long long)json_integer_value(e));
        if (!fclose(f))
            say(line);
        free(line);
    }
}

enum err stage_summary(struct calib_summary *out, const struct state *s)
{
    enum err err = OK;
    struct calib_summary sum = {.blocks = state_done(s)};
    sum.imported = json_object_get(state_identity(s), STATE_ARTIFACT) != NULL;
    for (int64_t i = 0; i < sum.blocks; i++) {
        struct calib_block_stats st;
        TRY_OUT(state_stats(&st, s, i));
        sum.gained += st.best_epoch > 0;
        if (st.start_loss > 0)
            sum.mean_gain += (1 - st.best_loss / st.start_loss) / (double)sum.blocks;
        add_unreached(&sum.unreached, &st);
    }
    sum.refined = state_refined(s);
    if (sum.refined)
        TRY_OUT(state_refinement(&sum.refinement, s));
    *out = sum;
    return OK;
out:
    calib_summary_free(&sum);
    return err;
}

/* Adds the license that the checkpoint states, if it does. */
static enum err add_license(json_t *o, const char *model_dir)
{
    char *license;
    TRY(checkpoint_license(&license, model_dir));
    if (license)
        json_object_set_new(o, "license", json_string(license));
    mem_free(license);
    return OK;
}

/* Adds the name of a model that lies in the hub's cache. */
static enum err add_base_model(json_t *o, const char *model_dir)
{
    char *name;
    TRY(hub_name_of(&name, model_dir));
    if (name)
        json_object_set_new(o, "base_model", json_string(name));
    mem_free(name);
    return OK;
}

/* Returns how the scales were made: a calibration's summary, or what the imported artifact says.
 * A new reference. */
static json_t *calibration_json(const struct state *s, const struct calib_summary *sum)
{
    const json_t *artifact = json_object_get(state_identity(s), STATE_ARTIFACT);
    const json_t *from = json_object_get(artifact, "provenance");
    if (artifact)
        return json_deep_copy(json_object_get(from, "calibration"));
    return json_pack("{s:I, s:I, s:f, s:O*}", "blocks", (json_int_t)sum->blocks, "gained",
                     (json_int_t)sum->gained, "mean_gain", sum->mean_gain,
                     "unreached_experts", sum->unreached);
}

/* Makes the artifact's provenance, {"wkvq": version, "checkpoint", "tokenizer", "text",
 * "artifact", "weights_from", "state", "refinement", "calibration", "license",
 * "base_model"}. Without a state: the version, how the scales were made, and the license. */
static enum err provenance(char **out, const struct state *s, const struct job *j)
{
    struct calib_summary sum;
    char mark[STATE_MARK];
    json_t *o = json_pack("{s:s}", "wkvq", WKVQ_VERSION);
    FAIL_IF(!o, ERR_MEMORY, "out of memory for the manifest");
    if (s) {
        const enum err err = stage_summary(&sum, s);
        if (err) {
            json_decref(o);
            return err;
        }
        json_t *identity = json_copy((json_t *)(uintptr_t)state_identity(s));
        json_object_del(identity, "config");
        json_object_update(o, identity);
        json_decref(identity);
        state_mark(mark, s);
        json_object_set_new(o, "state", json_string(mark));
        if (sum.refined)
            json_object_set_new(o, "refinement", state_refinement_json(&sum.refinement));
        json_object_set_new(o, "calibration", calibration_json(s, &sum));
        calib_summary_free(&sum);
    } else {
        json_t *given = job_given_json(j);
        json_object_set_new(o, "calibration",
                            json_string(given ? "none: the weights are another tool's"
                                              : "none: round to nearest"));
        if (given)
            json_object_set_new(o, STATE_WEIGHTS_FROM, given);
    }
    enum err err = add_license(o, j->model_dir);
    if (!err)
        err = add_base_model(o, j->model_dir);
    *out = err ? NULL : json_text(o, JSON_REAL_PRECISION(17));
    json_decref(o);
    FAIL_IF(!err && !*out, ERR_MEMORY, "out of memory for the manifest");
    return err;
}

static enum err config_text(char **out, const struct recipe *r)
{
    json_t *o;
    TRY(recipe_json(&o, r, true));
    /* 15 digits print 0.005 as typed, not 0.0050000000000000001 */
    *out = json_text(o, JSON_REAL_PRECISION(15));
    json_decref(o);
    FAIL_IF(!*out, ERR_MEMORY, "out of memory for the manifest");
    return OK;
}

/* Sets the recipe to what rounding to nearest does, since the artifact records it. Given weights
 * stay given. */
static void without_learning(struct recipe *r)
{
    if (r->weight_method != WEIGHT_GIVEN)
        r->weight_method = WEIGHT_RTN;
    r->weight_round = ROUND_NEAREST;
    r->kv_method = KV_TOKEN;
    r->learn = false;
    r->refine.samples = 0;
}

static enum err settings_of(struct artifact_settings *out, char **config, char **from,
                            struct job *j, const struct recipe *r, const struct state *s)
{
    TRY(config_text(config, r));
    TRY(provenance(from, s, j));
    struct weight_spec weights = recipe_weight_spec(r);
    weights.refined = recipe_refines(r);
    *out = (struct artifact_settings){
        .weights = weights,
        .kv = recipe_kv_spec(r),
        .config_json = *config,
        .provenance_json = *from,
        .shard_bytes = j->options.shard_bytes,
        .threads = (int)j->recipe.threads,
    };
    return OK;
}

/* *bytes = the size of the artifact that the job makes. */
static enum err artifact_need(uint64_t *bytes, struct job *j)
{
    enum err err = OK;
    char *config = NULL, *from = NULL;
    struct artifact_settings settings;
    TRY_OUT(settings_of(&settings, &config, &from, j, &j->recipe, NULL));
    err = artifact_bytes(bytes, j->model, j->model_dir, &settings);
out:
    free(config);
    free(from);
    return err;
}

enum err stage_plan(bool *planned, struct job *j, const char *state_dir)
{
    struct calib_plan plan;
    uint64_t bytes = 0;
    *planned = j->options.plan;
    TRY(adopt_from_state(j, state_dir));
    TRY(job_open_device(j));
    TRY(dev_attn_check(j->dev, j->arch.head_dim));
    TRY(dev_engine_check(j->dev, recipe_kv_spec(&j->recipe).target));
    if (!j->only_refines && !j->only_converts)
        preflight_cache(j, "calibration.seqlen", j->recipe.seqlen);
    if (recipe_refines(&j->recipe)) {
        preflight_cache(j, "refine.seqlen", j->recipe.refine.seqlen);
        preflight_given(j);
    }
    TRY(preflight_resources(&plan, j, state_dir));
    if (!*planned)
        return OK;
    if (j->makes_artifact)
        TRY(artifact_need(&bytes, j));
    return preflight_print_plan(j, bytes);
}

enum err stage_prepare(bool *planned, struct job *j, const char *state_dir)
{
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    TRY(job_check_text(j, "calibration"));
    TRY(kv_target_check_length("calibration.seqlen", kv.target, j->recipe.seqlen));
    TRY(recipe_check_refine(&j->recipe));
    TRY(job_open_model(j));
    TRY(preflight_shapes(j));
    TRY(hf_rotate_values(j->model, &kv));
    TRY(job_read_text(j));
    TRY(job_draw_windows(j));
    TRY(stage_plan(planned, j, state_dir));
    return *planned ? OK : hf_check_rest(j->model);
}

enum err stage_check_disk(struct job *j, const char *state_dir, const char *out_dir)
{
    uint64_t bytes = 0;
    TRY(artifact_need(&bytes, j));
    return preflight_artifact(j, state_dir, out_dir, bytes);
}

enum err stage_convert(struct job *j, struct state *s, const char *out_dir, bool force)
{
    enum err err = OK;
    char *config = NULL, *from = NULL;
    uint64_t bytes = 0;
    TRY(recipe_check_runtime(s ? state_recipe(s) : &j->recipe));
    FAIL_IF(!s && j->recipe.weight_method == WEIGHT_GPTQ, ERR_USAGE,
            "weights.method: gptq needs calibration: let `wkvq quantize` do both, or give "
            "--state");
    FAIL_IF(!s && j->recipe.weight_round == ROUND_LEARNED, ERR_USAGE,
            "weights.round: learned needs calibration: let `wkvq quantize` do both, or "
            "give --state");
    if (!s)
        without_learning(&j->recipe);
    const struct recipe *r = s ? state_recipe(s) : &j->recipe;
    struct artifact_settings settings;
    TRY_OUT(settings_of(&settings, &config, &from, j, r, s));
    settings.force = force;
    TRY_OUT(artifact_bytes(&bytes, j->model, j->model_dir, &settings));
    TRY_OUT(file_check_space(out_dir, bytes, "the artifact"));
    /* A stop removes the staging directory. */
    stop_watch(STOP_AT_STEP);
    progress_phase(j->progress, "convert");
    err = artifact_write(out_dir, j->model, j->model_dir, s ? state_source(s) : NULL,
                         &settings, progress_write, j->progress);
    progress_end(j->progress);
    stop_watch(STOP_AT_ONCE);
    if (err)
        goto out;
    log_info("%s: written", out_dir);
out:
    free(config);
    free(from);
    return err;
}

enum err stage_artifact_mark(char out[STATE_MARK], const char *dir)
{
    struct manifest *m = NULL;
    out[0] = '\0';
    const enum err err = manifest_open(&m, dir);
    if (err == ERR_MEMORY || err == ERR_IO)
        return err;
    if (err) {
        err_clear(); /* no artifact, or a damaged one, so there is no mark */
        return OK;
    }
    const json_t *provenance = json_object_get(m->root, "provenance");
    const char *mark = json_string_value(json_object_get(provenance, "state"));
    snprintf(out, STATE_MARK, "%.8s", mark ? mark : "");
    manifest_close(&m);
    return OK;
}

enum err stage_artifact_is(bool *yes, struct calib_summary *sum, struct job *j,
                           const char *dir)
{
    enum err err = OK;
    struct manifest *m = NULL;
    json_t *identity = NULL, *have = NULL;
    TRY(manifest_open(&m, dir));
    const json_t *from = json_object_get(m->root, "provenance");
    TRY_OUT(job_identity(&identity, j));
    have =
        json_pack("{s:O?, s:O?, s:O?, s:O?, s:O*, s:O*, s:O*}", "config",
                  json_object_get(m->root, "config"), "checkpoint",
                  json_object_get(from, "checkpoint"), "tokenizer",
                  json_object_get(from, "tokenizer"), "text", json_object_get(from, "text"),
                  STATE_ARTIFACT, json_object_get(from, STATE_ARTIFACT), STATE_WEIGHTS_FROM,
                  json_object_get(from, STATE_WEIGHTS_FROM), STATE_FULL_PRECISION,
                  json_object_get(from, STATE_FULL_PRECISION));
    if (!have)
        FAIL_OUT(ERR_FORMAT, "%s: provenance is incomplete", dir);
    err = state_compare(dir, have, identity);
    *yes = !err;
    if (err == ERR_MISMATCH) {
        err_clear();
        err = OK;
    }
    if (err)
        goto out;
    const json_t *calibration = json_object_get(from, "calibration");
    *sum = (struct calib_summary){
        .blocks = json_integer_value(json_object_get(calibration, "blocks")),
        .gained = json_integer_value(json_object_get(calibration, "gained")),
        .mean_gain = json_number_value(json_object_get(calibration, "mean_gain")),
        .unreached = json_incref(json_object_get(calibration, "unreached_experts"))};
    sum->imported = j->import != NULL;
    const json_t *refinement = json_object_get(from, "refinement");
    sum->refined = refinement != NULL;
    sum->refinement = (struct state_refinement){
        .start = json_number_value(json_object_get(refinement, "start")),
        .best = json_number_value(json_object_get(refinement, "best")),
        .best_step = json_integer_value(json_object_get(refinement, "best_step")),
        .steps = json_integer_value(json_object_get(refinement, "steps"))};
out:
    json_decref(have);
    json_decref(identity);
    manifest_close(&m);
    return err;
}

enum err stage_check_checkpoint(const struct state *s, const struct job *j)
{
    uint32_t crc;
    char text[16];
    const json_t *had = json_object_get(state_identity(s), "checkpoint");
    const char *crc_had = json_string_value(json_object_get(had, "crc32"));
    TRY(hf_identity(&crc, j->model, true));
    snprintf(text, sizeof(text), "%08" PRIx32, crc);
    FAIL_IF(
        !crc_had || strcmp(crc_had, text), ERR_MISMATCH,
        "%s: calibrated on another checkpoint: checkpoint.crc32 is %s there and %s in %s",
        state_dir(s), crc_had ? crc_had : "missing", text, j->model_dir);
    return OK;
}

/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/refine_job.h"

#include "convert/format/artifact_names.h"
#include "convert/format/artifact_spec.h"
#include "convert/verify/verify.h"
#include "data/json.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/pipeline/ranks/stage_ranks.h"
#include "tools/pipeline/stages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_SAMPLES 160

/* Writes member `name` of object `part`; "" if one of them is missing. */
static void copy_text(char out[16], const json_t *o, const char *part, const char *name)
{
    snprintf(out, 16, "%s", json_member_text(json_object_get(o, part), name));
}

/* --- a state ------------------------------------------------------------------------ */

static enum err use_state(struct refine_source *src, const struct state *s)
{
    const json_t *identity = state_identity(s);
    FAIL_IF(
        json_object_get(identity, STATE_ARTIFACT), ERR_USAGE,
        "%s: the state of `wkvq refine` of an artifact; name that artifact again, with the "
        "same -o, to finish it",
        src->dir);
    FAIL_IF(state_done(s) < state_blocks(s), ERR_USAGE,
            "%s: %" PRId64 " of %" PRId64
            " blocks are calibrated; let `wkvq calibrate` finish",
            src->dir, state_done(s), state_blocks(s));
    copy_text(src->checkpoint_crc, identity, "checkpoint", "crc32");
    copy_text(src->text_crc, identity, "text", "crc32");
    return OK;
}

static enum err open_state(struct refine_source *src, struct recipe *base)
{
    struct state *s = NULL;
    TRY(state_open_read(&s, src->dir, NULL));
    enum err err = use_state(src, s);
    if (!err)
        err = recipe_copy(base, state_recipe(s));
    state_close(&s);
    return err;
}

/* --- an artifact -------------------------------------------------------------------- */

/* Refuses a configuration that does not describe the artifact's formats. */
static enum err check_formats(const struct refine_source *src, const struct recipe *base)
{
    const struct weight_spec w = recipe_weight_spec(base);
    const struct kv_spec kv = recipe_kv_spec(base);
    json_t *want = spec_to_json(&w, &kv);
    json_t *have = spec_to_json(artifact_weight_spec(src->import.artifact),
                                artifact_kv_spec(src->import.artifact));
    const bool alike = want && have && json_equal(want, have);
    const bool memory = !want || !have;
    json_decref(want);
    json_decref(have);
    FAIL_IF(memory, ERR_MEMORY, "%s: out of memory for its formats", src->dir);
    FAIL_IF(
        !alike, ERR_FORMAT,
        "%s: the configuration in its manifest is not that of its weights and cache; refine an "
        "artifact that `wkvq` made from a checkpoint",
        src->dir);
    return OK;
}

static enum err make_identity(json_t **out, const json_t *manifest, const char *text)
{
    char crc[16];
    snprintf(crc, sizeof(crc), "%08" PRIx32, bytes_crc32(0, text, strlen(text)));
    *out = json_pack("{s:s, s:O?}", "manifest_crc32", crc, "provenance",
                     json_object_get(manifest, "provenance"));
    FAIL_IF(!*out, ERR_MEMORY, "out of memory for the run's identity");
    return OK;
}

static enum err open_artifact(struct refine_source *src, struct recipe *base)
{
    enum err err = OK;
    char where[600];
    json_t *manifest = NULL;
    struct job_import *import = &src->import;
    recipe_init(base);
    TRY(artifact_open(&import->artifact, src->dir, 0));
    FAIL_IF(
        artifact_weight_spec(import->artifact)->refined, ERR_USAGE,
        "%s: already refined; refine the artifact or state that it was made from, with more "
        "refine.samples or refine.epochs",
        src->dir);
    const char *text = artifact_manifest(import->artifact);
    snprintf(where, sizeof(where), "%.500s/manifest.json", src->dir);
    TRY(json_parse(&manifest, text, strlen(text), where));
    TRY_OUT(recipe_load_json(base, json_object_get(manifest, "config"), where));
    TRY_OUT(check_formats(src, base));
    copy_text(src->checkpoint_crc, json_object_get(manifest, "provenance"), "checkpoint",
              "crc32");
    TRY_OUT(make_identity(&import->identity, manifest, text));
out:
    json_decref(manifest);
    return err;
}

/* --- the configuration -------------------------------------------------------------- */

/* Returns whether a key may differ from the source's. An artifact is refined on a text of its own,
 * but a state's text and windows are the calibration's. */
static bool may_differ(const struct recipe_key *k, bool is_state)
{
    static const char *const of_text[] = {"calibration.seed", "calibration.join",
                                          "calibration.bos", "run.compute"};
    if (k->affects_speed_only || !strncmp(k->name, "refine.", strlen("refine.")))
        return true;
    for (size_t i = 0; i < ARRAY_LEN(of_text); i++)
        if (!is_state && !strcmp(k->name, of_text[i]))
            return true;
    return false;
}

static enum err compare_key(const struct refine_source *src, const struct recipe *base,
                            const struct recipe *r, const struct recipe_key *k)
{
    enum err err = OK;
    char *had = NULL, *has = NULL;
    TRY_OUT(recipe_text(&had, base, k));
    TRY_OUT(recipe_text(&has, r, k));
    if (strcmp(had, has))
        FAIL_OUT(
            ERR_MISMATCH,
            "%s: %s is %s there and %s in this run, but refinement keeps the settings of "
            "its source; omit this one, or calibrate with it",
            src->dir, k->name, *had ? had : "not set", *has ? has : "not set");
out:
    mem_free(had);
    mem_free(has);
    return err;
}

static enum err configure(struct recipe *r, const struct refine_source *src,
                          const struct recipe *base, const struct recipe_input *in)
{
    TRY(recipe_copy(r, base));
    if (!recipe_refines(r))
        r->refine.samples = DEFAULT_SAMPLES;
    TRY(recipe_apply(r, in));
    if (r->compute == COMPUTE_AUTO)
        r->compute = base->compute;
    if (r->eval_samples == RECIPE_AUTO)
        r->eval_samples = base->eval_samples;
    for (int i = 0; i < recipe_n_keys; i++)
        if (!may_differ(&recipe_key[i], !src->import.artifact))
            TRY(compare_key(src, base, r, &recipe_key[i]));
    FAIL_IF(
        !recipe_refines(r), ERR_USAGE,
        "refine.samples is 0, so there is nothing to refine on; omit it (%d) or give more",
        DEFAULT_SAMPLES);
    return recipe_check_refine(r);
}

static enum err open_source(struct refine_source *src, struct recipe *base)
{
    bool is;
    TRY(file_check_link(src->dir));
    TRY(artifact_is(&is, src->dir));
    if (is)
        return open_artifact(src, base);
    TRY(state_is(&is, src->dir));
    FAIL_IF(!is, file_exists(src->dir) ? ERR_USAGE : ERR_NOT_FOUND,
            file_exists(src->dir)
                ? "%s: neither the state of a calibration nor an artifact of wkvq"
                : "%s: no such directory",
            src->dir);
    return open_state(src, base);
}

enum err refine_job_open(struct job *j, struct refine_source *src, const char *dir,
                         const struct recipe_input *in, const struct job_options *options)
{
    enum err err = OK;
    struct recipe base = {0}, r = {0};
    *src = (struct refine_source){.dir = dir};
    TRY_OUT(open_source(src, &base));
    TRY_OUT(configure(&r, src, &base, in));
    TRY_OUT(job_open_recipe(j, &r, options));
    j->options.source = src->dir;
    j->only_refines = true;
    j->import = src->import.artifact ? &src->import : NULL;
out:
    recipe_free(&base);
    recipe_free(&r);
    return err;
}

/* --- checks against model and text -------------------------------------------------- */

static enum err check_checkpoint(struct job *j, struct refine_source *src)
{
    char crc[16];
    TRY(hf_identity(&src->model_crc, j->model, true));
    j->options.model_crc = &src->model_crc;
    snprintf(crc, sizeof(crc), "%08" PRIx32, src->model_crc);
    FAIL_IF(
        *src->checkpoint_crc && strcmp(src->checkpoint_crc, crc), ERR_MISMATCH,
        "%s: made from another checkpoint: checkpoint.crc32 is %s there and %s in %s; give "
        "the checkpoint that it was made from",
        src->dir, src->checkpoint_crc, crc, j->model_dir);
    return OK;
}

/* Compares an artifact with the checkpoint bit for bit, once. Codes that do not follow from the
 * weights are vouched for by the checkpoint's CRC alone. */
static enum err check_artifact(const struct job *j, const struct refine_source *src,
                               const char *state_dir)
{
    const struct verify_settings settings = {.against = j->model_dir,
                                             .threads = (int)j->recipe.threads};
    struct verify_report report = {0};
    struct state_look look;
    TRY(state_look(&look, state_dir));
    if (look.is)
        return OK;
    log_info("comparing %s with %s", src->dir, j->model_dir);
    TRY(verify_run(&report, src->dir, &settings));
    FAIL_IF(
        !report.passed, ERR_MISMATCH,
        "%s: damaged, or not made from %s: %s; give the checkpoint that it was made from",
        src->dir, j->model_dir, report.first_difference);
    return OK;
}

static enum err check_text(const struct job *j, const struct refine_source *src)
{
    char crc[16];
    snprintf(crc, sizeof(crc), "%08" PRIx32, j->ids_crc);
    FAIL_IF(
        !j->import && strcmp(src->text_crc, crc), ERR_MISMATCH,
        "%s: calibrated on another text: text.crc32 is %s in the state and %s in this run. A "
        "state is refined on its calibration's text; give that one, or make an artifact "
        "(`wkvq convert --state`), which is refined on any text",
        src->dir, src->text_crc, crc);
    return OK;
}

enum err refine_job_prepare(bool *planned, struct job *j, struct refine_source *src,
                            const char *state_dir)
{
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    TRY(job_check_text(j, "refinement"));
    TRY(job_open_model(j));
    TRY(check_checkpoint(j, src));
    if (j->import && !stage_is_worker(j))
        TRY(check_artifact(j, src, state_dir));
    TRY(hf_rotate_values(j->model, &kv));
    TRY(job_read_text(j));
    TRY(check_text(j, src));
    TRY(job_draw_windows(j));
    return stage_plan(planned, j, state_dir);
}

void refine_source_close(struct refine_source *src)
{
    artifact_close(&src->import.artifact);
    json_decref(src->import.identity);
    *src = (struct refine_source){0};
}

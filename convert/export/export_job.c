/* SPDX-License-Identifier: MIT
 *
 * What all formats share: their table, what becomes of the cache, notes and progress. */
#include "convert/export/export_formats.h"
#include "kernels/base/file/file.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *const export_fate_name[] = {"carried", "changed", "dropped"};

const struct export_format *const export_formats[] = {&export_compressed, &export_awq,
                                                      &export_gguf, &export_dense};
const int export_format_count = ARRAY_LEN(export_formats);

const struct export_format *export_find(const char *name)
{
    for (int i = 0; i < export_format_count; i++)
        if (!strcmp(export_formats[i]->name, name))
            return export_formats[i];
    return NULL;
}

enum err export_note(struct export_job *j, enum export_fate fate, const char *fmt, ...)
{
    FAIL_IF(j->n_notes == EXPORT_NOTES_MAX, ERR_SHAPE, "more than %d notes of an export",
            EXPORT_NOTES_MAX);
    struct export_note *n = &j->note[j->n_notes++];
    va_list ap;
    va_start(ap, fmt);
    n->fate = fate;
    vsnprintf(n->text, sizeof(n->text), fmt, ap);
    va_end(ap);
    return OK;
}

enum err export_advance(struct export_job *j, uint64_t n)
{
    j->done += n;
    if (!j->progress)
        return OK;
    return j->progress(j->progress_ctx, j->total ? (double)j->done / (double)j->total : 1);
}

/* --- the checkpoint ------------------------------------------------------------------ */

#define ID_MAX 200

/* Returns true for an identifier as the hub has them, which YAML needs no quotes for. */
static bool is_id(const char *id)
{
    const size_t n = strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "0123456789._/-");
    return n && !id[n] && n <= ID_MAX && id[0] != '-' && id[0] != '.';
}

static enum err check_id(const char *id, const char *option)
{
    FAIL_IF(id && !is_id(id), ERR_USAGE,
            "--%s is \"%.60s\", want at most %d letters, digits or any of . _ / -, as in "
            "HuggingFaceTB/SmolLM2-135M or apache-2.0",
            option, id, ID_MAX);
    return OK;
}

const char *export_base_model(const struct export_job *j)
{
    if (j->options.base_model)
        return j->options.base_model;
    const json_t *from = json_object_get(j->source->manifest, "provenance");
    const char *id = json_string_value(json_object_get(from, "base_model"));
    if (!id)
        id = json_string_value(json_object_get(j->source->config, "_name_or_path"));
    const char *slash = id ? strchr(id, '/') : NULL;
    const bool known =
        slash && slash > id && slash[1] && !strchr(slash + 1, '/') && is_id(id);
    return known ? id : NULL;
}

const char *export_license(const struct export_job *j)
{
    const json_t *from = json_object_get(j->source->manifest, "provenance");
    const char *license = json_string_value(json_object_get(from, "license"));
    if (j->options.license)
        return j->options.license;
    return license && is_id(license) ? license : NULL;
}

/* --- the cache ---------------------------------------------------------------------- */

/* Lists what of the cache's calibration the format's engines cannot do; "" if nothing. */
static void list_lost(char *out, size_t n, const struct export_job *j)
{
    const struct export_calibrated c = j->source->calibrated;
    const bool rotated =
        (j->source->kv->rotate & ROTATE_K) && !(j->format->cache & EXPORT_ENGINE_ROTATES_K);
    const struct {
        bool is;
        const char *name;
    } part[] = {{c.k_scale, "the smoothing of keys"},
                {c.k_shift, "the shift of keys"},
                {c.v_scale, "the smoothing of values"},
                {c.v_shift && !j->options.fold_v_shift, "the shift of values"},
                {rotated, "the rotation of keys"}};
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(part); i++)
        if (part[i].is && used < n)
            used += (size_t)snprintf(out + used, n - used, "%s%s", used ? ", " : "",
                                     part[i].name);
}

static enum err note_rotation(struct export_job *j)
{
    if (j->source->kv->rotate & ROTATE_V)
        TRY(export_note(j, EXPORT_CARRIED,
                        "The rotation of values is in the weights of v_proj and o_proj"));
    if ((j->source->kv->rotate & ROTATE_K) &&
        (j->format->cache & EXPORT_ENGINE_ROTATES_K) &&
        j->source->arch->head_dim % ROTATED_HEADS == 0)
        TRY(export_note(j, EXPORT_CARRIED,
                        "The engine rotates keys itself when its cache is quantized"));
    return OK;
}

/* What serves each kv.target: the formats, and how to. */
static const struct {
    unsigned cache; /* of struct export_format */
    const char *format, *how;
} served[N_KV_TARGETS] = {
    [TARGET_Q4_0] = {EXPORT_LLAMA_CPP, "gguf",
                     "llama.cpp's cache of type q4_0 and its rotation: serve with -fa on "
                     "-ctk q4_0 -ctv q4_0, and without LLAMA_ATTN_ROT_DISABLE"},
    [TARGET_Q4_1] = {EXPORT_LLAMA_CPP, "gguf",
                     "llama.cpp's cache of type q4_1 and its rotation: serve with -fa on "
                     "-ctk q4_1 -ctv q4_1, and without LLAMA_ATTN_ROT_DISABLE"},
    [TARGET_FP8] =
        {EXPORT_FP8_SCALES, "compressed-tensors",
         "an FP8 cache with the scales k_scale and v_scale of every layer: serve "
         "with --kv-cache-dtype fp8 (vLLM) or fp8_e4m3 (SGLang)"},
    [TARGET_QUANTO4] = {EXPORT_TRANSFORMERS, "compressed-tensors or dense",
                        "transformers' QuantizedCache: generate with "
                        "cache_implementation=\"quantized\" and cache_config={\"backend\": "
                        "\"quanto\", \"nbits\": 4}"},
    [TARGET_VLLM_INT4] = {EXPORT_VLLM, "compressed-tensors, awq or dense",
                          "vLLM's cache with 4 bits: serve with --kv-cache-dtype "
                          "int4_per_token_head on a GPU; on a CPU vLLM 0.32 takes this "
                          "option and computes something else"}};

/* The cache is another engine's: notes how to serve it there, and refuses others without --kv
 * drop, which also leaves out scales that the format could hold. */
static enum err check_target(struct export_job *j)
{
    const enum kv_target target = j->source->kv->target;
    const bool fits = j->format->cache & served[target].cache;
    j->carries_target = fits && !(j->options.drop_cache && kv_target_has_scales(target));
    const struct export_calibrated *c = &j->source->calibrated;
    const bool uncalibrated = kv_target_has_scales(target) && !c->k_scale && !c->v_scale;
    if (j->carries_target)
        return export_note(
            j, EXPORT_CARRIED, "The weights are for %s%s", served[target].how,
            uncalibrated ? "; these scales are 1, since nothing was calibrated" : "");
    FAIL_IF(
        !j->options.drop_cache, ERR_SUPPORT,
        "%s: kv.target is %s, which is no cache of --format %s; give --format %s, or --kv "
        "drop to export the weights for an engine's own cache",
        j->source->dir, kv_target_name[target], j->format->name, served[target].format);
    return export_note(
        j, EXPORT_DROPPED,
        "The target of the cache's calibration, %s: what the weights lose in "
        "another cache is not known",
        kv_target_name[target]);
}

/* Refuses a calibrated cache without --kv drop, and notes what becomes of it. */
static enum err check_cache(struct export_job *j)
{
    const struct kv_spec *kv = j->source->kv;
    char lost[200];
    const bool folds = j->format->cache & EXPORT_FOLDS_V_SHIFT;
    FAIL_IF(j->options.fold_v_shift && !folds, ERR_SUPPORT,
            "--fold v-shift: --format %s cannot hold it; --format gguf can",
            j->format->name);
    if (kv->target)
        return check_target(j);
    list_lost(lost, sizeof(lost), j);
    FAIL_IF(*lost && !j->options.drop_cache, ERR_SUPPORT,
            "%s: the cache is calibrated, and --format %s cannot carry %s; give --kv drop "
            "to export the weights without it, for an engine's own cache",
            j->source->dir, j->format->name, lost);
    TRY(note_rotation(j));
    if (*lost)
        TRY(export_note(j, EXPORT_DROPPED,
                        "The cache's calibration (%s): an engine's cache runs uncalibrated",
                        lost));
    if (j->options.fold_v_shift && j->source->calibrated.v_shift)
        TRY(export_note(j, EXPORT_CARRIED,
                        "The shift of values, in the biases of v_proj and o_proj"));
    if (!kv_quantizes(kv))
        return OK;
    return export_note(j, EXPORT_DROPPED,
                       "The cache's format (bits %d, group_size %lld, past_only %s, window "
                       "%lld, sink %lld): the engine's own settings decide",
                       kv->bits, (long long)kv->group_size, kv->past_only ? "on" : "off",
                       (long long)kv->window, (long long)kv->sink);
}

/* --- the three steps ---------------------------------------------------------------- */

/* Rounded inputs serve comparisons in this program; no format says how they are rounded. */
static enum err check_inputs(const struct export_job *j)
{
    const struct weight_spec *w = j->source->weights;
    FAIL_IF(
        weight_rounds_inputs(w), ERR_SUPPORT,
        "%s: activations.bits is %d, but the engines of --format %s round the inputs of "
        "projections in their own way; export an artifact made with activations.bits=16",
        j->source->dir, w->act_bits, j->format->name);
    return OK;
}

void export_set_bits(struct export_job *j, uint64_t bytes)
{
    int64_t weights = 0;
    for (int64_t i = 0; i < j->source->n_linears; i++)
        weights += j->source->linear[i].packed->out * j->source->linear[i].packed->in;
    j->weight_bits = 8.0 * (double)bytes / (double)weights;
}

enum err export_check(struct export_job *j)
{
    TRY(check_id(j->options.base_model, "base-model"));
    TRY(check_id(j->options.license, "license"));
    TRY(check_inputs(j));
    TRY(check_cache(j));
    return j->format->check(j);
}

enum err export_write(struct export_job *j, const char *out)
{
    if (!j->format->is_file || !file_exists(out)) /* else a device or a pipe */
        TRY(file_check_space(out, j->bytes, "the export"));
    TRY(pool_open(&j->pool, j->options.threads));
    const enum err err = j->format->write(j, out);
    pool_close(&j->pool);
    return err;
}

void export_job_free(struct export_job *j)
{
    if (j->format && j->format->release)
        j->format->release(j);
    pool_close(&j->pool);
    j->plan = NULL;
}

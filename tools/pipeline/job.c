/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/job.h"

#include "calib/finite.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/size.h"
#include "tools/state/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static enum err open_place(struct job *j)
{
    const struct job_options *o = &j->options;
    j->model_dir = o->weights_from ? o->weights_from : o->model_dir;
    TRY(file_check_link(j->model_dir));
    FAIL_IF(
        file_exists(j->model_dir) && !file_is_dir(j->model_dir), ERR_USAGE,
        "%s: not a directory; give the directory of a Hugging Face model or of an artifact",
        j->model_dir);
    FAIL_IF(!file_is_dir(j->model_dir), ERR_NOT_FOUND, "%s: no such directory",
            j->model_dir);
    return progress_open(&j->progress, o->quiet, o->log_json, o->cell);
}

enum err job_open(struct job *j, const struct recipe_input *in,
                  const struct job_options *options)
{
    *j = (struct job){.options = *options};
    TRY(recipe_from_input(&j->recipe, in));
    FAIL_IF(j->recipe.weight_method == WEIGHT_GIVEN && !options->weights_from, ERR_USAGE,
            "weights.method is given, but no weights are: give --weights-from DIR, which "
            "sets this key");
    return open_place(j);
}

enum err job_open_recipe(struct job *j, const struct recipe *recipe,
                         const struct job_options *options)
{
    *j = (struct job){.options = *options};
    TRY(recipe_copy(&j->recipe, recipe));
    return open_place(j);
}

void job_close(struct job *j)
{
    progress_close(&j->progress);
    mem_free(j->refine_windows);
    mem_free(j->refine_offset);
    mem_free(j->windows);
    mem_free(j->offset);
    token_ids_free(&j->ids);
    mem_free(j->text);
    mem_free(j->text_windows);
    tokenizer_close(&j->tokenizer);
    dev_close(&j->dev);
    hf_close(&j->model);
    hf_close(&j->full);
    recipe_free(&j->recipe);
    *j = (struct job){0};
}

/* --- weights that another tool quantized ---------------------------------------------- */

static enum err is_same_dir(bool *same, const char *a, const char *b)
{
    struct stat x, y;
    FAIL_IF(stat(a, &x) || stat(b, &y), ERR_NOT_FOUND, "%s or %s: no such directory", a, b);
    *same = x.st_dev == y.st_dev && x.st_ino == y.st_ino;
    return OK;
}

static enum err check_architecture(const struct job *j)
{
    const struct arch *have = hf_arch(j->model), *want = hf_arch(j->full);
    struct arch_difference d;
    FAIL_IF(have->family != want->family, ERR_MISMATCH,
            "%s is a \"%s\" model and %s a \"%s\" model; give the checkpoint that was "
            "quantized",
            j->model_dir, have->model_type, j->options.model_dir, want->model_type);
    FAIL_IF(arch_differs(&d, have, want), ERR_MISMATCH,
            "%s has %s %.9g and %s has %.9g; give the checkpoint that was quantized",
            j->model_dir, d.field, d.a, j->options.model_dir, d.b);
    return OK;
}

static enum err open_full(struct job *j)
{
    bool same = false;
    TRY(is_same_dir(&same, j->model_dir, j->options.model_dir));
    if (same)
        return OK;
    TRY(hf_open(&j->full, j->options.model_dir));
    TRY(check_architecture(j));
    hf_set_full(j->model, j->full);
    return OK;
}

static void say(const struct job *j)
{
    struct hf_packed p;
    if (!hf_packed(&p, j->model))
        return;
    log_info("%s: %" PRId64 " projections from %s, %d bits%s", j->model_dir, p.n_linears,
             p.format, (int)j->recipe.weight_bits,
             j->recipe.weight_mix ? ", mixed formats" : "");
    if (p.rounded)
        log_warn("%s: %" PRId64 " of %" PRId64
                 " scales are not values of fp16 and are rounded; the largest relative "
                 "change is %.2g",
                 j->model_dir, p.rounded, p.groups, p.worst);
    if (p.mirrored)
        log_info("%s: %" PRId64 " of %" PRId64
                 " groups have a negative scale; their codes and zero points are mirrored, "
                 "which keeps the values",
                 j->model_dir, p.mirrored, p.groups);
}

static enum err open_given(struct job *j)
{
    char wants[600] = "--weights-from wants a checkpoint that another tool quantized";
    if (j->options.source)
        snprintf(wants, sizeof(wants),
                 "those of %.400s were quantized by another tool: give their checkpoint%s",
                 j->options.source,
                 j->options.weights_from ? "" : ", as --weights-from DIR");
    TRY(hf_open_packed(&j->model, j->model_dir, wants));
    TRY(recipe_take_formats(&j->recipe, j->model, j->model_dir));
    TRY(open_full(j));
    say(j);
    return OK;
}

enum err job_open_model(struct job *j)
{
    const bool given = j->options.weights_from || j->recipe.weight_method == WEIGHT_GIVEN;
    char bytes[SIZE_TEXT];
    TRY(given ? open_given(j) : hf_open(&j->model, j->model_dir));
    j->arch = *hf_arch(j->model);
    TRY(finite_ends(hf_source(j->model)));
    if (j->full)
        TRY(finite_ends(hf_source(j->full)));
    TRY(mix_check_layers(j->recipe.kv_mix, j->arch.n_layers, ERR_USAGE, "kv.mixed"));
    log_verbose("%s: %s, %" PRId64 " blocks of width %" PRId64 ", %s", j->model_dir,
                j->arch.model_type, j->arch.n_layers, j->arch.d_model,
                size_text(bytes, (double)hf_bytes(j->model)));
    return recipe_check_layers(&j->recipe, &j->arch);
}

enum err job_open_device(struct job *j)
{
    const struct dev_settings s = {.name = recipe_device(&j->recipe),
                                   .threads = (int)j->recipe.threads};
    TRY(dev_open(&j->dev, &s));
    j->settings = recipe_settings(&j->recipe, j->dev);
    j->refine = recipe_refine_settings(&j->recipe, j->dev);
    j->refine.other_teacher = j->full != NULL;
    /* Resolves compute: auto, since the resolved type is part of a state's identity. */
    j->recipe.compute = j->settings.act == DT_BF16 ? COMPUTE_BF16 : COMPUTE_F32;
    log_info("device %s, %d threads, %s: %s", dev_name(j->dev), dev_threads(j->dev),
             j->settings.act == DT_BF16 ? "bf16" : "f32", dev_about(j->dev));
    return OK;
}

/* Refuses ids beyond the vocabulary. Those of another model's tokenizer would index past
 * the embedding. */
static enum err check_ids(const struct job *j)
{
    for (size_t i = 0; i < j->ids.n; i++) {
        const int32_t id = j->ids.id[i];
        FAIL_IF(id < 0 || id >= j->arch.vocab, ERR_MISMATCH,
                "%s/%s: token %zu of the text has id %" PRId32
                ", but the model's vocabulary "
                "has %" PRId64 ": the tokenizer is another model's",
                j->model_dir, tokenizer_file(j->tokenizer), i, id, j->arch.vocab);
    }
    return OK;
}

enum err job_check_text(const struct job *j, const char *needs)
{
    FAIL_IF(!j->recipe.data.n, ERR_USAGE,
            "no text: %s needs one; give --data FILE or calibration.data (the literature "
            "calibrates on WikiText-2's wiki.train.raw and evaluates on its wiki.test.raw)",
            needs);
    return OK;
}

enum err job_refuse_shares(const struct job *j, const char *what)
{
    FAIL_IF(recipe_files_shared(&j->recipe.data), ERR_USAGE,
            "'%s' has a share, but %s reads whole texts; give --data FILE without shares",
            j->recipe.data.path[0], what);
    return OK;
}

enum err job_read_text(struct job *j)
{
    struct texts t;
    if (j->ids.n)
        return check_ids(j);
    TRY(tokenizer_open(&j->tokenizer, j->model_dir));
    const enum err err = texts_read(&t, j->tokenizer, &j->recipe.data, &j->recipe);
    j->ids = t.ids;
    j->ids_crc = t.crc;
    j->text = t.text;
    j->n_texts = t.n;
    return err ? err : check_ids(j);
}

/* Logs how many windows each text gives, and warns where they must overlap. */
static void say_shares(const struct job *j, int64_t n, int64_t T)
{
    for (int i = 0; i < j->n_texts; i++) {
        const struct batch_text *t = &j->text[i];
        log_info("%s: %" PRId64 " of %" PRId64 " windows", t->name, j->text_windows[i], n);
        if (j->text_windows[i] > t->n / T)
            log_warn("%s: has %" PRId64 " tokens, so its %" PRId64 " windows of %" PRId64
                     " overlap; give more text, or a smaller share",
                     t->name, t->n, j->text_windows[i], T);
    }
}

/* Seeds of a configuration are below 2^32, so these differ from all of them. */
#define GUARD_SEED (UINT64_C(1) << 32)
#define REFINE_SEED (UINT64_C(2) << 32)

static enum err draw_refine_windows(struct job *j, struct batch_source source)
{
    const int64_t n = j->recipe.refine.samples, guard = j->recipe.refine.guard;
    const int64_t T = j->recipe.refine.seqlen;
    const uint64_t seed = (uint64_t)j->recipe.seed;
    const int64_t dim[2] = {n + guard, T};
    struct mt19937 rng;
    size_t bytes;
    const enum err err = arch_check_length(&j->arch, T);
    if (err)
        return err_add(err, "refine.seqlen: ");
    TRY(size_product(&bytes, dim, 2, sizeof(*j->refine_windows)));
    TRY(mem_alloc(&j->refine_offset, (size_t)(n + guard), sizeof(*j->refine_offset)));
    mt_seed(&rng, seed + GUARD_SEED);
    TRY(batch_draw(j->refine_offset + n, NULL, guard, T, &source, &rng));
    source.avoid = j->refine_offset + n;
    source.n_avoid = guard;
    mt_seed(&rng, seed + REFINE_SEED);
    TRY(batch_draw(j->refine_offset, NULL, n, T, &source, &rng));
    TRY(mem_alloc(&j->refine_windows, bytes, 1));
    batch_gather(j->refine_windows, j->ids.id, j->refine_offset, n + guard, T);
    return OK;
}

static enum err draw_calibration_windows(struct job *j, const struct batch_source *source)
{
    const int64_t n = j->recipe.samples, T = j->recipe.seqlen;
    const int64_t dim[2] = {n, T};
    struct mt19937 rng;
    size_t count;
    TRY(size_product(&count, dim, 2, sizeof(*j->windows)));
    TRY(mem_alloc(&j->offset, (size_t)n, sizeof(*j->offset)));
    mt_seed(&rng, (uint64_t)j->recipe.seed);
    TRY(batch_draw(j->offset, NULL, n, T, source, &rng));
    TRY(mem_alloc(&j->windows, count, 1));
    batch_gather(j->windows, j->ids.id, j->offset, n, T);
    return OK;
}

/* Shares the windows of calibration among the texts; those of refinement, if blocks are
 * imported. */
static enum err share_windows(struct job *j)
{
    const int64_t n = j->import ? j->recipe.refine.samples : j->recipe.samples;
    const int64_t T = j->import ? j->recipe.refine.seqlen : j->recipe.seqlen;
    texts_set_shares(j->text, j->n_texts, &j->recipe.data);
    TRY(mem_alloc(&j->text_windows, (size_t)j->n_texts, sizeof(*j->text_windows)));
    TRY(batch_shares(j->text_windows, n, j->text, j->n_texts));
    if (recipe_files_shared(&j->recipe.data))
        say_shares(j, n, T);
    return OK;
}

enum err job_draw_windows(struct job *j)
{
    const struct batch_source source = {.text = j->text, .n_texts = j->n_texts};
    TRY(share_windows(j));
    if (!j->import)
        TRY(draw_calibration_windows(j, &source));
    return recipe_refines(&j->recipe) ? draw_refine_windows(j, source) : OK;
}

static enum err tokenizer_crc(uint32_t *crc, const struct job *j)
{
    char *path = NULL;
    uint64_t bytes;
    TRY(file_join(&path, j->model_dir, tokenizer_file(j->tokenizer)));
    const enum err err = file_crc32(crc, &bytes, path);
    mem_free(path);
    return err;
}

static json_t *offsets_json(const int64_t *offset, int64_t n)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(offset[i]));
    return list;
}

/* Makes what an identity says of the texts. NULL: out of memory. */
static json_t *text_json(const struct job *j)
{
    char crc[16];
    const int64_t n = j->recipe.refine.samples + j->recipe.refine.guard;
    snprintf(crc, sizeof(crc), "%08" PRIx32, j->ids_crc);
    json_t *o = json_pack("{s:I, s:s}", "tokens", (json_int_t)j->ids.n, "crc32", crc);
    if (recipe_files_shared(&j->recipe.data))
        json_object_set_new(o, "texts", texts_json(&j->ids, j->text, j->n_texts));
    if (!j->import)
        json_object_set_new(o, "windows", offsets_json(j->offset, j->recipe.samples));
    if (recipe_refines(&j->recipe))
        json_object_set_new(o, STATE_REFINE_WINDOWS, offsets_json(j->refine_offset, n));
    return o;
}

json_t *job_given_json(const struct job *j)
{
    struct hf_packed p;
    if (!hf_packed(&p, j->model))
        return NULL;
    return json_pack("{s:s, s:I, s:I, s:I, s:I}", "format", p.format, "projections",
                     (json_int_t)p.n_linears, "groups", (json_int_t)p.groups,
                     "rounded_scales", (json_int_t)p.rounded, "mirrored_groups",
                     (json_int_t)p.mirrored);
}

/* Adds what a job with given weights reads beside its checkpoint. */
static enum err add_given(json_t *o, const struct job *j)
{
    uint32_t crc;
    char text[16];
    json_t *given = job_given_json(j);
    if (given)
        json_object_set_new(o, STATE_WEIGHTS_FROM, given);
    if (!j->full)
        return OK;
    TRY(hf_identity(&crc, j->full, true));
    snprintf(text, sizeof(text), "%08" PRIx32, crc);
    json_object_set_new(
        o, STATE_FULL_PRECISION,
        json_pack("{s:s, s:I}", "crc32", text, "bytes", (json_int_t)hf_bytes(j->full)));
    return OK;
}

enum err job_identity(json_t **out, struct job *j)
{
    uint32_t model_crc, tok_crc;
    char model_text[16], tok_text[16];
    json_t *config;
    if (j->options.model_crc)
        model_crc = *j->options.model_crc;
    else
        TRY(hf_identity(&model_crc, j->model, true));
    TRY(tokenizer_crc(&tok_crc, j));
    TRY(recipe_json(&config, &j->recipe, true));
    snprintf(model_text, sizeof(model_text), "%08" PRIx32, model_crc);
    snprintf(tok_text, sizeof(tok_text), "%08" PRIx32, tok_crc);
    json_t *o = json_pack(
        "{s:o, s:{s:s, s:I}, s:{s:s, s:s}, s:o}", "config", config, "checkpoint", "crc32",
        model_text, "bytes", (json_int_t)hf_bytes(j->model), "tokenizer", "file",
        tokenizer_file(j->tokenizer), "crc32", tok_text, "text", text_json(j));
    if (j->import)
        json_object_set(o, STATE_ARTIFACT, j->import->identity);
    const enum err err = add_given(o, j);
    if (err) {
        json_decref(o);
        return err;
    }
    if (!o || json_out_of_memory()) {
        json_decref(o);
        FAIL(ERR_MEMORY, "out of memory for the run's identity");
    }
    *out = o;
    return OK;
}

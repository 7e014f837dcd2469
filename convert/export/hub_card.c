/* SPDX-License-Identifier: MIT
 *
 * The model card: front matter for the hub, settings, what was carried, measurements and
 * provenance. Nothing in it depends on the time or the place of the export. */
#include "convert/export/hub.h"
#include "convert/format/artifact_spec.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_SHOWN 80

static const char report_place[] = "--eval-report"; /* for messages */

/* --- front matter ------------------------------------------------------------------- */

static void front_matter(FILE *f, const struct export_job *j)
{
    const char *base = export_base_model(j), *license = export_license(j);
    fprintf(f, "---\n");
    if (base)
        fprintf(f, "base_model: %s\nbase_model_relation: quantized\n", base);
    if (license)
        fprintf(f, "license: %s\n", license);
    fprintf(f,
            "library_name: transformers\npipeline_tag: text-generation\n"
            "tags:\n- wkvq\n- %s\n",
            j->format->name);
    if (j->source->weights->bits < 16)
        fprintf(f, "- %d-bit\n", j->source->weights->bits);
    fprintf(f, "---\n\n# %s, quantized by wkvq\n\n",
            base ? file_base_name(base) : j->source->arch->model_type);
}

/* --- sections ----------------------------------------------------------------------- */

static enum err put_json(FILE *f, const json_t *o)
{
    char *text = o ? json_text(o, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) : NULL;
    FAIL_IF(!text, ERR_MEMORY, "the model card: out of memory");
    fprintf(f, "```json\n%s\n```\n", text);
    free(text);
    return OK;
}

/* Returns false if the artifact was rounded to nearest, without the settings' text. */
static bool is_calibrated(const struct export_source *s)
{
    const json_t *from = json_object_get(s->manifest, "provenance");
    return json_is_object(json_object_get(from, "calibration"));
}

static enum err settings(FILE *f, const struct export_job *j)
{
    const struct export_source *s = j->source;
    struct artifact_sizes size;
    artifact_measure(&size, s->artifact);
    fprintf(
        f,
        "Format `%s`, exported by wkvq %s for %s. Its projections take %.3f bits per weight, "
        "scales and zero points included; those of the artifact take %.3f.\n\n"
        "## What the export holds\n\n",
        j->format->name, WKVQ_VERSION, j->format->engines, j->weight_bits,
        size.weight_bits);
    for (int i = 0; i < j->n_notes; i++)
        fprintf(f, "- %s: %s.\n", export_fate_name[j->note[i].fate], j->note[i].text);
    json_t *spec = spec_to_json(s->weights, s->kv);
    json_t *o = json_pack("{s:O, s:O}", "weights", json_object_get(spec, "weights"), "kv",
                          json_object_get(spec, "kv"));
    json_decref(spec);
    if (is_calibrated(s))
        json_object_set(
            o, "calibration",
            json_object_get(json_object_get(s->manifest, "config"), "calibration"));
    fprintf(f, "\n## Quantization settings\n\n");
    const enum err err = put_json(f, o);
    json_decref(o);
    return err;
}

static enum err changes(FILE *f, const struct export_job *j)
{
    const json_t *o = j->options.changes;
    if (!o)
        return OK;
    fprintf(f, "\n### Different from the defaults\n\n%s",
            json_object_size(o) ? "All other keys that affect the result have their "
                                  "defaults (`wkvq --print-reference`):\n\n"
                                : "Nothing: all keys that affect the result have their "
                                  "defaults (`wkvq --print-reference`).\n");
    return json_object_size(o) ? put_json(f, o) : OK;
}

/* Prints a name of a report inside a table's cell. */
static void put_name(FILE *f, const char *name)
{
    for (size_t i = 0; name[i] && i < NAME_MAX_SHOWN; i++) {
        const unsigned char c = (unsigned char)name[i];
        fprintf(f, "%s%c", c == '|' ? "\\" : "", c < 0x20 || c == 0x7f ? ' ' : c);
    }
}

/* Prints which text a report is of: its files, and the CRC-32 of its tokens. */
static enum err put_text(FILE *f, const json_t *o)
{
    const char *crc = NULL;
    json_t *names = NULL, *name;
    size_t i;
    TRY(json_need_string(&crc, o, "text_crc32", report_place));
    TRY(json_get_array(&names, o, "texts", report_place));
    json_array_foreach(names, i, name)
    {
        fprintf(f, "%s", i ? ", " : "");
        put_name(f, json_is_string(name) ? json_string_value(name) : "?");
    }
    fprintf(f, " (tokens' CRC-32 ");
    put_name(f, crc);
    fprintf(f, ")");
    return OK;
}

/* Prints the protocol of a report o for its model m, whose cache has so many bits. */
static enum err put_protocol(FILE *f, const json_t *o, const json_t *m, double cache)
{
    const char *method = NULL, *score = "all", *target = NULL;
    int64_t windows = 0, ctx = 0, chunk = 0;
    TRY(json_need_string(&method, m, "method", report_place));
    TRY(json_get_string(&score, o, "score", report_place));
    TRY(json_get_string(&target, m, "kv_target", report_place));
    TRY(json_need_int(&windows, o, "windows", 1, INT64_MAX, report_place));
    TRY(json_need_int(&ctx, o, "ctx", 1, INT64_MAX, report_place));
    TRY(json_need_int(&chunk, o, "chunk", 1, INT64_MAX, report_place));
    put_name(f, method);
    fprintf(f,
            ", %" PRId64 " window%s of %" PRId64 " tokens, %s scored, chunk %" PRId64 ", ",
            windows, plural(windows), ctx,
            strcmp(score, "all") ? "second halves" : "all predictions", chunk);
    if (target) {
        fprintf(f, "the cache of ");
        put_name(f, target);
    } else {
        fprintf(f, "%s", cache < 16 ? "its own cache" : "an unquantized cache");
    }
    return OK;
}

/* Prints one measurement of `wkvq eval --json`: the model's part m of report o. */
static enum err put_measurement(FILE *f, const json_t *o, const json_t *m)
{
    const char *model = NULL;
    double ppl = 0, weights = 0, cache = 0;
    TRY(json_need_string(&model, m, "model", report_place));
    TRY(json_need_real(&ppl, m, "ppl", 1, 1e30, report_place));
    TRY(json_need_real(&weights, m, "weight_bits", 1, 32, report_place));
    TRY(json_need_real(&cache, m, "kv_bits", 1, 32, report_place));
    fprintf(f, "| ");
    put_name(f, file_base_name(model));
    fprintf(f, " | %.4g | %.4g | %.4f | ", weights, cache, ppl);
    TRY(put_text(f, o));
    fprintf(f, " | ");
    TRY(put_protocol(f, o, m, cache));
    fprintf(f, " |\n");
    return OK;
}

static enum err measurements(FILE *f, const struct export_job *j)
{
    const json_t *report;
    size_t i;
    if (!json_array_size(j->options.eval))
        return OK;
    fprintf(f, "\n## Perplexity\n\nMeasured by `wkvq eval` on the artifact, before the "
               "export. An engine has arithmetic and a cache of its own.\n\n"
               "| model | bits per weight | per cache element | perplexity | text | how |\n"
               "| --- | --- | --- | --- | --- | --- |\n");
    json_array_foreach(j->options.eval, i, report)
    {
        const json_t *model = json_object_get(report, "model");
        const json_t *against = json_object_get(report, "against");
        if (against)
            TRY(put_measurement(f, report, against));
        TRY(put_measurement(f, report, json_is_object(model) ? model : report));
    }
    return OK;
}

static enum err provenance(FILE *f, const struct export_source *s)
{
    const json_t *from = json_object_get(s->manifest, "provenance");
    json_t *o = json_deep_copy(from);
    if (!o)
        o = json_object();
    json_object_set_new(o, "manifest_crc32",
                        json_incref(json_object_get(s->manifest, "manifest_crc32")));
    json_object_del(json_object_get(o, "text"), "windows");
    fprintf(f, "\n## Provenance\n\nCRC-32 of the checkpoint, the tokenizer, the "
               "calibration text and state, and the artifact's manifest:\n\n");
    const enum err err = put_json(f, o);
    json_decref(o);
    return err;
}

static void command(FILE *f, const struct export_job *j)
{
    static const char *const type[] = {
        [DT_F32] = "f32", [DT_F16] = "f16", [DT_BF16] = "bf16"};
    const struct export_options *o = &j->options;
    const bool dense = !strcmp(j->format->name, "dense");
    fprintf(f, "\n## Command\n\n```\nwkvq export ARTIFACT --format %s%s%s%s",
            j->format->name, dense ? " --dtype " : "", dense ? type[o->dtype] : "",
            o->drop_cache ? " --kv drop" : "");
    if (o->shard_bytes)
        fprintf(f, " --shard %" PRIu64, o->shard_bytes);
    if (o->base_model)
        fprintf(f, " --base-model %s", o->base_model);
    if (o->license)
        fprintf(f, " --license %s", o->license);
    for (size_t i = 0; i < json_array_size(o->eval); i++)
        fprintf(f, " --eval-report FILE");
    fprintf(f, " -o OUT\n```\n");
}

static enum err write_card(FILE *f, const struct export_job *j)
{
    front_matter(f, j);
    TRY(settings(f, j));
    TRY(changes(f, j));
    TRY(measurements(f, j));
    command(f, j);
    return provenance(f, j->source);
}

enum err hub_card(char **out, const struct export_job *j)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    FAIL_IF(!f, ERR_MEMORY, "the model card: out of memory");
    enum err err = write_card(f, j);
    const bool failed = ferror(f);
    if ((fclose(f) || failed) && !err)
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "the model card: out of memory");
    if (!err)
        err = mem_strdup(out, text);
    free(text);
    return err;
}

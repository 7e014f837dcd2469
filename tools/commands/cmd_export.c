/* SPDX-License-Identifier: MIT */
#include "convert/export/export.h"
#include "convert/export/gguf/gguf_vocab.h"
#include "convert/output/outdir.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/nearest.h"
#include "tools/cli/progress.h"
#include "tools/cli/stop.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/finish.h"
#include "tools/recipe/recipe.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define REPORT_MAX ((size_t)64 << 20)

/* What --format takes. */
static const char *format_word(size_t i)
{
    const size_t n = (size_t)export_format_count;
    return i < n ? export_formats[i]->name : i == n ? "list" : NULL;
}

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Export:"},
    {OPT_TEXT, .name = "format", .arg = "F", .offset = offsetof(struct args, format),
     .help = "Format to write; list prints all of them and what each can hold (default: "
             "none, required)", .word = format_word},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory or file to make; it must not exist, or be an empty directory "
             "(default: none, required)"},
    {OPT_TEXT, .name = "kv", .arg = "HOW", .offset = offsetof(struct args, kv),
     .value = "carry", .choices = "carry|drop",
     .help = "carry refuses an artifact whose cache calibration the format cannot hold; "
             "drop leaves the calibration out, and the engine's own cache runs without it"},
    {OPT_TEXT, .name = "dtype", .arg = "TYPE", .offset = offsetof(struct args, dtype),
     .choices = "f16|bf16|f32",
     .help = "Type of the tensors, for --format dense only; f32 holds every value exactly "
             "(default: f16)"},
    {OPT_TEXT, .name = "fold", .arg = "PART", .offset = offsetof(struct args, fold),
     .choices = "v-shift",
     .help = "Carry a part of the cache's calibration in the weights: v-shift puts the shift "
             "of values into biases, for --format gguf only (default: none)"},
    {OPT_TEXT, .name = "weights", .arg = "TYPE",
     .offset = offsetof(struct args, gguf_weights), .choices = "q4_1|q8_0",
     .help = "Type of the weights, for --format gguf only: q4_1 for up to 4 bits, with Q5_1 "
             "for 5 and Q8_0 above; q8_0 for all, which is exact (default: q4_1)"},
    {OPT_TEXT, .name = "gguf-pre", .arg = "NAME", .offset = offsetof(struct args, gguf_pre),
     .help = "llama.cpp's name for how a byte-level tokenizer splits text into words, for "
             "--format gguf only; none leaves the tokenizer out (default: the name that "
             "fits the tokenizer)", .word = gguf_pre_name},
    {OPT_TEXT, .name = "gguf-vocab", .arg = "FILE", .offset = offsetof(struct args, gguf_vocab),
     .help = "Copy the tokenizer of another GGUF file, for --format gguf only, such as one of "
             "llama.cpp's converter with --vocab-only (default: the artifact's tokenizer)"},
    {OPT_INT, 'j', "threads", "N", offsetof(struct args, threads), "0", 0, 4096,
     .help = "Threads; 0 = one per core"},
    {OPT_FLAG, .name = "plan", .offset = offsetof(struct args, plan),
     .help = "Print what the export would hold, and its size; write nothing"},
    {0},
};

static const struct opt options_of_card[] = {
    {OPT_HEADING, .help = "Model card (the first two are keys of GGUF, too):"},
    {OPT_TEXT, .name = "base-model", .arg = "ID", .offset = offsetof(struct args, base_model),
     .help = "The checkpoint's name on the hub, as in HuggingFaceTB/SmolLM2-135M (default: "
             "what config.json says)"},
    {OPT_TEXT, .name = "license", .arg = "ID", .offset = offsetof(struct args, license),
     .help = "The checkpoint's license, as in apache-2.0 (default: what the model card beside "
             "the checkpoint stated when it was converted)"},
    {OPT_LIST, .name = "eval-report", .arg = "FILE",
     .offset = offsetof(struct args, eval_report),
     .help = "Output of `wkvq eval --json` with perplexities to state, except for --format "
             "gguf; repeatable (default: none is stated)"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,         opt_shard,  opt_progress,
                                           options_of_card, opt_report, NULL};

/* --- formats ------------------------------------------------------------------------ */

static enum err print_formats(const struct args *a)
{
    json_t *list = json_array();
    for (int i = 0; i < export_format_count; i++) {
        const struct export_format *f = export_formats[i];
        if (!a->json)
            printf("%-19s %s\n%-19s loads in %s\n", f->name, f->holds, "", f->engines);
        json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "format", f->name, "holds",
                                              f->holds, "engines", f->engines));
    }
    const enum err err = a->json ? json_print(list, 0) : OK;
    json_decref(list);
    return err;
}

static enum err find_format(const struct export_format **out, const char *name)
{
    char names[256];
    size_t used = 0;
    FAIL_IF(!name, ERR_USAGE, "no format: give --format F; --format list prints them");
    *out = export_find(name);
    for (int i = 0; i < export_format_count && used < sizeof(names); i++)
        used += (size_t)snprintf(names + used, sizeof(names) - used, "%s, ",
                                 export_formats[i]->name);
    FAIL_IF(!*out, ERR_USAGE, "--format \"%.60s\" is unknown, want one of %slist", name,
            names);
    return OK;
}

/* --- options ------------------------------------------------------------------------ */

/* Releases o if it is refused. */
static enum err check_report(json_t *o, const char *path)
{
    const bool ok = json_object_get(o, "model") && json_object_get(o, "windows");
    if (!ok)
        json_decref(o);
    FAIL_IF(!ok, ERR_FORMAT,
            "%s: not what `wkvq eval --json` prints of a text: model or windows is missing",
            path);
    return OK;
}

static enum err read_reports(json_t **out, const struct text_list *files)
{
    json_t *list = json_array(), *o;
    for (int i = 0; i < files->n; i++) {
        enum err err = json_load_file_strict(&o, files->item[i], REPORT_MAX);
        if (!err)
            err = check_report(o, files->item[i]);
        if (err) {
            json_decref(list);
            return err;
        }
        json_array_append_new(list, o);
    }
    *out = list;
    return OK;
}

/* Returns the artifact that a report, or one side of it, was measured on; NULL: none. */
static const char *measured(const json_t *o)
{
    return json_string_value(json_object_get(o, "manifest_crc32"));
}

/* Refuses a report with no side of this artifact, whose card would state another's figures. */
static enum err check_owner(const json_t *o, const char *path,
                            const struct export_source *s)
{
    const char *own = json_string_value(json_object_get(s->manifest, "manifest_crc32"));
    const json_t *model = json_object_get(o, "model");
    const char *one = measured(json_is_object(model) ? model : o),
               *two = measured(json_object_get(o, "against"));
    FAIL_IF(
        !one && !two, ERR_MISMATCH,
        "%s: names no artifact that it was measured on; run `wkvq eval %s --json`, with "
        "--against CHECKPOINT to state the checkpoint's perplexity, too",
        path, s->dir);
    FAIL_IF((!one || strcmp(one, own) != 0) && (!two || strcmp(two, own) != 0),
            ERR_MISMATCH,
            "%s: measured on another artifact, of manifest_crc32 %.16s, and %s has %s; run "
            "`wkvq eval %s --json`",
            path, one ? one : two, s->dir, own, s->dir);
    return OK;
}

static enum err check_owners(const struct export_job *j, const struct text_list *files)
{
    for (int i = 0; i < files->n; i++)
        TRY(check_owner(json_array_get(j->options.eval, (size_t)i), files->item[i],
                        j->source));
    return OK;
}

/* llama.cpp does not load a file with another name. The tokenizer of a newer one is copied. */
static enum err check_pre(const char *pre)
{
    struct nearest best = {0};
    bool known = !strcmp(pre, "none");
    const char *name;
    for (size_t i = 0; !known && (name = gguf_pre_name(i)); i++) {
        known = !strcmp(pre, name);
        nearest_consider(&best, pre, name);
    }
    FAIL_IF(!known && best.word, ERR_USAGE,
            "--gguf-pre %.80s: llama.cpp has no such name; did you mean %s?", pre,
            best.word);
    FAIL_IF(
        !known, ERR_USAGE,
        "--gguf-pre %.80s: llama.cpp has no such name; without the option a fitting one "
        "is chosen, as gpt-2, smollm, llama-bpe, dbrx or qwen2; none leaves the tokenizer "
        "out, and --gguf-vocab FILE copies one that llama.cpp's converter made",
        pre);
    return OK;
}

static enum err read_options(struct export_job *j, const struct args *a)
{
    static const enum dtype type[] = {DT_F16, DT_BF16, DT_F32};
    FAIL_IF(a->pos.n != 1, ERR_USAGE, "no artifact: give its directory");
    FAIL_IF(!a->out && !a->plan, ERR_USAGE, "no place for the export: give -o OUT");
    FAIL_IF(a->dtype && strcmp(a->format, "dense"), ERR_USAGE,
            "--dtype %s is for --format dense; packed formats have one type of tensors",
            a->dtype);
    const char *gguf = a->gguf_weights ? "weights"
                       : a->gguf_pre   ? "gguf-pre"
                       : a->gguf_vocab ? "gguf-vocab"
                                       : NULL;
    FAIL_IF(gguf && strcmp(a->format, "gguf"), ERR_USAGE, "--%s is for --format gguf",
            gguf);
    TRY(a->gguf_pre ? check_pre(a->gguf_pre) : OK);
    FAIL_IF(a->gguf_pre && a->gguf_vocab, ERR_USAGE,
            "--gguf-pre and --gguf-vocab both name the tokenizer; give one of them");
    FAIL_IF(j->format->is_file && (a->shard_bytes || a->eval_report.n), ERR_USAGE,
            "--%s is for directories; --format %s is one file without a model card",
            a->shard_bytes ? "shard" : "eval-report", j->format->name);
    j->options = (struct export_options){
        .drop_cache = !strcmp(a->kv, "drop"),
        .dtype = type[a->dtype ? opt_choice("f16|bf16|f32", a->dtype) : 0],
        .shard_bytes = a->shard_bytes,
        .threads = (int)a->threads,
        .base_model = a->base_model,
        .license = a->license,
        .gguf_weights = a->gguf_weights,
        .gguf_pre = a->gguf_pre,
        .gguf_vocab = a->gguf_vocab,
        .fold_v_shift = a->fold != NULL,
    };
    return read_reports(&j->options.eval, &a->eval_report);
}

/* *out = the artifact's settings that differ from their defaults; NULL if it does not have them in
 * a form that this version reads. Release it with json_decref. */
static enum err read_changes(json_t **out, const struct export_source *s)
{
    struct recipe r;
    const json_t *config = json_object_get(s->manifest, "config");
    *out = NULL;
    if (!json_is_object(config))
        return OK;
    recipe_init(&r);
    enum err err = recipe_load_json(&r, config, s->dir);
    if (!err)
        err = recipe_changes(out, &r);
    else if (err == ERR_FORMAT) {
        log_warn("%s; a model card does not list the settings", err_text());
        err_clear();
        err = OK;
    }
    recipe_free(&r);
    return err;
}

/* --- results ------------------------------------------------------------------------ */

static json_t *notes_json(const struct export_job *j)
{
    json_t *list = json_array();
    for (int i = 0; i < j->n_notes; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "fate",
                                              export_fate_name[j->note[i].fate], "text",
                                              j->note[i].text));
    return list;
}

static double artifact_bits(const struct export_job *j)
{
    struct artifact_sizes size;
    artifact_measure(&size, j->source->artifact);
    return size.weight_bits;
}

static enum err print_json(const struct export_job *j, const struct args *a)
{
    json_t *o =
        json_pack("{s:s, s:s, s:s?, s:I, s:f, s:f, s:o}", "artifact", j->source->dir,
                  "format", j->format->name, "export", a->plan ? NULL : a->out, "bytes",
                  (json_int_t)j->bytes, "weight_bits", j->weight_bits,
                  "artifact_weight_bits", artifact_bits(j), "notes", notes_json(j));
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

/* --plan is the answer on standard output; otherwise these are remarks. */
static enum err print_notes(const struct export_job *j, const struct args *a)
{
    for (int i = 0; i < j->n_notes && !a->json; i++) {
        const struct export_note *n = &j->note[i];
        if (a->plan)
            printf("  %-8s %s\n", export_fate_name[n->fate], n->text);
        else
            log_info("%s: %s", export_fate_name[n->fate], n->text);
    }
    if (!a->plan)
        return OK;
    if (a->json)
        return print_json(j, a);
    printf("  weights  %.3f bits per weight of the projections, scales and zero points "
           "included; %.3f in the artifact\n",
           j->weight_bits, artifact_bits(j));
    printf("  size     %.1f MB, in the format of %s\n", 1e-6 * (double)j->bytes,
           j->format->engines);
    return OK;
}

static enum err write_export(struct export_job *j, const struct args *a)
{
    struct progress *p = NULL;
    TRY(progress_open(&p, a->quiet, a->log_json, NULL));
    stop_watch(STOP_AT_STEP);
    progress_phase(p, "export");
    j->progress = progress_write;
    j->progress_ctx = p;
    const enum err err = export_write(j, a->out);
    progress_end(p);
    stop_watch(STOP_AT_ONCE);
    progress_close(&p);
    if (err)
        return err;
    if (a->json)
        return print_json(j, a);
    log_info("%s: %.1f MB, %s, %.3f bits per weight (%.3f in the artifact)", a->out,
             1e-6 * (double)j->bytes, j->format->name, j->weight_bits, artifact_bits(j));
    return OK;
}

/* Returns what writing to out would return. */
static enum err probe(const char *out, const struct export_format *f)
{
    if (!f->is_file)
        return output_probe(out, OUTDIR_NEW);
    FAIL_IF(file_is_regular(out), ERR_USAGE, "%s exists; remove it, or choose another name",
            out);
    stop_hold();
    const enum err err = file_writer_probe(out);
    stop_release();
    return err;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct export_job j = {0};
    struct export_source *s = NULL;
    json_t *changes = NULL;
    if (a->format && !strcmp(a->format, "list"))
        return print_formats(a);
    TRY(find_format(&j.format, a->format));
    TRY_OUT(read_options(&j, a));
    if (a->out)
        TRY_OUT(probe(a->out, j.format));
    TRY_OUT(outdir_recover(a->pos.item[0]));
    TRY_OUT(export_open(&s, a->pos.item[0]));
    j.source = s;
    TRY_OUT(check_owners(&j, &a->eval_report));
    if (!j.format->is_file) /* a file has no model card */
        TRY_OUT(read_changes(&changes, s));
    j.options.changes = changes;
    TRY_OUT(export_check(&j));
    if (a->plan && !a->json)
        printf("%s as %s:\n", s->dir, j.format->name);
    TRY_OUT(print_notes(&j, a));
    if (!a->plan)
        TRY_OUT(write_export(&j, a));
out:
    json_decref(j.options.eval);
    json_decref(changes);
    export_job_free(&j);
    export_close(&s);
    return err;
}

const struct command cmd_export = {
    .name = "export",
    .operands = "[ARTIFACT]",
    .summary = "Write an artifact in the format of another engine",
    .details =
        "Writes what vLLM, SGLang, transformers, MLX, llama.cpp and others load, with the same "
        "weights to the bit (docs/export.md). What a format or its engines cannot "
        "hold is refused, and every export says what it carries and what it "
        "drops. --shard splits what is a directory; a GGUF file stays one.\n\n"
        "  wkvq export --format list\n"
        "  wkvq export SmolLM2-135M-w4kv4 --format compressed-tensors --kv drop \\\n"
        "      -o SmolLM2-135M-ct\n"
        "  wkvq export SmolLM2-135M-w4kv4 --format gguf --kv drop -o SmolLM2-135M.gguf\n",
    .groups = groups,
    .min_pos = 0,
    .max_pos = 1,
    .model = 1,
    .run = run,
};

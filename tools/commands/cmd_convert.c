/* SPDX-License-Identifier: MIT */
#include "convert/artifact/reader.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/preflight.h"
#include "tools/pipeline/stages.h"

#include <inttypes.h>
#include <stdio.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Conversion:"},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory for the artifact (default: none, required)"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Finished calibration that provides the scales (default: none, round to "
             "nearest as configured)"},
    {OPT_FLAG, 'f', "force", .offset = offsetof(struct args, force),
     .help = "Overwrite an existing artifact"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_shard,  opt_given, opt_recipe,
                                           opt_progress, opt_report, NULL};

static enum err open_state(struct state **s, const struct job *j, const struct args *a)
{
    TRY(state_open_read(s, a->state, &j->arch));
    TRY(state_check_finished(*s));
    FAIL_IF(a->config || a->set.n, ERR_USAGE,
            "--state brings its own configuration; omit --config and --set");
    FAIL_IF(state_recipe(*s)->weight_method == WEIGHT_GIVEN && !a->weights_from, ERR_USAGE,
            "%s: its weights were quantized by another tool; add --weights-from DIR, their "
            "checkpoint",
            a->state);
    return stage_check_checkpoint(*s, j);
}

/* Warns about a missing tokenizer. The artifact copies the checkpoint's, and without one it
 * cannot read text. */
static enum err warn_without_tokenizer(const char *model_dir)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model", "vocab.json"};
    bool found = false;
    for (size_t i = 0; i < ARRAY_LEN(names) && !found; i++) {
        char *path = NULL;
        TRY(file_join(&path, model_dir, names[i]));
        found = file_exists(path);
        mem_free(path);
    }
    if (!found)
        log_warn("%s: no tokenizer.json, tokenizer.model or vocab.json: the artifact will "
                 "have no tokenizer, so eval and generate cannot read text with it",
                 model_dir);
    return OK;
}

static enum err print_result(const struct args *a)
{
    struct artifact *art = NULL;
    struct artifact_sizes m;
    TRY(artifact_open(&art, a->out, 0));
    artifact_measure(&m, art);
    artifact_close(&art);
    if (!a->json) {
        log_info("%s: %.1f MB, %.3f bits per weight, %.3f bits per cache element", a->out,
                 1e-6 * (double)m.total_bytes, m.weight_bits, m.kv_bits);
        return OK;
    }
    json_t *o = json_pack("{s:s, s:I, s:f, s:f, s:b}", "artifact", a->out, "bytes",
                          (json_int_t)m.total_bytes, "weight_bits", m.weight_bits,
                          "kv_bits", m.kv_bits, "calibrated", a->state != NULL);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    FAIL_IF(!a->out, ERR_USAGE, "no directory for the artifact: give -o OUT");
    TRY(command_check_cpu(a, "convert"));
    TRY_OUT(output_probe(a->out, a->force ? OUTDIR_REPLACE : OUTDIR_KEEP));
    TRY_OUT(command_job_open(&j, a, a->pos.item[0]));
    TRY_OUT(job_open_model(&j));
    TRY_OUT(warn_without_tokenizer(j.model_dir));
    if (a->state)
        TRY_OUT(open_state(&s, &j, a));
    TRY_OUT(stage_convert(&j, s, a->out, a->force));
    TRY_OUT(print_result(a));
out:
    state_close(&s);
    job_close(&j);
    return err;
}

const struct command cmd_convert = {
    .name = "convert",
    .operands = "MODEL_DIR",
    .summary = "Pack a checkpoint, with a calibration's scales or rounded to nearest",
    .details = "Writes a directory like a Hugging Face model's, with packed weights and a "
               "manifest (docs/artifact.md). Without --state the weights are rounded to "
               "nearest and the cache is quantized per token, as weights.* and kv.* "
               "say.\n\n"
               "  wkvq convert Llama-2-7b --state Llama-2-7b.state -o Llama-2-7b-w4kv4\n"
               "  wkvq convert Llama-2-7b --set weights.group_size=64 -o Llama-2-7b-rtn\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .model = 1,
    .run = run,
};

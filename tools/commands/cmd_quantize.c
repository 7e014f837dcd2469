/* SPDX-License-Identifier: MIT
 *
 * `wkvq quantize`, the main job: calibrates, converts and verifies in one command that can
 * be resumed. */
#include "kernels/base/mem.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/finish.h"
#include "tools/pipeline/ranks/stage_ranks.h"
#include "tools/pipeline/stages.h"

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Quantization:"},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory for the artifact (default: none, required unless --plan)"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Directory for the calibration's state (default: OUT.state; OUT/.wkvq-state "
             "if OUT is a mount point or its parent is not writable). It is removed when "
             "the artifact is verified, unless --keep-state is given"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_given,  opt_finish,
                                           opt_shard,    opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    struct output out = command_output(a);
    bool planned = false;
    TRY_OUT(output_place(&out));
    TRY_OUT(command_job_open(&j, a, a->pos.item[0]));
    TRY_OUT(stage_join(&j));
    if (stage_is_worker(&j)) {
        err = stage_work(&j, out.state);
        goto out;
    }
    TRY_OUT(output_check(&out));
    TRY_OUT(recipe_check_runtime(&j.recipe));
    j.makes_artifact = true;
    TRY_OUT(stage_prepare(&planned, &j, out.state));
    if (planned) {
        stage_log_ranks(&j);
        goto out;
    }
    if (out.no_state) {
        stage_dismiss(&j);
        err = output_finish_without_state(&out, &j);
        goto out;
    }
    TRY_OUT(stage_check_disk(&j, out.state, a->out));
    TRY_OUT(stage_calibrate(&s, &j, out.state));
    TRY_OUT(output_finish(&out, &j, &s));
out:
    state_close(&s);
    job_close(&j);
    mem_free(out.state);
    return err;
}

const struct command cmd_quantize = {
    .name = "quantize",
    .operands = "MODEL_DIR",
    .summary = "Quantize a checkpoint to a verified W4KV4 artifact",
    .details =
        "Calibrates on the text, converts and verifies. Ctrl-C finishes the current step, "
        "saves it and exits with status 130. The same command then resumes, also after a "
        "kill, and the final bytes are the same. The state is removed after the artifact "
        "is verified. Without --config, method and budget are the paper's; "
        "configs/w4kv4-best.yaml takes a small part of that time and learns rounding, too.\n\n"
        "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o SmolLM2-135M-w4kv4\n"
        "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o best \\\n"
        "      -c configs/w4kv4-best.yaml\n"
        "  wkvq quantize SmolLM2-135M --data wiki.train.raw --plan\n"
        "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o quick \\\n"
        "      --set calibration.samples=16 --set calibration.seqlen=1024\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .model = 1,
    .run = run,
};

/* SPDX-License-Identifier: MIT */
#include "convert/fold/fold.h"
#include "data/json.h"
#include "kernels/base/log.h"
#include "tools/cli/progress.h"
#include "tools/cli/stop.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/stages.h"
#include "tools/state/state.h"

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Fold:"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Finished calibration with kv.target and weights.bits=16, whose smoothing and shift "
             "of values are folded (default: none, required)"},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory for the checkpoint (default: none, required)"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options, opt_shard, opt_progress, opt_report,
                                           NULL};

static enum err check_state(const struct state *s, const char *dir)
{
    const struct kv_spec kv = recipe_kv_spec(state_recipe(s));
    TRY(state_check_finished(s));
    FAIL_IF(
        !kv.target || kv.method != KV_CHANNEL_TOKEN, ERR_USAGE,
        "--state: %s holds nothing to fold: calibrate with weights.bits=16 and a kv.target "
        "of llama.cpp, as in --set kv.target=llama.cpp-q4_0",
        dir);
    FAIL_IF(
        state_recipe(s)->activation_bits < 16, ERR_SUPPORT,
        "--state: %s was calibrated with activations.bits=%d, which a checkpoint cannot hold",
        dir, (int)state_recipe(s)->activation_bits);
    return OK;
}

static enum err print_result(const struct args *a, const struct fold_report *r)
{
    if (!a->json) {
        log_info("%s: written, %.1f MB; %s", a->out, 1e-6 * (double)r->bytes,
                 r->biases ? "v_proj and o_proj have biases, which hold the shift of values"
                           : "smoothing only, because the architecture has no biases for a "
                             "shift of values");
        return OK;
    }
    json_t *o = json_pack("{s:s, s:I, s:b}", "checkpoint", a->out, "bytes",
                          (json_int_t)r->bytes, "biases", r->biases);
    const enum err err = json_print(o, 0);
    json_decref(o);
    return err;
}

static enum err write_fold(struct fold_report *r, const struct args *a, struct job *j,
                           struct state *s)
{
    const struct fold_options how = {.shard_bytes = a->shard_bytes,
                                     .progress = progress_write,
                                     .progress_ctx = j->progress};
    stop_watch(STOP_AT_STEP);
    progress_phase(j->progress, "fold");
    const enum err err =
        fold_write(r, a->out, j->model, j->model_dir, state_source(s), &how);
    progress_end(j->progress);
    stop_watch(STOP_AT_ONCE);
    return err;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    struct fold_report r = {0};
    FAIL_IF(!a->state, ERR_USAGE, "nothing to fold: give --state STATE");
    FAIL_IF(!a->out, ERR_USAGE, "no directory for the checkpoint: give -o OUT");
    TRY_OUT(output_probe(a->out, OUTDIR_NEW));
    TRY_OUT(command_job_open(&j, a, a->pos.item[0]));
    TRY_OUT(job_open_model(&j));
    TRY_OUT(state_open_read(&s, a->state, &j.arch));
    TRY_OUT(check_state(s, a->state));
    TRY_OUT(stage_check_checkpoint(s, &j));
    TRY_OUT(write_fold(&r, a, &j, s));
    TRY_OUT(print_result(a, &r));
out:
    state_close(&s);
    job_close(&j);
    return err;
}

const struct command cmd_fold = {
    .name = "fold",
    .operands = "MODEL_DIR",
    .summary = "Fold what was learned for another engine's cache into a checkpoint",
    .details =
        "Writes a checkpoint that computes the same, and whose values the engine's cache "
        "quantizes better: smoothing and shift, learned in the basis of that cache, are "
        "in v_proj, o_proj and their biases (docs/method.md). Quantize it afterwards with "
        "the same kv.target. Mixtures of experts cannot be folded.\n\n"
        "  wkvq calibrate MODEL --data text.txt -o MODEL.fold --set weights.bits=16 \\\n"
        "      --set kv.target=llama.cpp-q4_0\n"
        "  wkvq fold MODEL --state MODEL.fold -o MODEL-folded\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .model = 1,
    .run = run,
};

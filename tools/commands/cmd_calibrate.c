/* SPDX-License-Identifier: MIT */
#include "calib/model/shapes.h"
#include "data/json.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/preflight.h"
#include "tools/pipeline/ranks/stage_ranks.h"
#include "tools/pipeline/stages.h"

#include <inttypes.h>
#include <stdio.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Calibration:"},
    {OPT_TEXT, 'o', "output", "STATE", offsetof(struct args, out),
     .help = "Directory for the state; an existing state is resumed (default: none, "
             "required unless --plan)"},
    {OPT_FLAG, .name = "plan", .offset = offsetof(struct args, plan),
     .help = "Print the estimated memory and time, from one measured step, and stop"},
    {OPT_TEXT, .name = "shape", .arg = "MODEL", .offset = offsetof(struct args, shape),
     .choices = SHAPE_CHOICES,
     .help = "With --plan: estimate memory from a model's shapes alone, without MODEL_DIR"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_given,  opt_data, opt_recipe,
                                           opt_progress, opt_report, NULL};

static void say(const char *line)
{
    log_info("%s", line);
}

static enum err print_result(const struct job *j, const struct state *s)
{
    struct calib_summary sum;
    TRY(stage_summary(&sum, s));
    if (!j->options.json) {
        log_info("%s: %" PRId64 " block%s, %" PRId64 " improved, loss reduced by %.1f%% on "
                 "average, %.1f MB, peak memory %.2f GB",
                 state_dir(s), sum.blocks, plural(sum.blocks), sum.gained,
                 100 * sum.mean_gain, 1e-6 * (double)state_bytes(s),
                 1e-9 * (double)mem_peak_bytes());
        calib_summary_say_unreached(&sum, say);
        calib_summary_free(&sum);
        return OK;
    }
    json_t *o = json_pack("{s:s, s:I, s:I, s:f, s:I, s:I, s:O*}", "state", state_dir(s),
                          "blocks", (json_int_t)sum.blocks, "gained",
                          (json_int_t)sum.gained, "mean_gain", sum.mean_gain, "state_bytes",
                          (json_int_t)state_bytes(s), "peak_memory_bytes",
                          (json_int_t)mem_peak_bytes(), "unreached_experts", sum.unreached);
    if (o && sum.refined)
        json_object_set_new(o, "refinement", state_refinement_json(&sum.refinement));
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    calib_summary_free(&sum);
    return err;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    bool planned = false;
    if (a->shape && a->plan && !a->pos.n) {
        const struct recipe_input in = command_recipe_input(a);
        return preflight_print_shape(a->shape, &in, a->json);
    }
    FAIL_IF(a->shape, ERR_USAGE, "--shape needs --plan and excludes MODEL_DIR");
    FAIL_IF(!a->pos.n, ERR_USAGE, "missing argument: want MODEL_DIR");
    FAIL_IF(!a->out && !a->plan, ERR_USAGE, "no directory for the state: give -o STATE");
    TRY_OUT(command_job_open(&j, a, a->pos.item[0]));
    TRY_OUT(stage_join(&j));
    if (stage_is_worker(&j)) {
        err = stage_work(&j, a->out);
        goto out;
    }
    if (a->out)
        TRY_OUT(state_probe(a->out));
    TRY_OUT(stage_prepare(&planned, &j, a->out));
    if (planned) {
        stage_log_ranks(&j);
        goto out;
    }
    TRY_OUT(stage_calibrate(&s, &j, a->out));
    if (state_removing(s))
        FAIL_OUT(
            ERR_USAGE,
            "%s: a partly removed state whose artifact is finished; remove the directory "
            "to start over",
            a->out);
    TRY_OUT(print_result(&j, s));
out:
    state_close(&s);
    job_close(&j);
    return err;
}

const struct command cmd_calibrate = {
    .name = "calibrate",
    .operands = "MODEL_DIR",
    .summary = "Learn clipping, smoothing and shift block by block, into a state",
    .details = "MODEL_DIR is a Hugging Face checkpoint. The state has one file per "
               "finished block. Ctrl-C finishes the current step, saves it and exits with "
               "status 130. The same command then resumes, and the final bytes are the "
               "same. Afterwards:\n\n"
               "  wkvq calibrate Llama-2-7b --data wiki.train.raw -o Llama-2-7b.state\n"
               "  wkvq convert Llama-2-7b --state Llama-2-7b.state -o Llama-2-7b-w4kv4\n",
    .groups = groups,
    .min_pos = 0,
    .max_pos = 1,
    .model = 1,
    .run = run,
};

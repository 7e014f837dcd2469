/* SPDX-License-Identifier: MIT
 *
 * The main job: calibrate, convert, verify, in one command that resumes. */
#include "convert/artifact/outdir.h"
#include "data/json.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/commands.h"
#include "tools/stages.h"
#include "tools/verify_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Quantization:"},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory for the artifact (default: none, required)"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Directory for the calibration's state (default: OUT.state)"},
    {OPT_FLAG, .name = "keep-state", .offset = offsetof(struct args, keep_state),
     .help = "Keep the state when the artifact is verified"},
    {OPT_FLAG, .name = "plan", .offset = offsetof(struct args, plan),
     .help = "Print memory and time, from one measured step, and stop"},
    {OPT_BYTES, .name = "shard", .arg = "SIZE", .offset = offsetof(struct args, shard_bytes),
     .value = "0", .help = "Split the weights into files of at most SIZE; 0 stands for 5 GB"},
    {OPT_FLAG, 'f', "force", .offset = offsetof(struct args, force),
     .help = "Overwrite an artifact that is there"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

/* OUT.state; a slash at OUT's end does not hide it inside. */
static enum err state_dir_of(char **out, const struct args *a)
{
    if (a->state)
        return mem_strdup(out, a->state);
    size_t n = strlen(a->out);
    while (n > 1 && a->out[n - 1] == '/')
        n--;
    TRY(mem_alloc(out, n + sizeof(".state"), 1));
    sprintf(*out, "%.*s.state", (int)n, a->out);
    return OK;
}

/* By name; a state elsewhere under the same name is refused when it is opened. */
static bool same_directory(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    while (n > 1 && a[n - 1] == '/')
        n--;
    while (m > 1 && b[m - 1] == '/')
        m--;
    return n == m && !strncmp(a, b, n);
}

/* Can the artifact be written, hours from now? One that is there is in the way, unless this
 * job wrote it: then its state is still there. */
static enum err check_output(bool *force, const struct args *a, const char *state_dir)
{
    struct outdir trial = {0};
    FAIL_IF(same_directory(a->out, state_dir), ERR_USAGE,
            "-o and --state both name %s; artifact and state need a directory each",
            state_dir);
    TRY(state_is(force, state_dir));
    *force |= a->force;
    if (a->plan)
        return OK;
    TRY(outdir_open(&trial, a->out, *force));
    outdir_abort(&trial);
    return OK;
}

/* The verification's report, and what the calibration came to. */
static enum err print_json(const struct args *a, const struct calib_summary *sum,
                           const struct verify_report *v, double seconds)
{
    json_t *o = verify_report_json(a->out, v);
    json_t *more =
        json_pack("{s:I, s:I, s:f, s:f, s:I}", "blocks", (json_int_t)sum->blocks, "gained",
                  (json_int_t)sum->gained, "mean_gain", sum->mean_gain, "seconds", seconds,
                  "peak_memory_bytes", (json_int_t)mem_peak_bytes());
    json_object_update(o, more);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    json_decref(more);
    return err;
}

static enum err print_result(const struct args *a, const struct calib_summary *sum,
                             const struct verify_report *v, double seconds)
{
    char time_text[40];
    if (a->json)
        return print_json(a, sum, v, seconds);
    progress_time_text(time_text, sizeof(time_text), seconds);
    printf("artifact    %s\n", a->out);
    printf("calibrated  %" PRId64 " of %" PRId64
           " blocks gained, loss %.1f%% less in the mean\n",
           sum->gained, sum->blocks, 100 * sum->mean_gain);
    verify_report_print(v, true, true, true);
    printf("time        %s, peak memory %.2f GB\n", time_text,
           1e-9 * (double)mem_peak_bytes());
    return OK;
}

static enum err finish(struct job *j, struct state **s, bool force, double start)
{
    const struct args *a = j->args;
    struct calib_summary sum;
    struct verify_report report = {0};
    TRY(stage_summary(&sum, *s));
    TRY(stage_convert(j, *s, a->out, force));
    TRY(stage_verify(&report, j, *s, a->out, NULL));
    TRY(print_result(a, &sum, &report, (double)time(NULL) - start));
    FAIL_IF(!report.passed, ERR_VERIFY,
            "%s: verification failed: %s; the state stays in %s", a->out,
            report.first_difference, state_dir(*s));
    return a->keep_state ? OK : state_remove(s);
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    char *dir = NULL;
    bool planned = false, force = false;
    const double start = (double)time(NULL);
    FAIL_IF(!a->out, ERR_USAGE, "no place for the artifact: give -o OUT");
    TRY_OUT(state_dir_of(&dir, a));
    TRY_OUT(check_output(&force, a, dir));
    TRY_OUT(job_open(&j, a, a->pos.item[0]));
    TRY_OUT(recipe_check_runtime(&j.recipe));
    TRY_OUT(stage_prepare(&planned, &j, dir));
    if (planned)
        goto out;
    TRY_OUT(stage_calibrate(&s, &j, dir));
    TRY_OUT(finish(&j, &s, force, start));
out:
    state_close(&s);
    job_close(&j);
    mem_free(dir);
    return err;
}

const struct command cmd_quantize = {
    .name = "quantize",
    .operands = "MODEL_DIR",
    .summary = "Checkpoint and text in, verified W4KV4 artifact out",
    .details = "Calibrates, converts and verifies. Interrupted (Ctrl-C finishes the step "
               "in hand, saves, "
               "exits 130) or killed, the same command goes on and ends with the same "
               "bytes. The state "
               "is removed when the artifact is verified.\n\n"
               "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o SmolLM2-135M-w4kv4\n"
               "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o out --plan\n"
               "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o quick \\\n"
               "      --set calibration.samples=16 --set calibration.seqlen=1024\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .run = run,
};

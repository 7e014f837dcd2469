/* SPDX-License-Identifier: MIT
 *
 * `wkvq quantize`, the main job: calibrates, converts and verifies in one command that can
 * be resumed. */
#include "convert/output/outdir.h"
#include "data/json.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/stages.h"
#include "tools/pipeline/verify_report.h"

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
     .help = "Directory for the calibration's state (default: OUT.state; OUT/.wkvq-state "
             "if OUT is a mount point or its parent is not writable). It is removed when "
             "the artifact is verified, unless --keep-state is given"},
    {OPT_FLAG, .name = "keep-state", .offset = offsetof(struct args, keep_state),
     .help = "Keep the state after the artifact is verified"},
    {OPT_FLAG, .name = "plan", .offset = offsetof(struct args, plan),
     .help = "Print the estimated memory and time, from one measured step, and stop"},
    {OPT_BYTES, .name = "shard", .arg = "SIZE", .offset = offsetof(struct args, shard_bytes),
     .value = "0",
     .help = "Split the weights into files of at most SIZE; 0 means 5 GB"},
    {OPT_FLAG, 'f', "force", .offset = offsetof(struct args, force),
     .help = "Overwrite an existing artifact"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

/* Output paths of the job, and the leftovers of an earlier run. */
struct output {
    char *state;   /* directory of the state */
    bool replace;  /* --force, or the artifact was written from this very state */
    bool finished; /* the artifact is verified, and a killed run was removing the state */
    bool no_state; /* finished, and the state's directory is empty */
};

/* Is the real path inner that of outer, or below it? */
static bool is_inside(const char *inner, const char *outer)
{
    const size_t n = strlen(outer);
    return !strncmp(inner, outer, n) &&
           (!inner[n] || inner[n] == '/' || (n && outer[n - 1] == '/'));
}

/* The one place for a state in an output directory. */
static bool is_known_place(const char *state, const char *out)
{
    const size_t n = strlen(out);
    return is_inside(state, out) && !strcmp(state + n, "/" OUTDIR_STATE);
}

/* The files of the one are foreign to the other: a refusal after the calibration. */
static enum err check_apart(const char *out_dir, const char *state_dir)
{
    enum err err = OK;
    char *out = NULL, *state = NULL;
    TRY_OUT(outdir_resolve(&out, out_dir));
    TRY_OUT(outdir_resolve(&state, state_dir));
    if (!strcmp(out, state))
        FAIL_OUT(ERR_USAGE,
                 "-o and --state both name %s; artifact and state need a directory each",
                 out_dir);
    if (is_inside(out, state) || (is_inside(state, out) && !is_known_place(state, out)))
        FAIL_OUT(ERR_USAGE,
                 "-o %s and --state %s: one is inside the other; artifact and state need "
                 "directories apart",
                 out_dir, state_dir);
out:
    mem_free(out);
    mem_free(state);
    return err;
}

/* Refuses an existing artifact unless this job wrote it. Then the artifact names the
 * existing state. */
static enum err look_at_state(struct output *o, const struct args *a)
{
    struct state_look look;
    char mark[STATE_MARK];
    TRY(state_look(&look, o->state));
    TRY(stage_artifact_mark(mark, a->out));
    const bool own = *look.mark && !strcmp(look.mark, mark);
    FAIL_IF(
        look.removing && !own, ERR_USAGE,
        "%s: a partly removed state whose artifact was finished, but %s does not contain "
        "that artifact; remove the state to start over",
        o->state, a->out);
    o->replace = a->force || own;
    o->no_state = look.empty && *mark && !a->force;
    o->finished = look.removing || o->no_state;
    return OK;
}

/* Checks that artifact and state can be written, before hours of work. */
static enum err check_output(struct output *o, const struct args *a)
{
    if (a->state) {
        TRY(check_apart(a->out, a->state));
        TRY(mem_strdup(&o->state, a->state));
    } else {
        TRY(outdir_state(&o->state, a->out));
    }
    TRY(outdir_recover(a->out));
    TRY(look_at_state(o, a));
    if (!o->finished)
        TRY(outdir_probe(a->out, o->replace));
    return state_probe(o->state);
}

/* Prints the verification's report and the calibration's summary. */
static enum err print_json(const struct args *a, const struct calib_summary *sum,
                           const struct verify_report *v, double seconds)
{
    json_t *o = verify_report_json(a->out, v);
    json_t *more =
        json_pack("{s:I, s:I, s:f, s:f, s:I}", "blocks", (json_int_t)sum->blocks, "gained",
                  (json_int_t)sum->gained, "mean_gain", sum->mean_gain, "seconds", seconds,
                  "peak_memory_bytes", (json_int_t)mem_peak_bytes());
    if (sum->refined)
        json_object_set_new(more, "refinement",
                            json_pack("{s:f, s:f}", "start", sum->refinement.start, "best",
                                      sum->refinement.best));
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
           " blocks improved, loss reduced by %.1f%% on "
           "average\n",
           sum->gained, sum->blocks, 100 * sum->mean_gain);
    if (sum->refined)
        printf(
            "refined     divergence from full precision %.4f -> %.4f nats on unseen windows\n",
            sum->refinement.start, sum->refinement.best);
    verify_report_print(v, true, true, true);
    printf("time        %s, peak memory %.2f GB\n", time_text,
           1e-9 * (double)mem_peak_bytes());
    return OK;
}

static enum err check_passed(const struct args *a, const struct verify_report *r,
                             const char *state)
{
    FAIL_IF(!r->passed, ERR_VERIFY, "%s: verification failed: %s; the state is kept in %s",
            a->out, r->first_difference, state);
    return OK;
}

static enum err finish(struct job *j, const struct args *a, struct state **s, bool replace,
                       double start)
{
    const bool removing = state_removing(*s);
    struct calib_summary sum;
    struct verify_report report = {0};
    TRY(stage_summary(&sum, *s));
    if (!removing)
        TRY(stage_convert(j, *s, a->out, replace));
    TRY(stage_verify(&report, j, removing ? NULL : *s, a->out, NULL));
    TRY(print_result(a, &sum, &report, (double)time(NULL) - start));
    TRY(check_passed(a, &report, state_dir(*s)));
    return a->keep_state && !removing ? OK : state_remove(s);
}

/* Finishes a job whose state is already removed. The artifact itself tells which job it
 * belongs to. */
static enum err finish_without_state(struct job *j, const struct args *a,
                                     const char *state_dir, double start)
{
    struct calib_summary sum;
    struct verify_report report = {0};
    bool own;
    TRY(stage_artifact_is(&own, &sum, j, a->out));
    FAIL_IF(!own, ERR_USAGE,
            "%s: contains an artifact of another job; overwrite it with --force", a->out);
    TRY(stage_verify(&report, j, NULL, a->out, NULL));
    TRY(print_result(a, &sum, &report, (double)time(NULL) - start));
    TRY(check_passed(a, &report, state_dir));
    return state_remove_empty(state_dir);
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    struct output out = {0};
    bool planned = false;
    const double start = (double)time(NULL);
    FAIL_IF(!a->out, ERR_USAGE, "no directory for the artifact: give -o OUT");
    TRY_OUT(check_output(&out, a));
    TRY_OUT(command_job_open(&j, a, a->pos.item[0]));
    TRY_OUT(recipe_check_runtime(&j.recipe));
    TRY_OUT(stage_prepare(&planned, &j, out.state));
    if (planned)
        goto out;
    if (out.no_state) {
        err = finish_without_state(&j, a, out.state, start);
        goto out;
    }
    TRY_OUT(stage_check_disk(&j, out.state, a->out));
    TRY_OUT(stage_calibrate(&s, &j, out.state));
    TRY_OUT(finish(&j, a, &s, out.replace, start));
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
        "is verified.\n\n"
        "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o SmolLM2-135M-w4kv4\n"
        "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o out --plan\n"
        "  wkvq quantize SmolLM2-135M --data wiki.train.raw -o quick \\\n"
        "      --set calibration.samples=16 --set calibration.seqlen=1024\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .run = run,
};

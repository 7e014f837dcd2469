/* SPDX-License-Identifier: MIT
 *
 * `wkvq refine`: end-to-end refinement of a finished state, in place, or of an artifact, into a new
 * one. */
#include "data/json.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/pipeline/ranks/stage_ranks.h"
#include "tools/pipeline/refine_job.h"
#include "tools/pipeline/stages.h"

#include <inttypes.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Refinement:"},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory for the refined artifact (default: none, required if SOURCE is an "
             "artifact, unless --plan; a state is refined in place)"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Directory for the progress of an artifact's refinement (default: OUT.state; "
             "OUT/.wkvq-state if OUT is a mount point or its parent is not writable). It is "
             "removed when the new artifact is verified, unless --keep-state is given"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_given,  opt_finish,
                                           opt_shard,    opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

static enum err print_state(const struct job *j, const struct state *s)
{
    struct state_refinement r;
    TRY(state_refinement(&r, s));
    if (!j->options.json) {
        log_info("%s: divergence from full precision %.4f -> %.4f nats on unseen windows, "
                 "%.1f MB, peak memory %.2f GB",
                 state_dir(s), r.start, r.best, 1e-6 * (double)state_bytes(s),
                 1e-9 * (double)mem_peak_bytes());
        return OK;
    }
    json_t *o =
        json_pack("{s:s, s:o, s:I, s:I}", "state", state_dir(s), "refinement",
                  state_refinement_json(&r), "state_bytes", (json_int_t)state_bytes(s),
                  "peak_memory_bytes", (json_int_t)mem_peak_bytes());
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

/* What a rank beside rank 0 does. */
static enum err work(struct job *j, struct refine_source *src, const char *state_dir)
{
    bool planned;
    if (j->options.plan)
        return OK;
    TRY(refine_job_prepare(&planned, j, src, state_dir));
    return stage_work(j, state_dir);
}

static enum err refine_state(struct job *j, struct refine_source *src, const struct args *a)
{
    struct state *s = NULL;
    bool planned;
    FAIL_IF(
        a->out || a->state || a->keep_state || a->force || a->shard_bytes, ERR_USAGE,
        "%s is a state, which is refined in place; omit -o, --state, --keep-state, --shard "
        "and --force",
        src->dir);
    TRY(stage_join(j));
    if (stage_is_worker(j))
        return work(j, src, src->dir);
    TRY(state_probe(src->dir));
    TRY(refine_job_prepare(&planned, j, src, src->dir));
    if (planned) {
        stage_log_ranks(j);
        return OK;
    }
    TRY(stage_calibrate(&s, j, src->dir));
    const enum err err = print_state(j, s);
    state_close(&s);
    return err;
}

/* The source is read again when a killed run is resumed. */
static enum err check_apart(const struct refine_source *src, const char *dir)
{
    bool overlaps;
    TRY(output_overlaps(&overlaps, src->dir, dir));
    FAIL_IF(overlaps, ERR_USAGE,
            "%s and the source %s: one is inside the other; the refined artifact and its "
            "state need directories of their own",
            dir, src->dir);
    return OK;
}

static enum err refine_artifact(struct job *j, struct refine_source *src,
                                struct output *out)
{
    struct state *s = NULL;
    bool planned;
    if (out->dir)
        TRY(check_apart(src, out->dir));
    TRY(output_place(out));
    if (out->state)
        TRY(check_apart(src, out->state));
    TRY(recipe_check_runtime(&j->recipe));
    j->makes_artifact = true;
    TRY(stage_join(j));
    if (stage_is_worker(j))
        return work(j, src, out->state);
    TRY(output_check(out));
    TRY(refine_job_prepare(&planned, j, src, out->state));
    if (planned) {
        stage_log_ranks(j);
        return OK;
    }
    if (out->no_state) {
        stage_dismiss(j);
        return output_finish_without_state(out, j);
    }
    TRY(stage_check_disk(j, out->state, out->dir));
    TRY(stage_calibrate(&s, j, out->state));
    const enum err err = output_finish(out, j, &s);
    state_close(&s);
    return err;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct refine_source src = {0};
    struct output out = command_output(a);
    const struct recipe_input in = command_recipe_input(a);
    const struct job_options job = command_job_options(a, a->pos.item[0]);
    TRY_OUT(refine_job_open(&j, &src, a->pos.item[1], &in, &job));
    err = j.import ? refine_artifact(&j, &src, &out) : refine_state(&j, &src, a);
out:
    job_close(&j);
    refine_source_close(&src);
    mem_free(out.state);
    return err;
}

const struct command cmd_refine = {
    .name = "refine",
    .operands = "MODEL_DIR SOURCE",
    .summary = "Refine a finished state or an artifact end to end",
    .details =
        "SOURCE is the state of a finished calibration, which is refined in place, or an "
        "artifact, from which a new one is made and verified. MODEL_DIR is the checkpoint that "
        "it was made from. SOURCE brings its configuration; refine.* is new, with "
        "refine.samples=160 unless set. A state needs its calibration's text, an artifact takes "
        "any. Ctrl-C finishes the current step, saves it and exits with status 130. The same "
        "command then resumes, also after a kill, and the final bytes are the same.\n\n"
        "  wkvq refine Llama-2-7b Llama-2-7b-w4kv4 --data wiki.train.raw \\\n"
        "      -o Llama-2-7b-refined\n"
        "  wkvq refine Llama-2-7b Llama-2-7b.state --data wiki.train.raw\n"
        "  wkvq refine Llama-2-7b Llama-2-7b-rtn --data own.jsonl -o better \\\n"
        "      --set refine.samples=320 --set refine.learn=scales+norms+cache+rounding\n",
    .groups = groups,
    .min_pos = 2,
    .max_pos = 2,
    .model = 1,
    .run = run,
};

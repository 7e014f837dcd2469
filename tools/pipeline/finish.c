/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/finish.h"

#include "data/json.h"
#include "kernels/base/mem.h"
#include "tools/cli/stop.h"
#include "tools/pipeline/verify_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

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
static enum err look_at_state(struct output *o)
{
    struct state_look look;
    char mark[STATE_MARK];
    TRY(state_look(&look, o->state));
    TRY(stage_artifact_mark(mark, o->dir));
    const bool own = *look.mark && !strcmp(look.mark, mark);
    FAIL_IF(
        look.removing && !own, ERR_USAGE,
        "%s: a partly removed state whose artifact was finished, but %s does not contain "
        "that artifact; remove the state to start over",
        o->state, o->dir);
    o->replace = o->force || own;
    o->no_state = look.empty && *mark && !o->force;
    o->finished = look.removing || o->no_state;
    return OK;
}

enum err output_overlaps(bool *yes, const char *a, const char *b)
{
    enum err err = OK;
    char *x = NULL, *y = NULL;
    TRY_OUT(outdir_resolve(&x, a));
    TRY_OUT(outdir_resolve(&y, b));
    *yes = is_inside(x, y) || is_inside(y, x);
out:
    mem_free(x);
    mem_free(y);
    return err;
}

enum err output_place(struct output *o)
{
    FAIL_IF(!o->dir && !o->plan, ERR_USAGE, "no directory for the artifact: give -o OUT");
    if (!o->given_state)
        return o->dir ? outdir_state(&o->state, o->dir) : OK;
    if (o->dir)
        TRY(check_apart(o->dir, o->given_state));
    return mem_strdup(&o->state, o->given_state);
}

enum err output_probe(const char *out_dir, enum outdir_policy policy)
{
    stop_hold();
    const enum err err = outdir_probe(out_dir, policy);
    stop_release();
    return err;
}

enum err output_check(struct output *o)
{
    if (!o->dir)
        return o->state ? state_probe(o->state) : OK;
    TRY(outdir_recover(o->dir));
    TRY(look_at_state(o));
    if (!o->finished)
        TRY(output_probe(o->dir, o->replace ? OUTDIR_REPLACE : OUTDIR_KEEP));
    return state_probe(o->state);
}

static double seconds_since(const struct output *o)
{
    return (double)time(NULL) - o->start;
}

/* Prints the verification's report and the calibration's summary. */
static enum err print_json(const struct output *o, const struct calib_summary *sum,
                           const struct verify_report *v)
{
    json_t *report = verify_report_json(o->dir, v);
    json_t *more = json_pack("{s:f, s:I}", "seconds", seconds_since(o), "peak_memory_bytes",
                             (json_int_t)mem_peak_bytes());
    if (!sum->imported)
        json_object_update_new(
            more, json_pack("{s:I, s:I, s:f}", "blocks", (json_int_t)sum->blocks, "gained",
                            (json_int_t)sum->gained, "mean_gain", sum->mean_gain));
    if (sum->unreached)
        json_object_set(more, "unreached_experts", sum->unreached);
    if (sum->refined)
        json_object_set_new(more, "refinement",
                            json_pack("{s:f, s:f}", "start", sum->refinement.start, "best",
                                      sum->refinement.best));
    json_object_update(report, more);
    const enum err err = json_print(report, JSON_REAL_PRECISION(9));
    json_decref(report);
    json_decref(more);
    return err;
}

static void print_line(const char *line)
{
    puts(line);
}

static enum err print_result(const struct output *o, const struct calib_summary *sum,
                             const struct verify_report *v)
{
    char time_text[40];
    if (o->json)
        return print_json(o, sum, v);
    progress_time_text(time_text, sizeof(time_text), seconds_since(o));
    printf("artifact    %s\n", o->dir);
    if (!sum->imported)
        printf("calibrated  %" PRId64 " of %" PRId64
               " blocks improved, loss reduced by %.1f%% on "
               "average\n",
               sum->gained, sum->blocks, 100 * sum->mean_gain);
    calib_summary_say_unreached(sum, print_line);
    if (sum->refined)
        printf(
            "refined     divergence from full precision %.4f -> %.4f nats on unseen windows\n",
            sum->refinement.start, sum->refinement.best);
    verify_report_print(v, true, true, true);
    printf("time        %s, peak memory %.2f GB\n", time_text,
           1e-9 * (double)mem_peak_bytes());
    return OK;
}

static enum err check_passed(const struct output *o, const struct verify_report *r)
{
    FAIL_IF(!r->passed, ERR_VERIFY, "%s: verification failed: %s; the state is kept in %s",
            o->dir, r->first_difference, o->state);
    return OK;
}

enum err output_finish(struct output *o, struct job *j, struct state **s)
{
    const bool removing = state_removing(*s);
    struct calib_summary sum;
    struct verify_report report = {0};
    enum err err = OK;
    TRY(stage_summary(&sum, *s));
    if (!removing)
        TRY_OUT(stage_convert(j, *s, o->dir, o->replace));
    TRY_OUT(stop_check()); /* a signal during the last step */
    TRY_OUT(stage_verify(&report, j, removing ? NULL : *s, o->dir, NULL));
    TRY_OUT(print_result(o, &sum, &report));
    TRY_OUT(check_passed(o, &report));
out:
    calib_summary_free(&sum);
    TRY(err);
    return o->keep_state && !removing ? OK : state_remove(s);
}

enum err output_finish_without_state(struct output *o, struct job *j)
{
    struct calib_summary sum;
    struct verify_report report = {0};
    bool own;
    enum err err = OK;
    TRY(stage_artifact_is(&own, &sum, j, o->dir));
    if (!own)
        FAIL_OUT(ERR_USAGE,
                 "%s: contains an artifact of another job; overwrite it with --force",
                 o->dir);
    TRY_OUT(stage_verify(&report, j, NULL, o->dir, NULL));
    TRY_OUT(print_result(o, &sum, &report));
    TRY_OUT(check_passed(o, &report));
out:
    calib_summary_free(&sum);
    return err ? err : state_remove_empty(o->state);
}

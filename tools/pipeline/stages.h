/* SPDX-License-Identifier: MIT
 *
 * The stages of the main job. `quantize` runs all of them; `calibrate` and `convert` run
 * parts. */
#ifndef WKVQ_STAGES_H
#define WKVQ_STAGES_H

#include "convert/verify/verify.h"
#include "tools/pipeline/job.h"
#include "tools/state/state.h"

/* Opens model, text, windows and device and runs the preflight checks, so that mistakes are
 * found before a long calibration. With --plan it prints the estimates and sets
 * *planned; state_dir may be NULL then. */
enum err stage_prepare(bool *planned, struct job *j, const char *state_dir);
/* The last part of stage_prepare: opens the device for the open model and windows. */
enum err stage_plan(bool *planned, struct job *j, const char *state_dir);
/* Checks disk space for the artifact and the rest of the state. Called after stage_prepare
 * and before the calibration. Exact except for the text about the calibration's result.
 * ERR_IO. */
enum err stage_check_disk(struct job *j, const char *state_dir, const char *out_dir);
/* Opens the state (new or resumed), calibrates or imports the missing blocks, and refines if the
 * recipe says so. *s stays open; the caller closes it with state_close. */
enum err stage_calibrate(struct state **s, struct job *j, const char *state_dir);
/* Refines the calibrated blocks of s by the job's recipe, together with other ranks if there are
 * any, and saves them in s, unless that is done. A rank beside rank 0 saves nothing. ERR_STOPPED:
 * the last step is saved. Errors: those of refine_run, and of the state's files. */
enum err stage_refine(struct job *j, struct state *s);
/* Summary of a calibration. */
struct calib_summary {
    int64_t blocks, gained;
    /* relative reduction of the loss, mean over blocks; 0.3: 30% less than at the start */
    double mean_gain;
    bool imported; /* the blocks are an artifact's, and the numbers above are 0 */
    bool refined;
    struct state_refinement refinement; /* zero unless refined */
    /* Experts that calibration did not reach, [{"layer": 0, "experts": [3, 5]}], as in reports and
     * provenance; owned, NULL: none. */
    json_t *unreached;
};
/* Release with calib_summary_free(). */
enum err stage_summary(struct calib_summary *out, const struct state *s);
void calib_summary_free(struct calib_summary *sum); /* accepts a zeroed one */
/* Says which experts calibration did not reach, a line for each layer that has some. */
void calib_summary_say_unreached(const struct calib_summary *sum,
                                 void (*say)(const char *line));

/* Writes the mark (state_mark) of the state that the artifact in dir was made from. "" if
 * dir has no artifact or one rounded to nearest. */
enum err stage_artifact_mark(char out[STATE_MARK], const char *dir);
/* Writes whether the artifact in dir has the job's configuration, checkpoint, tokenizer and
 * text, and the summary of its calibration. Reads the whole checkpoint once. */
enum err stage_artifact_is(bool *yes, struct calib_summary *sum, struct job *j,
                           const char *dir);
/* Returns ERR_MISMATCH unless s was calibrated on the job's checkpoint. Reads the whole
 * checkpoint once. */
enum err stage_check_checkpoint(const struct state *s, const struct job *j);
/* Packs the checkpoint with the scales of s. NULL: rounds to nearest by the job's
 * recipe. */
enum err stage_convert(struct job *j, struct state *s, const char *out_dir, bool force);
/* Verifies the artifact against the checkpoint and the state, on the job's own text.
 * layer_cosine: see struct verify_settings; may be NULL. */
enum err stage_verify(struct verify_report *out, struct job *j, struct state *s,
                      const char *artifact_dir, double *const layer_cosine[2]);

#endif

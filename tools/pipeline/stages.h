/* SPDX-License-Identifier: MIT
 *
 * The three stages of the main job, as `quantize` chains them and calibrate, convert run
 * them alone. */
#ifndef WKVQ_STAGES_H
#define WKVQ_STAGES_H

#include "convert/verify/verify.h"
#include "tools/pipeline/job.h"
#include "tools/state/state.h"

/* Model, text, windows, device, preflight: everything that can fail before hours are spent.
 * With --plan the estimates are printed and *planned is true. */
enum err stage_prepare(bool *planned, struct job *j, const char *state_dir);
/* Disk for the artifact and what the state still needs, after stage_prepare and before the
 * calibration. Exact but for the text about the calibration's outcome. ERR_IO. */
enum err stage_check_disk(struct job *j, const char *state_dir, const char *out_dir);
/* Open the state (new or resumed) and calibrate what is missing. *s stays open. */
enum err stage_calibrate(struct state **s, struct job *j, const char *state_dir);
/* Blocks that gained, mean relative gain of the loss. */
struct calib_summary {
    int64_t blocks, gained;
    double mean_gain; /* 0.3: 30% less loss than at the start, mean over blocks */
};
enum err stage_summary(struct calib_summary *out, const struct state *s);

/* The mark (state_mark) of the state that the artifact in dir was written from; "": dir
 * holds none, or it was rounded to nearest. */
enum err stage_artifact_mark(char out[STATE_MARK], const char *dir);
/* *yes: the artifact in dir has the job's configuration, checkpoint, tokenizer and text.
 * sum: what its calibration came to. Reads the whole checkpoint once. */
enum err stage_artifact_is(bool *yes, struct calib_summary *sum, struct job *j,
                           const char *dir);
/* Is s the job's checkpoint's? Reads the whole checkpoint once. ERR_MISMATCH if not. */
enum err stage_check_checkpoint(const struct state *s, const struct job *j);
/* Pack the checkpoint with the scales of s (NULL: round to nearest by the job's recipe). */
enum err stage_convert(struct job *j, struct state *s, const char *out_dir, bool force);
/* Verify against the checkpoint and the state on the job's own text. layer_cosine: see
 * struct verify_settings; NULL: not wanted. */
enum err stage_verify(struct verify_report *out, struct job *j, struct state *s,
                      const char *artifact_dir, double *const layer_cosine[2]);

#endif

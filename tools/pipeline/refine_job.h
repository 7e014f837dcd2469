/* SPDX-License-Identifier: MIT
 *
 * A job that refines what exists: the finished calibration in a state, or an artifact. The source
 * brings the configuration; only settings of refinement, of the run, and of an artifact's text are
 * new. */
#ifndef WKVQ_REFINE_JOB_H
#define WKVQ_REFINE_JOB_H

#include "tools/pipeline/job.h"

/* What is refined. Zeroed by the caller; refine_source_close releases it. */
struct refine_source {
    const char *dir;          /* borrowed */
    struct job_import import; /* artifact NULL: dir is a state, or nothing is open */
    char checkpoint_crc[16];  /* of the checkpoint that it was made from; "": unknown */
    char text_crc[16];        /* of a state's text */
    uint32_t model_crc;       /* of the job's checkpoint, by refine_job_prepare */
};

/* Opens the source in dir, and the job with its configuration and the settings of in,
 * refine.samples 160 unless one of them says otherwise. Call refine_source_close after
 * job_close, whatever the result. ERR_USAGE for a directory of another kind, an unfinished
 * state, a refined artifact; ERR_MISMATCH names a setting that differs, with both values. */
enum err refine_job_open(struct job *j, struct refine_source *src, const char *dir,
                         const struct recipe_input *in, const struct job_options *options);
/* Opens model, text and device, and compares them with the source, before the long part.
 * An artifact that state_dir does not have yet is verified against the checkpoint. With
 * --plan it prints the estimates and sets *planned. Reads the whole checkpoint.
 * ERR_MISMATCH: another checkpoint, or another text than a state's. */
enum err refine_job_prepare(bool *planned, struct job *j, struct refine_source *src,
                            const char *state_dir);
void refine_source_close(struct refine_source *src);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The refinement stage, which follows the last block of a calibration. */
#ifndef WKVQ_STAGE_REFINE_H
#define WKVQ_STAGE_REFINE_H

#include "tools/pipeline/job.h"
#include "tools/state/state.h"

/* Refines the calibrated blocks of s by the job's recipe and saves them in s, unless that is
 * done. ERR_STOPPED: the last step is saved. Errors: those of refine_run, and of the state's
 * files. */
enum err stage_refine(struct job *j, struct state *s);

#endif

/* SPDX-License-Identifier: MIT
 *
 * A calibration by several processes (tools/cli/launch.h). Rank 0 is the job: it owns the state,
 * prints, and continues alone when all blocks are calibrated. The other ranks only calibrate. */
#ifndef WKVQ_STAGE_RANKS_H
#define WKVQ_STAGE_RANKS_H

#include "tools/state/state.h"

struct job;

/* Joins the processes that were started with this one, and shares the machine with those that
 * run on it. j is open, and nothing of it is in use yet. Sets j->ranks. Other ranks than 0
 * then print nothing but errors. ERR_SUPPORT: this build has no MPI. */
enum err stage_join(struct job *j);
/* Returns whether this process is one of the ranks that only calibrate. */
bool stage_is_worker(const struct job *j);
/* Logs what --plan cannot know of one process: samples, memory and traffic of each rank, and the
 * speed-up with an infinitely fast network. Nothing for one process. */
void stage_log_ranks(const struct job *j);
/* All that such a rank does, beside rank 0 in stage_prepare and stage_calibrate. */
enum err stage_work(struct job *j, const char *state_dir);
/* For rank 0: begins the calibration of the blocks from state_done(s) on with the others, which
 * then have the state open; does nothing for one process. */
enum err stage_call(struct job *j, const struct state *s);
/* For rank 0: sends the others home, because there is nothing to calibrate. */
void stage_dismiss(struct job *j);
/* Ends the work of all ranks after a calibration that ended with err: alike on all of them, or by
 * an error of this rank, which then ends the others. */
void stage_part(struct job *j, enum err err);

#endif

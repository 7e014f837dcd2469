/* SPDX-License-Identifier: MIT
 *
 * A calibration and a refinement by several processes (tools/cli/launch.h). Rank 0 is the job: it
 * owns the state, prints, and calls the others for each of the two. What is left after them it
 * does alone. */
#ifndef WKVQ_STAGE_RANKS_H
#define WKVQ_STAGE_RANKS_H

#include "tools/state/state.h"

struct job;

/* Joins the processes that were started with this one, and shares the machine with those that
 * run on it. j is open, and nothing of it is in use yet. Sets j->ranks. Other ranks than 0
 * then print nothing but errors. ERR_SUPPORT: this build has no MPI. */
enum err stage_join(struct job *j);
/* Returns whether this process is one of the ranks that only compute beside rank 0. */
bool stage_is_worker(const struct job *j);
/* Logs what --plan cannot know of one process: samples, memory and traffic of each rank, and the
 * speed-up with an infinitely fast network. Nothing for one process. */
void stage_log_ranks(const struct job *j);
/* All that such a rank does. A job that only refines is prepared before. */
enum err stage_work(struct job *j, const char *state_dir);
/* For rank 0: begins the calibration of the blocks from state_done(s) on, or if all are done the
 * refinement, with the others, which then have the state open; does nothing for one process. */
enum err stage_call(struct job *j, const struct state *s);
/* For rank 0: sends the others home, because there is nothing more to share. */
void stage_dismiss(struct job *j);
/* Ends the work of all ranks after a part that ended with err: alike on all of them, or by an
 * error of this rank, which then ends the others. */
void stage_part(struct job *j, enum err err);

#endif

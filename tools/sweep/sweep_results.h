/* SPDX-License-Identifier: MIT
 *
 * Results of a sweep on disk, results.jsonl and results.csv, and whether a directory is a sweep's,
 * so that nothing is written among other files (sweep_place.c). */
#ifndef WKVQ_SWEEP_RESULTS_H
#define WKVQ_SWEEP_RESULTS_H

#include "tools/sweep/sweep.h"

#define SWEEP_LOCK "lock" /* empty */
#define SWEEP_LIST "results.jsonl"

/* Makes out_dir, its folder cells and its lock. ERR_USAGE as below. */
enum err sweep_place_make(const char *out_dir);
/* ERR_USAGE where out_dir has files and is no sweep's. It is one if cells/ stands beside the lock
 * or the list, or alone and empty, as a kill leaves it. Git and other copies leave out an empty
 * cells/: then the list must have results, or sweep.json cells. */
enum err sweep_place_check(const char *out_dir);
/* Returns whether there is nothing in it but names that begin with a dot, or no such directory. */
bool sweep_place_is_empty(const char *out_dir);

/* For a sweep whose cells all have results: warns of states in cells/ of cells without one, which
 * an interrupted run with other settings left. They stay. */
void sweep_place_say_others(const struct sweep *s);

/* Makes OUT, takes its lock, reads results.jsonl, and lists results that a killed run left.
 * With settings.plan_only it reads the same but writes, makes and locks nothing; OUT may be
 * missing. With settings.share it makes OUT and reads. ERR_USAGE if another process works on
 * it or OUT contains something else. ERR_FORMAT names file and line. */
enum err sweep_results_open(struct sweep *s);
/* Removes what sweep_results_open() made, where nothing has been added since: for a sweep that is
 * refused. Before sweep_results_close(). */
void sweep_results_undo(struct sweep *s);
void sweep_results_close(struct sweep *s);
/* Returns whether a result with this cell's identity is listed, with all measures asked. */
bool sweep_results_has(const struct sweep *s, const struct sweep_run *run);
/* Returns the result with this identity, or NULL. Borrowed. */
const json_t *sweep_results_find(const struct sweep *s, const struct sweep_run *run);
/* Writes the result of a finished cell where the sweep's process finds it. Called in the
 * cell's process. The file is complete or absent at any instant. */
enum err sweep_results_leave(const struct sweep *s, const struct sweep_run *run,
                             const json_t *result);
/* Writes a result that lacks measures still, where the cell's next run finds it. */
enum err sweep_results_keep(const struct sweep *s, const struct sweep_run *run,
                            const json_t *result);
/* *out = a copy of what is known of this cell: the result of an interrupted run, or a listed
 * one that lacks measures; NULL: nothing. Release it with json_decref. */
enum err sweep_results_begun(json_t **out, const struct sweep *s,
                             const struct sweep_run *run);
/* Lists the result that sweep_results_leave() wrote and removes the cell's files. */
enum err sweep_results_take(struct sweep *s, const struct sweep_run *run);
/* Reads the results again, those that are not listed yet too, because other processes may have
 * added some. */
enum err sweep_results_again(struct sweep *s);
/* For settings.share: reads the results again, and lists those that processes left. If another
 * process runs the whole sweep, it has OUT's lock, and they stay where they are. */
enum err sweep_results_join(struct sweep *s);
/* Reads the results of a directory into an array of objects, those that are not in
 * results.jsonl yet included. They are in the order of their cells. Other processes may
 * add some at the same time. ERR_NOT_FOUND if there is neither results.jsonl nor another
 * result. Release it with json_decref. */
enum err sweep_results_read(json_t **out, const char *dir);

#endif

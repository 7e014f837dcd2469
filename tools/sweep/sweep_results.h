/* SPDX-License-Identifier: MIT
 *
 * What a sweep has found so far, on disk: results.jsonl and results.csv. */
#ifndef WKVQ_SWEEP_RESULTS_H
#define WKVQ_SWEEP_RESULTS_H

#include "tools/sweep/sweep.h"

/* Make OUT and OUT/cells. A directory of something else must not get our files: ERR_USAGE.
 */
enum err sweep_results_make(const char *out_dir);
/* Make OUT, take its lock, read results.jsonl and pick up results that a killed run wrote
 * but did not list. With settings.plan_only the same is found and nothing is written, made
 * or locked: OUT need not exist. Errors: ERR_USAGE when another process works on it or OUT holds
 * something else, ERR_FORMAT naming file and line. */
enum err sweep_results_open(struct sweep *s);
void sweep_results_close(struct sweep *s);
/* Is there a result of this cell's identity? */
bool sweep_results_has(const struct sweep *s, const struct sweep_run *run);
/* From a finished cell's process: its result where the sweep finds it, at any instant whole
 * or absent. */
enum err sweep_results_leave(const struct sweep *s, const struct sweep_run *run,
                             const json_t *result);
/* List what that process left and remove the cell's files. */
enum err sweep_results_take(struct sweep *s, const struct sweep_run *run);
/* An array of objects as results.jsonl of a directory has them. Release with json_decref.
 */
enum err sweep_results_read(json_t **out, const char *dir);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Checks and estimates that run before a long calibration. */
#ifndef WKVQ_PREFLIGHT_H
#define WKVQ_PREFLIGHT_H

#include "tools/pipeline/job.h"

/* Checks the sequence length against the architecture. Logs layers whose last group is
 * shorter. */
enum err preflight_shapes(const struct job *j);
/* Warns if no query in a window of T tokens reads a quantized cache, as kv.window, kv.sink or a
 * block of keys may hold them all. name: of T's setting. */
void preflight_cache(const struct job *j, const char *name, int64_t T);
/* Warns if refinement changes weights that another tool quantized. */
void preflight_given(const struct job *j);
/* Estimates memory and disk of a calibration whose state goes to dir; NULL: only memory. Sets
 * settings.device_bytes and settings.memory_bytes to the bytes left for streams, and
 * j->state_bytes to the bytes that the state still needs. A job that only converts needs nothing
 * of this. Requires j->dev. ERR_USAGE if the GPU has too little memory, or the host if there is no
 * GPU; not with --plan or a run.memory. ERR_IO: too little disk space. */
enum err preflight_resources(struct calib_plan *plan, struct job *j, const char *dir);
/* Checks that the artifact of that calibration, `bytes` large, fits on the disk of out_dir.
 * ERR_IO. */
enum err preflight_artifact(const struct job *j, const char *state_dir, const char *out_dir,
                            uint64_t bytes);
/* Returns need minus the bytes that plain files in dir already occupy on disk. */
uint64_t preflight_missing(const char *dir, uint64_t need);
/* Measures one step, then prints the estimates on stdout as text or JSON. artifact_bytes 0: the
 * command writes no artifact. */
enum err preflight_print_plan(struct job *j, uint64_t artifact_bytes);
/* Prints the estimates from a named shape alone (--shape), without opening or measuring
 * anything. */
enum err preflight_print_shape(const char *shape, const struct recipe_input *in, bool json);

#endif

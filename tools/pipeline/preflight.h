/* SPDX-License-Identifier: MIT
 *
 * Checks and estimates before hours are spent. */
#ifndef WKVQ_PREFLIGHT_H
#define WKVQ_PREFLIGHT_H

#include "tools/pipeline/job.h"

/* Sequence length against the architecture; ragged groups are reported by layer name. */
enum err preflight_shapes(const struct job *j);
/* Memory and disk of a calibration whose state goes to dir; settings.device_bytes and
 * memory_bytes become what is left of the budgets for streams, j->state_bytes what the
 * state still needs. Needs j->dev. ERR_USAGE when a GPU has too little memory, or the host
 * without one, unless --plan asks for just that or run.memory is set. ERR_IO: too little
 * disk. */
enum err preflight_resources(struct calib_plan *plan, struct job *j, const char *dir);
/* The artifact of that calibration in out_dir, of so many bytes. ERR_IO. */
enum err preflight_artifact(const struct job *j, const char *state_dir, const char *out_dir,
                            uint64_t bytes);
/* Of need bytes, those that the plain files in dir do not hold on disk already. */
uint64_t preflight_missing(const char *dir, uint64_t need);
/* One measured step, then the estimates on stdout, as text or JSON. */
enum err preflight_print_plan(struct job *j);
/* The same of a model's shapes alone (--shape): nothing is opened or measured. */
enum err preflight_print_shape(const char *shape, const struct recipe_input *in, bool json);

#endif

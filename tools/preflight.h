/* SPDX-License-Identifier: MIT
 *
 * Checks and estimates before hours are spent. */
#ifndef WKVQ_PREFLIGHT_H
#define WKVQ_PREFLIGHT_H

#include "tools/job.h"

/* Sequence length against the architecture; ragged groups are reported by layer name. */
enum err preflight_shapes(const struct job *j);
/* Memory and disk of a calibration whose state goes to dir; settings.device_bytes and
 * memory_bytes become what is left of the budgets for streams. Needs j->dev. ERR_USAGE when
 * a GPU has too little memory, unless that is what --plan asks about. */
enum err preflight_resources(struct calib_plan *plan, struct job *j, const char *dir);
/* need bytes at dir, which need not exist yet. */
enum err preflight_disk(const char *dir, uint64_t need, const char *what);
/* One measured step, then the estimates on stdout, as text or JSON. */
enum err preflight_print_plan(struct job *j);
/* The same of a model's shapes alone (--shape): nothing is opened or measured. */
enum err preflight_print_shape(const struct args *a);

#endif

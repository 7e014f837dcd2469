/* SPDX-License-Identifier: MIT
 *
 * Chooses formats per kind of projection, or per projection, within a budget. A pass
 * estimates the loss of each format, and the best choice is computed exactly. */
#ifndef WKVQ_TUNE_MIX_H
#define WKVQ_TUNE_MIX_H

#include "tools/tune/tune.h"

/* Fills t->weights.mix and t->kv.mix where the estimate promises less loss than the uniform formats
 * that are tried: the configuration's bits in the sizes finest_w and finest_k of t, by
 * tune_bounds(), and the next coarser of each. A mix may have one format everywhere, if its bits
 * are others. r is the trials' configuration without its budget. The pass runs in a child process
 * and writes settings.work_dir/sensitivity.json. An existing file is reused if it has the same
 * model, text and configuration. ERR_USAGE if a budget is below every format. */
enum err tune_find_mixes(struct tune *t, const struct recipe *r, const struct arch *a,
                         int finest_w, int finest_k);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Formats by kind of projection, or by projection, within a budget: a pass that estimates
 * what each costs the loss, and the exact choice among them. */
#ifndef WKVQ_TUNE_MIX_H
#define WKVQ_TUNE_MIX_H

#include "tools/tune/tune.h"

/* Fill t->weights.mix and t->kv.mix where the estimate promises less loss than any one
 * format does: at most max_bits a weight, max_kv_bits a cache element. r: the trials'
 * configuration but for its budget. The pass runs in a process of its own and leaves its
 * figures in settings.work_dir/sensitivity.json, which is taken as it is where it belongs to the same
 * model, text and configuration. ERR_USAGE when a budget is below every format. */
enum err tune_find_mixes(struct tune *t, const struct recipe *r, const struct arch *a,
                         double max_bits, double max_kv_bits);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Times a step of end-to-end refinement on random weights, by parts. */
#ifndef WKVQ_BENCH_REFINE_H
#define WKVQ_BENCH_REFINE_H

#include "calib/refine/refine.h"
#include "tools/bench/bench_data.h"

/* Seconds of the median step, and the median of each part by dev_part_seconds; the rest of a
 * step is spent between operations. */
struct bench_refine {
    double step_s;
    double part_s[N_DEV_PARTS];
    double mean_s;          /* of the steps, */
    struct ranks_cost cost; /* and their mean cost; 0 without ranks */
};
/* w has ends. s: seqlen, batch and act count. weights, kv: formats of all layers. ranks: the
 * processes that take the step together; NULL: this one alone. Errors: those of refine_run. */
enum err bench_refine_step(struct bench_refine *out, struct dev *d,
                           const struct bench_weights *w, const struct weight_spec *weights,
                           const struct kv_spec *kv, const struct refine_settings *s,
                           int64_t steps, const struct ranks *ranks);

#endif

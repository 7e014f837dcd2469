/* SPDX-License-Identifier: MIT
 *
 * Simulated evaluation: a decoder run whose weights and cache are rounded as a struct eval
 * says. */
#ifndef WKVQ_EVAL_SIM_H
#define WKVQ_EVAL_SIM_H

#include "calib/model/ends.h"
#include "calib/model/model.h"
#include "tools/eval/eval.h"

struct eval_sim {
    struct model_run run; /* ready for model_nll and similar calls */
    struct model_quant quant;
    struct eval *e;
    struct block_quant current;
    struct ends_source ends; /* of the checkpoint */
};

/* Opens s, which must not move while it is open. Close it after an error as well. */
enum err eval_sim_open(struct eval_sim *s, struct eval *e);
void eval_sim_close(struct eval_sim *s);
/* Returns how many windows of T tokens fit: their input and output hidden states take at
 * most a quarter of the budget. At least 1. */
int64_t eval_sim_windows(const struct eval *e, int64_t T);

#endif

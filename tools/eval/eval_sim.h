/* SPDX-License-Identifier: MIT
 *
 * Evaluation in simulation: the decoder run whose weights and cache are rounded as a struct
 * eval says. */
#ifndef WKVQ_EVAL_SIM_H
#define WKVQ_EVAL_SIM_H

#include "calib/model/model.h"
#include "tools/eval/eval.h"

struct eval_sim {
    struct model_run run; /* ready for model_nll and the like */
    struct model_quant quant;
    struct eval *e;
    struct block_quant current;
};

/* s stays where it is while it is open; it needs closing after an error too. */
enum err eval_sim_open(struct eval_sim *s, struct eval *e);
void eval_sim_close(struct eval_sim *s);
/* Windows of T tokens whose hidden states, in and out, take at most a quarter of the
 * budget; at least 1. */
int64_t eval_sim_windows(const struct eval *e, int64_t T);

#endif

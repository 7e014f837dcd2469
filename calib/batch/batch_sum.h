/* SPDX-License-Identifier: MIT
 *
 * The gradients that a step of several samples adds up. */
#ifndef WKVQ_BATCH_SUM_H
#define WKVQ_BATCH_SUM_H

#include "calib/fakequant.h"

/* grad[] = the gradients from which a step is computed: g, and where offsets of the rounding
 * learn, those of the stacked weights. NULL: none. */
void fakequant_gradients(const struct fakequant *f, const struct tensor *grad[FQ_SUMS]);

#endif

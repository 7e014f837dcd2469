/* SPDX-License-Identifier: MIT
 *
 * Calibrations whose blocks differ in what is quantized and what learns, and a count of the passes
 * that they really do. */
#ifndef WKVQ_TESTS_COST_FIXTURE_H
#define WKVQ_TESTS_COST_FIXTURE_H

#include "tests/calib/calib_fixture.h"

enum { COST_BLOCKS = 4, COST_CASES = 6 };

/* A calibration of COST_BLOCKS blocks with crr.blocks 2. Its block 1 is kept in full precision;
 * what learns in the others stands in the masks, a bit a block. */
struct cost_case {
    struct calib_settings s;
    struct mix *weights, *kv;
    unsigned quantized_weights, weights_learn, kv_learns;
    double scan; /* passes of a sample up to its keys and values */
};
void cost_case_open(struct cost_case *c, int which, const struct arch *a);
void cost_case_close(struct cost_case *c);

/* Returns the blocks under the loss of block b. */
int64_t cost_chain(const struct cost_case *c, int64_t b);
/* Returns the passes that m has seen, apart from training steps: of one process. */
double seen_forward(const struct memory_io *m, const struct cost_case *c);
/* Returns those of all samples in training steps. */
double seen_steps(const struct memory_io *m, const struct cost_case *c);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The multiple-choice knapsack, exactly: one option for every item, the least total loss
 * within a budget. */
#ifndef WKVQ_ALLOCATE_H
#define WKVQ_ALLOCATE_H

#include "kernels/base/error.h"

#include <stdint.h>

struct allocate_option {
    int64_t cost; /* >= 0, any unit; all costs of the items together fit an int64_t */
    double loss;  /* finite */
};

struct allocate_item {
    const struct allocate_option *option; /* [n], borrowed */
    int n;                                /* >= 1 */
};

/* choice [n_items]: an index into each item's options. Of choices that lose equally little
 * one is taken, always the same. ERR_USAGE when the cheapest options are above the budget,
 * ERR_NUMERIC for a loss that is not finite, ERR_MEMORY. */
enum err allocate(int *choice, const struct allocate_item *item, int n_items,
                  int64_t budget);

#endif

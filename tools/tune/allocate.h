/* SPDX-License-Identifier: MIT
 *
 * The multiple-choice knapsack, solved exactly: one option per item, the least total loss
 * within a budget. Pure function, thread-safe. */
#ifndef WKVQ_ALLOCATE_H
#define WKVQ_ALLOCATE_H

#include "kernels/base/error.h"

#include <stdint.h>

struct allocate_option {
    int64_t cost; /* >= 0, any unit; the sum over all items must fit an int64_t */
    double loss;  /* finite */
};

struct allocate_item {
    const struct allocate_option *option; /* [n], borrowed */
    int n;                                /* >= 1 */
};

/* Writes choice [n_items], an index into each item's options. Among choices of equal loss
 * it always takes the same one. ERR_USAGE: even the cheapest options exceed the budget.
 * ERR_NUMERIC: a loss is not finite. ERR_MEMORY. */
enum err allocate(int *choice, const struct allocate_item *item, int n_items,
                  int64_t budget);

#endif

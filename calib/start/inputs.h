/* SPDX-License-Identifier: MIT
 *
 * The inputs of a block's seven projections. Some read the same one:
 *
 *   input           read by         activation (block.h)                columns
 *   INPUT_QKV       q, k, v         n1, behind the norm of attention    D
 *   INPUT_O         o               o, the heads' outputs               H d
 *   INPUT_GATE_UP   gate, up        n2, behind the norm of the MLP      D
 *   INPUT_DOWN      down            m, the gated products               F
 *
 * With experts the last two have a part for each: the rows of the tokens that reach it, which lie
 * together in experts.x and m (struct route). Any other input is one part. */
#ifndef WKVQ_INPUTS_H
#define WKVQ_INPUTS_H

#include "calib/model/block.h"

enum lin_input { INPUT_QKV, INPUT_O, INPUT_GATE_UP, INPUT_DOWN, N_INPUTS };

/* Returns the input of projection l, an enum lin. */
enum lin_input input_of(int l);

/* Return the columns of an input, and its parts: experts, or 1. */
int64_t input_columns(const struct arch *a, enum lin_input i);
int64_t input_parts(const struct arch *a, enum lin_input i);

/* Returns the input that the last forward left in acts, a view: [rows, columns] act. */
struct tensor input_acts(const struct block_acts *acts, const struct arch *a,
                         enum lin_input i);
/* *x = the rows of a part of it, a view. Returns false, and leaves *x, if it has none. */
bool input_rows(struct tensor *x, const struct block_acts *acts, const struct arch *a,
                enum lin_input i, int64_t part);

/* x holds the second moments of a part's n columns, `step` numbers apart. If all are 0, because no
 * token reached the expert, they become 1, so that its columns count alike. Returns true then. */
bool input_fill_unreached(double *x, int64_t n, int64_t step);

#endif

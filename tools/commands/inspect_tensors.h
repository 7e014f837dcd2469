/* SPDX-License-Identifier: MIT
 *
 * The tensors of a checkpoint for `wkvq inspect`: as its files have them, and what becomes of those
 * that are split or joined while they are read. */
#ifndef WKVQ_INSPECT_TENSORS_H
#define WKVQ_INSPECT_TENSORS_H

#include "convert/checkpoint/hf.h"
#include "data/json.h"

struct inspect_contents {
    int64_t stored, read; /* tensors of the files, and what they become */
    int64_t weights;      /* elements */
    uint64_t bytes;
};

struct inspect_contents inspect_contents(const struct hf_model *m);
/* Prints a line about tensors that are split or joined; nothing if all are read as stored. */
void inspect_print_reading(const struct arch *a, const struct inspect_contents *c);
/* Lists the tensors of the files, and where they differ those that are read. */
void inspect_print_tensors(const struct hf_model *m);
/* Adds the same lists to o: "tensors" and "tensors_read". false: no memory. */
bool inspect_add_tensors(json_t *o, const struct hf_model *m);

#endif

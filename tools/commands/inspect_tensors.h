/* SPDX-License-Identifier: MIT
 *
 * For `wkvq inspect`: the tensors of a checkpoint, as its files have them, and what becomes of
 * those that are split or joined while they are read; how projections and cache are quantized. */
#ifndef WKVQ_INSPECT_TENSORS_H
#define WKVQ_INSPECT_TENSORS_H

#include "convert/artifact/reader.h"
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

/* Bits and group size of all projections, or of the cache; formats by layer as shares of each kind,
 * and as their rules if `rules` or if those are short. */
enum err inspect_print_weights(const struct arch *a, const struct weight_spec *w,
                               const struct artifact_sizes *m, bool rules);
enum err inspect_print_cache(const struct arch *a, const struct kv_spec *kv,
                             const struct artifact_sizes *m, bool rules);

/* A checkpoint that another tool quantized. */
struct inspect_packed {
    struct hf_packed found;
    struct weight_spec weights; /* its mix is the caller's */
    struct artifact_sizes sizes;
};
enum err inspect_print_packed(const struct arch *a, const struct inspect_packed *p,
                              bool rules);
/* *out = {"format": "awq", "bits": 4, ..., "unquantized": "0.q_proj, 3-5.down_proj"}.
 * ERR_MEMORY. */
enum err inspect_packed_json(json_t **out, const struct arch *a,
                             const struct inspect_packed *p);

#endif

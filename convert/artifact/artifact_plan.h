/* SPDX-License-Identifier: MIT
 *
 * Plans the tensors of an artifact, their order and their shards, before anything is
 * written. */
#ifndef WKVQ_ARTIFACT_PLAN_H
#define WKVQ_ARTIFACT_PLAN_H

#include "convert/artifact/writer.h"

enum out_kind {
    OUT_CARRY, /* copied from the checkpoint */
    OUT_GAIN,  /* of a norm, F32, refined */
    OUT_QWEIGHT,
    OUT_SCALES,
    OUT_ZEROS,
    OUT_K_SCALE,
    OUT_K_SHIFT,
    OUT_V_SCALE,
    OUT_V_SHIFT
};

/* The packed tensors of embedding and head have these in place of a projection. */
enum { OUT_EMBED = N_LIN, OUT_HEAD };

struct out_tensor {
    char name[192];
    enum out_kind kind;
    int64_t layer;               /* -1: before the layers, n_layers: after them */
    int lin;                     /* projection or end, for its three packed tensors */
    enum norm_gain gain;         /* OUT_GAIN only */
    const struct st_tensor *src; /* borrowed; OUT_CARRY and OUT_GAIN only */
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS];
    size_t bytes;
    int shard;
    uint32_t crc; /* set when it is written */
};

struct out_plan {
    struct out_tensor *tensor; /* owned; layer by layer, wide types first, then by name */
    size_t n, room;
    int n_shards;
};

/* Plans the artifact of model m under settings s. Release with out_plan_free. Errors:
 * ERR_MEMORY, ERR_FORMAT. */
enum err out_plan_make(struct out_plan *out, const struct hf_model *m,
                       const struct artifact_settings *s);
void out_plan_free(struct out_plan *p);
/* Appends a copy of t; its size follows from type and shape. A step of out_plan_make(),
 * also for tensors that do not come from a model. */
enum err out_plan_add(struct out_plan *p, const struct out_tensor *t);
/* Assigns shards of at most `limit` bytes (0: 5e9) with at least one tensor each. */
void out_plan_cut(struct out_plan *p, uint64_t limit);
/* Returns the end of the shard whose first tensor is number `first`. */
size_t out_plan_shard_end(const struct out_plan *p, size_t first);
/* Opens the file of one shard in dir for its n tensors, the first of which is t. dir NULL:
 * nothing is written; only the header's size is computed. */
enum err out_shard_open(struct st_writer **out, const char *dir, const struct out_plan *p,
                        const struct out_tensor *t, size_t n);

#endif

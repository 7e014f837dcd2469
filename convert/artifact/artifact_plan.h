/* SPDX-License-Identifier: MIT
 *
 * Which tensors an artifact holds, in which order, in which shard: known before a byte is
 * written. */
#ifndef WKVQ_ARTIFACT_PLAN_H
#define WKVQ_ARTIFACT_PLAN_H

#include "convert/artifact/writer.h"

enum out_kind {
    OUT_CARRY, /* as in the checkpoint */
    OUT_QWEIGHT,
    OUT_SCALES,
    OUT_ZEROS,
    OUT_K_SCALE,
    OUT_K_SHIFT,
    OUT_V_SCALE,
    OUT_V_SHIFT
};

struct out_tensor {
    char name[192];
    enum out_kind kind;
    int64_t layer;               /* -1: before the layers, n_layers: behind them */
    int lin;                     /* of a projection's three tensors */
    const struct st_tensor *src; /* OUT_CARRY */
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS];
    size_t bytes;
    int shard;
    uint32_t crc; /* once written */
};

struct out_plan {
    struct out_tensor *tensor; /* owned; layer by layer, wide types first, then by name */
    size_t n, room;
    int n_shards;
};

enum err out_plan_make(struct out_plan *out, const struct hf_model *m,
                       const struct artifact_settings *s);
void out_plan_free(struct out_plan *p);
/* The steps of it, for whoever knows the tensors otherwise. Append one; its bytes follow
 * from type and shape. */
enum err out_plan_add(struct out_plan *p, const struct out_tensor *t);
/* Into shards of at most limit bytes (0: 5e9), one tensor at least each. */
void out_plan_cut(struct out_plan *p, uint64_t limit);
/* Start the file of one shard's n tensors in dir. */
enum err out_shard_open(struct st_writer **out, const char *dir, const struct out_plan *p,
                        const struct out_tensor *t, size_t n);
/* "model.safetensors", or "model-00001-of-00003.safetensors". */
void out_shard_name(char out[64], int shard, int n_shards);

#endif

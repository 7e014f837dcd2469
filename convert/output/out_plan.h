/* SPDX-License-Identifier: MIT
 *
 * Plans the tensors of an output directory, their order and their files, before anything is
 * written, and then writes the files. */
#ifndef WKVQ_OUT_PLAN_H
#define WKVQ_OUT_PLAN_H

#include "convert/checkpoint/safetensors.h"

struct out_tensor {
    char name[192];
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS];
    size_t bytes;
    int shard;
    uint32_t crc; /* set when it is written */
};

/* A file of tensors. */
struct out_shard {
    char name[64];
    uint64_t bytes; /* with its header; set when it is measured or written */
    uint32_t crc;   /* set when it is written */
};

struct out_plan {
    struct out_tensor *tensor; /* owned, in the order of the files */
    size_t n, room;
    struct out_shard *shard; /* [n_shards], owned */
    int n_shards;
};

/* Appends a copy of t; its size follows from type and shape. ERR_MEMORY, ERR_FORMAT. Release the
 * plan with out_plan_free(). */
enum err out_plan_add(struct out_plan *p, const struct out_tensor *t);
/* Assigns shards of at most `limit` bytes (0: 5e9) with at least one tensor each. ERR_MEMORY. */
enum err out_plan_cut(struct out_plan *p, uint64_t limit);
/* Sets the sizes that out_plan_write() would give the shards; nothing is written. */
enum err out_plan_measure(struct out_plan *p);
/* Writes the shards into dir, one after the other. fn writes the bytes of tensor number i, in the
 * plan's order. A file appears when all its tensors are written. */
enum err out_plan_write(struct out_plan *p, const char *dir,
                        enum err (*fn)(void *ctx, struct st_writer *f, size_t i),
                        void *ctx);
void out_plan_free(struct out_plan *p);

#endif

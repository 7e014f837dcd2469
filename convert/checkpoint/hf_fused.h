/* SPDX-License-Identifier: MIT
 *
 * Families that store several projections of a layer in one tensor. */
#ifndef WKVQ_HF_FUSED_H
#define WKVQ_HF_FUSED_H

#include "convert/checkpoint/hf_files.h"

struct packed; /* packed.h */

/* A module of several projections, whose rows follow each other in its weight. */
struct hf_fused {
    const char *module; /* "self_attn.qkv_proj", as lin_module has the others */
    int first, n;       /* enum lin */
};

/* Returns the module that begins with this projection, in families that have such modules;
 * NULL: none. */
const struct hf_fused *hf_fused_at(int lin);

/* Replaces qkv_proj and gate_up_proj of every layer in f by the projections that their rows
 * are: q, k, v, and gate, up. The new tensors are views of the files, under the names that
 * other families have. Places found before become invalid. dir: for messages. Errors:
 * ERR_NOT_FOUND for a missing tensor, ERR_FORMAT for another shape, ERR_MEMORY. */
enum err hf_split_fused(struct hf_files *f, const struct arch *a, const char *dir);

/* Splits the packed ones alike. Errors: those of packed_split(). */
enum err hf_split_packed(struct packed *p, const struct arch *a);

#endif

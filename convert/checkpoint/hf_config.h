/* SPDX-License-Identifier: MIT
 *
 * Reading config.json, in parts. Private to convert/checkpoint. */
#ifndef WKVQ_HF_CONFIG_H
#define WKVQ_HF_CONFIG_H

#include "convert/checkpoint/hf.h"
#include "data/json.h"

/* Bounds that accept any integer; arch_check() checks the real ones. */
#define ANY_LO (-INT64_MAX)
#define ANY_HI INT64_MAX

/* Returns true if o has a member key that is not null. */
static inline bool hf_is_given(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v);
}

/* Reads a size that real files always have. If it is missing, transformers' default is used
 * and logged. where: the file's path. */
enum err hf_read_size(int64_t *out, const json_t *o, const char *key, int64_t otherwise,
                      const char *where);

/* Gives a model whose config.json has no dtype that of its weights, as transformers does, if its
 * mathematics depend on it: those of Gemma's embedding. */
void hf_take_dtype(struct arch *a, enum dtype stored);

/* Reads the rotary embedding of config o, with the field names of transformers 4 and 5. a's
 * sizes, max_positions, and the default of rope_theta must be set. where: the file's path.
 * is_phi: as Phi3Config has it, with longrope and a rope for some of a head's channels.
 * Errors: ERR_FORMAT, ERR_SUPPORT. */
enum err hf_read_rope(struct arch *a, const json_t *o, const char *where, bool is_phi);

#endif

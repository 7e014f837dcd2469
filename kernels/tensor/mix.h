/* SPDX-License-Identifier: MIT
 *
 * Exceptions from one format for all: bits and group size of single kinds of projections,
 * or of keys or values, in single layers, read from and printed as one line of text:
 *
 *   v_proj=8:64, 0-3.down_proj=5:128, 29.o_proj=6
 *
 * Rules stand between commas: [LAYERS.]KIND=BITS[:GROUP]. LAYERS is one (7) or a range
 * (0-3), from 0; without it the rule is for all. KIND is q_proj, k_proj, v_proj, o_proj,
 * gate_proj, up_proj or down_proj of weights, k or v of a cache. BITS is 2 to 8, or 16:
 * left alone. GROUP is a group size as group_size has it; without it the one of all others.
 * Of rules that meet the last wins. */
#ifndef WKVQ_MIX_H
#define WKVQ_MIX_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum mix_of { MIX_WEIGHTS, MIX_KV };

#define MIX_LAYERS_MAX 4096
#define MIX_ALL_LAYERS (-1)
#define MIX_NO_GROUP (-1) /* as all others */

struct mix_format {
    int bits;           /* 2..8, or 16 */
    int64_t group_size; /* MIX_NO_GROUP, or 1 and more; of weights also 0, the whole row */
};

struct mix; /* opaque */

/* No rules yet. */
enum err mix_new(struct mix **out, enum mix_of of);
void mix_free(struct mix *m); /* m may be NULL */

/* *out NULL for an empty text. bad is the error of a text that is no mix (ERR_USAGE,
 * ERR_FORMAT); where starts the message, which names the rule. Else ERR_MEMORY. */
enum err mix_parse(struct mix **out, enum mix_of of, const char *text, enum err bad,
                   const char *where);
/* The text of m, which means the same and is the same for all that do: kind by kind, what
 * is for all layers before the exceptions, neighbouring layers as ranges. m may be NULL:
 * "". Owned by the caller (mem_free). */
enum err mix_text(char **out, const struct mix *m);

/* Layers [first, last], or all (first MIX_ALL_LAYERS), have format f from now on. kind: an
 * enum lin, or an enum kv_side. The caller keeps to the ranges above. ERR_MEMORY. */
enum err mix_set(struct mix *m, int64_t first, int64_t last, int kind, struct mix_format f);
/* What m says about a layer's kind; false: nothing. m may be NULL. */
bool mix_find(struct mix_format *out, const struct mix *m, int64_t layer, int kind);
/* Some layer of some kind has fewer than 16 bits. m may be NULL. */
bool mix_quantizes(const struct mix *m);
/* bad where m names a layer that a model of n_layers lacks. m may be NULL. */
enum err mix_check_layers(const struct mix *m, int64_t n_layers, enum err bad,
                          const char *where);

#endif

/* SPDX-License-Identifier: MIT
 *
 * A mix: projections, or keys and values, whose bits and group size differ from the
 * format of all others, by layer and kind. It is read from and printed as one line of
 * text:
 *
 *   v_proj=8:64, 0-3.down_proj=5:128, 29.o_proj=6
 *
 * Rules are separated by commas: [LAYERS.]KIND=BITS[:GROUP].
 *   LAYERS  a layer (7) or a range (0-3), counted from 0; without it, all layers
 *   KIND    q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; of a cache k, v
 *   BITS    2 to 8, or 16: unquantized
 *   GROUP   a group size; without it, the group size of all others
 * If several rules apply, the last one wins. */
#ifndef WKVQ_MIX_H
#define WKVQ_MIX_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum mix_of { MIX_WEIGHTS, MIX_KV };

#define MIX_LAYERS_MAX 4096
#define MIX_ALL_LAYERS (-1)
#define MIX_NO_GROUP (-1) /* the group size of all others */

struct mix_format {
    int bits;           /* 2..8, or 16 */
    int64_t group_size; /* MIX_NO_GROUP, or >= 1; for weights also 0, the whole row */
};

struct mix; /* opaque; const functions may run in several threads */

/* *out has no rules yet. ERR_MEMORY. */
enum err mix_new(struct mix **out, enum mix_of of);
void mix_free(struct mix *m); /* m may be NULL */

/* *out is NULL for an empty text. A text that is not a mix gives the error `bad`
 * (ERR_USAGE or ERR_FORMAT), with a message that starts with `where` and names the rule.
 * ERR_MEMORY. */
enum err mix_parse(struct mix **out, enum mix_of of, const char *text, enum err bad,
                   const char *where);
/* The canonical text of m: mixes with the same meaning have the same text. It goes kind
 * by kind, the rule for all layers first, and joins neighbouring layers to ranges. m may
 * be NULL, which gives "". The caller frees *out with mem_free(). */
enum err mix_text(char **out, const struct mix *m);

/* Gives layers [first, last] format f; first MIX_ALL_LAYERS: all layers. kind is an enum
 * lin or an enum kv_side. The values must be in the ranges above. ERR_MEMORY. */
enum err mix_set(struct mix *m, int64_t first, int64_t last, int kind, struct mix_format f);
/* *out = the format of a layer's kind; false if no rule applies. m may be NULL. */
bool mix_find(struct mix_format *out, const struct mix *m, int64_t layer, int kind);
/* True if a rule has fewer than 16 bits. m may be NULL. */
bool mix_quantizes(const struct mix *m);
/* Returns `bad` if m names a layer that a model of n_layers lacks. m may be NULL. */
enum err mix_check_layers(const struct mix *m, int64_t n_layers, enum err bad,
                          const char *where);

#endif

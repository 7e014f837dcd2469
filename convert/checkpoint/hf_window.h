/* SPDX-License-Identifier: MIT
 *
 * Which layers have a sliding window, and which no rope, in config.json. Private to
 * convert/checkpoint. */
#ifndef WKVQ_HF_WINDOW_H
#define WKVQ_HF_WINDOW_H

#include "convert/checkpoint/hf_config.h"

/* Which layers a sliding window is for. */
enum window_rule {
    WINDOW_NONE, /* the family has none */
    WINDOW_ALL,  /* all layers */
    WINDOW_LISTED, /* layer_types, or all: transformers takes a mistral with them for a ministral */
    WINDOW_USED, /* all layers, with use_sliding_window */
    WINDOW_FROM, /* with use_sliding_window, layer_types or those from max_window_layers on */
    WINDOW_NO_ROPE, /* with use_sliding_window, layer_types or those without a rope */
    WINDOW_PATTERN  /* layer_types, or all but each of sliding_window_pattern */
};

/* Reads which layers have no rope: those with a 0 in no_rope_layers, or every layer whose number,
 * counted from 1, no_rope_layer_interval divides. a->n_layers must be set. where: the file's path.
 * Errors: ERR_FORMAT. */
enum err hf_read_no_rope(struct arch *a, const json_t *o, const char *where);

/* Reads the sliding window and its layers. Call hf_read_no_rope() before it. otherwise: the size
 * where the field is missing. Errors: ERR_FORMAT, ERR_SUPPORT. */
enum err hf_read_window(struct arch *a, const json_t *o, const char *where,
                        enum window_rule rule, int64_t otherwise);

#endif

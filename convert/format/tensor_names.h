/* SPDX-License-Identifier: MIT
 *
 * The names of a layer's tensors, which checkpoints, artifacts and exports share. */
#ifndef WKVQ_TENSOR_NAMES_H
#define WKVQ_TENSOR_NAMES_H

#include <stddef.h>
#include <stdint.h>

/* Writes "model.layers.LAYER.MODULE" and then tail, as ".weight" of "self_attn.q_proj"; at most
 * size bytes, as snprintf() does. */
void layer_tensor_name(char *out, size_t size, int64_t layer, const char *module,
                       const char *tail);
/* Returns the layer in a tensor's name, or -1; *rest is what follows "model.layers.LAYER.". */
int64_t layer_of_tensor(const char *name, const char **rest);

#endif

/* SPDX-License-Identifier: MIT
 *
 * A tiny random Hugging Face model directory for tests. Same settings, same bytes. */
#ifndef WKVQ_TINY_MODEL_H
#define WKVQ_TINY_MODEL_H

#include "kernels/tensor/tensor.h"

struct tiny_model {
    const char *type; /* "llama", "qwen2" (q/k/v biases), "qwen3" (q/k norms) */
    int64_t n_layers, d_model, d_ff, n_heads, n_kv, head_dim, vocab;
    bool tied;
    enum dtype dtype;
    uint64_t seed;
};

/* 2 layers, odd widths that leave ragged groups. */
extern const struct tiny_model tiny_default;

/* Make dir with config.json, model.safetensors and stand-ins for tokenizer files. */
enum err tiny_model_write(const char *dir, const struct tiny_model *t);

#endif

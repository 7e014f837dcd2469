/* SPDX-License-Identifier: MIT
 *
 * A checkpoint of random weights in a real model's shapes, for measurements. It can be
 * loaded, calibrated and converted like a real one, but its outputs are meaningless. */
#ifndef WKVQ_SYNTH_H
#define WKVQ_SYNTH_H

#include "calib/model/arch.h"

#include <stdint.h>

struct synth_settings {
    struct arch arch;
    uint64_t seed;
    uint64_t shard_bytes;      /* bytes per file; 0: 5e9 */
    int threads;               /* 0 = all cores */
    const char *tokenizer_dir; /* model whose tokenizer is copied; NULL: none */
};

/* Returns the bytes of the weights. */
uint64_t synth_bytes(const struct arch *a);

/* Writes out_dir, which must be missing or empty (ERR_USAGE): config.json, safetensors of
 * F16 and their index. It takes one pass and a few megabytes of memory. Linear weights and
 * embeddings are normal with sigma 0.02, norms with mean 1 and sigma 0.1. A few channels of
 * the residual stream and of the keys are several times as large, as in real models, where
 * they make quantization hard. The same shape and seed give the same bytes with any number
 * of threads. An error of progress, which may be NULL, ends the writing. ERR_MISMATCH: the
 * tokenizer has more tokens than the vocabulary. ERR_IO: too little disk space. */
enum err synth_write(const char *out_dir, const struct synth_settings *s,
                     enum err (*progress)(void *ctx, double share), void *progress_ctx);

#endif

/* SPDX-License-Identifier: MIT
 *
 * A checkpoint of random weights in a real model's shapes, to measure with: it loads,
 * calibrates and converts like a real one, and says nothing. */
#ifndef WKVQ_SYNTH_H
#define WKVQ_SYNTH_H

#include "calib/model/arch.h"

#include <stdint.h>

struct synth_settings {
    struct arch arch;
    uint64_t seed;
    uint64_t shard_bytes;      /* 0: 5e9 */
    int threads;               /* 0 = all cores */
    const char *tokenizer_dir; /* whose tokenizer to copy; NULL: none */
};

/* Bytes of the weights. */
uint64_t synth_bytes(const struct arch *a);

/* Write out_dir, which must be missing or empty (ERR_USAGE): config.json, safetensors of
 * F16 and their index, in one pass with a few megabytes of memory. Linear weights and
 * embeddings are normal with sigma 0.02, norms with mean 1 and sigma 0.1; the rows that
 * write a few channels of the residual stream and of the keys are several times as large,
 * because such channels are what real models trouble a quantizer with. Same shapes and
 * seed, same bytes, whatever the number of threads. progress may be NULL. Errors: also
 * ERR_MISMATCH, a tokenizer of more tokens than the vocabulary; ERR_IO, a disk that is too
 * small. */
enum err synth_write(const char *out_dir, const struct synth_settings *s,
                     void (*progress)(void *ctx, double share), void *progress_ctx);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Artifacts of random numbers in memory, without files. Benchmarks use them for the shapes
 * of models that are not available. */
#ifndef WKVQ_ARTIFACT_RANDOM_H
#define WKVQ_ARTIFACT_RANDOM_H

#include "convert/artifact/reader.h"

/* Creates a model with the shapes of arch in the formats of w and kv, the same in all
 * layers. It is a function of the seed.
 *   w->bits 2..8; codes and zeros are uniform, and weights have a standard deviation of
 *   about 0.02; embedding and head are F16 of that size; norms and scales of k and v are 1,
 *   shifts 0; no biases
 * It has no manifest text and no files (artifact_measure() counts tensors only). Release
 * with artifact_close(). Errors: ERR_MEMORY, ERR_SUPPORT. */
enum err artifact_random(struct artifact **out, const struct arch *arch,
                         const struct weight_spec *w, const struct kv_spec *kv,
                         uint64_t seed);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Artifacts of random numbers in memory, without files: for benchmarks at the shapes of
 * models that are not at hand. */
#ifndef WKVQ_ARTIFACT_RANDOM_H
#define WKVQ_ARTIFACT_RANDOM_H

#include "convert/artifact/reader.h"

/* *out = a model of the shape of arch in the formats of w and kv, the same in all layers.
 *   w->bits 2..8; codes and zeros uniform, scales such that weights have a standard
 *   deviation of about 0.02; embedding and head F16 of that size; norms and k, v scales 1,
 *   shifts 0; no biases
 * It is a function of the seed. It has no manifest text and no files (artifact_measure
 * counts tensors only). Release with artifact_close. Errors: ERR_MEMORY, ERR_SUPPORT. */
enum err artifact_random(struct artifact **out, const struct arch *arch,
                         const struct weight_spec *w, const struct kv_spec *kv,
                         uint64_t seed);

#endif

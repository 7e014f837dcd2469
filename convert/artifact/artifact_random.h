/* SPDX-License-Identifier: MIT
 *
 * An artifact of made-up numbers in memory, without a file: for measuring at the shapes of
 * models that are not there. */
#ifndef WKVQ_ARTIFACT_RANDOM_H
#define WKVQ_ARTIFACT_RANDOM_H

#include "convert/artifact/reader.h"

/* A model of arch's shape with w's and kv's formats, the same ones everywhere:
 * w->bits 2..8, codes and zeros uniform, scales such that weights have a deviation of about
 * 0.02, embedding and head F16 of that size, norms and kv scales 1, kv shifts 0, no biases.
 * The seed decides all of it. It has no manifest's text and no sizes of files
 * (artifact_measure counts tensors only). Release with artifact_close. Errors: ERR_MEMORY,
 * ERR_SUPPORT. */
enum err artifact_random(struct artifact **out, const struct arch *arch,
                         const struct weight_spec *w, const struct kv_spec *kv,
                         uint64_t seed);

#endif

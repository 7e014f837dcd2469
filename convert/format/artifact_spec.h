/* SPDX-License-Identifier: MIT
 *
 * Converts the quantizers' settings to quantization_config of config.json, and back. */
#ifndef WKVQ_ARTIFACT_SPEC_H
#define WKVQ_ARTIFACT_SPEC_H

#include "data/json.h"
#include "kernels/tensor/qtensor.h"

#define ARTIFACT_FORMAT "wkvq" /* format, and in earlier artifacts quant_method */
/* Of the format: 2 added kv.rotate, 3 mixed formats, 4 refinement (F32 gains of norms), 5 a
 * quantized head, 6 given weights, 7 kv.target with llama.cpp's caches, 8 rounded inputs of
 * projections, 9 other targets. */
#define ARTIFACT_VERSION 9

/* Returns true if a quantization_config is that of an artifact. It has the member `format`
 * and no quant_method: transformers skips a quant_method that it does not know, and fills
 * the projections with random numbers, but it refuses one that is missing. Earlier
 * artifacts have quant_method. */
bool spec_is_ours(const json_t *q);

/* Checks the range of every field; `where` starts the message. Errors: ERR_FORMAT. */
enum err spec_check(const struct weight_spec *w, const struct kv_spec *kv,
                    const char *where);
/* Returns a new reference, or NULL if memory is out. */
json_t *spec_to_json(const struct weight_spec *w, const struct kv_spec *kv);
/* Parses q strictly: format and version must be ours, every value in range. The caller owns
 * the mixes: spec_free. Errors: ERR_FORMAT, ERR_SUPPORT for a later version. */
enum err spec_from_json(struct weight_spec *w, struct kv_spec *kv, const json_t *q,
                        const char *where);
/* Releases the mixes that spec_from_json allocated. */
void spec_free(struct weight_spec *w, struct kv_spec *kv);

#endif

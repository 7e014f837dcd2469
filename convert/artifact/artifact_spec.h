/* SPDX-License-Identifier: MIT
 *
 * The quantizers' settings as config.json's quantization_config, and back. */
#ifndef WKVQ_ARTIFACT_SPEC_H
#define WKVQ_ARTIFACT_SPEC_H

#include "data/json.h"
#include "kernels/tensor/qtensor.h"

#define ARTIFACT_METHOD "wkvq" /* quant_method */
#define ARTIFACT_VERSION 3     /* of the format: 2 has kv.rotate, 3 mixed formats */

/* Ranges of all fields; where starts the message. Errors: ERR_FORMAT. */
enum err spec_check(const struct weight_spec *w, const struct kv_spec *kv,
                    const char *where);
/* A new reference; NULL: out of memory. */
json_t *spec_to_json(const struct weight_spec *w, const struct kv_spec *kv);
/* Strict: method and version must be ours, every value in range. Errors: ERR_FORMAT,
 * ERR_SUPPORT for a later version. The mixes belong to the caller then: spec_free. */
enum err spec_from_json(struct weight_spec *w, struct kv_spec *kv, const json_t *q,
                        const char *where);
/* Of what spec_from_json read: releases the mixes. */
void spec_free(struct weight_spec *w, struct kv_spec *kv);

#endif

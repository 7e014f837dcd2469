/* SPDX-License-Identifier: MIT
 *
 * A Hugging Face model directory: config.json to struct arch, tensor names to weights.
 * Single or sharded safetensors, memory-mapped. */
#ifndef WKVQ_HF_H
#define WKVQ_HF_H

#include "calib/model/weights.h"
#include "convert/checkpoint/safetensors.h"

/* config.json alone. Both generations of field names. Errors: ERR_NOT_FOUND, ERR_FORMAT,
 * ERR_SUPPORT; every message names file, field, value and what is supported. A foreign
 * quantization_config is refused; an artifact's own passes, so that its reader can use this
 * (hf_open refuses its packed weights). */
enum err hf_read_config(struct arch *out, const char *model_dir);

/* The class of such models, as config.json's architectures has it: "LlamaForCausalLM". */
const char *hf_architecture(const struct arch *a);

struct hf_model; /* opaque */

/* Config and weights; every tensor the architecture needs is found and its shape and dtype
 * checked before this returns. */
enum err hf_open(struct hf_model **out, const char *model_dir);
void hf_close(struct hf_model **m);
/* As config.json has it, but `tied` as the files have it: of a tied pair that is stored
 * twice both are used where they differ (tied: false), and where the head is missing the
 * embedding serves as one (tied: true). */
const struct arch *hf_arch(const struct hf_model *m);
/* The callbacks calibration and simulation read through. Borrowed from m. */
const struct model_source *hf_source(struct hf_model *m);
/* From now on the source gives blocks whose values are rotated inside their heads
 * (kv.rotate; convert/checkpoint/hf_fold.h), or no longer does. Whoever calibrates,
 * simulates, packs or compares with such weights asks for it here: all see the same ones.
 * ERR_SUPPORT where head_dim does not allow it. Views that the source gave before become
 * invalid. */
enum err hf_rotate_values(struct hf_model *m, const struct kv_spec *kv);
/* CRC-32 identity of the checkpoint: config.json and, for every tensor file in name order,
 * its size and header bytes plus the CRC of its data when deep. */
enum err hf_identity(uint32_t *crc, const struct hf_model *m, bool deep);
/* Bytes of all weight files. */
uint64_t hf_bytes(const struct hf_model *m);
/* Every stored tensor once, for `inspect` and for carrying unquantized ones over. Names are
 * those of the language model: a base model's lack "model." in the file, and a head that
 * serves as the embedding too is called model.embed_tokens.weight. */
int64_t hf_tensor_count(const struct hf_model *m);
const struct st_tensor *hf_tensor_at(const struct hf_model *m, int64_t i);
const struct st_tensor *hf_find(const struct hf_model *m,
                                const char *name); /* NULL: none */
/* Drop a tensor's pages. */
void hf_release(const struct hf_model *m, const struct st_tensor *t);

#endif

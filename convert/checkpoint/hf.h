/* SPDX-License-Identifier: MIT
 *
 * A Hugging Face model directory: converts config.json to struct arch, and maps tensor
 * names to weights. Weights are one safetensors file or shards, memory-mapped. An open
 * model serves one caller at a time. */
#ifndef WKVQ_HF_H
#define WKVQ_HF_H

#include "calib/model/weights.h"
#include "convert/checkpoint/safetensors.h"

/* Reads only config.json, with the field names of transformers 4 and 5. Errors:
 * ERR_NOT_FOUND, ERR_FORMAT, ERR_SUPPORT; the message has file, field, value and what is
 * supported. A foreign quantization_config is refused. That of an artifact is accepted,
 * because the artifact's reader calls this function (hf_open() refuses packed weights). */
enum err hf_read_config(struct arch *out, const char *model_dir);
/* The same, but accepts any quantization_config. */
enum err hf_read_packed_config(struct arch *out, const char *model_dir);

/* Returns the class of such models, as in config.json's architectures:
 * "LlamaForCausalLM". */
const char *hf_architecture(const struct arch *a);
/* Returns whether embedding and head of such models are one if config.json has no
 * tie_word_embeddings. */
bool hf_ties_by_default(const struct arch *a);
/* Returns how config.json calls a's dtype, "bfloat16"; NULL: it is none of F32, F16 and BF16. */
const char *hf_dtype_name(const struct arch *a);

/* Writes the module that holds the experts of a layer, "model.layers.0.mlp.experts". */
void hf_experts_module(char *out, size_t size, const struct arch *a, int64_t layer);
/* Writes the module of an expert's projection (gate, up or down) as checkpoints of the family have
 * it: "model.layers.0.mlp.experts.5.gate_proj". */
void hf_expert_module(char *out, size_t size, const struct arch *a, int64_t layer, int lin,
                      int64_t expert);

struct hf_model; /* opaque */

/* Opens config and weights. All tensors that the architecture needs are found, and their
 * shapes and dtypes checked. Errors: those of hf_read_config(), ERR_MEMORY, ERR_IO. Close
 * with hf_close(). */
enum err hf_open(struct hf_model **out, const char *model_dir);
/* Opens a checkpoint whose projections another tool quantized, in a format of docs/import.md.
 * The source then returns the values of their codes in F32, with scales and zeros. Errors:
 * those of hf_open(); ERR_USAGE if it is not quantized, whose message ends with `wants`: what
 * needs such a checkpoint, and how to name it; ERR_SUPPORT and ERR_FORMAT name the tensor. */
enum err hf_open_packed(struct hf_model **out, const char *model_dir, const char *wants);
/* Sets *out to whether config.json says that another tool quantized the weights, in whatever
 * format. Errors: ERR_NOT_FOUND, ERR_FORMAT. */
enum err hf_is_packed(bool *out, const char *model_dir);
void hf_close(struct hf_model **m);
/* Returns how the checkpoint stores a projection; 16 bits if it is not quantized. */
struct lin_format hf_lin_format(const struct hf_model *m, int64_t layer, int lin);
/* What hf_open_packed() found. */
struct hf_packed {
    const char *format; /* "compressed-tensors"; static */
    int64_t n_linears, groups;
    bool symmetric;   /* all zero points are 2^(bits - 1) */
    int64_t weights;  /* elements of the projections */
    uint64_t bytes;   /* of all their tensors */
    int64_t rounded;  /* scales that fp16 does not hold exactly */
    double worst;     /* their largest relative change */
    int64_t mirrored; /* groups whose scale is negative: stored as Q - q, Q - z, -h */
};
/* Writes that; false, with *out unchanged, if m was opened by hf_open(). */
bool hf_packed(struct hf_packed *out, const struct hf_model *m);
/* Makes `full` the full-precision model of m's source; it must stay open. NULL: m itself. */
void hf_set_full(struct hf_model *m, struct hf_model *full);
/* Returns the architecture of config.json, with `tied` as the files require. false: both
 * tensors of a tied pair are stored and differ, so both are used. true: the head is
 * missing, and the embedding replaces it. Borrowed. */
const struct arch *hf_arch(const struct hf_model *m);
/* Returns the callbacks through which calibration and simulation read. Borrowed from m. */
const struct model_source *hf_source(struct hf_model *m);
/* Makes the source return blocks whose values are rotated inside their heads (kv.rotate;
 * convert/checkpoint/hf_fold.h), or unrotated ones again. All users of m then see the same
 * weights. Views that the source returned before become invalid. ERR_SUPPORT if head_dim
 * does not allow the rotation. */
enum err hf_rotate_values(struct hf_model *m, const struct kv_spec *kv);
/* Returns the factor by which Gemma multiplies its embedding: the root of the width, rounded to the
 * dtype of the weights as transformers' Gemma3TextModel does. Not BF16 or F16: that of F32. */
double hf_gemma_factor(int64_t width, enum dtype dtype);
/* Returns ERR_FORMAT if a tensor that is not part of the model, but is copied, holds a NaN or an
 * infinity. Reads all of them once. */
enum err hf_check_rest(const struct hf_model *m);
/* Computes the CRC-32 that identifies the checkpoint: config.json and, for every tensor
 * file in name order, its size and header. deep: the data, too. */
enum err hf_identity(uint32_t *crc, const struct hf_model *m, bool deep);
/* Returns the size of all weight files in bytes. */
uint64_t hf_bytes(const struct hf_model *m);
/* Returns tensor i of the files, as they have it; NULL beyond the last. One that is in two files
 * counts once. */
const struct st_tensor *hf_stored_at(const struct hf_model *m, int64_t i);
/* Give access to every tensor once, after fused ones are split and the experts of a layer joined.
 * Names are those of a causal language model. A
 * base model's files lack the prefix "model.". A head that is also the embedding is called
 * model.embed_tokens.weight. */
int64_t hf_tensor_count(const struct hf_model *m);
const struct st_tensor *hf_tensor_at(const struct hf_model *m, int64_t i);
const struct st_tensor *hf_find(const struct hf_model *m,
                                const char *name); /* NULL if missing */
/* Releases the pages of a tensor. */
void hf_release(const struct hf_model *m, const struct st_tensor *t);

#endif

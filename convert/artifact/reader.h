/* SPDX-License-Identifier: MIT
 *
 * Reading an artifact: everything is validated before anything is returned. */
#ifndef WKVQ_ARTIFACT_READER_H
#define WKVQ_ARTIFACT_READER_H

#include "calib/model/weights.h"
#include "convert/checkpoint/safetensors.h"
#include "kernels/tensor/qtensor.h"

/* One packed projection, borrowed views into the map. bits 16: w holds the plain weight. */
struct packed_linear {
    int64_t out, in, groups, group_size;
    int bits;
    const uint8_t *qweight; /* [out][bitpack_bytes(in)] */
    const uint8_t *scales;  /* [out][groups] fp16 little-endian, any alignment */
    const uint8_t *zeros;   /* [out][bitpack_bytes(groups)] */
    struct host_mat w;
    struct host_mat bias; /* data NULL: none */
};

struct packed_block {
    struct packed_linear lin[N_LIN];
    struct host_mat norm1, norm2, q_norm, k_norm;
    const float *k_scale, *k_shift, *v_scale, *v_shift; /* [K*d], owned by the artifact */
};

struct artifact; /* opaque, read-only, safe to share between threads */

/* *yes: dir looks like an artifact, with our quantization_config in config.json, even if
 * its manifest is missing (artifact_open refuses it then); any other directory is just
 * none. ERR_MEMORY, ERR_IO and ERR_USAGE where
 * that cannot be told. */
enum err artifact_is(bool *yes, const char *dir);
/* How artifact_open opens: every tensor's CRC is compared with the manifest's. */
#define ARTIFACT_CHECK 1u
/* Tensors are copied into memory, for who reads them again and again: if they are at most
 * half of what the system could give and the copy is not refused. Otherwise they are
 * mapped. */
#define ARTIFACT_LOAD 2u
/* how: these, or 0. Close with artifact_close. Errors: ERR_NOT_FOUND, ERR_USAGE, ERR_IO,
 * ERR_MEMORY, ERR_FORMAT with file and tensor. */
enum err artifact_open(struct artifact **out, const char *dir, unsigned how);
void artifact_close(struct artifact **a);
const struct arch *artifact_arch(const struct artifact *a);
const struct weight_spec *artifact_weight_spec(const struct artifact *a);
const struct kv_spec *artifact_kv_spec(const struct artifact *a);
const struct packed_block *artifact_block(const struct artifact *a, int64_t i);
struct host_mat artifact_embed(const struct artifact *a);
struct host_mat artifact_final_norm(const struct artifact *a);
struct host_mat artifact_head(const struct artifact *a); /* embed when tied */
/* The manifest's raw text, a JSON object. Borrowed. */
const char *artifact_manifest(const struct artifact *a);
/* Block i's scales, zeros (codes too, where GPTQ chose them), s and delta as calibration's
 * hand-over, for the simulation.
 * Owned by the caller (block_quant_free). */
enum err artifact_block_quant(struct block_quant *out, const struct artifact *a, int64_t i);
/* f32 weight [out][in] of a packed projection. */
void packed_linear_unpack(float *w, const struct packed_linear *p);
/* A model_source over the unpacked weights (F32), so that the simulation can run on an
 * artifact without its checkpoint. Owned by the artifact. */
const struct model_source *artifact_source(struct artifact *a);

/* Counted from the bytes on disk. */
struct artifact_sizes {
    uint64_t total_bytes, quantized_bytes /* qweight + scales + zeros */, other_bytes;
    int64_t quantized_weights; /* elements */
    double weight_bits;        /* quantized_bytes * 8 / quantized_weights */
    double kv_bits;            /* per cache element: codes + fp16 pairs */
};
void artifact_measure(struct artifact_sizes *out, const struct artifact *a);
/* Bytes of one token's packed keys (or values) in one layer, as the runtime allocates them:
 * for each kv head ceil(head_dim * bits / 8) of codes, and for each of its groups four
 * bytes, the fp16 pair h, m. At 16 bits: two bytes an element, what an fp16 cache takes
 * (this project's runtime holds it in F32). */
int64_t kv_row_bytes(const struct arch *a, struct kv_format f);
/* Of them, the codes; all at 16 bits. */
int64_t kv_row_code_bytes(const struct arch *a, struct kv_format f);
/* Bytes of one token's keys and values in all layers. */
int64_t kv_token_bytes(const struct arch *a, const struct kv_spec *kv);
/* The same per element, in bits: the mean over layers, keys and values. With kv.method:
 * channel keys are counted in whole blocks. */
double kv_mean_bits(const struct arch *a, const struct kv_spec *kv);
/* Bytes of packed KV cache for batch sequences of length tokens: kv_token_bytes for each
 * token. Tokens that stay in full precision (window, sink) are not counted. */
uint64_t artifact_kv_bytes(const struct artifact *a, int64_t batch, int64_t tokens);

#endif

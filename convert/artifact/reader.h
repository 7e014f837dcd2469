/* SPDX-License-Identifier: MIT
 *
 * Reads artifacts. Everything is validated before anything is returned. An artifact is
 * read-only once open and may be shared between threads, except that artifact_source
 * unpacks on demand and belongs to one caller. */
#ifndef WKVQ_ARTIFACT_READER_H
#define WKVQ_ARTIFACT_READER_H

#include "calib/model/weights.h"
#include "convert/checkpoint/safetensors.h"
#include "kernels/tensor/qtensor.h"

/* One projection, or the embedding or head, as views into the artifact. At 16 bits only
 * shape, w and bias are set. */
struct packed_linear {
    int64_t out, in, groups, group_size;
    int bits;
    const uint8_t *qweight; /* [out][bitpack_bytes(in)] */
    const uint8_t *scales;  /* [out][groups] fp16 little-endian, any alignment */
    const uint8_t *zeros;   /* [out][bitpack_bytes(groups)] */
    struct host_mat w;      /* the unquantized weight */
    struct host_mat bias;   /* data NULL: none */
};

struct packed_block {
    struct packed_linear lin[N_LIN];
    struct host_mat norm[N_BLOCK_GAINS]; /* by enum norm_gain; data NULL: none */
    struct host_mat router;              /* [E][D]; data NULL without experts */
    const float *k_scale, *k_shift, *v_scale, *v_shift; /* [K*d], owned by the artifact */
};

struct artifact; /* opaque */

/* Flags of artifact_open. Compare every tensor's CRC with the manifest's, and refuse values of
 * unquantized ones that are not finite. */
#define ARTIFACT_CHECK 1u
/* Copy the tensors into (huge-page) memory if they need at most half of what the system has
 * available; otherwise, or if allocation fails, map the files. For callers that read the
 * tensors repeatedly. */
#define ARTIFACT_LOAD 2u
/* Opens the artifact in dir; how: flags, or 0. Close with artifact_close. Errors:
 * ERR_NOT_FOUND, ERR_USAGE, ERR_IO, ERR_MEMORY, ERR_FORMAT with file and tensor. */
enum err artifact_open(struct artifact **out, const char *dir, unsigned how);
void artifact_close(struct artifact **a);
/* Parts of an artifact, borrowed. */
const struct arch *artifact_arch(const struct artifact *a);
const struct weight_spec *artifact_weight_spec(const struct artifact *a);
const struct kv_spec *artifact_kv_spec(const struct artifact *a);
const struct packed_block *artifact_block(const struct artifact *a, int64_t i);
const struct packed_linear *artifact_embed(const struct artifact *a);
struct host_mat artifact_final_norm(const struct artifact *a);
const struct packed_linear *artifact_head(const struct artifact *a); /* embed when tied */
/* Returns the manifest's text, a JSON object; borrowed. */
const char *artifact_manifest(const struct artifact *a);
/* Give access to every stored tensor once, file by file in their order. */
int64_t artifact_tensor_count(const struct artifact *a);
const struct st_tensor *artifact_tensor_at(const struct artifact *a, int64_t i);
const struct st_tensor *artifact_find(const struct artifact *a,
                                      const char *name); /* NULL if missing */
/* Releases the pages of the tensor of this name, if there is one. */
void artifact_release(const struct artifact *a, const char *name);
/* *out = scales, zeros, s and delta of block i, its codes if they were chosen
 * (weight_chooses_codes), and its gains if they were refined: what calibration would hand
 * over. Owned by the caller (block_quant_free). Errors: ERR_MEMORY. */
enum err artifact_block_quant(struct block_quant *out, const struct artifact *a, int64_t i);
/* w [out][in], or [in] of one row = the dequantized weight, F32. */
void packed_linear_unpack(float *w, const struct packed_linear *p);
void packed_linear_unpack_row(float *w, const struct packed_linear *p, int64_t row);
/* Returns rows [first, first + n) of p without their bias, as views; inside one part of w. */
struct packed_linear packed_linear_rows(const struct packed_linear *p, int64_t first,
                                        int64_t n);
/* Returns the bytes of its tensors, without the bias. */
uint64_t packed_linear_bytes(const struct packed_linear *p);
/* Returns a source of the dequantized weights (F32), on which the simulation can run
 * without the checkpoint. Owned by the artifact; one caller at a time. */
const struct model_source *artifact_source(struct artifact *a);

/* Sizes as counted on disk. */
struct artifact_sizes {
    uint64_t total_bytes;
    uint64_t quantized_bytes;  /* qweight, scales and zeros of projections */
    uint64_t other_bytes;      /* embedding, head, norms and all other files */
    uint64_t head_bytes;       /* the part of embedding and head; a tied pair counts once */
    int64_t quantized_weights; /* elements */
    double weight_bits;        /* quantized_bytes * 8 / quantized_weights */
    double head_bits;          /* the same of embedding and head */
    double kv_bits;            /* per cache element: codes and F16 pairs */
};
void artifact_measure(struct artifact_sizes *out, const struct artifact *a);
/* Returns the bytes of a quantized cache for `batch` sequences of `tokens` tokens. Full-
 * precision copies (window, sink) are not counted. */
uint64_t artifact_kv_bytes(const struct artifact *a, int64_t batch, int64_t tokens);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Folds smoothing and shift of values into a checkpoint. They belong to the channels that
 * another engine's cache holds, R v with R its rotation (KV_TARGET_V_ROTATION channels at a
 * time), so that the engine caches (R v - shift) / s without knowing it. With one s and shift
 * per kv head, repeated for its query heads in o_proj,
 *
 *   Wv' = R diag(1/s) R Wv       bv' = R ((R bv - shift) / s)
 *   Wo' = Wo R diag(s) R         bo' = bo + Wo R shift
 *
 * The model's function stays the same, because attention's weights sum to 1. */
#ifndef WKVQ_FOLD_H
#define WKVQ_FOLD_H

#include "convert/artifact/writer.h"

/* out [K*d][in] of v_proj [K*d][in]; s [K*d]. All host memory; products in f64. ERR_MEMORY. */
enum err fold_v(float *out, const struct host_mat *v, const float *s);
/* out [n] of v_proj's bias [n], whose data may be NULL: 0; s, shift [n]. */
void fold_v_bias(float *out, const struct host_mat *bias, const float *s,
                 const float *shift, int64_t n);
/* out [D][H*d] of o_proj, and bias [D] of its bias, whose data may be NULL: 0. s, shift
 * [K*d]. */
void fold_o(float *out, float *bias, const struct block_src *b, const struct arch *a,
            const float *s, const float *shift);

struct fold_options {
    uint64_t shard_bytes; /* of a file of tensors, at most; 0: 5e9 */
    /* Its error ends the writing; may be NULL. */
    enum err (*progress)(void *ctx, double share);
    void *progress_ctx;
};

/* What fold_write() did. */
struct fold_report {
    bool biases; /* the checkpoint has biases now, and config.json says so */
    uint64_t bytes;
};

/* Writes the folded checkpoint: tensors, config.json and the tokenizer's files. The
 * folded tensors are F32, all others keep their bytes. Projections that the family has in one
 * tensor are one again. Without any shift, no bias is added.
 * Errors: ERR_USAGE if out_dir exists and is not empty, ERR_MISMATCH if q has other channels,
 * ERR_SUPPORT for a shift where the architecture holds none, ERR_IO, ERR_MEMORY. */
enum err fold_write(struct fold_report *out, const char *out_dir, struct hf_model *m,
                    const char *model_dir, const struct quant_source *q,
                    const struct fold_options *options);

#endif

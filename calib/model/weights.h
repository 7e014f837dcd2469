/* SPDX-License-Identifier: MIT
 *
 * Weights of one block: as the checkpoint holds them (host views), and on a device. */
#ifndef WKVQ_WEIGHTS_H
#define WKVQ_WEIGHTS_H

#include "calib/model/arch.h"
#include "kernels/dev.h"

/* A weight as it lies in a checkpoint: F32, F16 or BF16, row-major, any alignment, borrowed
 * from whoever filled the struct. data NULL: the model has none. */
struct host_mat {
    const void *data;
    enum dtype dtype;
    int64_t rows, cols; /* vectors: rows = n, cols = 1 */
    const char *name;   /* tensor name, for messages; borrowed */
};

/* ERR_FORMAT unless m is there, of a type above, and [rows, cols]; what names it in the
 * message where m->name is NULL. */
enum err host_mat_check(const struct host_mat *m, const char *what, int64_t rows,
                        int64_t cols);
/* dst (contiguous F32 or BF16 on d) = m, which has as many elements. */
enum err host_mat_upload(struct dev *d, const struct tensor *dst, const struct host_mat *m);

struct block_src {
    struct host_mat norm1, norm2;   /* input_layernorm, post_attention_layernorm [D] */
    struct host_mat lin[N_LIN];     /* [out, in] */
    struct host_mat bias[N_LIN];    /* [out]; as arch_has_bias says */
    struct host_mat q_norm, k_norm; /* [d], Qwen3 */
};

/* Where the model's weights come from; calibration never opens a file. The views stay valid
 * until release(block) or the end; a source may drop pages then. One caller. */
struct model_source {
    void *ctx;
    enum err (*block)(void *ctx, int64_t i, struct block_src *out);
    enum err (*ends)(void *ctx, struct host_mat *embed, struct host_mat *final_norm,
                     struct host_mat *head); /* head = embed when tied */
    void (*release)(void *ctx,
                    int64_t i); /* block i will not be asked for soon; may be NULL */
    void (*prefetch)(void *ctx,
                     int64_t i); /* block i will be asked for next; may be NULL */
};

/* One block on a device: everything forward and backward need. q,k,v rows stacked in wqkv
 * [(H+2K)d, D], gate over up in wgu [2F, D]: fewer, larger products. */
struct block_weights {
    struct dev *dev;
    void *memory;                       /* one allocation */
    struct tensor wqkv, wo, wgu, wdown; /* act type */
    struct tensor norm1, norm2;         /* [D] F32 */
    struct tensor bqkv, bo, bgu, bdown; /* F32, stacked as the weights; data NULL if none */
    struct tensor q_norm, k_norm;       /* [d] F32, data NULL if none */
};

/* The rows of projection l in wqkv, wo, wgu or wdown. */
struct tensor block_weights_lin(const struct block_weights *w, const struct arch *a, int l);
/* Its bias [out] F32; data NULL if it has none. */
struct tensor block_weights_bias(const struct block_weights *w, const struct arch *a,
                                 int l);

/* Device memory of one block with act weights. */
size_t block_weights_bytes(const struct arch *a, enum dtype act);
/* Allocates for arch a; contents undefined until loaded. */
enum err block_weights_alloc(struct block_weights *w, struct dev *d, const struct arch *a,
                             enum dtype act);
/* Converts src to the act type and uploads. Errors: ERR_FORMAT for a missing tensor, or one
 * of another shape or type than a says. */
enum err block_weights_load(struct block_weights *w, const struct arch *a,
                            const struct block_src *src);
void block_weights_free(struct block_weights *w); /* accepts a zeroed one */

#endif

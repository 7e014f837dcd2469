/* SPDX-License-Identifier: MIT
 *
 * Weights of one block: as the checkpoint stores them (host views), and on a device. */
#ifndef WKVQ_WEIGHTS_H
#define WKVQ_WEIGHTS_H

#include "calib/model/arch.h"
#include "kernels/dev.h"

/* A weight as stored in a checkpoint: F32, F16 or BF16, row-major, any alignment. Borrowed
 * from the source that filled the struct. data NULL: the model has no such weight. */
struct host_mat {
    const void *data;
    enum dtype dtype;
    int64_t rows, cols; /* vectors: rows = n, cols = 1 */
    const char *name;   /* tensor name, for messages; borrowed */
    /* If data is NULL: rows that lie in several places, rows / part_rows parts of part_rows rows
     * each, as the experts of a layer do; borrowed. */
    const void *const *part;
    int64_t part_rows;
};

/* Returns true if m has values, in one place or in parts. */
static inline bool host_mat_given(const struct host_mat *m)
{
    return m->data || m->part;
}
/* Returns row r of m. The rows up to the end of its part follow it. */
const void *host_mat_row(const struct host_mat *m, int64_t r);

/* Returns ERR_FORMAT unless m has data, one of the types above, and shape [rows, cols]. The
 * message names m->name, or `what` if that is NULL. */
enum err host_mat_check(const struct host_mat *m, const char *what, int64_t rows,
                        int64_t cols);
/* Converts m to dst, which is contiguous F32 or BF16 on d and has as many elements. */
enum err host_mat_upload(struct dev *d, const struct tensor *dst, const struct host_mat *m);

struct block_src {
    struct host_mat norm[N_BLOCK_GAINS]; /* by enum norm_gain; as arch_gain says */
    struct host_mat lin[N_LIN];          /* [out, in] */
    struct host_mat router;              /* [E, D]; data NULL without experts */
    struct host_mat bias[N_LIN];         /* [out]; as arch_has_bias says */
    /* Scales and zeros of a projection that the checkpoint stores quantized; lin then has the
     * values (q - z) h in F32, from which the codes follow. Borrowed like lin. NULL: none. */
    const struct qlinear *given[N_LIN];
};

/* The same for the weight of a norm, dst F32 [n]: 1 + m if a->gain_plus_one. */
enum err host_gain_upload(struct dev *d, const struct tensor *dst, const struct host_mat *m,
                          const struct arch *a);

/* Points norm at a refined gain, F32; NULL: norm stays the checkpoint's. The gain is borrowed. */
void host_mat_set_gain(struct host_mat *norm, const float *gain);
/* Does that for the norms of one layer. */
void block_src_set_gains(struct block_src *src, const struct block_quant *q);

/* The source of the model's weights; calibration never opens a file. Views stay valid until
 * release() of their block, or until the source is closed; release() may drop pages. One
 * caller at a time. */
struct model_source {
    void *ctx;
    enum err (*block)(void *ctx, int64_t i, struct block_src *out);
    enum err (*ends)(void *ctx, struct host_mat *embed, struct host_mat *final_norm,
                     struct host_mat *head); /* head = embed when tied */
    /* Block i will not be needed soon; may be NULL. */
    void (*release)(void *ctx, int64_t i);
    /* Block i will be needed next; may be NULL. */
    void (*prefetch)(void *ctx, int64_t i);
    /* Blocks are made when block() is called, and take memory until they are released: release
     * one after its last use, not after the model's. */
    bool makes_blocks;
    /* The full-precision model, where that is another checkpoint's; NULL: this one. */
    const struct model_source *full;
    /* DT_F16 or DT_BF16: projection l of every block has this type. DT_F32 promises nothing. */
    enum dtype stored[N_LIN];
};

/* Releases block i of a source that makes blocks. */
static inline void source_drop(const struct model_source *s, int64_t i)
{
    if (s->makes_blocks && s->release)
        s->release(s->ctx, i);
}

/* Returns an upper bound of the host memory of a block that a source makes for kv.rotate: it turns
 * the rows of v_proj and the columns of o_proj. */
size_t source_rotated_bytes(const struct arch *a, const struct kv_spec *kv);

/* Returns the source of the full-precision model. */
static inline const struct model_source *source_full(const struct model_source *s)
{
    return s->full ? s->full : s;
}

/* One block on a device, with all weights that forward and backward need. Rows of q, k and
 * v are stacked in wqkv [(H+2K)d, D], and gate over up in wgu [2F, D], for fewer, larger
 * products. Of experts, wgu is [2EF, D] and wdown [ED, F]. */
struct block_weights {
    struct dev *dev;
    int64_t layer;                      /* whose weights these are */
    void *memory;                       /* one allocation */
    struct tensor wqkv, wo, wgu, wdown; /* act type, or that of block_weights_alloc_as() */
    struct tensor router;               /* [E,D] act type; data NULL without experts */
    struct tensor norm[N_BLOCK_GAINS];  /* F32, by enum norm_gain; data NULL if none */
    struct tensor bqkv, bo, bgu, bdown; /* F32, stacked as the weights; data NULL if none */
};

/* Returns the rows of projection l in wqkv, wo, wgu or wdown; borrowed. */
struct tensor block_weights_lin(const struct block_weights *w, const struct arch *a, int l);
/* Returns the bias [out] F32 of projection l; data NULL if it has none. */
struct tensor block_weights_bias(const struct block_weights *w, const struct arch *a,
                                 int l);

/* Returns the device memory of one block with act weights, in bytes. */
size_t block_weights_bytes(const struct arch *a, enum dtype act);
/* Allocates for arch a; contents are undefined until loaded. ERR_MEMORY, ERR_DEVICE. */
enum err block_weights_alloc(struct block_weights *w, struct dev *d, const struct arch *a,
                             enum dtype act);
/* The same for weights that are not computed with, in the types that projections are stored in:
 * F32, F16 or BF16. Those stacked in one matrix have F32 if theirs differ. The router has F32. */
size_t block_weights_bytes_as(const struct arch *a, const enum dtype stored[N_LIN]);
enum err block_weights_alloc_as(struct block_weights *w, struct dev *d,
                                const struct arch *a, const enum dtype stored[N_LIN]);
/* Converts the weights of a layer to the act type and uploads them. Errors: ERR_FORMAT for a
 * missing tensor, or one whose shape or type does not fit a; ERR_SHAPE for F16 weights from another
 * type; ERR_MEMORY, ERR_DEVICE. */
enum err block_weights_load(struct block_weights *w, const struct arch *a, int64_t layer,
                            const struct block_src *src);
/* Makes w, of the same model and device, what block_weights_load() made x, which is F32 or has the
 * types that projections are stored in. */
enum err block_weights_convert(struct block_weights *w, const struct block_weights *x);
void block_weights_free(struct block_weights *w); /* accepts a zeroed one */

#endif

/* SPDX-License-Identifier: MIT
 *
 * One pass of the decoder over windows, which all runs of model.h share. Private to calib/model. */
#ifndef WKVQ_MODEL_PRIV_H
#define WKVQ_MODEL_PRIV_H

#include "calib/model/carve.h"
#include "calib/model/model.h"

struct model_pass {
    const struct model_run *r;
    int64_t n, T;                        /* windows, rows of one */
    const struct packed_windows *packed; /* NULL: a window is one text of T tokens */
    int64_t longest;                     /* tokens of a text */
    bool keep_cache;        /* quantize keys and values even if no query reads them back */
    struct block_weights w; /* of the block in work, act type */
    struct block_weights full; /* its F32 source; only with r->quant */
    struct block_acts acts;
    struct block_acts text; /* of one text at a time; only with packed */
    struct block_scratch *scratch;
    struct tensor cos, sin;
    void *x;          /* memory of h */
    struct tensor *h; /* [n + 1] hidden states [T,D] F32: one per window, and the spare */
    struct block_kv kv;
    void *kv_params;   /* 4 [K*d] */
    float *final_gain; /* host [D], owned: the final norm's if r->quant refines it */
    int64_t done, total;
};

/* Opens a pass over n windows of T rows, embedded from ids host [n][T]. packed, borrowed, says
 * which texts the rows are; NULL: each window is one. k needs pass_close() unless this fails. */
enum err pass_open(struct model_pass *k, const struct model_run *r, const int32_t *ids,
                   int64_t n, int64_t T, const struct packed_windows *packed);
void pass_close(struct model_pass *k);
/* Runs all windows through all blocks. */
enum err pass_blocks(struct model_pass *k);
/* Counts a window of a block, or of the head, as done. */
void pass_step(struct model_pass *k);

/* Returns how many rows of a packed window are texts; what follows them is unused. */
static inline int64_t packed_window_rows(const struct packed_windows *p, int64_t i)
{
    const struct sequence *last = &p->sequence[p->start[i + 1] - 1];
    return last->first + last->n;
}

/* --- model_head.c ------------------------------------------------------------------- */

/* The head on the device, and room for the logits of some rows. */
struct head {
    void *memory;
    struct tensor norm, w;     /* [D] F32, [V,D] act */
    struct tensor logits;      /* [piece,V] F32 */
    struct tensor target, nll; /* [T] I32, F32 */
};

/* Loads the head of k's model. Release it with dev_free(e->memory), after an error as well. */
enum err head_load(struct head *e, struct model_pass *k);
/* logits host [rows][V] of the last states x [rows,D] F32 on the device, rows <= T. */
enum err head_logits(struct head *e, struct model_pass *k, const struct tensor *x,
                     float *logits);
/* nll host [rows] = -log p(target) in nats, of the same; target host [rows]. */
enum err head_nll(struct head *e, struct model_pass *k, const struct tensor *x,
                  const int32_t *target, float *nll);

#endif

/* SPDX-License-Identifier: MIT
 *
 * Cross-block reconstruction loss (WKVQuant, arXiv 2402.12065). The output of the quantized
 * block B^_i runs through the next n full-precision blocks and is compared with the
 * full-precision model:
 *
 *   x -> B^_i -> out_0 -> B_(i+1) -> out_1 -> ... -> B_(i+n) -> out_n
 *                  |                   |                          |
 *                 t_0                 t_1                        t_n     targets
 *
 *   L = loss(out_n, t_n)  (terms last),  or the mean of all n + 1 losses  (terms all)
 *
 * Backward runs the same way back: gradients pass through the full-precision blocks into
 * out_0, and from there to the parameters of the quantized block. */
#ifndef WKVQ_RECON_H
#define WKVQ_RECON_H

#include "calib/fakequant.h"

struct recon {
    struct dev *dev;
    const struct arch *arch;
    enum crr_terms terms;
    enum loss_kind loss;
    int64_t depth; /* capacity: blocks after the quantized one */
    int64_t T;
    struct block_acts *acts; /* [depth + 1], the quantized block's first */
    struct block_scratch *scratch;
    struct block_weights *full; /* [max(depth, 1)] full-precision blocks */
    int64_t *full_index;        /* block that each one holds, -1: none */
    void *states;               /* F32 [depth + 3][T,D] */
    struct tensor x, dy;        /* [T,D] F32: input, and gradient of an output */
    struct tensor *out;         /* [depth + 1] outputs [T,D] F32 of the blocks */
    struct tensor cos, sin;
    /* Losses of a step, one of each term of each sample; closed on a device that does not queue. */
    struct dev_report report;
};

/* d and a are borrowed. Errors: ERR_MEMORY, ERR_DEVICE; close in any case. */
enum err recon_open(struct recon *r, struct dev *d, const struct arch *a,
                    const struct calib_settings *s);
void recon_close(struct recon *r); /* accepts a zeroed or half-built one */
/* Returns the device memory that recon_open allocates. */
size_t recon_bytes(const struct arch *a, const struct calib_settings *s);

/* *w = full-precision block i, loaded unless it is resident. It stays until block
 * i + max(depth, 1) is loaded. Errors: as finite_weights, and those of src. */
enum err recon_full(struct recon *r, const struct block_weights **w,
                    const struct model_source *src, int64_t i);

/* *out (a view into r) = the block of f, as quantized now, applied to r->x. */
enum err recon_quantized(struct recon *r, struct fakequant *f, const struct tensor **out);
/* *out = full-precision block w applied to r->x; its activations stay in r->acts[0]. kv NULL or of
 * 16 bits: no quantized cache. Moves full-precision streams on. */
enum err recon_plain(struct recon *r, const struct block_weights *w,
                     const struct block_kv *kv, const struct tensor **out);
/* Leaves in r->acts[0] the keys and values of full-precision block w for r->x. */
enum err recon_cache(struct recon *r, const struct block_weights *w,
                     const struct block_kv *kv);

/* Targets of one sample: stage() sets *t to t_j [T,D] act, valid until its next call. */
struct recon_targets {
    void *ctx;
    enum err (*stage)(void *ctx, struct tensor *t, int64_t j);
    float weight; /* of this sample's loss and gradients: 1, or less in a step of several */
    bool late;    /* the terms' losses go to the report, and nothing waits */
    int64_t late_at; /* there, the first of them */
};

/* Returns n for block i: depth, or fewer at the end of the model. */
int64_t recon_reach(const struct recon *r, int64_t i);

/* Returns true if the results of training steps can be read late: on a device that queues work, in
 * one process, which has no losses to exchange, and without learned rounding, whose offsets move in
 * any case. */
bool recon_reads_late(const struct recon *r, const struct fakequant *f,
                      const struct ranks *ranks);
/* Returns how many terms the loss of block i has. */
int64_t recon_terms(const struct recon *r, int64_t i);

/* *loss of block i, quantized as f says, on r->x, times t->weight; 0 if t->late, else the sum of
 * its terms in the order of the report. With grads, also the gradients of its parameters into
 * f->g. */
enum err recon_loss(struct recon *r, double *loss, struct fakequant *f,
                    const struct model_source *src, int64_t i,
                    const struct recon_targets *t, bool grads);

#endif

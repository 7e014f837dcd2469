/* SPDX-License-Identifier: MIT
 *
 * Cross-block reconstruction (WKVQuant, arXiv 2402.12065): the quantized block's output
 * goes through the next n full-precision blocks and is compared with what the
 * full-precision model has there.
 *
 *   L = mean over terms j of loss(B_{i+j} o ... o B_{i+1} o B^_i (x), t_j)
 *
 * terms last: j = n alone; all: j = 0..n. */
#ifndef WKVQ_RECON_H
#define WKVQ_RECON_H

#include "calib/fakequant.h"

struct recon {
    struct dev *dev;
    const struct arch *arch;
    enum crr_terms terms;
    enum loss_kind loss;
    int64_t depth; /* room: blocks behind the quantized one */
    int64_t T;
    struct block_acts *acts; /* [depth + 1], the quantized block's first */
    struct block_scratch *scratch;
    struct block_weights *full; /* [max(depth, 1)] full-precision blocks */
    int64_t *full_index;        /* which block each holds, -1: none */
    void *states;               /* F32 [depth + 3][T,D] */
    struct tensor x, dy;        /* [T,D] F32: the input, a gradient */
    struct tensor *out;         /* [depth + 1] [T,D] F32, behind each block */
    struct tensor cos, sin;
};

enum err recon_open(struct recon *r, struct dev *d, const struct arch *a,
                    const struct calib_settings *s);
void recon_close(struct recon *r); /* accepts a zeroed or half-built one */
size_t recon_bytes(const struct arch *a, const struct calib_settings *s);

/* Full-precision block i, loaded unless it is there. It stays until block i + max(depth, 1)
 * is asked for. */
enum err recon_full(struct recon *r, const struct block_weights **w,
                    const struct model_source *src, int64_t i);

/* *out (a view into r) = block f applied to r->x. */
enum err recon_quantized(struct recon *r, struct fakequant *f, const struct tensor **out);
/* *out = full-precision block w applied to r->x, keys and values staying in r->acts[0]
 * where kv NULL or of 16 bits leaves them; used to move full-precision streams on. */
enum err recon_plain(struct recon *r, const struct block_weights *w,
                     const struct block_kv *kv, const struct tensor **out);

/* Targets of one sample: stage(ctx, &t, j) gives t_j [T,D] act, valid until the next call.
 */
struct recon_targets {
    void *ctx;
    enum err (*stage)(void *ctx, struct tensor *t, int64_t j);
};

/* Blocks behind block i in a model of n_layers. */
int64_t recon_reach(const struct recon *r, int64_t i);

/* Loss of block i (quantized as f says) on r->x. grads: also the parameters' gradients into
 * f->g. */
enum err recon_loss(struct recon *r, double *loss, struct fakequant *f,
                    const struct model_source *src, int64_t i,
                    const struct recon_targets *t, bool grads);

#endif

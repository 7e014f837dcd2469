/* SPDX-License-Identifier: MIT
 *
 * End-to-end refinement. The codes and zeros of a quantized model stay as they are; what
 * stands beside them learns by distillation: the loss is the divergence of the quantized
 * model's next-token distributions from the full-precision model's, and its gradient goes
 * through all layers. The cache is simulated as it is served.
 *
 * What learns, in each layer: u of every weight group, with h = fp16(h0 exp(u)); the gains
 * of the norms; log s and shift of every K and V channel. */
#ifndef WKVQ_REFINE_H
#define WKVQ_REFINE_H

#include "calib/calib.h"

enum refine_kind {
    REFINE_SCALES,
    REFINE_NORMS,
    REFINE_SMOOTH,
    REFINE_SHIFT,
    N_REFINE_KINDS
};

struct refine_settings {
    int64_t samples, guard; /* windows to learn from, then windows that only judge */
    int64_t seqlen, epochs;
    int64_t batch;            /* samples of a step */
    float lr[N_REFINE_KINDS]; /* 0: the kind does not learn */
    float kl, ce;             /* weights of the two losses, as dev_distill has them */
    int scale_bits;           /* significant bits of a scale: 11, or fewer */
    enum dtype act;
    uint64_t seed;         /* of the order of samples */
    uint64_t memory_bytes; /* of the host, for the teacher's states; above it, on disk */
};

/* Gains of the norms, F32, owned. */
struct refine_norms {
    float *norm1, *norm2;   /* [layers][D] */
    float *q_norm, *k_norm; /* [layers][d]; NULL without q/k norm */
    float *final;           /* [D] */
};
void refine_norms_free(struct refine_norms *n); /* accepts a zeroed one */

/* Progress and the guard's verdict. */
struct refine_event {
    int64_t step, steps;
    double loss;  /* of the step: nats a token, of kl KL + ce CE */
    double guard; /* mean KL over the guard's tokens; NAN at a step that did not look */
    double start; /* the guard's before the first step */
    double done;  /* share of the whole run, 0..1 */
};
struct refine_io {
    const struct calib_io *streams; /* storage of the teacher's states */
    void *ctx;
    void (*event)(void *ctx, const struct refine_event *e);
    bool (*stop)(void *ctx);
    /* Position, parameters and moments, n named host tensors; may be NULL. */
    enum err (*save)(void *ctx, const struct named_tensor *t, int n);
    enum err (*load)(void *ctx, const struct named_tensor **t, int *n);
};

struct refine_result {
    double start, best; /* the guard's mean KL: before, and of what is kept, nats a token */
    int64_t best_step;  /* 0: nothing was better than the start */
    int64_t steps;
    struct refine_norms norms;
};

/* Refine layers [n_layers] in place: scales, s and shift change; codes are filled in where
 * they followed from the source. tokens host [samples + guard][seqlen]. The best point by
 * the guard is kept, so the result is never worse there than the start.
 * Deterministic; a run that goes on from what `save` was last given ends with the same
 * bytes. Errors: ERR_STOPPED; ERR_NUMERIC (step, sample and tensor named); ERR_MEMORY. */
enum err refine_run(struct refine_result *out, struct dev *d, const struct arch *a,
                    const struct model_source *src, struct block_quant *layers,
                    const struct refine_settings *s, const int32_t *tokens,
                    const struct refine_io *io);

#endif

/* SPDX-License-Identifier: MIT
 *
 * End-to-end refinement. The zeros of a quantized model stay as they are, and its codes
 * unless rounding learns; what stands beside them learns by distillation. The loss is the
 * divergence of the quantized model's next-token distributions from the full-precision
 * model's, and its gradient goes through all layers. The cache is simulated as it is served,
 * and so are embedding and head where they are quantized; these two do not learn.
 *
 * What learns, in each layer: u of every weight group, with h = fp16(h0 exp(u)); the gains
 * of the norms; log s and shift of every K and V channel. */
#ifndef WKVQ_REFINE_H
#define WKVQ_REFINE_H

#include "calib/calib.h"

/* The ranges that refine_run() checks, as in calib/calib.h. As a key, refine.samples may also
 * be 0: no refinement. */
#define REFINE_SAMPLES_MAX (1 << 20)
#define RANGE_REFINE_SEQLEN 2, 1 << 20
#define RANGE_REFINE_EPOCHS 1, 255
#define RANGE_REFINE_BATCH 1, 4096
#define RANGE_REFINE_GUARD 1, 4096

#define REFINE_LOOKS 4 /* at the guard during a run, after the one at its start */

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
    float lr_round;           /* signed step of the codes' offsets; 0: codes are fixed */
    float kl, ce;             /* weights of the two losses, as dev_distill has them */
    int scale_bits;           /* significant bits of a scale: 11, or fewer */
    struct lin_format head;   /* of the quantized model's embedding and head */
    bool other_teacher;       /* the full-precision model is another checkpoint's */
    enum dtype act;
    int cpu_threads;       /* as in struct calib_settings */
    bool widens;           /* as there */
    uint64_t seed;         /* of the order of samples */
    uint64_t memory_bytes; /* of the host, for the teacher's states; above it, on disk */
    /* Of the device, for the activations of a step. If all layers' fit, backward uses them;
     * else it computes each layer's again. The result is the same. */
    uint64_t acts_bytes;
};

/* Progress and the guard's verdict. */
struct refine_event {
    int64_t step, steps;
    double loss;  /* of the step: nats a token, of kl KL + ce CE */
    double guard; /* mean KL over the guard's tokens; NAN at a step that did not look */
    double start; /* the guard's before the first step */
    double done;  /* share of the whole run, 0..1 */
};
struct refine_io {
    const struct calib_io *streams; /* storage of the teacher's states, and save_seconds */
    void *ctx;
    void (*event)(void *ctx, const struct refine_event *e);
    bool (*stop)(void *ctx);
    /* Position, parameters and moments, n named host tensors; may be NULL. Saved after every look
     * at the guard, before ERR_STOPPED, and after a step if save_seconds have passed. */
    enum err (*save)(void *ctx, const struct named_tensor *t, int n);
    enum err (*load)(void *ctx, const struct named_tensor **t, int *n);
    /* The processes that refine together, as in struct calib_io; NULL: this one alone. Each has its
     * part of every batch, of the guard's windows and of the teacher's. */
    const struct ranks *ranks;
};

struct refine_result {
    double start, best; /* the guard's mean KL: before, and of what is kept, nats a token */
    int64_t best_step;  /* 0: nothing was better than the start */
    int64_t steps;
};

/* The needs of a refinement. Device bytes are counted whatever the device. */
struct refine_plan {
    /* Device: packed codes, scales and zeros, routers and biases of all layers. */
    size_t codes_bytes;
    size_t params_bytes; /* device: parameters, gradients, moments and the best point */
    /* Device: one layer's weights, gradients and activations; what attention keeps inside the
     * device, at most; states; head. */
    size_t work_bytes;
    size_t
        acts_bytes;  /* device: activations of all layers for one step, if they are kept */
    bool keeps_acts; /* they fit acts_bytes of the settings */
    /* Full-precision states: in memory, or on disk if larger than memory_bytes. */
    size_t teacher_bytes;
    /* Host: the layers of refine_run with a byte per code; values of a quantized embedding
     * and head. */
    size_t host_bytes;
    size_t saved_bytes; /* host and disk: what `save` is given, copied from the device */
    int64_t steps;
    double flops_per_step, attention_flops_per_step;
    double total_flops; /* with the teacher and the guard */
};
/* w, kv: formats of the layers. ranks: processes that share each step's windows; sizes are those of
 * the one that has most, operations those of all. 1: one process. ERR_FORMAT for sizes that do not
 * fit a size_t. */
enum err refine_plan(struct refine_plan *out, const struct arch *a,
                     const struct weight_spec *w, const struct kv_spec *kv,
                     const struct refine_settings *s, int ranks);

/* What a refinement on several ranks needs of each, beside what one process needs. */
struct refine_ranks_plan {
    int64_t step_windows;  /* of a step, on the rank that has most */
    double gradient_bytes; /* memory for their gradients, of the layer that has most */
    double step_bytes;     /* sent by a rank in a step, and as much received */
    double teacher_bytes;  /* received once: the last states of the other ranks' windows */
    double speedup;        /* over one process with an infinitely fast network */
};
void refine_plan_ranks(struct refine_ranks_plan *out, const struct arch *a,
                       const struct weight_spec *w, const struct kv_spec *kv,
                       const struct refine_settings *s, int ranks);

/* Refine layers [n_layers] in place: scales, s, shift and gains change; codes are filled in
 * where they followed from the source. tokens host [samples + guard][seqlen]. The best point by
 * the guard is kept, so the result is never worse there than the start.
 * Deterministic; a run that resumes from the last `save` ends with the same bytes.
 * Errors: ERR_STOPPED; ERR_NUMERIC (step, sample and tensor named); ERR_MEMORY. */
enum err refine_run(struct refine_result *out, struct dev *d, const struct arch *a,
                    const struct model_source *src, struct block_quant *layers,
                    const struct refine_settings *s, const int32_t *tokens,
                    const struct refine_io *io);

#endif

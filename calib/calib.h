/* SPDX-License-Identifier: MIT
 *
 * WKVQuant calibration: block by block, learn weight clipping (gamma, beta) and KV
 * smoothing and shift (s, delta) under the cross-block reconstruction loss. This floor
 * never opens a file: weights, tokens and saved state come and go through the callbacks
 * below. */
#ifndef WKVQ_CALIB_H
#define WKVQ_CALIB_H

#include "calib/model/weights.h"

enum crr_terms { TERMS_LAST, TERMS_ALL };
enum start_values { INIT_PAPER, INIT_SEARCH };
enum lr_schedule { SCHEDULE_CONSTANT, SCHEDULE_COSINE };

struct gptq_settings {
    double damp;    /* added to the Hessian's diagonal, as a share of the diagonal's mean */
    bool act_order; /* columns by falling diagonal, groups' scales fixed before */
};

/* Where activation streams live. */
enum stream_place { STREAM_DEVICE, STREAM_MEMORY, STREAM_DISK };

#define CALIB_EPOCHS_MAX 255

/* The settings of a run, as the configuration's keys name them. */
struct calib_settings {
    int64_t samples, seqlen, epochs;
    uint64_t seed;
    struct weight_spec weights;
    enum start_values weights_init; /* of the clipping */
    struct gptq_settings gptq;      /* read with WEIGHT_GPTQ */
    struct kv_spec kv;
    enum start_values kv_init; /* of the smoothing */
    int act_bits; /* of the projections' inputs, simulated; 2..8, or 0 or 16: left alone */
    int64_t crr_blocks;
    enum crr_terms crr_terms;
    enum loss_kind crr_loss;
    float lr_round; /* 0: 1 / steps of a block */
    float lr_clip, lr_smooth, lr_shift, weight_decay;
    enum lr_schedule schedule;
    enum dtype act; /* resolved run.compute: DT_F32 or DT_BF16 */
    /* Budgets for all streams: of a device's own memory (0 where it has none), then of the
     * host's; above both they go to disk. */
    uint64_t device_bytes, memory_bytes;
};

/* Weights have parameters that learn: their gradients are needed. */
bool calib_learns_weights(const struct calib_settings *s);

/* The smoothing's start is searched. */
bool calib_searches_kv(const struct calib_settings *s);

/* What happened at one block; all losses are means over the samples of the loss that
 * training minimizes. */
struct calib_block_stats {
    int64_t block;
    double start_loss, best_loss;
    int64_t best_epoch;                      /* 0: the start was kept, "did not gain" */
    int64_t n_epochs;                        /* entries of epoch_loss */
    double epoch_loss[CALIB_EPOCHS_MAX + 1]; /* after each epoch, over the whole set */
    double seconds, seconds_gemm;            /* over all runs that worked on the block */
};

/* Progress, once a step and at the end of epochs and blocks. */
struct calib_event {
    enum calib_event_kind {
        CALIB_PREPARE, /* streams are being filled: step of steps */
        CALIB_STEP,    /* one training step done */
        CALIB_EVAL,    /* one loss evaluation step */
        CALIB_EPOCH,   /* an epoch ended: loss over the set */
        CALIB_BLOCK,   /* a block ended: stats */
        CALIB_ADVANCE  /* streams move on to the next block */
    } kind;
    int64_t block, n_blocks, epoch, epochs, sample, samples;
    double loss; /* of the step or the epoch */
    double done; /* share of the whole run, 0..1 */
    double tokens_per_s;
    const struct calib_block_stats *stats; /* CALIB_BLOCK only; borrowed */
};

/* A stream's storage: bytes of zeroed host memory, in RAM or mapped from a file. */
struct calib_io {
    void *ctx;
    /* name is "quantized" or "target-0".. */
    enum err (*stream_open)(void *ctx, const char *name, size_t bytes, bool on_disk,
                            void **out);
    void (*stream_close)(void *ctx, void *p);
    /* A finished block: q is borrowed for the call. Must be durable on return. */
    enum err (*save_block)(void *ctx, int64_t block, const struct block_quant *q,
                           const struct calib_block_stats *stats);
    /* Blocks finished by an earlier run, in order from 0. q comes zeroed; what the callback
     * allocates in it (block_quant_alloc, qlinear_alloc) belongs to the caller then. */
    enum err (*load_block)(void *ctx, int64_t block, struct block_quant *q);
    /* The block in work: n named host tensors (parameters, optimizer moments, position). */
    enum err (*save_partial)(void *ctx, int64_t block, const struct named_tensor *t, int n);
    /* *n = 0 when there is none for this block. Tensors borrowed until the next call. */
    enum err (*load_partial)(void *ctx, int64_t block, const struct named_tensor **t,
                             int *n);
    void (*event)(void *ctx, const struct calib_event *e);
    /* Asked after every step of training, evaluation and moving streams: true saves a
     * partial (when a block is in training) and returns ERR_STOPPED. */
    bool (*stop)(void *ctx);
};

/* Calibrate all blocks from first_block (those before are loaded through io).
 *   tokens [samples][seqlen] host int32.
 * Deterministic: an interrupted and resumed run saves the same bytes as an uninterrupted
 * one. Errors: ERR_STOPPED, ERR_NUMERIC (names block, step, sample, tensor; partial saved),
 * ERR_FORMAT (a weight is not finite: names block and tensor),
 * and whatever the callbacks return. */
enum err calib_run(struct dev *d, const struct arch *a, const struct model_source *src,
                   const struct calib_settings *s, const int32_t *tokens,
                   int64_t first_block, const struct calib_io *io);

/* Bytes that calib_run would need, for --plan and preflight. Weights, activations and
 * parameters are on the device, whatever its memory. */
struct calib_plan {
    size_t weights_bytes; /* k+1 blocks in act type, plus the F32 master of one */
    size_t acts_bytes;    /* activations kept for k+1 blocks, scratch, what attention and
                             sums keep inside the device (an upper bound) */
    size_t params_bytes;  /* parameters, gradients, moments, fake-quant weights */
    size_t slot_bytes;    /* on the device, of streams that are elsewhere */
    size_t stream_bytes;  /* all streams */
    enum stream_place streams;
    int64_t n_streams;
    double flops_per_step;           /* of a full (k+1)-block step */
    double attention_flops_per_step; /* of those, in attention */
    double total_flops;
};
/* Of those, what is on a device with its own memory. */
uint64_t calib_plan_device_bytes(const struct calib_plan *p);
enum err calib_plan(struct calib_plan *out, const struct arch *a,
                    const struct calib_settings *s);

/* Times of the median of `steps` training steps with crr_blocks blocks behind, after one to
 * warm up; block 0's weights serve for all, activations are made up. For --plan and `bench
 * calibrate`. */
struct calib_bench {
    double step_s;
    /* the step that the parts were measured in: the same, or, on a device that queues work,
     * one that waited after each operation */
    double parts_step_s;
    /* of which in each part, by dev_part_seconds; the rest is between the operations */
    double linear_gemm_s, attention_fwd_s, attention_bwd_s, fakequant_s, loss_s,
        optimizer_s, norm_rope_act_s, copy_s;
};
enum err calib_bench_step(struct calib_bench *out, struct dev *d, const struct arch *a,
                          const struct model_source *src, const struct calib_settings *s,
                          int64_t steps);

#endif

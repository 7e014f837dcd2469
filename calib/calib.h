/* SPDX-License-Identifier: MIT
 *
 * WKVQuant calibration (arXiv 2402.12065). Block by block it learns the clipping of weights
 * (gamma, beta) and the smoothing and shift of the KV cache (s, delta) under the
 * cross-block reconstruction loss. docs/method.md has the mathematics.
 *
 * This floor never opens a file: weights, tokens and saved state pass through the callbacks
 * below; tools/state implements them with files. */
#ifndef WKVQ_CALIB_H
#define WKVQ_CALIB_H

#include "calib/model/weights.h"
#include "kernels/base/ranks.h"
#include "kernels/tensor/quant.h"

enum crr_terms { TERMS_LAST, TERMS_ALL };
enum start_values { INIT_PAPER, INIT_SEARCH };
enum lr_schedule { SCHEDULE_CONSTANT, SCHEDULE_COSINE };

struct gptq_settings {
    double damp;    /* added to the Hessian's diagonal, as a share of its mean */
    bool act_order; /* columns by falling diagonal; scales are fixed before the first */
};

/* Where activation streams are stored. */
enum stream_place { STREAM_DEVICE, STREAM_MEMORY, STREAM_DISK };

#define CALIB_EPOCHS_MAX 255

/* The ranges that calib_run() checks: "lowest, highest", both included. Each stands here
 * only. The key's row in tools/recipe/recipe_keys.c has it by this name. */
#define RANGE_SAMPLES 1, 1 << 20
#define RANGE_SEQLEN 2, 1 << 20
#define RANGE_EPOCHS 0, CALIB_EPOCHS_MAX
#define RANGE_BATCH 1, 1 << 20
#define RANGE_EVAL_SAMPLES 0, 1 << 20
#define RANGE_WEIGHT_GROUP 0, QUANT_GROUP_MAX
#define RANGE_SCALE_BITS 1, QUANT_SCALE_BITS
#define RANGE_DAMP 0, 1
#define RANGE_KV_GROUP 1, QUANT_GROUP_MAX
#define RANGE_WINDOW 1, 1 << 24
#define RANGE_SINK 0, 1 << 24
#define RANGE_CRR_BLOCKS 0, 1024

/* The settings of a run, as the configuration's keys name them. */
struct calib_settings {
    int64_t samples, seqlen, epochs;
    int64_t batch;        /* samples of a step; of an epoch's last step maybe fewer */
    int64_t eval_samples; /* first samples that losses are measured on; 0: all */
    uint64_t seed;
    struct weight_spec weights;
    enum start_values weights_init; /* of the clipping */
    struct gptq_settings gptq;      /* for WEIGHT_GPTQ only */
    struct kv_spec kv;
    enum start_values kv_init; /* of the smoothing */
    int64_t crr_blocks;        /* k: full-precision blocks after the one in work */
    enum crr_terms crr_terms;
    enum loss_kind crr_loss;
    float lr_round; /* of the rounding offsets; 0: 1 / steps of a block */
    float lr_clip, lr_smooth, lr_shift, weight_decay;
    enum lr_schedule schedule;
    enum dtype act; /* resolved run.compute: DT_F32 or DT_BF16 */
    /* The types of the source's projections (struct model_source), in which the device keeps their
     * full precision. Results do not depend on them. */
    enum dtype stored[N_LIN];
    int cpu_threads; /* of the cpu device, for calib_plan(); 0: a GPU computes */
    bool widens;     /* the cpu device multiplies BF16 operands in F32, for calib_plan() */
    /* Budgets of all streams together: device memory (0 where it has none of its own), then
     * host memory. Streams above both go to disk. */
    uint64_t device_bytes, memory_bytes;
};

/* Statistics of one block. Losses are means of the loss that training minimizes over the
 * first calib_eval_samples() samples. */
struct calib_block_stats {
    int64_t block;
    double start_loss, best_loss;
    int64_t best_epoch;                      /* 0: no epoch was better than the start */
    int64_t n_epochs;                        /* entries of epoch_loss */
    double epoch_loss[CALIB_EPOCHS_MAX + 1]; /* after each epoch */
    bool unreached[ARCH_MAX_EXPERTS]; /* experts without a gradient: rounded to nearest */
    double seconds, seconds_gemm; /* over all runs that worked on it, resumed ones too */
};

/* Progress: sent once per step and at the end of epochs and blocks. */
struct calib_event {
    enum calib_event_kind {
        CALIB_PREPARE, /* a sample passed while streams or start values are prepared */
        CALIB_SCAN,    /* a sample passed up to its keys and values */
        CALIB_STEP,    /* one training step done */
        CALIB_EVAL,    /* one loss evaluation step */
        CALIB_EPOCH,   /* an epoch ended: its loss */
        CALIB_BLOCK,   /* a block ended: stats */
        CALIB_ADVANCE  /* a sample moved on to the next block */
    } kind;
    int64_t block, n_blocks, epoch, epochs, sample;
    int64_t samples; /* of this pass: fewer for CALIB_EVAL than for CALIB_STEP */
    double loss;     /* of the step or the epoch */
    double done;     /* share of the whole calibration, 0..1 */
    double
        restored; /* share of it that was restored with the block in work, part of done */
    double tokens_per_s;
    const struct calib_block_stats *stats; /* CALIB_BLOCK only; borrowed */
};

/* Callbacks of the caller. They are called from the thread of calib_run. */
struct calib_io {
    void *ctx;
    /* Opens the storage of a stream: zeroed host memory, in RAM or mapped from a file. name
     * is "quantized" or "target-0", "target-1", ... */
    enum err (*stream_open)(void *ctx, const char *name, size_t bytes, bool on_disk,
                            void **out);
    void (*stream_close)(void *ctx, void *p);
    /* Saves a finished block, durably. q and stats are borrowed for the call. */
    enum err (*save_block)(void *ctx, int64_t block, const struct block_quant *q,
                           const struct calib_block_stats *stats);
    /* Loads a block that an earlier run finished, in order from 0. q comes zeroed; the
     * caller of the callback owns what it allocates (block_quant_alloc, qlinear_alloc). */
    enum err (*load_block)(void *ctx, int64_t block, struct block_quant *q);
    /* Saves the block in work: n named host tensors (parameters, moments, position). */
    enum err (*save_partial)(void *ctx, int64_t block, const struct named_tensor *t, int n);
    /* Loads them; *n = 0 if there are none for this block. Borrowed until the next call. */
    enum err (*load_partial)(void *ctx, int64_t block, const struct named_tensor **t,
                             int *n);
    void (*event)(void *ctx, const struct calib_event *e);
    /* Asked after every step of training, of evaluation, and of moving streams; may be
     * NULL. true: the block in training is saved and calib_run returns ERR_STOPPED. */
    bool (*stop)(void *ctx);
    /* The processes that calibrate together; NULL: this one alone. All of them call calib_run()
     * with the same arguments, devices of one kind and as many threads, and get the same
     * blocks. */
    const struct ranks *ranks;
    /* The tensors of load_partial are no longer read, and their memory may be freed. May be
     * NULL. */
    void (*drop_partial)(void *ctx);
    /* The block in work is saved at the end of an epoch, and after a step if so many seconds have
     * passed since it was saved last; 0: at the end of an epoch only. */
    double save_seconds;
};

/* Calibrates all blocks from first_block on; earlier ones are loaded through io.
 *   tokens  [samples][seqlen] host int32
 * All arguments are borrowed. Deterministic: an interrupted and resumed run saves the same
 * bytes as an uninterrupted one on the same device and thread count.
 * Errors: ERR_USAGE for settings, ERR_STOPPED, ERR_NUMERIC (names block, step, sample and
 * tensor; the block is saved), ERR_FORMAT for a weight that is not finite (names block and
 * tensor), ERR_MEMORY, ERR_DEVICE, and those of the callbacks. */
enum err calib_run(struct dev *d, const struct arch *a, const struct model_source *src,
                   const struct calib_settings *s, const int32_t *tokens,
                   int64_t first_block, const struct calib_io *io);

/* The needs of a calibration, for --plan and preflight. Weights, activations and parameters
 * are counted as device memory whatever the device. */
struct calib_plan {
    size_t weights_bytes; /* k + 1 blocks in the act type, and the master copy of one */
    /* Activations kept for k + 1 blocks, scratch, and an upper bound of what attention and
     * reductions keep inside the device. */
    size_t acts_bytes;
    size_t params_bytes; /* parameters, gradients, moments, fake-quant weights */
    size_t slot_bytes;   /* device buffers of streams that are stored elsewhere */
    size_t stream_bytes; /* all streams */
    /* Host, whatever the device: values of a quantized embedding, while samples enter, and one
     * block of given weights, with scales, zeros and codes, or of rotated ones. */
    size_t host_bytes;
    /* Host: the block in work as it is saved, once more when a run restores it. */
    size_t saved_bytes;
    enum stream_place streams;
    int64_t n_streams;
    double flops_per_step; /* of block 0, with one sample: what calib_bench_step times */
    double attention_flops_per_step; /* the part of attention */
    double total_flops;
};
/* Returns the bytes of the tensors that save_partial is given for a block. */
uint64_t calib_partial_bytes(const struct arch *a, const struct calib_settings *s,
                             int64_t block);
/* Returns the bytes that a device with its own memory needs. */
uint64_t calib_plan_device_bytes(const struct calib_plan *p);
/* Errors: ERR_FORMAT for sizes that do not fit a size_t. */
enum err calib_plan(struct calib_plan *out, const struct arch *a,
                    const struct calib_settings *s);

/* Seconds of the median of `steps` training steps with crr_blocks blocks after the one in
 * work, or as many as the model has, following one step of warm-up. Weights are those of
 * block 0 throughout, activations are random. For --plan and `bench calibrate`. */
struct calib_bench {
    double step_s;
    /* Duration of the step whose parts follow: the same step, or, on a device that queues
     * work, one that waited after every operation. */
    double parts_step_s;
    /* Its parts by dev_part_seconds; the rest is spent between operations. */
    double linear_gemm_s, attention_fwd_s, attention_bwd_s, fakequant_s, loss_s,
        optimizer_s, norm_rope_act_s, copy_s;
    struct ranks_cost cost; /* of step_s; 0 without ranks */
};
/* ranks: the processes that share the samples of the step, one each; NULL: this one alone.
 * Errors: as calib_run. */
enum err calib_bench_step(struct calib_bench *out, struct dev *d, const struct arch *a,
                          const struct model_source *src, const struct calib_settings *s,
                          int64_t steps, const struct ranks *ranks);

/* What a calibration on several ranks needs of each, beside what one process needs. */
struct calib_ranks_plan {
    int64_t step_samples;  /* of a step, on the rank that has most */
    double gradient_bytes; /* memory for their gradients: the host's, or of linked GPUs */
    double step_bytes;     /* sent by a rank in a step, and as much received */
    double block_bytes;    /* received by a rank per block, for start values */
    double speedup;        /* over one process with an infinitely fast network */
};
void calib_plan_ranks(struct calib_ranks_plan *out, const struct arch *a,
                      const struct calib_settings *s, int ranks);

#endif

/* SPDX-License-Identifier: MIT
 *
 * What a calibration costs: how deep the chain of a block is, what learns in the block, and how
 * often samples pass it. The run asks here what to do, and its progress, the plan (plan.c) and the
 * plan for ranks (batch/ranks_plan.c) count by it.
 *
 * A pass is one sample of T = seqlen tokens through one block, forward. A training step takes three
 * passes of each block of its chain per sample: forward, and backward, where each product of
 * forward has two, for the gradients of its operands. With S samples, of which E are measured, and
 * n = cost_reach() blocks behind block i in its chain (recon.h), the block takes
 *
 *   gather     S              the inputs of projections, for GPTQ and the search of the clipping
 *   scan       S or 2 S       the ranges of keys and values, and the search of the smoothing; each
 *                             only up to keys and values, so a part of a pass (cost_scan_passes)
 *   measure    (n + 1) E      the loss, at the start and after each epoch
 *   epoch      3 (n + 1) S    the steps of an epoch
 *
 * where what it serves is quantized or learns in block i, else 0. The streams take S passes of each
 * block that they move through (calib.c).
 *
 * Flops are multiplications and additions of matrix products, two for each pair of elements; all
 * else is left out. With P weights that a token passes (arch_token_params) and H heads of d
 * channels, in a block:
 *
 *   projections    forward 2 P T, gradient of the inputs 2 P T, of the weights 2 P T
 *   attention      forward 2 products of T (T + 1) / 2 pairs of tokens, d wide, for each head;
 *                  backward 5, as it computes the scores again (Dao, arXiv 2307.08691) */
#ifndef WKVQ_COST_H
#define WKVQ_COST_H

#include "calib/calib.h"

/* Attention's backward, in passes of its forward. */
#define COST_ATTENTION_BACKWARD 2.5

/* Passes of a training step, for each sample and block of the chain. */
#define COST_STEP_PASSES 3

/* Return whether anything of a block is quantized, and whether anything of it learns. */
bool calib_quantizes(const struct calib_settings *s, int64_t block);
bool calib_learns(const struct calib_settings *s, int64_t block);

/* Return whether weights, or smoothing and shift of the cache, learn in any block. */
bool calib_learns_weights(const struct calib_settings *s);
bool calib_learns_kv(const struct calib_settings *s);

/* Return whether GPTQ runs, for codes or for start values; whether weights have a clipping; whether
 * its start is searched; and that of the smoothing. */
bool calib_runs_gptq(const struct calib_settings *s);
bool calib_clips(const struct calib_settings *s);
bool calib_searches_weights(const struct calib_settings *s);
bool calib_searches_kv(const struct calib_settings *s);

/* Returns whether the samples pass the block to collect the inputs of its projections. */
bool calib_gathers(const struct calib_settings *s, int64_t block);
/* Returns how often they pass it for the start values of its cache: 0 to 2. */
int calib_kv_passes(const struct calib_settings *s, int64_t block);

/* Returns how many samples the loss is measured on: eval_samples, or all. */
int64_t calib_eval_samples(const struct calib_settings *s);
/* Returns the steps of an epoch: samples / batch, rounded up. */
int64_t calib_epoch_steps(const struct calib_settings *s);

/* Returns n of a block: k = crr_blocks, or fewer at the end of the model. */
int64_t cost_reach(const struct arch *a, int64_t k, int64_t block);

/* Of a block; passes of all samples. */
struct block_cost {
    int64_t chain;  /* blocks under the loss: n + 1 */
    int64_t epochs; /* 0 where nothing learns */
    double gather, scan;
    double measure, epoch; /* each time */
};
struct block_cost cost_of_block(const struct arch *a, const struct calib_settings *s,
                                int64_t block);
/* Returns its passes. */
double cost_block_passes(const struct block_cost *c);
/* Returns what a sample of T tokens takes up to its keys and values, in passes. */
double cost_scan_passes(const struct arch *a, int64_t T);
/* Returns the passes of both streams, wherever a run begins: the quantized one moves to before the
 * last block, the full-precision one to behind it. */
double cost_stream_passes(const struct arch *a, const struct calib_settings *s);

/* Return the flops of one block forward for T tokens: of projections, and of attention. */
double cost_linear_flops(const struct arch *a, int64_t T);
double cost_attention_flops(const struct arch *a, int64_t T);

/* Returns the flops of a step with one sample in a block; *attention = the part of attention. The
 * block needs no gradient of its input, so none below q, k and v. Where nothing learns, a step is
 * only a measurement. */
double cost_step_flops(double *attention, const struct arch *a,
                       const struct calib_settings *s, int64_t block);
/* Returns those of the whole calibration. */
double cost_total_flops(const struct arch *a, const struct calib_settings *s);

#endif

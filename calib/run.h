/* SPDX-License-Identifier: MIT
 *
 * One calibration run, as the files of this folder share it. */
#ifndef WKVQ_RUN_H
#define WKVQ_RUN_H

#include "calib/gptq.h"
#include "calib/kv_search.h"
#include "calib/recon.h"
#include "calib/search.h"
#include "calib/streams.h"

/* Where the block in work stands. */
struct progress {
    bool measured;       /* the start's loss is known */
    int64_t epoch, step; /* steps done in this epoch; step == samples: only the epoch's
                            loss is missing */
    struct calib_block_stats stats;
};

struct run {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src;
    const struct calib_settings *s;
    const struct calib_io *io;
    const int32_t *tokens;
    struct fakequant f;
    struct recon r;
    struct gptq g;         /* open with weights.method gptq alone */
    struct search search;  /* open where the clipping's start is searched */
    struct kv_search kv;   /* open where the smoothing's start is searched */
    struct stream x;       /* the quantized model's input of the block in work */
    struct stream *target; /* [n_targets] outputs of full-precision blocks: block b's in
                              target[b % n_targets] */
    int64_t n_targets;
    int64_t block, sample;
    struct progress at;
    double units_done, units_total; /* forward passes of a block and sample */
    double tokens_per_s;
    double clock; /* when the block's seconds were last taken */
};

/* Train the block in work (loaded, start values set or partial restored); leaves the best
 * parameters applied. */
enum err run_train_block(struct run *r);

/* The block in work to and from the caller's storage. restored false: there was none. */
enum err run_save_partial(struct run *r);
enum err run_load_partial(struct run *r, bool *restored);

/* Tell the caller. */
void run_event(struct run *r, enum calib_event_kind kind, double loss);
bool run_stop(const struct run *r);

/* Forward passes in which a block's start values come from its keys and values, and whether
 * they come from the inputs of its projections. */
int run_scans_kv(const struct run *r, int64_t block);
bool run_gathers(const struct run *r);

/* Progress in forward passes of one block and sample: what a block costs (start values,
 * training, evaluation; moving the streams not included), and how much of that the block in
 * work has behind it. */
double run_block_units(const struct run *r, int64_t block);
double run_units_so_far(const struct run *r);

/* Add what passed since the last call (or the block's begin) to the block's seconds. */
void run_take_time(struct run *r);

#endif

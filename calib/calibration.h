/* SPDX-License-Identifier: MIT
 *
 * The state of one calibration, shared by the files of this folder:
 *
 *   calib.c    the loop over blocks, start values, streams moving on
 *   train.c    training of one block, and progress
 *   late.c     steps whose results are read one step late
 *   partial.c  the block in work saved and restored */
#ifndef WKVQ_CALIBRATION_H
#define WKVQ_CALIBRATION_H

#include "calib/batch/share.h"
#include "calib/recon.h"
#include "calib/start/gptq.h"
#include "calib/start/kv_search.h"
#include "calib/start/search.h"
#include "calib/streams.h"

/* Position in the training of the block in work. */
struct block_position {
    bool measured; /* the loss of the start values is known */
    int64_t epoch;
    int64_t step; /* done in this epoch; calib_epoch_steps(): only its loss is missing */
    struct calib_block_stats stats;
};

/* Steps that are queued and not yet read; that of report slot i in step[i]. */
struct late {
    int first, queued; /* the slot of the oldest, and how many there are */
    struct {
        int64_t step, n; /* of the epoch, and how many samples it has */
    } step[REPORT_SLOTS];
    double read; /* when the last one was read, or its queueing began */
    /* Memory of the device where each step finds what differs from the step before; NULL: steps are
     * not late. */
    void *memory;
    struct adamw_rates *rates; /* [N_FQ_KINDS] */
    struct tensor target;      /* [n_targets T, D] act: of the sample in work */
};

struct calibration {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src;
    const struct calib_settings *s;
    const struct calib_io *io;
    const int32_t *tokens; /* [samples][seqlen] */
    struct share share;    /* of the samples of all processes */
    struct fakequant fq;
    struct recon recon;
    struct gptq gptq;           /* open if GPTQ chooses codes or start values */
    struct search search;       /* open if the start of the clipping is searched */
    struct kv_search kv_search; /* open if the start of the smoothing is searched */
    struct stream x;            /* input of the block in work in the quantized model */
    /* [n_targets] outputs of full-precision blocks; that of block b in [b % n_targets]. */
    struct stream *target;
    int64_t n_targets;
    int64_t block, sample; /* in work */
    int64_t n_finished;    /* blocks that are saved */
    struct block_position at;
    struct late late;
    double units_done, units_total; /* progress, in passes (cost.h) */
    double units_restored;          /* those of units_done that an earlier run did */
    double tokens_per_s;
    double clock; /* when the block's seconds were last taken */
    double saved; /* when the block was last saved, or its training began */
};

/* Trains the block in work, whose start values are set or whose partial state is restored;
 * the best parameters are applied afterwards. Errors: ERR_STOPPED and ERR_NUMERIC with the
 * partial state saved, ERR_DEVICE, those of the callbacks. */
enum err calib_train_block(struct calibration *c);

/* One step, whose results the host waits for. A stop between samples leaves the step undone. */
enum err calib_train_step(struct calibration *c);
/* Returns the stream of a block's outputs; -1: of the embedding. */
struct stream *calib_target(struct calibration *c, int64_t block);
/* Starts copying this process's sample `at`, if there is one, to the device. */
enum err calib_prefetch_sample(struct calibration *c, int64_t at);
/* Returns how many samples a step of the epoch has, or had. */
int64_t calib_step_samples(const struct calibration *c, int64_t step);
/* Returns how parameters move in the step in work. */
struct fq_step calib_next_move(const struct calibration *c);
/* Counts a step of n samples that began at a time, and tells the caller of it. begin < 0: its time
 * says nothing of the speed. */
void calib_step_done(struct calibration *c, int64_t n, double begin, double loss);
/* Saves the block in work and returns ERR_STOPPED. */
enum err calib_stopped(struct calibration *c);

/* Device memory of late steps, whose streams have n_targets targets. */
size_t late_bytes(const struct arch *a, const struct calib_settings *s, int64_t n_targets);
/* Allocates it if steps can be late (recon_reads_late). Errors: ERR_MEMORY, ERR_DEVICE; close in
 * any case. */
enum err late_open(struct calibration *c);
void late_close(struct calibration *c);
/* As calib_train_step(), but returns when the step is queued. Tells the caller of the step before.
 * ERR_NUMERIC as calib_train_step(), of this step or the one before, from the state before it. */
enum err late_train_step(struct calibration *c);
/* Reads all steps that are queued, and tells the caller of them. Errors as late_train_step(). */
enum err late_settle(struct calibration *c);

/* Save, restore the block in work through the caller's callbacks. *restored = false: there
 * was nothing to restore. */
enum err calib_save_partial(struct calibration *c);
enum err calib_load_partial(struct calibration *c, bool *restored);

/* Sends an event to the caller. */
void calib_notify(struct calibration *c, enum calib_event_kind kind, double loss);
/* Returns true if the caller asks to stop. */
bool calib_stop_asked(const struct calibration *c);
/* Returns ERR_STOPPED, with the number of finished blocks, if stop. */
enum err calib_stopped_if(const struct calibration *c, bool stop);

/* Returns the passes that the block in work has done in earlier runs, as cost_block_passes() counts
 * them. */
double calib_units_done(const struct calibration *c);

/* Adds the time since the last call, or since the block's start, to the block's seconds. */
void calib_take_time(struct calibration *c);

#endif

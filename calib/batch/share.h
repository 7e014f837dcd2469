/* SPDX-License-Identifier: MIT
 *
 * A calibration on several ranks. Each has the parameters and the weights of the block in work,
 * and its own samples of the streams. Of every batch of B samples, rank r of R has those from
 * r B / R to (r + 1) B / R, so that all ranks work on every step:
 *
 *   batch    0 . . . . . . .  1 . . . . . . .  2 . . .      B = 8, R = 3
 *   rank     0 0 1 1 1 2 2 2  0 0 1 1 1 2 2 2  0 0 1 1
 *
 * Everything that several ranks contribute to is put together in the order of samples, so no
 * result depends on R. With one process (ranks NULL) it has all samples. */
#ifndef WKVQ_SHARE_H
#define WKVQ_SHARE_H

#include "calib/calibration.h"

/* Finds this rank's samples in s and makes room. ERR_USAGE: more ranks than samples in a batch.
 * ERR_MEMORY. Close in any case. */
enum err share_open(struct share *h, const struct calib_settings *s,
                    const struct ranks *ranks);
void share_close(struct share *h);

/* Returns whether this rank has sample i, and its index among the rank's samples. */
bool share_own(const struct share *h, int64_t i);
int64_t share_local(const struct share *h, int64_t i);

/* c->recon.x = sample i of the quantized stream, whichever rank has it. */
enum err share_read(struct calibration *c, int64_t i);
/* h->loss[0 .. n) = the losses of samples first .. first + n, of which each rank has set its
 * own. */
void share_losses(struct share *h, int64_t first, int64_t n);
/* Keeps the gradients of sample k of a step; then, once every rank has kept its own, replaces
 * the gradients of the block by their sum over the n samples of the step, in their order, as
 * fakequant_add_sample() would. */
enum err share_keep_gradients(struct calibration *c, int64_t k);
enum err share_sum_gradients(struct calibration *c, int64_t n);
/* Returns whether any rank is asked to stop. All ranks call it. */
bool share_stop(const struct calibration *c);

#endif

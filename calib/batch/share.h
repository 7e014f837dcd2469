/* SPDX-License-Identifier: MIT
 *
 * Samples that several ranks share. Of every batch of B samples, rank r of R has those from
 * r B / R to (r + 1) B / R, so that all ranks work on every step:
 *
 *   batch    0 . . . . . . .  1 . . . . . . .  2 . . .      B = 8, R = 3
 *   rank     0 0 1 1 1 2 2 2  0 0 1 1 1 2 2 2  0 0 1 1
 *
 * Everything that several ranks contribute to is put together in the order of samples, so no
 * result depends on R. One process (ranks NULL) has all samples; the functions that put something
 * together then do nothing. */
#ifndef WKVQ_SHARE_H
#define WKVQ_SHARE_H

#include "kernels/base/ranks.h"
#include "kernels/dev.h"

/* Gradients that stay on linked devices (kernels/dev_link.h), and buffers for their sums; all
 * device memory. */
struct linked_sum {
    struct dev *dev; /* NULL: gradients pass through host memory */
    void *memory;
    float *gradient; /* [to - from][floats] of a step */
    float *arrived;  /* [batch][part of a slice]: this rank's, of all samples */
    float *slice;    /* [slice_floats] sums of a slice */
    int64_t floats, slice_floats;
};

struct share {
    const struct ranks *ranks; /* NULL: one process */
    int64_t batch, from, to;   /* its samples of a batch: [from, to) */
    double *loss;              /* [most] of a step or a measurement */
    double *all_loss;          /* [ranks][most] */
    float *gradient;           /* [to - from][floats] of a step */
    int64_t floats;            /* of the largest gradients so far */
    float *buffer;             /* for sums of gradients */
    void *state;               /* a sample on its way between ranks */
    size_t state_bytes;
    void *row; /* [to - from + 1] numbers of its samples, then of another's */
    size_t row_bytes;
    struct linked_sum linked;
};

/* Finds this process's samples of a batch. most: losses that are put together at a time. key names
 * the size of the batch in the message. ranks is borrowed. ERR_USAGE: more ranks than samples in a
 * batch. ERR_MEMORY. Close in any case. */
enum err share_open(struct share *h, const struct ranks *ranks, int64_t batch, int64_t most,
                    const char *key);
void share_close(struct share *h); /* accepts a zeroed or half-built one */

/* Returns whether this process has sample i, and its index among the process's samples. */
bool share_own(const struct share *h, int64_t i);
int64_t share_local(const struct share *h, int64_t i);
/* Returns how many of n samples this process has. */
int64_t share_count(const struct share *h, int64_t n);

/* x, contiguous on d, becomes what the rank of sample i has in it. ERR_MEMORY, ERR_DEVICE. */
enum err share_sample(struct share *h, struct dev *d, const struct tensor *x, int64_t i);
/* h->loss[0 .. n) = the losses of samples first .. first + n, of which each rank has set its
 * own. */
void share_losses(struct share *h, int64_t first, int64_t n);
/* sum[n] += x[n] of every sample, in the order of samples. Called for each sample i of `samples`
 * in turn; x is read where this process has it. Sums are complete after a batch's last sample, or
 * the very last. ERR_MEMORY. */
enum err share_add(struct share *h, double *sum, const double *x, int64_t n, int64_t i,
                   int64_t samples);
/* Returns whether any rank says yes. */
bool share_any(const struct share *h, bool yes);

/* If d is linked with the devices of all ranks, and each has memory for it, gradients of up to
 * `floats` numbers of a sample stay on d from now on. Else they pass through host memory. `reserve`
 * bytes of d are left free, which its operations allocate later. Every rank calls it, before the
 * first step. ERR_DEVICE. */
enum err share_link(struct share *h, struct dev *d, int64_t floats, uint64_t reserve);
/* Keeps the gradients of sample k of a step, n F32 tensors on d; NULL: none. For several ranks
 * alone. ERR_MEMORY, ERR_DEVICE. */
enum err share_keep(struct share *h, struct dev *d, const struct tensor *const *grad, int n,
                    int64_t k);
/* Once every rank has kept its own: sum[n] = the sums over the samples of the step, ((g_0 + g_1) +
 * g_2) + ... For several ranks alone. */
enum err share_sum(struct share *h, struct dev *d, const struct tensor *const *sum, int n,
                   int64_t samples);

#endif

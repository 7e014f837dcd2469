/* SPDX-License-Identifier: MIT
 *
 * Sums of gradients over the samples of a step on devices that are linked: the same parts in the
 * same order as in share.c, but they stay in device memory. Private to calib/batch. */
#ifndef WKVQ_LINKED_SUM_H
#define WKVQ_LINKED_SUM_H

#include "calib/batch/share.h"

/* From share.c. Return a rank's first sample of a batch, how many samples of a step of n it has,
 * the first of n floats that it adds up, and all floats of a gradient. */
int64_t share_begin(const struct share *h, int64_t rank);
int64_t share_samples(const struct share *h, int rank, int64_t n);
int64_t share_part(const struct share *h, int64_t rank, int64_t n);
int64_t share_floats(const struct tensor *const *grad, int n);

/* Sums of floats [at, at + n) of all gradients in a row, and how they get to a tensor. */
struct slice {
    const float *sum;
    int64_t at, n;
};
typedef enum err slice_put(struct dev *d, float *to, const float *from, int64_t n);
/* Puts a slice where its floats belong, in the tensors of a gradient. */
enum err share_place(struct dev *d, const struct tensor *const *to, int tensors,
                     const struct slice *x, slice_put *put);

/* Makes room on d for gradients of `floats` numbers, in half of what is free beyond `reserve`
 * bytes. *made = false: there is none. ERR_DEVICE. */
enum err linked_open(struct linked_sum *s, const struct share *h, struct dev *d,
                     int64_t floats, uint64_t reserve, bool *made);
void linked_close(struct linked_sum *s); /* accepts a zeroed one */
/* As share_keep() and share_sum(). ERR_SHAPE if the gradients are larger than was said. */
enum err linked_keep(struct share *h, const struct tensor *const *grad, int n, int64_t k);
enum err linked_add_up(struct share *h, const struct tensor *const *sum, int n,
                       int64_t samples);

#endif

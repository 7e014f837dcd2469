/* SPDX-License-Identifier: MIT
 *
 * Helpers of the benchmarks: the configured device, random weights, buffers, medians. */
#ifndef WKVQ_BENCH_DATA_H
#define WKVQ_BENCH_DATA_H

#include "calib/model/shapes.h"
#include "calib/model/weights.h"

/* Opens the device of the options and resolves their activation type. */
enum err bench_open(struct dev **out, enum dtype *act, const char *device, int threads,
                    const char *compute);

/* The type of projections. */
#define BENCH_STORED DT_BF16

/* A model whose blocks all have the same BF16 weights, normal * 0.02; norms are 1. */
struct bench_weights {
    struct arch arch;
    void *memory;
    void *embedding; /* and head, BF16 [V][D]; NULL: none */
    struct model_source source;
};
enum err bench_weights_open(struct bench_weights *w, const struct arch *a);
/* Adds an embedding, which is also the head. */
enum err bench_weights_add_ends(struct bench_weights *w);
void bench_weights_close(struct bench_weights *w); /* accepts a zeroed one */
size_t bench_weights_bytes(const struct arch *a);

/* Makes a tensor [rows, cols] (F32 or BF16) of normal numbers on d. Release it with
 * dev_free(d, t->data). */
enum err bench_tensor(struct tensor *t, struct dev *d, enum dtype type, int64_t rows,
                      int64_t cols);

/* ERR_USAGE with advice if the bytes do not fit: those of the device into its own memory, if
 * it has one, those of the host into the host's, which on other devices holds both. *left:
 * bytes that remain for the device. smaller: the options that make it fit. */
enum err bench_fits(uint64_t *left, struct dev *d, uint64_t device_bytes,
                    uint64_t host_bytes, const char *smaller);

/* Returns the median of n > 0 values, the lower of the middle two. Sorts the values. */
double bench_median(double *values, int64_t n);

#endif

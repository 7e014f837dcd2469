/* SPDX-License-Identifier: MIT
 *
 * Random models for the tests of this floor, and helpers for them. */
#ifndef WKVQ_MODEL_FIXTURE_H
#define WKVQ_MODEL_FIXTURE_H

#include "calib/model/model.h"
#include "kernels/base/rng.h"

/* A model with random weights in host memory, and the source that returns them. */
struct fixture {
    struct arch arch;
    struct block_src *blocks; /* [n_layers] */
    struct host_mat embed, final_norm, head;
    struct model_source source;
    void *memory[256];
    int n_memory;
};

void fixture_open(struct fixture *f, struct arch a, uint64_t seed);
void fixture_close(struct fixture *f);

/* Fails the test with the recorded message unless e is OK. */
void must(enum err e);
struct dev *open_dev(const char *name);

/* n normal values times scale plus shift; release with mem_free. */
float *draw(struct rng *r, int64_t n, double scale, double shift);
/* A copy on d of n host floats, as F32 or BF16. */
void *to_dev(struct dev *d, const float *host, int64_t n, enum dtype t);
/* Any tensor of d as host floats; release with mem_free. */
float *to_host(struct dev *d, const struct tensor *x);
/* Memory on d for a tensor. */
struct tensor dev_2d(struct dev *d, enum dtype t, int64_t rows, int64_t cols);

/* max |x - y| / max |y|, and |x - y| / |y| in the Euclidean norm. Infinite if anything is
 * not finite. */
double max_error(const float *x, const float *y, int64_t n);
double norm_error(const float *x, const float *y, int64_t n);
/* Fails the test unless error <= bound. */
void check_error(const char *what, double error, double bound);

#endif

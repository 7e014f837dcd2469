/* SPDX-License-Identifier: MIT
 *
 * What the benchmarks share: well-known shapes, made-up weights for them, buffers, and
 * matrix products alone. */
#ifndef WKVQ_BENCH_SHAPE_H
#define WKVQ_BENCH_SHAPE_H

#include "calib/model/weights.h"
#include "tools/opt.h"

/* "smollm2-135m" or "llama-2-7b". Errors: ERR_USAGE. */
enum err bench_shape(struct arch *out, const char *name);
/* The device of the options, and the act type they ask for. */
enum err bench_open(struct dev **out, enum dtype *act, const struct args *a);

/* A model whose every block has the same normal BF16 weights. */
struct bench_weights {
    struct arch arch;
    void *memory;
    struct model_source source;
};
enum err bench_weights_open(struct bench_weights *w, const struct arch *a);
void bench_weights_close(struct bench_weights *w); /* accepts a zeroed one */

/* [rows, cols] of normal numbers on d; release with dev_free(d, t->data). */
enum err bench_tensor(struct tensor *t, struct dev *d, enum dtype type, int64_t rows,
                      int64_t cols);

double bench_now(void);

/* One kind of product, and how often a step makes it; a share, for attention's products,
 * of which the causal half is needed. */
struct bench_product {
    enum gemm_kind kind;
    int64_t m, n, k;
    enum dtype in, out;
    double times;
};
double bench_product_flops(const struct bench_product *p);
/* Seconds of one, the best of some. */
enum err bench_product_time(double *seconds, struct dev *d, const struct bench_product *p);

#endif

/* SPDX-License-Identifier: MIT
 *
 * The libraries behind cpu_gemm.c. Each computes one tile of a product on the calling
 * thread alone; the tiles are spread by the device's own pool, so that no second pool of
 * threads competes with it. */
#ifndef WKVQ_CPU_GEMM_H
#define WKVQ_CPU_GEMM_H

#include "kernels/dev.h"

/* A tile: what dev_gemm says, m x n x k, row strides in elements. */
struct gemm_tile {
    enum gemm_kind kind;
    int64_t m, n, k, lda, ldb, ldc;
    enum dtype in, out;
    bool accumulate;
};

/* OpenBLAS, loaded at run time: it picks its kernels when it is loaded. */
struct openblas {
    const char *core; /* what it picked, "SkylakeX" */
    char version[32]; /* "0.3.21" */
    bool steered;     /* we named the core, not the user nor the library */
};

/* Load it once a process, for the best the processor has. NULL: there is none. */
const struct openblas *openblas_load(void);
/* Whether the library is there and has LAPACK too. If so: the upper triangle (columns
 * first) of the symmetric a [n][n] becomes V^-1 with a = V^T V. 0, or the 1-based row at
 * which a is not positive definite. */
bool openblas_lapack(void);
int openblas_factor_invert(double *a, int n, int threads);
void openblas_tile(const struct gemm_tile *t, const void *a, const void *b, void *c);

struct onednn;        /* opaque */
struct onednn_kernel; /* opaque; one shape, made ready once, owned by its onednn */

/* ERR_SUPPORT when the build or the machine has none; ERR_MEMORY. */
enum err onednn_open(struct onednn **out, int threads);
void onednn_close(struct onednn **o);
/* The kernel of a tile, from its cache; *out = NULL: it cannot. ERR_MEMORY. */
enum err onednn_find(struct onednn_kernel **out, struct onednn *o,
                     const struct gemm_tile *t);
/* Any number of threads may run one kernel, each with its own number. */
bool onednn_run(struct onednn_kernel *k, int thread, const void *a, const void *b, void *c);
/* "2.6.3" */
void onednn_version(char *text, size_t bytes);

#endif

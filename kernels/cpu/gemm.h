/* SPDX-License-Identifier: MIT
 *
 * The libraries that cpu_gemm.c uses. Each function computes one tile of a product on the
 * calling thread. The device's own pool runs the tiles, so that no second pool of threads
 * competes with it. */
#ifndef WKVQ_CPU_GEMM_H
#define WKVQ_CPU_GEMM_H

#include "kernels/dev.h"

/* A tile of dev_gemm(): C [m,n] of a product over k. Strides of rows are in elements. */
struct gemm_tile {
    enum gemm_kind kind;
    int64_t m, n, k, lda, ldb, ldc;
    enum dtype in, out;
    bool accumulate;
};

/* OpenBLAS. It chooses its kernels when it is loaded, so it is loaded at run time. */
struct openblas {
    const char *core; /* the chosen kernels, such as "SkylakeX" */
    char version[32]; /* "0.3.21" */
    bool steered;     /* this program chose them, not the user or the library */
};

/* Loads it once per process, with the best kernels for this processor, and maps the working
 * memory of `threads` concurrent products: OpenBLAS retries for ever where it cannot map it
 * later. *out = NULL: not installed. ERR_MEMORY says what is missing and how many threads
 * fit. */
enum err openblas_open(const struct openblas **out, int threads);
/* True if the library is installed and contains LAPACK, which openblas_factor_invert()
 * needs. */
bool openblas_lapack(void);
/* Replaces the upper triangle (by columns) of the symmetric a [n][n] by V^-1 with a = V^T
 * V. *at is 0, or the 1-based row at which a is not positive definite. ERR_MEMORY as for
 * openblas_open(). */
enum err openblas_factor_invert(int *at, double *a, int n, int threads);
void openblas_tile(const struct gemm_tile *t, const void *a, const void *b, void *c);

/* call(ctx); false when it threw a C++ exception, which ends there. */
bool gemm_guarded(void (*call)(void *ctx), void *ctx);

struct onednn;        /* opaque */
struct onednn_kernel; /* opaque; prepared for one shape; owned by struct onednn */

/* ERR_SUPPORT if this build or machine has no oneDNN; ERR_MEMORY. */
enum err onednn_open(struct onednn **out, int threads);
void onednn_close(struct onednn **o);
/* out[i] = the kernel for tile t[i], cached; NULL if oneDNN has none or the tile is empty. All
 * n, at most ONEDNN_TILES_MAX, are valid until the next call. ERR_MEMORY. */
#define ONEDNN_TILES_MAX 4
enum err onednn_find(struct onednn_kernel **out, struct onednn *o,
                     const struct gemm_tile *t, int n);
/* Threads may run one kernel at the same time, each with its own number. */
bool onednn_run(struct onednn_kernel *k, int thread, const void *a, const void *b, void *c);
/* True if the library multiplies BF16 in AMX units: the processor has them and the system lets this
 * process use them. */
bool onednn_has_tiles(void);
/* Writes the version, such as "2.6.3". */
void onednn_version(char *text, size_t bytes);

#endif

/* SPDX-License-Identifier: MIT
 *
 * F32 products by OpenBLAS. It reads the core type from the environment when it is
 * loaded, so it is opened with dlopen() after that is set: Debian's 0.3.21 takes newer
 * processors for a Haswell, which halves the speed. A core type that the user has set is
 * kept. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"

#include <cblas.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    struct openblas about;
    __typeof__(cblas_sgemm) *sgemm;
    __typeof__(openblas_set_num_threads) *set_threads;
    void (*dpotrf)(const char *uplo, const int *n, double *a, const int *lda, int *info);
    void (*dtrtri)(const char *uplo, const char *diag, const int *n, double *a,
                   const int *lda, int *info);
    bool found, lapack;
} lib;

static bool symbol(void *handle, const char *name, void *out)
{
    void *p = dlsym(handle, name);
    memcpy(out, &p, sizeof(p));
    return p;
}

/* "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..." */
static void keep_version(const char *config)
{
    if (sscanf(config, "OpenBLAS %31s", lib.about.version) != 1)
        snprintf(lib.about.version, sizeof(lib.about.version), "?");
}

static void load(void)
{
    const enum cpu_level best = cpu_best_level();
    const char *core = best >= CPU_AVX512 ? "SkylakeX"
                       : best >= CPU_AVX2 ? "Haswell"
                                          : NULL;
    if (core && !getenv("OPENBLAS_CORETYPE"))
        lib.about.steered = !setenv("OPENBLAS_CORETYPE", core, 0);
    /* The device's threads call it; threads of its own would only spin. */
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    void *handle = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return;
    __typeof__(openblas_get_config) *get_config;
    __typeof__(openblas_get_corename) *get_corename;
    lib.found = symbol(handle, "cblas_sgemm", &lib.sgemm) &&
                symbol(handle, "openblas_set_num_threads", &lib.set_threads) &&
                symbol(handle, "openblas_get_config", &get_config) &&
                symbol(handle, "openblas_get_corename", &get_corename);
    if (!lib.found)
        return;
    lib.lapack =
        symbol(handle, "dpotrf_", &lib.dpotrf) && symbol(handle, "dtrtri_", &lib.dtrtri);
    lib.set_threads(1);
    keep_version(get_config());
    lib.about.core = get_corename();
}

const struct openblas *openblas_load(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return lib.found ? &lib.about : NULL;
}

bool openblas_lapack(void)
{
    return openblas_load() && lib.lapack;
}

/* The pool is idle meanwhile, so the library may use threads of its own. */
int openblas_factor_invert(double *a, int n, int threads)
{
    int info = 0;
    lib.set_threads(threads);
    lib.dpotrf("U", &n, a, &n, &info);
    if (!info)
        lib.dtrtri("U", "N", &n, a, &n, &info);
    lib.set_threads(1);
    return info;
}

void openblas_tile(const struct gemm_tile *t, const void *a, const void *b, void *c)
{
    lib.sgemm(CblasRowMajor, t->kind == GEMM_TN ? CblasTrans : CblasNoTrans,
              t->kind == GEMM_NT ? CblasTrans : CblasNoTrans, (blasint)t->m, (blasint)t->n,
              (blasint)t->k, 1.0f, a, (blasint)t->lda, b, (blasint)t->ldb,
              t->accumulate ? 1.0f : 0.0f, c, (blasint)t->ldc);
}

/* SPDX-License-Identifier: MIT
 *
 * Matrix products by cuBLAS, which is opened by name when a cuda device is opened, so that
 * the program also runs on machines without CUDA. The emulation has a library of the same
 * functions (emu/emu_cublas.h). */
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/base/mem.h"
}

#if defined(__CUDACC__)
#include <cublas_v2.h>
#else
#include "kernels/cuda/emu/emu_cublas.h"
#endif
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

namespace CUDA_NS
{

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define CUBLAS_FILE "libcublas.so." TEXT(CUBLAS_VER_MAJOR)

/* A fixed workspace, so that the library chooses the same algorithm each time. The
 * emulation's library does not use it. */
#if defined(__CUDACC__)
constexpr size_t WORKSPACE = (size_t)64 << 20;
#else
constexpr size_t WORKSPACE = 256;
#endif

struct gemm_library {
    cublasHandle_t handle;
    void *workspace;
    decltype(&cublasCreate_v2) create;
    decltype(&cublasDestroy_v2) destroy;
    decltype(&cublasSetStream_v2) set_stream;
    decltype(&cublasSetMathMode) set_math;
    decltype(&cublasSetWorkspace_v2) set_workspace;
    decltype(&cublasGetVersion_v2) get_version;
    decltype(&cublasGetStatusString) status;
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int,
                           int, const void *, const void *, cudaDataType, int, const void *,
                           cudaDataType, int, const void *, void *, cudaDataType, int,
                           cublasComputeType_t, cublasGemmAlgo_t);
};

#if defined(__CUDACC__)

static enum err open_file(void **file)
{
    *file = find_library(CUBLAS_FILE, "WKVQ_CUBLAS");
    FAIL_IF(!*file, ERR_SUPPORT,
            "device cuda: %s was not found by the loader, below CUDA_HOME or "
            "/usr/local/cuda, or in Python's nvidia packages; install CUDA %d's cuBLAS, "
            "name the file in WKVQ_CUBLAS, or use --device cpu",
            CUBLAS_FILE, CUBLAS_VER_MAJOR);
    return OK;
}

static void *symbol_of(void *file, const char *name)
{
    return dlsym(file, name);
}

#else

static enum err open_file(void **file)
{
    *file = nullptr;
    return OK;
}

static void *symbol_of(void *, const char *name)
{
    return emu_cublas_symbol(name);
}

#endif

template <class F> static enum err symbol(F *out, void *file, const char *name)
{
    void *p = symbol_of(file, name);
    FAIL_IF(!p, ERR_SUPPORT, "device cuda: %s lacks %s", CUBLAS_FILE, name);
    memcpy(out, &p, sizeof(p));
    return OK;
}

static enum err open_cublas(gemm_library *l)
{
    void *file;
    TRY(open_file(&file));
    TRY(symbol(&l->create, file, "cublasCreate_v2"));
    TRY(symbol(&l->destroy, file, "cublasDestroy_v2"));
    TRY(symbol(&l->set_stream, file, "cublasSetStream_v2"));
    TRY(symbol(&l->set_math, file, "cublasSetMathMode"));
    TRY(symbol(&l->set_workspace, file, "cublasSetWorkspace_v2"));
    TRY(symbol(&l->get_version, file, "cublasGetVersion_v2"));
    TRY(symbol(&l->status, file, "cublasGetStatusString"));
    return symbol(&l->gemm, file, "cublasGemmEx");
}

static enum err start_cublas(gemm_library *l, cudaStream_t stream, int *version)
{
    cublasStatus_t s = l->create(&l->handle);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->set_stream(l->handle, stream);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->set_workspace(l->handle, l->workspace, WORKSPACE);
    /* Partial sums of a split product are kept in F32. */
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->set_math(l->handle,
                        (cublasMath_t)(CUBLAS_DEFAULT_MATH |
                                       CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->get_version(l->handle, version);
    FAIL_IF(s != CUBLAS_STATUS_SUCCESS, ERR_DEVICE,
            "device cuda: cuBLAS does not start: %s", l->status(s));
    return OK;
}

enum err lib_open(struct dev *d)
{
    gpu *g = gpu_of(d);
    int version = 0;
    TRY(mem_calloc(&g->gemm, 1, sizeof(*g->gemm)));
    if (!went_well(d, cudaMalloc(&g->gemm->workspace, WORKSPACE), "working memory"))
        return d->failed;
    TRY(open_cublas(g->gemm));
    TRY(start_cublas(g->gemm, g->stream, &version));
    const size_t n = strlen(d->about);
    snprintf(d->about + n, sizeof(d->about) - n, "; GEMM: cuBLAS %d.%d.%d", version / 10000,
             version / 100 % 100, version % 100);
    return OK;
}

/* The library stays mapped: unloading it can crash when the program ends. */
void lib_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    gemm_library *l = g->gemm;
    if (l && l->handle)
        l->destroy(l->handle);
    if (l)
        cudaFree(l->workspace);
    mem_free(l);
    g->gemm = nullptr;
}

/* Row stride. A single row may have any ld, but cuBLAS checks that it is large enough. */
static int64_t row_distance(const struct tensor *x)
{
    return x->dim[0] > 1 ? x->ld : x->dim[1];
}

static bool fits_int(const struct tensor *x)
{
    return x->dim[0] <= INT_MAX && x->dim[1] <= INT_MAX && row_distance(x) <= INT_MAX;
}

/* cuBLAS stores matrices by columns, so it computes C^T = op(B)^T op(A)^T. */
void lib_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
              const struct tensor *a, const struct tensor *b, bool accumulate)
{
    const gemm_library *l = gpu_of(d)->gemm;
    const cudaDataType in = a->dtype == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType out = c->dtype == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const float one = 1, beta = accumulate ? 1.0f : 0.0f;
    const int64_t K = a->dim[kind != GEMM_TN];
    if (!fits_int(a) || !fits_int(b) || !fits_int(c)) {
        dev_fail(d, ERR_SUPPORT, "gemm: a matrix has more than %d rows, columns or stride",
                 INT_MAX);
        return;
    }
    const cublasStatus_t s = l->gemm(
        l->handle, kind == GEMM_NT ? CUBLAS_OP_T : CUBLAS_OP_N,
        kind == GEMM_TN ? CUBLAS_OP_T : CUBLAS_OP_N, (int)c->dim[1], (int)c->dim[0], (int)K,
        &one, b->data, in, (int)row_distance(b), a->data, in, (int)row_distance(a), &beta,
        c->data, out, (int)row_distance(c), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (s != CUBLAS_STATUS_SUCCESS)
        dev_fail(d, ERR_DEVICE, "gemm: %s", l->status(s));
}

} // namespace CUDA_NS

/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/emu/emu_cublas.h"

extern "C" {
#include "kernels/base/half.h"
}

#include <string.h>

struct emu_cublas {
    cudaStream_t stream;
};

using emu::matrix;
using emu::product;

namespace
{

float get(const matrix &x, int64_t row, int64_t col)
{
    const int64_t at = x.transposed ? row * x.ld + col : col * x.ld + row;
    return x.type == CUDA_R_32F ? ((const float *)x.p)[at]
                                : bf16_to_f32(((const uint16_t *)x.p)[at]);
}

void put(const matrix &x, int64_t row, int64_t col, float v)
{
    const int64_t at = col * x.ld + row;
    if (x.type == CUDA_R_32F)
        ((float *)x.p)[at] = v;
    else
        ((uint16_t *)x.p)[at] = bf16_from_f32(v);
}

/* Rows as stored: those of a column, which ld counts. */
bool fits(const matrix &x)
{
    const int64_t stored = x.transposed ? x.cols : x.rows;
    return x.rows >= 0 && x.cols >= 0 && x.ld >= (stored > 1 ? stored : 1);
}

} // namespace

bool emu::shapes_fit(const product &p)
{
    return fits(p.a) && fits(p.b) && fits(p.c) && fits(p.d) && p.a.cols == p.b.rows &&
           p.d.rows == p.a.rows && p.d.cols == p.b.cols && p.c.rows == p.d.rows &&
           p.c.cols == p.d.cols;
}

bool emu::types_fit(const product &p)
{
    return p.a.type == p.b.type && p.c.type == p.d.type &&
           (p.d.type == p.a.type || p.d.type == CUDA_R_32F);
}

/* With beta 0, C is not read: it may hold NaN. */
void emu::multiply(const product &p)
{
    for (int64_t j = 0; j < p.d.cols; j++)
        for (int64_t i = 0; i < p.d.rows; i++) {
            double sum = 0;
            for (int64_t l = 0; l < p.a.cols; l++)
                sum += (double)get(p.a, i, l) * (double)get(p.b, l, j);
            const float v = (float)((double)p.alpha * sum);
            put(p.d, i, j, p.beta != 0 ? v + p.beta * get(p.c, i, j) : v);
        }
}

cublasStatus_t cublasCreate_v2(cublasHandle_t *out)
{
    *out = new emu_cublas{emu::DEFAULT};
    if (emu_card()->cublas_lacks_memory)
        return CUBLAS_STATUS_ALLOC_FAILED;
    return emu_card_call() ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t stream)
{
    h->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t)
{
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *memory, size_t bytes)
{
    return memory && bytes ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int *version)
{
    *version = 130200;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    default:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
}

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a,
                            cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                            const void *A, cudaDataType type_a, int lda, const void *B,
                            cudaDataType type_b, int ldb, const void *beta, void *C,
                            cudaDataType type_c, int ldc, cublasComputeType_t,
                            cublasGemmAlgo_t)
{
    const matrix c = {C, type_c, m, n, ldc, false};
    const product p = {{const_cast<void *>(A), type_a, m, k, lda, op_a == CUBLAS_OP_T},
                       {const_cast<void *>(B), type_b, k, n, ldb, op_b == CUBLAS_OP_T},
                       c,
                       c,
                       *(const float *)alpha,
                       *(const float *)beta};
    if (!A || !B || !C || !emu::shapes_fit(p))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!emu::types_fit(p))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (emu_card()->cublas_lacks_memory)
        return CUBLAS_STATUS_ALLOC_FAILED;
    if (emu_card_fails_next()) /* as after the fault of a kernel, whose launch has succeeded */
        return CUBLAS_STATUS_EXECUTION_FAILED;
    emu::queue(h->stream, [=] { emu::multiply(p); });
    return CUBLAS_STATUS_SUCCESS;
}

void *emu_cublas_symbol(const char *name)
{
    static const struct {
        const char *name;
        void *f;
    } symbols[] = {{"cublasCreate_v2", (void *)cublasCreate_v2},
                   {"cublasDestroy_v2", (void *)cublasDestroy_v2},
                   {"cublasSetStream_v2", (void *)cublasSetStream_v2},
                   {"cublasSetMathMode", (void *)cublasSetMathMode},
                   {"cublasSetWorkspace_v2", (void *)cublasSetWorkspace_v2},
                   {"cublasGetVersion_v2", (void *)cublasGetVersion_v2},
                   {"cublasGetStatusString", (void *)cublasGetStatusString},
                   {"cublasGemmEx", (void *)cublasGemmEx}};
    for (const auto &s : symbols)
        if (!strcmp(s.name, name))
            return s.f;
    return NULL;
}

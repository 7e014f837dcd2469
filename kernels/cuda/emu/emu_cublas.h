/* SPDX-License-Identifier: MIT
 *
 * The part of cuBLAS that kernels/cuda calls, on the host: matrices stored by columns, with
 * cuBLAS's checks of leading dimensions and types. emu_cublaslt.h has that of cuBLASLt. */
#ifndef WKVQ_EMU_CUBLAS_H
#define WKVQ_EMU_CUBLAS_H

#include "kernels/cuda/emu/emu_runtime.h"

#define CUBLAS_VER_MAJOR 13

typedef enum {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
} cublasStatus_t;
typedef enum { CUBLAS_OP_N, CUBLAS_OP_T } cublasOperation_t;
typedef enum { CUDA_R_32F = 0, CUDA_R_16BF = 14 } cudaDataType;
typedef enum { CUBLAS_COMPUTE_32F = 68 } cublasComputeType_t;
typedef enum { CUBLAS_GEMM_DEFAULT = -1 } cublasGemmAlgo_t;
typedef enum {
    CUBLAS_DEFAULT_MATH = 0,
    CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
} cublasMath_t;
typedef struct emu_cublas *cublasHandle_t;

cublasStatus_t cublasCreate_v2(cublasHandle_t *out);
cublasStatus_t cublasDestroy_v2(cublasHandle_t h);
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t stream);
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode);
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t h, void *memory, size_t bytes);
cublasStatus_t cublasGetVersion_v2(cublasHandle_t h, int *version);
const char *cublasGetStatusString(cublasStatus_t s);

/* C[m,n] = alpha op(A)[m,k] op(B)[k,n] + beta C; alpha and beta are in host memory. */
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a,
                            cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                            const void *A, cudaDataType type_a, int lda, const void *B,
                            cudaDataType type_b, int ldb, const void *beta, void *C,
                            cudaDataType type_c, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algo);

/* The function of this name; NULL without. */
void *emu_cublas_symbol(const char *name);

namespace emu
{

/* An operand, [rows, cols] after it has been transposed. */
struct matrix {
    void *p;
    cudaDataType type;
    int64_t rows, cols, ld; /* ld: elements from a stored column to the next */
    bool transposed;
};

/* D = alpha A B + beta C. */
struct product {
    matrix a, b, c, d;
    float alpha, beta;
};

/* Whether dimensions and leading dimensions fit, and types. */
bool shapes_fit(const product &p);
bool types_fit(const product &p);
void multiply(const product &p);

} // namespace emu

#endif

/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/emu/emu_cublaslt.h"

#include <math.h>
#include <string.h>

struct emu_lt {
    bool open;
};

struct emu_lt_op {
    cublasComputeType_t compute;
    cudaDataType scale;
    int transposed[2];
};

struct emu_lt_layout {
    cudaDataType type;
    int64_t rows, cols, ld; /* as stored */
};

/* Start values are the library's. */
struct emu_lt_preference {
    uint64_t workspace = 0;
    uint32_t schemes = 7, alignment[4] = {256, 256, 256, 256};
};

using emu::matrix;
using emu::product;

namespace
{

/* What data of an algorithm hold. */
enum { FOR, SPOILT, BYTES, ALIGNED };
constexpr size_t WORKSPACE = 128;

bool fails(const char *name)
{
    return emu_card()->cublaslt_fails && !strcmp(emu_card()->cublaslt_fails, name);
}

matrix operand(const void *p, const emu_lt_layout *x, bool transposed)
{
    return {const_cast<void *>(p),          x->type, transposed ? x->cols : x->rows,
            transposed ? x->rows : x->cols, x->ld,   transposed};
}

product product_of(const emu_lt_op *op, const emu_lt_layout *const x[4],
                   const void *const p[4])
{
    return {operand(p[0], x[0], op->transposed[0] == CUBLAS_OP_T),
            operand(p[1], x[1], op->transposed[1] == CUBLAS_OP_T),
            operand(p[2], x[2], false),
            operand(p[3], x[3], false),
            1,
            0};
}

cublasStatus_t check(const emu_lt_op *op, const product &p)
{
    if (!emu::shapes_fit(p)) {
        emu::mistake("cuBLASLt: the shapes of a product do not fit together");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return emu::types_fit(p) && op->compute == CUBLAS_COMPUTE_32F && op->scale == CUDA_R_32F
               ? CUBLAS_STATUS_SUCCESS
               : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* A number for the matrices that an algorithm was chosen for. */
uint64_t fingerprint(const product &p)
{
    uint64_t h = 1;
    for (const matrix *x : {&p.a, &p.b, &p.c, &p.d})
        for (const int64_t v :
             {(int64_t)x->type, x->rows, x->cols, x->ld, (int64_t)x->transposed})
            h = (h ^ (uint64_t)v) * 1099511628211u;
    return h;
}

bool as_aligned(const product &p, const cublasLtMatmulAlgo_t *algo)
{
    const matrix *const x[] = {&p.a, &p.b, &p.c, &p.d};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)x[i]->p % algo->data[ALIGNED + i])
            return false;
    return true;
}

} // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    *out = new emu_lt{true};
    if (emu_card()->cublaslt_lacks_memory && fails("cublasLtCreate"))
        return CUBLAS_STATUS_ALLOC_FAILED;
    return emu_card_call() || fails("cublasLtCreate") ? CUBLAS_STATUS_NOT_INITIALIZED
                                                      : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return (size_t)emu_card()->cublaslt;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out,
                                        cublasComputeType_t compute, cudaDataType scale)
{
    *out = new emu_lt_op{compute, scale, {CUBLAS_OP_N, CUBLAS_OP_N}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t op)
{
    delete op;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t op,
                                              cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t bytes)
{
    if (bytes != sizeof(int) || what < CUBLASLT_MATMUL_DESC_TRANSA ||
        what > CUBLASLT_MATMUL_DESC_TRANSB)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&op->transposed[what - CUBLASLT_MATMUL_DESC_TRANSA], value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    *out = new emu_lt_layout{type, (int64_t)rows, (int64_t)cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    *out = new emu_lt_preference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t want)
{
    delete want;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t want,
                                     cublasLtMatmulPreferenceAttributes_t what,
                                     const void *value, size_t bytes)
{
    const int operand = what - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    void *const to = what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
                         ? (void *)&want->workspace
                     : what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK ? &want->schemes
                     : operand >= 0 && operand < 4 ? &want->alignment[operand]
                                                   : NULL;
    if (!to || bytes != (to == &want->workspace ? sizeof(uint64_t) : sizeof(uint32_t)))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* The only algorithm; none without working memory. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t h, cublasLtMatmulDesc_t op, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t want, int most, cublasLtMatmulHeuristicResult_t *out, int *n)
{
    const emu_lt_layout *const layouts[] = {a, b, c, d};
    const void *const nowhere[4] = {};
    *n = 0;
    if (!h || !h->open || most < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    const product p = product_of(op, layouts, nowhere);
    const cublasStatus_t s = check(op, p);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    if (fails("cublasLtMatmulAlgoGetHeuristic"))
        return emu_card()->cublaslt_lacks_memory ? CUBLAS_STATUS_ALLOC_FAILED
                                                 : CUBLAS_STATUS_NOT_INITIALIZED;
    if (emu_card()->cublaslt_refuses || want->workspace < WORKSPACE)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const bool spoilt = want->schemes & ~(unsigned)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    *out = {};
    out->algo = {{fingerprint(p), spoilt, WORKSPACE, want->alignment[0], want->alignment[1],
                  want->alignment[2], want->alignment[3]}};
    out->workspaceSize = WORKSPACE;
    *n = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t op,
                              const void *alpha, const void *A, cublasLtMatrixLayout_t a,
                              const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D,
                              cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t bytes, cudaStream_t stream)
{
    const emu_lt_layout *const layouts[] = {a, b, c, d};
    const void *const places[] = {A, B, C, D};
    product p = product_of(op, layouts, places);
    p.alpha = algo->data[SPOILT] ? NAN : *(const float *)alpha;
    p.beta = *(const float *)beta;
    if (!h || !h->open || !A || !B || !C || !D || algo->data[FOR] != fingerprint(p) ||
        !as_aligned(p, algo) || !workspace || bytes < algo->data[BYTES] ||
        (C == D && c->ld != d->ld))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (fails("cublasLtMatmul") && emu_card()->cublaslt_lacks_memory)
        return CUBLAS_STATUS_ALLOC_FAILED;
    if (fails("cublasLtMatmul") || (fails("capture") && stream == emu::captured()))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    emu_card()->cublaslt_runs++;
    const size_t needs = algo->data[BYTES];
    emu::queue(stream, [=] {
        memset(workspace, 0xff, needs);
        emu::multiply(p);
    });
    return CUBLAS_STATUS_SUCCESS;
}

void *emu_cublaslt_symbol(const char *name)
{
    static const struct {
        const char *name;
        void *f;
    } symbols[] = {
        {"cublasLtCreate", (void *)cublasLtCreate},
        {"cublasLtDestroy", (void *)cublasLtDestroy},
        {"cublasLtGetVersion", (void *)cublasLtGetVersion},
        {"cublasLtMatmulDescCreate", (void *)cublasLtMatmulDescCreate},
        {"cublasLtMatmulDescDestroy", (void *)cublasLtMatmulDescDestroy},
        {"cublasLtMatmulDescSetAttribute", (void *)cublasLtMatmulDescSetAttribute},
        {"cublasLtMatrixLayoutCreate", (void *)cublasLtMatrixLayoutCreate},
        {"cublasLtMatrixLayoutDestroy", (void *)cublasLtMatrixLayoutDestroy},
        {"cublasLtMatmulPreferenceCreate", (void *)cublasLtMatmulPreferenceCreate},
        {"cublasLtMatmulPreferenceDestroy", (void *)cublasLtMatmulPreferenceDestroy},
        {"cublasLtMatmulPreferenceSetAttribute",
         (void *)cublasLtMatmulPreferenceSetAttribute},
        {"cublasLtMatmulAlgoGetHeuristic", (void *)cublasLtMatmulAlgoGetHeuristic},
        {"cublasLtMatmul", (void *)cublasLtMatmul}};
    const char *lacks = emu_card()->cublaslt_lacks;
    for (const auto &s : symbols)
        if (!strcmp(s.name, name) && !(lacks && !strcmp(lacks, name)))
            return s.f;
    return NULL;
}

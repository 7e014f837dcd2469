/* SPDX-License-Identifier: MIT
 *
 * Matrix products by cuBLAS, which is opened by name when a cuda device is opened, so that
 * the program also runs on machines without CUDA, and products with a sum by cuBLASLt. The
 * emulation has libraries of the same functions (emu/emu_cublas.h, emu_cublaslt.h). */
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
}

#if defined(__CUDACC__)
#include <cublasLt.h>
#include <cublas_v2.h>
#else
#include "kernels/cuda/emu/emu_cublaslt.h"
#endif
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace CUDA_NS
{

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define CUBLAS_FILE "libcublas.so." TEXT(CUBLAS_VER_MAJOR)
#define CUBLASLT_FILE "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

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

/* cuBLAS has loaded it already, from wherever that is. */
static bool open_lt_file(void **file)
{
    *file = find_library(CUBLASLT_FILE, "WKVQ_CUBLASLT");
    return *file != nullptr;
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

static bool open_lt_file(void **file)
{
    *file = nullptr;
    return emu_card()->cublaslt;
}

static void *symbol_of(void *, const char *name)
{
    void *p = emu_cublas_symbol(name);
    return p ? p : emu_cublaslt_symbol(name);
}

#endif

template <class F> static enum err symbol(F *out, void *file, const char *name)
{
    FAIL_IF(!set_function(out, symbol_of(file, name)), ERR_SUPPORT,
            "device cuda: %s lacks %s", CUBLAS_FILE, name);
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

/* A lack of memory is no reason to compute in another way: the bits of a run do not depend on the
 * memory that happens to be free. */
static enum err error_of(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_ALLOC_FAILED ? ERR_MEMORY : ERR_DEVICE;
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
    FAIL_IF(s != CUBLAS_STATUS_SUCCESS, error_of(s),
            "device cuda: cuBLAS does not start: %s", l->status(s));
    return OK;
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

static cudaDataType type_of(const struct tensor *x)
{
    return x->dtype == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* cuBLAS stores matrices by columns, so it computes C^T = op(B)^T op(A)^T. */
static void lib_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                     const struct tensor *a, const struct tensor *b, bool accumulate)
{
    const gemm_library *l = gpu_of(d)->gemm;
    const cudaDataType in = type_of(a);
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
        c->data, type_of(c), (int)row_distance(c), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (s != CUBLAS_STATUS_SUCCESS && earlier_work_went_well(d, "gemm"))
        dev_fail(d, error_of(s), "gemm: %s", l->status(s));
}

/* --- products with a sum ------------------------------------------------------------- */

/* An operand of Y = A B + X, in the library's order: its first factor is our second. */
enum sum_operand { SUM_A, SUM_B, SUM_X, SUM_Y, N_SUM_OPERANDS };
constexpr int64_t MOST_ALIGNED = 256; /* bytes: what no algorithm asks more than */
constexpr int MOST_SUM_PLANS = 8;

/* What an algorithm is chosen for; compared byte by byte. type: of the factors. aligned: to how
 * many bytes, a power of two. */
struct sum_shape {
    int64_t kind, type, m, n, k;
    int64_t ld[N_SUM_OPERANDS], aligned[N_SUM_OPERANDS];
};

struct sum_plan {
    sum_shape shape;
    cublasStatus_t status; /* of its making */
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t layout[N_SUM_OPERANDS];
    cublasLtMatmulAlgo_t algo;
};

/* cuBLASLt, in which X and Y may lie apart, as cuBLAS's own products cannot have them. */
struct sum_library {
    cublasLtHandle_t handle;
    sum_plan plans[MOST_SUM_PLANS];
    int n_plans, oldest; /* the oldest one is replaced */
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetVersion) version;
    decltype(&cublasLtMatmulDescCreate) op_create;
    decltype(&cublasLtMatmulDescDestroy) op_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) op_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) wish_create;
    decltype(&cublasLtMatmulPreferenceDestroy) wish_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) wish_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
    decltype(&cublasLtMatmul) run;
};

template <class F> static bool lt_symbol(F *out, void *file, const char *name)
{
    return set_function(out, symbol_of(file, name));
}

static bool open_lt_symbols(sum_library *l, void *file)
{
    return lt_symbol(&l->create, file, "cublasLtCreate") &&
           lt_symbol(&l->destroy, file, "cublasLtDestroy") &&
           lt_symbol(&l->version, file, "cublasLtGetVersion") &&
           lt_symbol(&l->op_create, file, "cublasLtMatmulDescCreate") &&
           lt_symbol(&l->op_destroy, file, "cublasLtMatmulDescDestroy") &&
           lt_symbol(&l->op_set, file, "cublasLtMatmulDescSetAttribute") &&
           lt_symbol(&l->layout_create, file, "cublasLtMatrixLayoutCreate") &&
           lt_symbol(&l->layout_destroy, file, "cublasLtMatrixLayoutDestroy") &&
           lt_symbol(&l->wish_create, file, "cublasLtMatmulPreferenceCreate") &&
           lt_symbol(&l->wish_destroy, file, "cublasLtMatmulPreferenceDestroy") &&
           lt_symbol(&l->wish_set, file, "cublasLtMatmulPreferenceSetAttribute") &&
           lt_symbol(&l->choose, file, "cublasLtMatmulAlgoGetHeuristic") &&
           lt_symbol(&l->run, file, "cublasLtMatmul");
}

static bool find_sums(sum_library *l, char why[WHY_TEXT])
{
    void *file;
    const char *chosen = getenv("WKVQ_CUBLASLT");
    if (chosen && !strcmp(chosen, "none"))
        return unusable(why, "WKVQ_CUBLASLT is none");
    if (!open_lt_file(&file))
        return unusable(why, "no " CUBLASLT_FILE);
    if (!open_lt_symbols(l, file))
        return unusable(why, "%s lacks a function", CUBLASLT_FILE);
    /* Enumerations and structures are those of the version that the program was built with. */
    const size_t major = l->version() / 10000;
    return major == CUBLAS_VER_MAJOR ||
           unusable(why, "cuBLASLt %zu is not %d", major, CUBLAS_VER_MAJOR);
}

static void sum_plan_drop(const sum_library *l, sum_plan *p)
{
    for (cublasLtMatrixLayout_t layout : p->layout)
        if (layout)
            l->layout_destroy(layout);
    if (p->op)
        l->op_destroy(p->op);
    *p = sum_plan{};
}

static void sums_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    sum_library *l = g->sums;
    for (int i = 0; l && i < l->n_plans; i++)
        sum_plan_drop(l, &l->plans[i]);
    if (l && l->handle)
        l->destroy(l->handle);
    mem_free(l);
    g->sums = nullptr;
}

static enum err sums_open(struct dev *d)
{
    gpu *g = gpu_of(d);
    char why[WHY_TEXT] = "";
    TRY(mem_calloc(&g->sums, 1, sizeof(*g->sums)));
    const bool found = find_sums(g->sums, why);
    const cublasStatus_t s =
        found ? g->sums->create(&g->sums->handle) : CUBLAS_STATUS_SUCCESS;
    FAIL_IF(error_of(s) == ERR_MEMORY, ERR_MEMORY, "device %s: cuBLASLt does not start: %s",
            d->ops.name, g->gemm->status(s));
    const bool usable =
        found && (s == CUBLAS_STATUS_SUCCESS || unusable(why, "cuBLASLt does not start"));
    const size_t n = strlen(d->about);
    if (usable)
        snprintf(d->about + n, sizeof(d->about) - n, ", sums by cuBLASLt");
    else
        snprintf(d->about + n, sizeof(d->about) - n, ", sums by own kernels (%s)", why);
    if (!usable)
        sums_close(d);
    return OK;
}

static sum_shape shape_of_sum(enum gemm_kind kind,
                              const struct tensor *const t[N_SUM_OPERANDS])
{
    sum_shape s = {};
    s.kind = kind;
    s.type = t[SUM_A]->dtype;
    s.m = t[SUM_Y]->dim[0];
    s.n = t[SUM_Y]->dim[1];
    s.k = t[SUM_B]->dim[kind != GEMM_TN];
    for (int i = 0; i < N_SUM_OPERANDS; i++) {
        const uintptr_t at = (uintptr_t)t[i]->data | (uintptr_t)MOST_ALIGNED;
        s.ld[i] = row_distance(t[i]);
        s.aligned[i] = (int64_t)(at & -at);
    }
    return s;
}

static cublasStatus_t describe_sum(const sum_library *l, sum_plan *p,
                                   const struct tensor *const t[N_SUM_OPERANDS])
{
    const cublasOperation_t op_a = p->shape.kind == GEMM_NT ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_b = p->shape.kind == GEMM_TN ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasStatus_t s = l->op_create(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->op_set(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof(op_a));
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->op_set(p->op, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof(op_b));
    for (int i = 0; i < N_SUM_OPERANDS && s == CUBLAS_STATUS_SUCCESS; i++)
        s = l->layout_create(&p->layout[i], type_of(t[i]), (uint64_t)t[i]->dim[1],
                             (uint64_t)t[i]->dim[0], p->shape.ld[i]);
    return s;
}

/* What an algorithm must be like. Partial sums of a split product are kept in F32 and added in
 * order, and data need not be aligned better than they are. */
static cublasStatus_t set_wishes(const sum_library *l, const sum_plan *p,
                                 cublasLtMatmulPreference_t wish)
{
    const uint64_t bytes = WORKSPACE;
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasStatus_t s =
        l->wish_set(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->wish_set(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                        sizeof(schemes));
    for (int i = 0; i < N_SUM_OPERANDS && s == CUBLAS_STATUS_SUCCESS; i++) {
        const uint32_t aligned = (uint32_t)p->shape.aligned[i];
        s = l->wish_set(
            wish,
            (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES +
                                                   i),
            &aligned, sizeof(aligned));
    }
    return s;
}

static cublasStatus_t choose_algorithm(const sum_library *l, sum_plan *p)
{
    cublasLtMatmulPreference_t wish = nullptr;
    cublasLtMatmulHeuristicResult_t found = {};
    int n = 0;
    cublasStatus_t s = l->wish_create(&wish);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    s = set_wishes(l, p, wish);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = l->choose(l->handle, p->op, p->layout[SUM_A], p->layout[SUM_B],
                      p->layout[SUM_X], p->layout[SUM_Y], wish, 1, &found, &n);
    l->wish_destroy(wish);
    p->algo = found.algo;
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    return n > 0 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* Says once for a shape if the library cannot compute it. */
static void make_sum_plan(const gemm_library *cublas, const sum_library *l, sum_plan *p,
                          const struct tensor *const t[N_SUM_OPERANDS])
{
    const sum_shape *shape = &p->shape;
    p->status = describe_sum(l, p, t);
    if (p->status == CUBLAS_STATUS_SUCCESS)
        p->status = choose_algorithm(l, p);
    if (p->status != CUBLAS_STATUS_SUCCESS && error_of(p->status) != ERR_MEMORY)
        log_info("sum of %lld x %lld and a product over %lld: own kernel, because cuBLASLt "
                 "says: %s",
                 (long long)shape->m, (long long)shape->n, (long long)shape->k,
                 cublas->status(p->status));
}

/* The library reads a plan when it starts a product, so that one may be replaced at any time. */
static const sum_plan *plan_of_sum(const gpu *g, enum gemm_kind kind,
                                   const struct tensor *const t[N_SUM_OPERANDS])
{
    sum_library *l = g->sums;
    const sum_shape shape = shape_of_sum(kind, t);
    for (int i = 0; i < l->n_plans; i++)
        if (!memcmp(&l->plans[i].shape, &shape, sizeof(shape)))
            return &l->plans[i];
    const bool full = l->n_plans == MOST_SUM_PLANS;
    sum_plan *p = &l->plans[full ? l->oldest : l->n_plans++];
    l->oldest = full ? (l->oldest + 1) % MOST_SUM_PLANS : 0;
    sum_plan_drop(l, p);
    p->shape = shape;
    make_sum_plan(g->gemm, l, p, t);
    return p;
}

static void run_sum(struct dev *d, const sum_plan *p,
                    const struct tensor *const t[N_SUM_OPERANDS])
{
    const gpu *g = gpu_of(d);
    const float one = 1;
    const cublasStatus_t s = g->sums->run(
        g->sums->handle, p->op, &one, t[SUM_A]->data, p->layout[SUM_A], t[SUM_B]->data,
        p->layout[SUM_B], &one, t[SUM_X]->data, p->layout[SUM_X], t[SUM_Y]->data,
        p->layout[SUM_Y], &p->algo, g->gemm->workspace, WORKSPACE, g->stream);
    if (s != CUBLAS_STATUS_SUCCESS && earlier_work_went_well(d, "gemm"))
        dev_fail(
            d, error_of(s),
            "gemm: cuBLASLt: %s; WKVQ_CUBLASLT=none in the environment adds sums by own "
            "kernels",
            g->gemm->status(s));
}

/* A sum in place needs cuBLAS only. */
static void lib_gemm_add(struct dev *d, enum gemm_kind kind, const struct tensor *y,
                         const struct tensor *x, const struct tensor *a,
                         const struct tensor *b, const struct tensor *part)
{
    const gpu *g = gpu_of(d);
    const struct tensor *const t[N_SUM_OPERANDS] = {b, a, x, y};
    if (y->data == x->data)
        return lib_gemm(d, kind, y, a, b, true);
    const sum_plan *p = g->sums ? plan_of_sum(g, kind, t) : nullptr;
    if (p && p->status == CUBLAS_STATUS_SUCCESS)
        return run_sum(d, p, t);
    if (p && error_of(p->status) == ERR_MEMORY) {
        dev_fail(d, ERR_MEMORY, "gemm: cuBLASLt: %s", g->gemm->status(p->status));
        return;
    }
    lib_gemm(d, kind, part, a, b, false);
    d->ops.add(d, y, x, part);
}

/* --- both ---------------------------------------------------------------------------- */

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
    return sums_open(d);
}

/* The libraries stay mapped: unloading them can crash when the program ends. */
void lib_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    gemm_library *l = g->gemm;
    sums_close(d);
    if (l && l->handle)
        l->destroy(l->handle);
    if (l)
        cudaFree(l->workspace);
    mem_free(l);
    g->gemm = nullptr;
}

void fill_lib(struct dev_ops *o)
{
    o->gemm = lib_gemm;
    o->gemm_add = lib_gemm_add;
}

} // namespace CUDA_NS

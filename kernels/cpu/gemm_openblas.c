/* SPDX-License-Identifier: MIT
 *
 * F32 products by OpenBLAS. It reads the core type from the environment when it is
 * loaded, so it is opened with dlopen() after that is set: Debian's 0.3.21 takes newer
 * processors for a Haswell, which halves the speed. A core type that the user has set is
 * kept. */
#include "kernels/base/limits.h"
#include "kernels/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"

#include <cblas.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* What OpenBLAS maps for each product that runs at the same time, on first use, and
 * never unmaps: its BUFFER_SIZE on x86-64. */
#define BUFFER_BYTES ((size_t)128 << 20)
/* Some room for its own bookkeeping. */
#define SLACK_BYTES ((size_t)1 << 20)

static struct {
    struct openblas about;
    __typeof__(cblas_sgemm) *sgemm;
    __typeof__(openblas_set_num_threads) *set_threads;
    void (*dpotrf)(const char *uplo, const int *n, double *a, const int *lda, int *info);
    void (*dtrtri)(const char *uplo, const char *diag, const int *n, double *a,
                   const int *lda, int *info);
    void *(*buffer_alloc)(int); /* NULL: not exported by this build */
    void (*buffer_free)(void *);
    int buffers;     /* that are mapped */
    int own_threads; /* that OpenBLAS has started */
    bool found, lapack;
    char load_error[256]; /* the library exists, but there is no memory for it */
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

/* The dynamic linker has no error numbers. */
static void keep_load_error(const char *text)
{
    if (text && (strstr(text, "annot allocate") || strstr(text, "failed to map")))
        snprintf(lib.load_error, sizeof(lib.load_error), "%s", text);
}

static void load(void)
{
    const char *core = isa_supported(ISA_AVX512) ? "SkylakeX"
                       : isa_supported(ISA_AVX2) ? "Haswell"
                                                 : NULL;
    if (core && !getenv("OPENBLAS_CORETYPE"))
        lib.about.steered = !setenv("OPENBLAS_CORETYPE", core, 0);
    /* The device's threads call it; threads of its own would only spin. */
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    void *handle = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        keep_load_error(dlerror());
        return;
    }
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
    if (!symbol(handle, "blas_memory_alloc", &lib.buffer_alloc) ||
        !symbol(handle, "blas_memory_free", &lib.buffer_free))
        lib.buffer_alloc = NULL;
    lib.set_threads(1);
    keep_version(get_config());
    lib.about.core = get_corename();
}

static void load_once(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
}

static size_t thread_stack_bytes(void)
{
    pthread_attr_t attr;
    size_t bytes = 0;
    if (pthread_getattr_default_np(&attr))
        return 0;
    pthread_attr_getstacksize(&attr, &bytes);
    pthread_attr_destroy(&attr);
    return bytes;
}

/* How many of n pieces can be mapped at once, mapped as OpenBLAS does it. */
static int count_that_fit(void **piece, int n, size_t bytes)
{
    int fit = 0;
    while (fit < n) {
        piece[fit] =
            mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (piece[fit] == MAP_FAILED)
            break;
        fit++;
    }
    for (int i = 0; i < fit; i++)
        munmap(piece[i], bytes);
    return fit;
}

/* fit: buffers that can be had beside those there are. */
static enum err no_room(int threads, int missing, int fit, size_t each)
{
    struct limit l;
    char advice[64] = "";
    limits_address_space(&l, "");
    const int usable = threads - missing + fit;
    if (l.amount == UINT64_MAX)
        l.amount = each * (uint64_t)fit;
    if (usable > 0)
        snprintf(advice, sizeof(advice), ", or use --threads %d", usable);
    FAIL(ERR_MEMORY,
         "OpenBLAS needs %.0f MB of address space for %d thread%s, but only %.0f MB are "
         "left "
         "(limit: %s); raise the limit%s",
         1e-6 * (double)each * missing, threads, threads > 1 ? "s" : "",
         1e-6 * (double)l.amount, l.name, advice);
}

/* OpenBLAS keeps the buffers that it has mapped once. */
static enum err map_buffers(void **buffer, int n)
{
    int got = 0;
    while (got < n && (buffer[got] = lib.buffer_alloc(0)))
        got++;
    for (int i = 0; i < got; i++)
        lib.buffer_free(buffer[i]);
    FAIL_IF(got < n, ERR_MEMORY,
            "OpenBLAS %s has working memory for %d threads at most; use --threads %d",
            lib.about.version, got, got);
    lib.buffers = n;
    return OK;
}

/* Working memory of n products at once, and stacks of own_threads threads of OpenBLAS. */
static enum err reserve(int n, int own_threads, int threads)
{
    void **piece = NULL;
    const int missing = n - lib.buffers;
    const size_t each =
        BUFFER_BYTES + SLACK_BYTES + (own_threads > 0 ? thread_stack_bytes() : 0);
    if (missing <= 0)
        return OK;
    TRY(mem_calloc(&piece, (size_t)n, sizeof(*piece)));
    const int fit = count_that_fit(piece, missing, each);
    enum err err = fit < missing ? no_room(threads, missing, fit, each) : OK;
    if (!err && lib.buffer_alloc)
        err = map_buffers(piece, n);
    mem_free(piece);
    return err;
}

static void *wait_at(void *barrier)
{
    pthread_mutex_lock(barrier);
    pthread_mutex_unlock(barrier);
    return NULL;
}

/* How many of n threads can run at once. They end when the count is known. */
static enum err count_startable(int *count, int n)
{
    pthread_t *thread = NULL;
    pthread_attr_t attr;
    pthread_mutex_t barrier = PTHREAD_MUTEX_INITIALIZER;
    int started = 0;
    TRY(mem_calloc(&thread, (size_t)n, sizeof(*thread)));
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 << 10);
    pthread_mutex_lock(&barrier);
    while (started < n && !pthread_create(&thread[started], &attr, wait_at, &barrier))
        started++;
    pthread_mutex_unlock(&barrier);
    for (int i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    pthread_attr_destroy(&attr);
    mem_free(thread);
    *count = started;
    return OK;
}

/* OpenBLAS waits for ever for a thread that it could not start. Twice as many are tried:
 * those that have just ended may still count against a limit. */
static enum err start_own_threads(int threads)
{
    const int more = threads - 1 - lib.own_threads;
    int count = 0;
    if (more > 0) {
        TRY(count_startable(&count, 2 * more));
        FAIL_IF(count < 2 * more, ERR_MEMORY,
                "OpenBLAS cannot start its own threads (%d); raise the limit of processes, "
                "or use --threads 1",
                more);
        lib.own_threads += more;
    }
    lib.set_threads(threads);
    return OK;
}

enum err openblas_open(const struct openblas **out, int threads)
{
    load_once();
    FAIL_IF(*lib.load_error, ERR_MEMORY, "out of memory: OpenBLAS cannot be loaded: %s",
            lib.load_error);
    if (lib.found)
        TRY(reserve(threads, 0, threads));
    *out = lib.found ? &lib.about : NULL;
    return OK;
}

bool openblas_lapack(void)
{
    load_once();
    return lib.found && lib.lapack;
}

/* The caller waits, so the library's own threads disturb no one. Each of them keeps a
 * buffer for ever, so that our pool needs as many as before beside these. */
enum err openblas_factor_invert(int *at, double *a, int n, int threads)
{
    int info = 0;
    TRY(reserve(2 * threads - 1, threads - 1, threads));
    TRY(start_own_threads(threads));
    lib.dpotrf("U", &n, a, &n, &info);
    if (!info)
        lib.dtrtri("U", "N", &n, a, &n, &info);
    lib.set_threads(1);
    *at = info;
    return OK;
}

void openblas_tile(const struct gemm_tile *t, const void *a, const void *b, void *c)
{
    lib.sgemm(CblasRowMajor, t->kind == GEMM_TN ? CblasTrans : CblasNoTrans,
              t->kind == GEMM_NT ? CblasTrans : CblasNoTrans, (blasint)t->m, (blasint)t->n,
              (blasint)t->k, 1.0f, a, (blasint)t->lda, b, (blasint)t->ldb,
              t->accumulate ? 1.0f : 0.0f, c, (blasint)t->ldc);
}

/* SPDX-License-Identifier: MIT
 *
 * Opens cuDNN by name and keeps its plans of attention, one per shape. Without the library, or
 * where it has no plan, kernels/cuda's own attention is used. The emulation has a library of the
 * same functions (emu/emu_cudnn.h). */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/lib/cudnn.h"

extern "C" {
#include "kernels/attn_memory.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
}

#if !defined(__CUDACC__)
#include "kernels/cuda/emu/emu_cudnn.h"
#endif
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace CUDA_NS
{

#define CUDNN_FILE "libcudnn.so.9"

/* 9.15.1. Up to 9.15.0, the backward of a length that is not a multiple of 128 accesses memory
 * outside its tensors without a padding mask, and 9.10.0 and 9.10.1 have other bugs: so NVIDIA's
 * frontend, scaled_dot_product_flash_attention.h. */
constexpr size_t OLDEST = 91501;
/* The compute capability for which the plans have been checked. */
constexpr int MAJOR = 9, MINOR = 0;
constexpr int MOST_PLANS = 8;

struct attn_library {
    cudnn lib;
    cudnn_handle handle;
    plan plans[MOST_PLANS];
    int n_plans, oldest; /* the oldest one is replaced */
};

#if defined(__CUDACC__)

/* CUDNN_FILE loads this one by itself when it is first called, and ends the program if it cannot.
 * Most of what is called here is in it. */
#define CUDNN_PART "libcudnn_graph.so.9"

/* Loads the part from the folder of a file that is open. */
static bool open_part(void *file)
{
    char path[4096];
    Dl_info at;
    void *version = dlsym(file, "cudnnGetVersion");
    if (!version || !dladdr(version, &at))
        return false;
    const char *slash = strrchr(at.dli_fname, '/');
    const int folder = slash ? (int)(slash + 1 - at.dli_fname) : 0;
    snprintf(path, sizeof(path), "%.*s%s", folder, at.dli_fname, CUDNN_PART);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

static bool open_file(void **file)
{
    *file = find_library(CUDNN_FILE, "WKVQ_CUDNN");
    return *file != nullptr;
}

static void *symbol_of(void *file, const char *name)
{
    return dlsym(file, name);
}

#else

static bool open_part(void *)
{
    return true;
}

static bool open_file(void **file)
{
    const char *chosen = getenv("WKVQ_CUDNN");
    *file = nullptr;
    return emu_card()->cudnn && !(chosen && *chosen);
}

static void *symbol_of(void *, const char *name)
{
    return emu_cudnn_symbol(name);
}

#endif

template <class F> static bool symbol(F *out, void *file, const char *name)
{
    return set_function(out, symbol_of(file, name));
}

static bool open_symbols(cudnn *l, void *file)
{
    return symbol(&l->version, file, "cudnnGetVersion") &&
           symbol(&l->create, file, "cudnnCreate") &&
           symbol(&l->destroy, file, "cudnnDestroy") &&
           symbol(&l->set_stream, file, "cudnnSetStream") &&
           symbol(&l->text, file, "cudnnGetErrorString") &&
           symbol(&l->make, file, "cudnnBackendCreateDescriptor") &&
           symbol(&l->drop, file, "cudnnBackendDestroyDescriptor") &&
           symbol(&l->finalize, file, "cudnnBackendFinalize") &&
           symbol(&l->set, file, "cudnnBackendSetAttribute") &&
           symbol(&l->get, file, "cudnnBackendGetAttribute") &&
           symbol(&l->execute, file, "cudnnBackendExecute");
}

static bool fits_gpu(char why[WHY_TEXT])
{
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess)
        return unusable(why, "the GPU does not say what it is");
    if (p.major != MAJOR || p.minor != MINOR)
        return unusable(why, "cuDNN is used on compute capability %d.%d", MAJOR, MINOR);
    return true;
}

static bool open_library(cudnn *l, char why[WHY_TEXT])
{
    void *file;
    const char *chosen = getenv("WKVQ_CUDNN");
    if (chosen && !strcmp(chosen, "none"))
        return unusable(why, "WKVQ_CUDNN is none");
    if (!open_file(&file))
        return unusable(why, chosen && *chosen ? "the file in WKVQ_CUDNN cannot be opened"
                                               : "no " CUDNN_FILE);
    if (!open_part(file))
        return unusable(why, "the parts of %s are missing", CUDNN_FILE);
    return open_symbols(l, file) || unusable(why, "%s lacks a function", CUDNN_FILE);
}

/* *status: what the library says. */
static bool start(attn_library *l, cudaStream_t stream, char why[WHY_TEXT], int *status)
{
    if (!fits_gpu(why) || !open_library(&l->lib, why))
        return false;
    const size_t v = l->lib.version();
    if (v < OLDEST)
        return unusable(why, "cuDNN %zu.%zu.%zu is older than 9.15.1", v / 10000,
                        v / 100 % 100, v % 100);
    *status = l->lib.create(&l->handle);
    if (*status == CUDNN_OK)
        *status = l->lib.set_stream(l->handle, stream);
    return *status == CUDNN_OK || unusable(why, "cuDNN: %s", l->lib.text(*status));
}

enum err dnn_open(struct dev *d)
{
    gpu *g = gpu_of(d);
    char why[WHY_TEXT] = "";
    TRY(mem_calloc(&g->dnn, 1, sizeof(*g->dnn)));
    int status = CUDNN_OK;
    const bool usable = start(g->dnn, g->stream, why, &status);
    FAIL_IF(dnn_lacks_memory(status), ERR_MEMORY, "device %s: %s: %s", d->ops.name,
            DNN_MEMORY, g->dnn->lib.text(status));
    const size_t n = strlen(d->about), v = usable ? g->dnn->lib.version() : 0;
    if (usable)
        snprintf(d->about + n, sizeof(d->about) - n, "; attention: cuDNN %zu.%zu.%zu",
                 v / 10000, v / 100 % 100, v % 100);
    else
        snprintf(d->about + n, sizeof(d->about) - n, "; attention: own kernels (%s)", why);
    if (!usable)
        dnn_close(d);
    return OK;
}

/* The library stays mapped, as cuBLAS does. */
void dnn_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    attn_library *l = g->dnn;
    if (!l)
        return;
    for (int i = 0; i < l->n_plans; i++)
        plan_drop(&l->lib, &l->plans[i]);
    if (l->handle)
        l->lib.destroy(l->handle);
    mem_free(l);
    g->dnn = nullptr;
}

/* Where the next plan goes. A plan that is replaced may still be running. */
static plan *free_plan(struct dev *d, attn_library *l)
{
    if (l->n_plans < MOST_PLANS)
        return &l->plans[l->n_plans++];
    plan *p = &l->plans[l->oldest];
    l->oldest = (l->oldest + 1) % MOST_PLANS;
    cuda_wait(d);
    gpu_of(d)->moved++;
    plan_drop(&l->lib, p);
    return p;
}

/* The working memory that has been counted for a plan of this shape. */
static int64_t most_workspace(const plan_shape *s)
{
    return s->backward ? cudnn_workspace(s->n, s->H, s->K, s->d) : CUDNN_FORWARD_WORKSPACE;
}

/* Says once for a shape what computes it. */
static void make_plan(attn_library *l, const plan_shape *shape, plan *p)
{
    plan_make(&l->lib, l->handle, nullptr, shape, p);
    const bool greedy = p->ready && p->workspace > most_workspace(shape);
    const char *what = shape->backward ? "backward" : "forward";
    if (dnn_lacks_memory(p->status))
        return;
    if (p->ready && !greedy)
        log_verbose("attention %s of %lld tokens: cuDNN", what, (long long)shape->n);
    else
        log_info("attention %s of %lld tokens: own kernels, because cuDNN %s", what,
                 (long long)shape->n,
                 greedy ? "needs more memory than a plan counts" : l->lib.text(p->status));
    if (greedy)
        plan_drop(&l->lib, p);
}

const plan *dnn_plan(struct dev *d, const plan_shape *shape)
{
    attn_library *l = gpu_of(d)->dnn;
    if (!l)
        return nullptr;
    for (int i = 0; i < l->n_plans; i++)
        if (!memcmp(&l->plans[i].shape, shape, sizeof(*shape)))
            return l->plans[i].ready ? &l->plans[i] : nullptr;
    plan *p = free_plan(d, l);
    make_plan(l, shape, p);
    if (!p->ready && dnn_lacks_memory(p->status))
        dev_fail(d, ERR_MEMORY, "%s: %s", DNN_MEMORY, l->lib.text(p->status));
    return p->ready ? p : nullptr;
}

bool dnn_run(struct dev *d, const plan *p, void *const at[N_PLAN_TENSORS], float scale)
{
    const attn_library *l = gpu_of(d)->dnn;
    void *workspace = nullptr;
    if (p->workspace) {
        workspace = scratch(d, SLOT_B, (size_t)p->workspace, DNN_MEMORY);
        if (!workspace)
            return false;
    }
    const int status = plan_run(&l->lib, l->handle, p, at, scale, workspace);
    if (status != CUDNN_OK && earlier_work_went_well(d, "attention"))
        dev_fail(
            d, dnn_lacks_memory(status) ? ERR_MEMORY : ERR_DEVICE,
            "attention: cuDNN: %s; WKVQ_CUDNN=none in the environment uses own kernels",
            l->lib.text(status));
    return status == CUDNN_OK;
}

} // namespace CUDA_NS

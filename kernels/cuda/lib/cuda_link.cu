/* SPDX-License-Identifier: MIT
 *
 * Links the GPUs of several ranks by NCCL, which is opened by name. Only its sends and receives are
 * used: its reductions add in an order that depends on the number of ranks. The emulation has a
 * library of the same functions (emu/emu_nccl.h). */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/lib/nccl.h"

extern "C" {
#include "kernels/base/mem.h"
#include "kernels/dev_link.h"
}

#if !defined(__CUDACC__)
#include "kernels/cuda/emu/emu_nccl.h"
#endif
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace CUDA_NS
{

#define NCCL_FILE "libnccl.so.2"

struct rank_link {
    const struct ranks *ranks;
    nccl lib;
    nccl_comm comm;
};

/* How far a rank has come with the link; all ranks see those of all. */
struct report {
    char trouble[DEV_LINK_TEXT - 32]; /* "": none */
    char gpu[16];                     /* unlike that of any other GPU */
    int version;                      /* of NCCL */
};

static void trouble(report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void trouble(report *r, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(r->trouble, sizeof(r->trouble), fmt, args);
    va_end(args);
}

#if defined(__CUDACC__)

static bool open_file(void **file, const struct ranks *)
{
    *file = find_library(NCCL_FILE, "WKVQ_NCCL");
    return *file != nullptr;
}

static void *symbol_of(void *file, const char *name)
{
    return dlsym(file, name);
}

#else

static bool open_file(void **file, const struct ranks *r)
{
    *file = nullptr;
    return emu_nccl_open(r);
}

static void *symbol_of(void *, const char *name)
{
    return emu_nccl_symbol(name);
}

#endif

template <class F> static void symbol(F *out, report *r, void *file, const char *name)
{
    if (!set_function(out, symbol_of(file, name)))
        trouble(r, "%s lacks %s", NCCL_FILE, name);
}

static void open_nccl(rank_link *l, report *r)
{
    void *file;
    if (!open_file(&file, l->ranks)) {
        trouble(r, "%s was not found; install NCCL, or name the file in WKVQ_NCCL",
                NCCL_FILE);
        return;
    }
    symbol(&l->lib.version, r, file, "ncclGetVersion");
    symbol(&l->lib.make_id, r, file, "ncclGetUniqueId");
    symbol(&l->lib.join, r, file, "ncclCommInitRank");
    symbol(&l->lib.leave, r, file, "ncclCommDestroy");
    symbol(&l->lib.group_start, r, file, "ncclGroupStart");
    symbol(&l->lib.group_end, r, file, "ncclGroupEnd");
    symbol(&l->lib.send, r, file, "ncclSend");
    symbol(&l->lib.receive, r, file, "ncclRecv");
    symbol(&l->lib.text, r, file, "ncclGetErrorString");
    if (!r->trouble[0] && l->lib.version(&r->version) != NCCL_SUCCESS)
        trouble(r, "%s does not say its version", NCCL_FILE);
}

static void identify_gpu(report *r)
{
    cudaDeviceProp p;
    const cudaError_t e = cudaGetDeviceProperties(&p, 0);
    if (e != cudaSuccess)
        trouble(r, "%s", cudaGetErrorString(e));
    else
        memcpy(r->gpu, p.uuid.bytes, sizeof(r->gpu));
}

/* Returns whether no rank has trouble; about = that of the first. */
static bool all_well(const rank_link *l, report *all, const report *mine, char *about)
{
    l->ranks->gather(all, mine, sizeof(*mine));
    for (int q = 0; q < l->ranks->size; q++)
        if (all[q].trouble[0]) {
            snprintf(about, DEV_LINK_TEXT, "rank %d: %s", q, all[q].trouble);
            return false;
        }
    return true;
}

/* Returns whether ranks may join: NCCL refuses those that share a GPU, some of its versions only
 * after a time, and versions need not understand each other. */
static bool all_fit(const rank_link *l, const report *all, char *about)
{
    for (int q = 1; q < l->ranks->size; q++) {
        for (int p = 0; p < q; p++)
            if (!memcmp(all[p].gpu, all[q].gpu, sizeof(all[p].gpu))) {
                snprintf(about, DEV_LINK_TEXT, "ranks %d and %d have the same GPU", p, q);
                return false;
            }
        if (all[q].version != all[0].version) {
            snprintf(about, DEV_LINK_TEXT, "ranks 0 and %d have other versions of NCCL", q);
            return false;
        }
    }
    return true;
}

/* Returns whether rank 0 could name the group. The name travels by the ranks' own transport. */
static bool name_group(const rank_link *l, nccl_id *id, char *about)
{
    struct {
        nccl_id id;
        int result;
    } made = {};
    if (l->ranks->rank == 0)
        made.result = l->lib.make_id(&made.id);
    l->ranks->broadcast(&made, sizeof(made), 0);
    *id = made.id;
    if (made.result != NCCL_SUCCESS)
        snprintf(about, DEV_LINK_TEXT, "rank 0: NCCL names no group: %s",
                 l->lib.text(made.result));
    return made.result == NCCL_SUCCESS;
}

/* Before 2.9, a version was 1000 major + 100 minor + patch. */
static void say_version(char *about, int v)
{
    const int major = v < 10000 ? v / 1000 : v / 10000;
    const int minor = v < 10000 ? v % 1000 / 100 : v % 10000 / 100;
    snprintf(about, DEV_LINK_TEXT, "NCCL %d.%d.%d", major, minor, v % 100);
}

/* A rank that cannot join fails the device, which ends all ranks: the others wait for it inside
 * NCCL, where no message of ours reaches them. */
static bool link_ranks(struct dev *d, rank_link *l, report *all, char *about)
{
    report mine = {};
    nccl_id id;
    open_nccl(l, &mine);
    identify_gpu(&mine);
    if (!all_well(l, all, &mine, about) || !all_fit(l, all, about) ||
        !name_group(l, &id, about))
        return false;
    const int e = l->lib.join(&l->comm, l->ranks->size, id, l->ranks->rank);
    if (e != NCCL_SUCCESS) {
        dev_fail(
            d, ERR_DEVICE,
            "NCCL does not start: %s; WKVQ_NCCL=none in the environment sends gradients "
            "through host memory",
            l->lib.text(e));
        return false;
    }
    say_version(about, mine.version);
    return true;
}

/* A rank whose group is not complete stays in it until the process ends: leaving may wait. */
static bool cuda_link(struct dev *d, const struct ranks *r, char *about)
{
    gpu *g = gpu_of(d);
    report *all = nullptr;
    if (mem_calloc(&g->link, 1, sizeof(*g->link)) ||
        mem_calloc(&all, (size_t)r->size, sizeof(*all))) {
        dev_fail(d, ERR_MEMORY, "link: out of memory");
        return false;
    }
    g->link->ranks = r;
    const bool linked = link_ranks(d, g->link, all, about);
    mem_free(all);
    if (!linked)
        link_close(d);
    return linked;
}

void link_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    mem_free(g->link);
    g->link = nullptr;
}

static void cuda_unlink(struct dev *d)
{
    const rank_link *l = gpu_of(d)->link;
    cuda_wait(d);
    l->lib.leave(l->comm);
    link_close(d);
}

/* Queues what goes to the others and comes from them. */
static int queue_parts(const rank_link *l, float *const *to, const int64_t *to_n,
                       const float *const *from, const int64_t *from_n, cudaStream_t s)
{
    int e = l->lib.group_start();
    for (int q = 0; q < l->ranks->size && e == NCCL_SUCCESS; q++) {
        if (q != l->ranks->rank && from_n[q])
            e = l->lib.send(from[q], (size_t)from_n[q], NCCL_FLOAT, q, l->comm, s);
        if (q != l->ranks->rank && to_n[q] && e == NCCL_SUCCESS)
            e = l->lib.receive(to[q], (size_t)to_n[q], NCCL_FLOAT, q, l->comm, s);
    }
    const int end = l->lib.group_end();
    return e == NCCL_SUCCESS ? end : e;
}

static void cuda_transfer(struct dev *d, float *const *to, const int64_t *to_n,
                          const float *const *from, const int64_t *from_n)
{
    const gpu *g = gpu_of(d);
    const rank_link *l = g->link;
    const int me = l->ranks->rank;
    if (to_n[me] &&
        !went_well(d,
                   cudaMemcpyAsync(to[me], from[me], (size_t)to_n[me] * sizeof(float),
                                   cudaMemcpyDeviceToDevice, g->stream),
                   "transfer"))
        return;
    const int e = queue_parts(l, to, to_n, from, from_n, g->stream);
    if (e != NCCL_SUCCESS)
        dev_fail(d, ERR_DEVICE, "transfer between GPUs: %s", l->lib.text(e));
}

void fill_link(struct dev_ops *o)
{
    o->link = cuda_link;
    o->unlink = cuda_unlink;
    o->transfer = cuda_transfer;
}

} // namespace CUDA_NS

/* SPDX-License-Identifier: MIT
 *
 * Memory that checkop's tensors are in: the host's, or, for a GPU, page-locked memory, which
 * kernels reach at the same address. */
#include "kernels/base/mem.h"
#include "tests/kernels/checkop.h"

#include <string.h>

#if CHECKOP_CUDA

#include <cuda_runtime_api.h>

/* Locking memory takes longer than a case, so all tensors are cut from one piece, which is
 * empty again after the case. With --every each has a piece of its own, so that
 * compute-sanitizer knows where it ends. */
#define ARENA ((size_t)256 << 20)

static struct {
    char *at;
    size_t used;
    long live;
} arena;

static void *lock_pages(size_t bytes)
{
    void *p = NULL;
    return cudaHostAlloc(&p, bytes, cudaHostAllocDefault) == cudaSuccess ? p : NULL;
}

static void *both_alloc(const struct ck *c, size_t bytes)
{
    const size_t whole = (bytes + 255) / 256 * 256;
    if (c->every > 1)
        return lock_pages(bytes);
    if (!arena.at)
        arena.at = lock_pages(ARENA);
    if (!arena.at || whole > ARENA - arena.used)
        return NULL;
    arena.used += whole;
    arena.live++;
    return arena.at + arena.used - whole;
}

static void both_free(const struct ck *c, void *p)
{
    if (c->every > 1)
        cudaFreeHost(p);
    else if (p && !--arena.live)
        arena.used = 0;
}

#else

static void *both_alloc(const struct ck *c, size_t bytes)
{
    (void)c;
    (void)bytes;
    return NULL;
}

static void both_free(const struct ck *c, void *p)
{
    (void)c;
    (void)p;
}

#endif

static bool on_gpu(const struct ck *c)
{
    return c->dev[SIDE_CPU] && !strcmp(dev_name(c->dev[SIDE_CPU]), "cuda");
}

void *ck_memory(const struct ck *c, size_t bytes)
{
    void *p = NULL;
    if (on_gpu(c))
        return both_alloc(c, bytes);
    return mem_alloc(&p, bytes, 1) ? NULL : p;
}

void ck_memory_free(const struct ck *c, void *p)
{
    if (on_gpu(c))
        both_free(c, p);
    else
        mem_free(p);
}

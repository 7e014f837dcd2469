/* SPDX-License-Identifier: MIT
 *
 * Memory that checkop's tensors are in: the host's, or, for a GPU, memory that both see. */
#include "kernels/base/mem.h"
#include "tests/kernels/checkop.h"

#include <string.h>

#if CHECKOP_CUDA

#include <cuda_runtime_api.h>

static void *both_alloc(size_t bytes)
{
    void *p = NULL;
    return cudaMallocManaged(&p, bytes, cudaMemAttachGlobal) == cudaSuccess ? p : NULL;
}

static void both_free(void *p)
{
    cudaFree(p);
}

#else

static void *both_alloc(size_t bytes)
{
    (void)bytes;
    return NULL;
}

static void both_free(void *p)
{
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
        return both_alloc(bytes);
    return mem_alloc(&p, bytes, 1) ? NULL : p;
}

void ck_memory_free(const struct ck *c, void *p)
{
    if (on_gpu(c))
        both_free(p);
    else
        mem_free(p);
}

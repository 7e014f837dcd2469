/* SPDX-License-Identifier: MIT
 *
 * The calls of the CUDA runtime that kernels/cuda makes, over host memory: everything is
 * done when a call returns. What the emulator reported is the sticky error. */
#ifndef WKVQ_EMU_RUNTIME_H
#define WKVQ_EMU_RUNTIME_H

#include "kernels/cuda/emu/emu.h"

typedef int cudaError_t;
typedef int cudaStream_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorLaunchFailure = 719 };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

static inline cudaError_t cudaGetLastError(void)
{
    return *emu_error() ? cudaErrorLaunchFailure : cudaSuccess;
}

static inline const char *cudaGetErrorString(cudaError_t e)
{
    if (e == cudaErrorLaunchFailure)
        return emu_error();
    return e ? "out of memory" : "no error";
}

static inline cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return cudaGetLastError();
}

static inline cudaError_t cudaMalloc(void **p, size_t bytes)
{
    *p = emu_alloc(bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

static inline cudaError_t cudaFree(void *p)
{
    emu_free(p);
    return cudaSuccess;
}

static inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, int,
                                          cudaStream_t)
{
    emu_fence(true);
    memcpy(dst, src, bytes);
    emu_fence(false);
    return cudaSuccess;
}

static inline cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t)
{
    emu_fence(true);
    memset(dst, value, bytes);
    emu_fence(false);
    return cudaSuccess;
}

template <class K> cudaError_t cuda_allow_shared(K *, size_t)
{
    return cudaSuccess;
}

#endif

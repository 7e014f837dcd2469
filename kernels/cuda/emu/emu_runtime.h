/* SPDX-License-Identifier: MIT
 *
 * The functions of the CUDA runtime that kernels/cuda calls, over host memory. Work on the
 * first stream is finished when a call returns. Copies on the second stream happen when
 * something waits for them (emu_card.h). A report of the emulation is the sticky error. */
#ifndef WKVQ_EMU_RUNTIME_H
#define WKVQ_EMU_RUNTIME_H

#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/emu_card.h"

#include <stdio.h>
#include <string.h>

typedef int cudaError_t;
typedef int cudaStream_t; /* 0: compute, 1: copies */
struct emu_event {
    long copies; /* copies queued when it was recorded on the second stream */
};
typedef emu_event *cudaEvent_t;
enum {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719
};
enum { cudaStreamNonBlocking, cudaEventDisableTiming, cudaHostAllocDefault };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum { EMU_RUNTIME_VERSION = 13000 };

struct cudaDeviceProp {
    char name[64];
    int major, minor;
    size_t totalGlobalMem;
};

static inline cudaError_t cudaGetLastError(void)
{
    const int e = emu_card_call();
    return e ? e : *emu_error() ? (int)cudaErrorLaunchFailure : (int)cudaSuccess;
}

static inline const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInsufficientDriver:
        return "the driver is older than the runtime";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    default:
        return emu_error();
    }
}

/* --- the card ------------------------------------------------------------------------ */

static inline cudaError_t cudaDriverGetVersion(int *v)
{
    *v = emu_card()->driver;
    return cudaSuccess;
}

static inline cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = EMU_RUNTIME_VERSION;
    return cudaSuccess;
}

static inline cudaError_t cudaGetDeviceCount(int *n)
{
    *n = emu_card()->devices;
    if (emu_card()->driver < EMU_RUNTIME_VERSION)
        return cudaErrorInsufficientDriver;
    return *n ? emu_card_call() : (int)cudaErrorNoDevice;
}

static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    snprintf(p->name, sizeof(p->name), "CUDA kernels emulated on the CPU");
    p->major = emu_card()->major;
    p->minor = emu_card()->minor;
    p->totalGlobalMem = (size_t)emu_card()->total;
    return cudaSuccess;
}

static inline cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    *total = (size_t)emu_card()->total;
    *free = (size_t)(emu_card()->total - emu_card()->live);
    return emu_card_call();
}

/* --- memory -------------------------------------------------------------------------- */

static inline cudaError_t cudaMalloc(void **p, size_t bytes)
{
    return emu_card_alloc(p, bytes);
}

static inline cudaError_t cudaFree(void *p)
{
    emu_card_free(p);
    return cudaSuccess;
}

static inline cudaError_t cudaHostAlloc(void **p, size_t bytes, int)
{
    return emu_card_pin(p, bytes);
}

static inline cudaError_t cudaFreeHost(void *p)
{
    emu_card_unpin(p);
    return cudaSuccess;
}

static inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes,
                                          cudaMemcpyKind, cudaStream_t stream)
{
    const int e = emu_card_call();
    if (e)
        return e;
    if (stream) {
        emu_card_copy_later(dst, src, bytes);
        return cudaSuccess;
    }
    emu_fence(true);
    memcpy(dst, src, bytes);
    emu_fence(false);
    return cudaSuccess;
}

static inline cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t)
{
    const int e = emu_card_call();
    if (e)
        return e;
    emu_fence(true);
    memset(dst, value, bytes);
    emu_fence(false);
    return cudaSuccess;
}

/* --- streams and events -------------------------------------------------------------- */

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, int)
{
    *s = 1; /* stream 0 always exists */
    return emu_card_call();
}

static inline cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}

static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (stream)
        emu_card_copies_done(emu_card()->copies);
    return cudaGetLastError();
}

static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, int)
{
    *e = new emu_event{0};
    return emu_card_call();
}

static inline cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    e->copies = stream ? emu_card()->copies : 0;
    return emu_card_call();
}

static inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t e, int)
{
    emu_card_copies_done(e->copies);
    return emu_card_call();
}

template <class K> cudaError_t cuda_allow_shared(K *, size_t)
{
    return cudaSuccess;
}

#endif

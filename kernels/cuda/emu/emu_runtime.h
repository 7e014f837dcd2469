/* SPDX-License-Identifier: MIT
 *
 * The functions of the CUDA runtime that kernels/cuda calls, over host memory. Work is
 * queued (emu_queue.h). A report of the emulation is the sticky error. */
#ifndef WKVQ_EMU_RUNTIME_H
#define WKVQ_EMU_RUNTIME_H

#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/emu_card.h"

#include <stdio.h>
#include <string.h>

typedef int cudaError_t;
typedef int cudaStream_t;
struct emu_event {
    int stream;
    long count;    /* pieces of work that were in the stream when it was recorded */
    bool captured; /* recorded in a capture, so that only the graph knows it */
};
typedef emu_event *cudaEvent_t;
enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorInvalidPtx = 218,
    cudaErrorJitCompilerNotFound = 221,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureIsolation = 905
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
struct emu_graph {
    std::shared_ptr<emu::recording> work;
};
typedef emu_graph *cudaGraph_t, *cudaGraphExec_t;
enum { cudaStreamNonBlocking, cudaEventDisableTiming, cudaHostAllocDefault };
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
};
enum { EMU_RUNTIME_VERSION = 13000 };

struct cudaDeviceProp {
    char name[64];
    struct {
        char bytes[16];
    } uuid;
    int major, minor;
    size_t totalGlobalMem;
};

/* The sticky error. */
static inline cudaError_t emu_failure(void)
{
    const int e = emu_card_call();
    return e ? e : *emu_error() ? (int)cudaErrorLaunchFailure : (int)cudaSuccess;
}

static inline cudaError_t cudaGetLastError(void)
{
    const int e = emu_failure(), last = emu_card()->last;
    emu_card()->last = cudaSuccess;
    return e ? e : last;
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
    case cudaErrorNoKernelImageForDevice:
        return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    case cudaErrorNotSupported:
        return "operation not supported";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureIsolation:
        return "dependency created on uncaptured work in another stream";
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
    *p = cudaDeviceProp();
    snprintf(p->name, sizeof(p->name), "CUDA kernels emulated on the CPU");
    p->major = emu_card()->major;
    p->minor = emu_card()->minor;
    p->totalGlobalMem = (size_t)emu_card()->total;
    snprintf(p->uuid.bytes, sizeof(p->uuid.bytes), "%ld", emu_card()->number);
    return cudaSuccess;
}

struct cudaFuncAttributes {
};

template <class K> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, K *)
{
    struct emu_card *c = emu_card();
    return c->last = c->no_code ? cudaErrorNoKernelImageForDevice : cudaSuccess;
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

/* The error of a call that queues work. */
static inline cudaError_t emu_queue_call(cudaStream_t stream)
{
    const int e = emu_card_call();
    const bool spoilt = stream == emu::captured() && emu_card()->capture_error;
    return e ? e : spoilt ? (int)cudaErrorStreamCaptureInvalidated : (int)cudaSuccess;
}

static inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes,
                                          cudaMemcpyKind kind, cudaStream_t stream)
{
    const int e = emu_queue_call(stream);
    if (e)
        return e;
    emu_card()->crossed += kind == cudaMemcpyHostToDevice ? bytes : 0;
    emu_card()->copies += stream == emu::COPIES;
    emu::queue(stream, [=] { memcpy(dst, src, bytes); });
    return cudaSuccess;
}

static inline cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes,
                                          cudaStream_t stream)
{
    const int e = emu_queue_call(stream);
    if (e)
        return e;
    emu::queue(stream, [=] { memset(dst, value, bytes); });
    return cudaSuccess;
}

/* --- streams and events -------------------------------------------------------------- */

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, int)
{
    const struct emu_card *c = emu_card();
    *s = emu::open_stream();
    return c->live >= c->total ? (int)cudaErrorMemoryAllocation : emu_card_call();
}

static inline cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    emu::close_stream(s);
    return cudaSuccess;
}

static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (stream == emu::captured())
        return emu_card_call_outside();
    emu_card()->waits++;
    emu::run_queue(stream, emu::queued(stream));
    return emu_failure();
}

static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, int)
{
    *e = new emu_event{0, 0, false};
    return emu_card_call();
}

static inline cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    *e = {stream, emu::queued(stream), stream == emu::captured()};
    return emu_card_call();
}

static inline cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    if (e->captured)
        return emu_card_call_outside();
    emu_card()->waits++;
    emu::run_queue(e->stream, e->count);
    return emu_failure();
}

/* CUDA would let a second stream join a capture; nothing here wants that. */
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, int)
{
    if (e->captured != (stream == emu::captured())) {
        emu_card()->last = emu_card()->capture_error = cudaErrorStreamCaptureIsolation;
        return cudaErrorStreamCaptureIsolation;
    }
    if (e->captured)
        return emu_card_call();
    emu::queue_wait(stream, e->stream, e->count);
    return emu_card_call();
}

/* --- graphs -------------------------------------------------------------------------- */

static inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    const int e = emu_card_graph_call("cudaStreamBeginCapture");
    if (e)
        return e;
    emu_card()->capture_error = cudaSuccess;
    emu::capture_begin(stream);
    return cudaSuccess;
}

static inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph)
{
    const auto work = emu::capture_end();
    const int e = emu_card_graph_call("cudaStreamEndCapture");
    *graph = nullptr;
    if (e)
        return e;
    if (emu_card()->capture_error)
        return emu_card()->last = cudaErrorStreamCaptureInvalidated;
    *graph = new emu_graph{work};
    return cudaSuccess;
}

static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph,
                                               unsigned long long)
{
    const int e = emu_card_graph_call("cudaGraphInstantiate");
    *out = e ? nullptr : new emu_graph(*graph);
    return e;
}

static inline cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    if (!emu::idle())
        emu::mistake("a graph is dropped while work is queued");
    delete exec;
    return cudaSuccess;
}

static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    const int e = emu_card_graph_call("cudaGraphLaunch");
    if (e)
        return e;
    const auto all = exec->work;
    emu_card()->graphs++;
    emu::queue(stream, [=] {
        for (const auto &work : *all)
            work();
    });
    return cudaSuccess;
}

template <class K> cudaError_t cuda_allow_shared(K *kernel, size_t bytes)
{
    if (bytes > 99 * 1024)
        return cudaErrorInvalidValue;
    emu::allow_shared((const void *)kernel, bytes);
    return emu_card_call();
}

#endif

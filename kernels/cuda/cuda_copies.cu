/* SPDX-License-Identifier: MIT
 *
 * The stream of compute; asynchronous copies: a second stream, and one event in each
 * direction. Reports leave in the stream of compute, each with an event that the host waits
 * for. */
#include "kernels/cuda/cuda.h"

namespace CUDA_NS
{

enum err streams_open(struct dev *d)
{
    gpu *g = gpu_of(d);
    cudaError_t e = cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithFlags(&g->copies, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        e = cudaEventCreateWithFlags(&g->computed, cudaEventDisableTiming);
    if (e == cudaSuccess)
        e = cudaEventCreateWithFlags(&g->copied, cudaEventDisableTiming);
    for (int i = 0; i < REPORT_SLOTS && e == cudaSuccess; i++)
        e = cudaEventCreateWithFlags(&g->sent[i], cudaEventDisableTiming);
    return went_well(d, e, "context") ? OK : d->failed;
}

void streams_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    if (g->stream)
        cudaStreamDestroy(g->stream);
    if (g->copies)
        cudaStreamDestroy(g->copies);
    if (g->computed)
        cudaEventDestroy(g->computed);
    if (g->copied)
        cudaEventDestroy(g->copied);
    for (cudaEvent_t e : g->sent)
        if (e)
            cudaEventDestroy(e);
}

static void queue_copy(struct dev *d, void *dst, const void *src, size_t bytes,
                       cudaMemcpyKind kind)
{
    gpu *g = gpu_of(d);
    if (went_well(d, cudaEventRecord(g->computed, g->stream), "copy") &&
        went_well(d, cudaStreamWaitEvent(g->copies, g->computed, 0), "copy"))
        went_well(d, cudaMemcpyAsync(dst, src, bytes, kind, g->copies), "copy");
}

struct put_words {
    uint32_t w[DEV_PUT_BYTES / 4];
};

__global__ void put_kernel(GLOBAL(uint32_t) dst, put_words words, unsigned n)
{
    if (threadIdx.x < n)
        dst[threadIdx.x] = words.w[threadIdx.x];
}

/* As arguments of a kernel: a copy from ordinary memory would wait for the stream. */
static void cuda_put(struct dev *d, void *dst, const void *src, size_t bytes)
{
    put_words words = {};
    memcpy(words.w, src, bytes);
    CUDA_LAUNCH(put_kernel, 1, DEV_PUT_BYTES / 4, 0, gpu_of(d)->stream, (uint32_t *)dst,
                words, (unsigned)(bytes / 4));
    launched(d, "put");
}

static void cuda_copy_in(struct dev *d, void *dst, const void *src, size_t bytes)
{
    queue_copy(d, dst, src, bytes, cudaMemcpyHostToDevice);
}

static void cuda_copy_out(struct dev *d, void *dst, const void *src, size_t bytes)
{
    queue_copy(d, dst, src, bytes, cudaMemcpyDeviceToHost);
}

static void cuda_copy_wait(struct dev *d)
{
    gpu *g = gpu_of(d);
    if (went_well(d, cudaEventRecord(g->copied, g->copies), "wait for copies"))
        went_well(d, cudaStreamWaitEvent(g->stream, g->copied, 0), "wait for copies");
}

static void cuda_copy_sync(struct dev *d)
{
    went_well(d, cudaStreamSynchronize(gpu_of(d)->copies), "copies");
}

static void cuda_send(struct dev *d, void *host, const void *src, size_t bytes, int slot)
{
    gpu *g = gpu_of(d);
    if (went_well(d, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, g->stream),
                  "report"))
        went_well(d, cudaEventRecord(g->sent[slot], g->stream), "report");
}

static void cuda_sent(struct dev *d, int slot)
{
    went_well(d, cudaEventSynchronize(gpu_of(d)->sent[slot]), "report");
}

static void *cuda_host_alloc(struct dev *d, size_t bytes)
{
    void *p = nullptr;
    const cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocDefault);
    if (e == cudaSuccess)
        return p;
    if (e == cudaErrorMemoryAllocation)
        cudaGetLastError();
    else
        went_well(d, e, "page-locked memory");
    return nullptr;
}

static void cuda_host_free(struct dev *d, void *p)
{
    cuda_wait(d);
    cudaFreeHost(p);
}

static bool cuda_memory(struct dev *d, uint64_t *free, uint64_t *total)
{
    size_t f = 0, t = 0;
    if (went_well(d, cudaMemGetInfo(&f, &t), "free memory")) {
        *free = f;
        *total = t;
    }
    return true;
}

void fill_copies(struct dev_ops *o)
{
    o->memory = cuda_memory;
    o->put = cuda_put;
    o->copy_in = cuda_copy_in;
    o->copy_out = cuda_copy_out;
    o->copy_wait = cuda_copy_wait;
    o->copy_sync = cuda_copy_sync;
    o->send = cuda_send;
    o->sent = cuda_sent;
    o->host_alloc = cuda_host_alloc;
    o->host_free = cuda_host_free;
}

} // namespace CUDA_NS

/* SPDX-License-Identifier: MIT
 *
 * Opens and closes the cuda device; memory, the stream, and the sticky failure. */
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/base/mem.h"
#include "kernels/base/pool.h"
#include "kernels/cuda/cuda_fill.h"
}

namespace CUDA_NS
{

bool went_well(struct dev *d, cudaError_t e, const char *what)
{
    if (e != cudaSuccess)
        dev_fail(d, e == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, "%s: %s",
                 what, cudaGetErrorString(e));
    return e == cudaSuccess;
}

void launched(struct dev *d, const char *what)
{
    went_well(d, cudaGetLastError(), what);
}

void cuda_wait(struct dev *d)
{
    const gpu *g = gpu_of(d);
    if (g->stream)
        cudaStreamSynchronize(g->stream);
    if (g->copies)
        cudaStreamSynchronize(g->copies);
}

bool earlier_work_went_well(struct dev *d, const char *what)
{
    const gpu *g = gpu_of(d);
    return g->capturing || went_well(d, cudaStreamSynchronize(g->stream), what);
}

/* Replaces the memory of a slot, after the work that uses it. */
static bool grow(struct dev *d, slot s, size_t bytes, const char *what)
{
    gpu *g = gpu_of(d);
    if (!went_well(d, cudaStreamSynchronize(g->stream), what))
        return false;
    cudaFree(g->slot[s]);
    g->slot[s] = nullptr;
    g->slot_bytes[s] = 0;
    g->moved++;
    if (!went_well(d, cudaMalloc(&g->slot[s], bytes), what))
        return false;
    g->slot_bytes[s] = bytes;
    return true;
}

void *scratch(struct dev *d, slot s, size_t bytes, const char *what)
{
    gpu *g = gpu_of(d);
    if (bytes > g->slot_bytes[s] && !grow(d, s, bytes, what))
        return nullptr;
    CUDA_SPOIL(g->slot[s], bytes, g->stream);
    return g->slot[s];
}

bool fetch(struct dev *d, void *host, const void *src, size_t bytes)
{
    const cudaStream_t st = gpu_of(d)->stream;
    return went_well(d, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, st),
                     "download") &&
           went_well(d, cudaStreamSynchronize(st), "download");
}

/* Too little memory is reported by the caller and is not sticky. */
static void *cuda_alloc(struct dev *d, size_t bytes)
{
    void *p = nullptr;
    const cudaError_t e = cudaMalloc(&p, bytes);
    if (e == cudaSuccess)
        return p;
    if (e == cudaErrorMemoryAllocation)
        cudaGetLastError();
    else
        went_well(d, e, "memory");
    return nullptr;
}

static void cuda_free(struct dev *d, void *p)
{
    cuda_wait(d);
    cudaFree(p);
}

/* Wait: the caller may reuse host_src at once. */
static void cuda_upload(struct dev *d, void *dst, const void *src, size_t bytes)
{
    const cudaStream_t st = gpu_of(d)->stream;
    if (went_well(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, st),
                  "upload"))
        went_well(d, cudaStreamSynchronize(st), "upload");
}

static void cuda_download(struct dev *d, void *dst, const void *src, size_t bytes)
{
    fetch(d, dst, src, bytes);
}

static void cuda_zero(struct dev *d, void *dst, size_t bytes)
{
    went_well(d, cudaMemsetAsync(dst, 0, bytes, gpu_of(d)->stream), "zero");
}

static void cuda_sync(struct dev *d)
{
    if (went_well(d, cudaStreamSynchronize(gpu_of(d)->stream), "sync"))
        went_well(d, cudaStreamSynchronize(gpu_of(d)->copies), "sync");
}

static void cuda_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    if (!g)
        return;
    cuda_wait(d);
    graphs_close(d);
    for (int i = 0; i < N_SLOTS; i++)
        cudaFree(g->slot[i]);
    link_close(d);
    dnn_close(d);
    lib_close(d);
    streams_close(d);
    mem_free(g);
    d->priv = nullptr;
}

static enum err fill(struct dev *d, const char *name, int threads)
{
    gpu *g = nullptr;
    TRY(mem_calloc(&g, 1, sizeof(*g)));
    d->priv = g;
    d->ops = dev_ops{};
    d->ops.name = name;
    d->ops.close = cuda_close;
    d->ops.alloc = cuda_alloc;
    d->ops.free = cuda_free;
    d->ops.upload = cuda_upload;
    d->ops.download = cuda_download;
    d->ops.zero = cuda_zero;
    d->ops.sync = cuda_sync;
    fill_lib(&d->ops);
    fill_copies(&d->ops);
    fill_graph(&d->ops);
    fill_link(&d->ops);
    fill_elem(&d->ops);
    fill_norm(&d->ops);
    fill_weight(&d->ops);
    fill_kv(&d->ops);
    fill_channel(&d->ops);
    fill_train(&d->ops);
    fill_refine(&d->ops);
    fill_attn(&d->ops);
    d->preferred_act = DT_BF16;
    d->most_head_dim = ATTN_MOST_HEAD;
    d->queues = true;
    TRY(pool_open(&d->pool, threads));
    TRY(find_gpu(d));
    TRY(streams_open(d));
    TRY(lib_open(d));
    TRY(dnn_open(d));
    return graphs_open(d);
}

} // namespace CUDA_NS

#if defined(__CUDACC__)

extern "C" enum err cuda_fill(struct dev *d, int threads)
{
    return cuda_gpu::fill(d, "cuda", threads);
}

extern "C" bool cuda_built(void)
{
    return true;
}

#else

extern "C" enum err cuda_emu_fill(struct dev *d, int threads)
{
    emu_card_opened();
    return cuda_emu::fill(d, "cuda-emu", threads);
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * The stream of compute; asynchronous copies: a second stream, and one event in each
 * direction. Reports leave in the stream of compute, each with an event that the host waits
 * for. Repeated steps are recorded from the stream of compute, and run there as graphs. */
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
}

#include <stdio.h>
#include <stdlib.h>

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
    FAIL_IF(e != cudaSuccess, ERR_DEVICE, "device %s: %s", d->ops.name,
            cudaGetErrorString(e));
    return OK;
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

/* --- graphs -------------------------------------------------------------------------- */

/* What a key stands for. graph NULL: it has been queued once, which loaded its kernels, made its
 * plans and allocated its working memory. A capture can do none of that. */
struct repeated {
    int64_t key;
    cudaGraphExec_t graph;
};

struct graph_store {
    repeated step[DEV_REPEATS];
    int n;
    long moved;  /* gpu::moved when the first was queued */
    bool off;    /* steps are queued each time */
    char *about; /* the end of d->about */
};

/* Writes the end of the line about the device. */
static void say_how(struct dev *d, const char *how, const char *why)
{
    char *at = gpu_of(d)->graphs->about;
    snprintf(at, (size_t)(d->about + sizeof(d->about) - at), "; steps: %s%s%s%s", how,
             why ? " (" : "", why ? why : "", why ? ")" : "");
}

static void stop_graphs(struct dev *d, const char *why)
{
    gpu_of(d)->graphs->off = true;
    say_how(d, "single launches", why);
}

enum err graphs_open(struct dev *d)
{
    gpu *g = gpu_of(d);
    const char *chosen = getenv("WKVQ_GRAPHS");
    TRY(mem_calloc(&g->graphs, 1, sizeof(*g->graphs)));
    g->graphs->about = d->about + strlen(d->about);
    if (chosen && !strcmp(chosen, "none"))
        stop_graphs(d, "WKVQ_GRAPHS is none");
    else
        say_how(d, "CUDA graphs", nullptr);
    return OK;
}

/* A graph that is dropped may still be running. */
static void cuda_forget(struct dev *d)
{
    gpu *g = gpu_of(d);
    graph_store *s = g->graphs;
    if (s->n)
        cuda_wait(d);
    for (int i = 0; i < s->n; i++)
        if (s->step[i].graph)
            cudaGraphExecDestroy(s->step[i].graph);
    s->n = 0;
    s->moved = g->moved;
}

void graphs_close(struct dev *d)
{
    gpu *g = gpu_of(d);
    if (g->graphs)
        cuda_forget(d);
    mem_free(g->graphs);
    g->graphs = nullptr;
}

static repeated *find_step(graph_store *s, int64_t key)
{
    for (int i = 0; i < s->n; i++)
        if (s->step[i].key == key)
            return &s->step[i];
    return nullptr;
}

/* Working memory may move meanwhile, from under the graphs so far. */
static enum err queue_first(struct dev *d, int64_t key, enum err (*work)(void *), void *ctx)
{
    const gpu *g = gpu_of(d);
    graph_store *s = g->graphs;
    TRY(work(ctx));
    if (s->moved != g->moved)
        cuda_forget(d);
    if (s->n < DEV_REPEATS)
        s->step[s->n++] = {key, nullptr};
    return OK;
}

/* Makes a graph of what work queues, of which nothing runs yet. NULL after a failure. */
static cudaGraphExec_t record(struct dev *d, enum err (*work)(void *), void *ctx)
{
    gpu *g = gpu_of(d);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    if (!went_well(d, cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal),
                   "capture"))
        return nullptr;
    g->capturing = true;
    const enum err err = work(ctx);
    g->capturing = false;
    const cudaError_t ended = cudaStreamEndCapture(g->stream, &graph);
    if (!err && went_well(d, ended, "capture"))
        went_well(d, cudaGraphInstantiate(&exec, graph, 0), "graph");
    if (graph)
        cudaGraphDestroy(graph);
    return exec;
}

static bool start(struct dev *d, cudaGraphExec_t graph)
{
    return went_well(d, cudaGraphLaunch(graph, gpu_of(d)->stream), "graph");
}

/* Nothing of the step has run. If not the capture is to blame, the work says so again. */
static enum err queue_instead(struct dev *d, enum err (*work)(void *), void *ctx)
{
    log_info("steps are not started as CUDA graphs, but by single launches: %s",
             err_text());
    stop_graphs(d, "capture failed");
    cudaGetLastError();
    err_clear();
    d->failed = OK;
    cuda_forget(d);
    return work(ctx);
}

static enum err cuda_repeat(struct dev *d, int64_t key, enum err (*work)(void *), void *ctx)
{
    const gpu *g = gpu_of(d);
    graph_store *s = g->graphs;
    if (s->off)
        return work(ctx);
    if (s->moved != g->moved)
        cuda_forget(d);
    repeated *r = find_step(s, key);
    if (!r)
        return queue_first(d, key, work, ctx);
    if (r->graph)
        return start(d, r->graph) ? OK : d->failed;
    r->graph = record(d, work, ctx);
    return r->graph && start(d, r->graph) ? OK : queue_instead(d, work, ctx);
}

void fill_copies(struct dev_ops *o)
{
    o->memory = cuda_memory;
    o->repeat = cuda_repeat;
    o->forget = cuda_forget;
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

/* SPDX-License-Identifier: MIT
 *
 * Repeated steps: recorded from the stream of compute, and started there as graphs. */
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
}

#include <stdio.h>
#include <stdlib.h>

namespace CUDA_NS
{

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

void fill_graph(struct dev_ops *o)
{
    o->repeat = cuda_repeat;
    o->forget = cuda_forget;
}

} // namespace CUDA_NS

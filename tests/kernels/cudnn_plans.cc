/* SPDX-License-Identifier: MIT
 *
 * cudnn_plans LIBCUDNN: makes the plans of cuda_plan.cu with the real library, for the properties
 * of an H100 and an H200, and without a GPU. So the library is told of the GPU by a descriptor,
 * and never by a handle as in the device. Prints whether there is a plan for each shape, and how
 * much working memory it takes. Exit status 1 if one is missing or takes more than
 * kernels/attn_memory.h says, 77 if the library cannot do this. tools/peers/cudnn_plans.sh calls
 * it. */
#include "kernels/cuda/port.h"

#include "kernels/cuda/lib/cudnn.h"

extern "C" {
#include "kernels/attn_memory.h"
}

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

using namespace CUDA_NS;

namespace
{

/* Query heads, kv heads and channels of the supported models' families, and lengths that are and
 * are not multiples of the library's tiles. */
struct shape {
    const char *model;
    int64_t n, H, K, d;
} const shapes[] = {{"llama-2-7b", 2047, 32, 32, 128},   {"llama-2-7b", 2048, 32, 32, 128},
                    {"llama-2-7b", 4095, 32, 32, 128},   {"llama-3-8b", 2047, 32, 8, 128},
                    {"tinyllama-1.1b", 2047, 32, 4, 64}, {"smollm2-135m", 1023, 9, 3, 64},
                    {"phi-3-mini", 2047, 32, 32, 96},    {"odd lengths", 1000, 8, 2, 72},
                    {"odd lengths", 641, 4, 1, 96},      {"odd lengths", 577, 3, 3, 8}};

struct card {
    const char *name;
    long long bytes;
    int l2, bus; /* bytes of cache, bits of memory's bus */
} const cards[] = {{"NVIDIA H100 80GB HBM3", 85029158912, 52428800, 5120},
                   {"NVIDIA H200", 150754820096, 62914560, 6144}};

template <class F> bool symbol(F *out, void *file, const char *name)
{
    void *p = dlsym(file, name);
    memcpy(out, &p, sizeof(p));
    return p;
}

bool open_library(cudnn *l, const char *path)
{
    void *file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!file)
        fprintf(stderr, "cudnn_plans: %s\n", dlerror());
    return file && symbol(&l->version, file, "cudnnGetVersion") &&
           symbol(&l->text, file, "cudnnGetErrorString") &&
           symbol(&l->make, file, "cudnnBackendCreateDescriptor") &&
           symbol(&l->drop, file, "cudnnBackendDestroyDescriptor") &&
           symbol(&l->finalize, file, "cudnnBackendFinalize") &&
           symbol(&l->set, file, "cudnnBackendSetAttribute") &&
           symbol(&l->get, file, "cudnnBackendGetAttribute");
}

/* The properties by which cuDNN describes a GPU; NULL if it does not take them. */
cudnn_descriptor describe(const cudnn *l, const card *c)
{
    char text[2048];
    cudnn_descriptor d = NULL;
    const int n = snprintf(
        text, sizeof(text),
        "{\"deviceVer\": 900, \"multiProcessorCount\": 132, \"warpSize\": 32, "
        "\"maxSharedMemoryPerBlock\": 49152, \"maxSharedMemoryPerBlockOptin\": 232448, "
        "\"reservedSharedMemoryPerBlock\": 1024, \"maxSharedMemoryPerSM\": 233472, "
        "\"maxRegistersPerSM\": 65536, \"maxCtasPerSM\": 32, \"maxThreadsPerBlock\": 1024, "
        "\"maxThreadsPerSM\": 2048, \"regsPerBlock\": 65536, \"totalGlobalMem\": %lld, "
        "\"smClockRateKHz\": 1980000, \"l2CacheSize\": %d, \"maxBlockSize\": [1024, 1024, 64], "
        "\"memClockRateKHz\": 3201000, \"memoryBusWidth\": %d, "
        "\"maxGridSize\": [2147483647, 65535, 65535], "
        "\"supportCoopLaunch\": 1, \"pciDeviceId\": 0, \"isTccDriver\": 0, \"cudaDeviceId\": 0, "
        "\"driverVer\": 13000, \"deviceName\": \"%s\"}",
        c->bytes, c->l2, c->bus, c->name);
    int status = l->make(DNN_DEVICE, &d);
    if (status == CUDNN_OK)
        status = l->set(d, DEVICE_JSON, OF_CHAR, n, text);
    if (status == CUDNN_OK)
        status = l->finalize(d);
    if (status != CUDNN_OK)
        fprintf(stderr, "cudnn_plans: properties of a GPU: %s\n", l->text(status));
    return status == CUDNN_OK ? d : NULL;
}

/* Elements between tokens, as a block has them: queries beside keys and values in full precision,
 * and the quantized ones alone. Without a past, at T = 2048, nothing is quantized. */
int64_t distance(const shape *s, plan_tensor t)
{
    const bool keys = t == PLAN_K || t == PLAN_V || t == PLAN_DK || t == PLAN_DV;
    if (t == PLAN_LSE)
        return 0;
    if (t == PLAN_Q || t == PLAN_DQ || (keys && s->n == 2048))
        return (s->H + 2 * s->K) * s->d;
    return (keys ? s->K : s->H) * s->d;
}

/* Whether there is a plan that works in no more memory than a run's plan counts. */
bool has_plan(const cudnn *l, cudnn_descriptor device, const shape *s, bool backward)
{
    plan_shape p = {s->n, s->H, s->K, s->d, {}, backward};
    for (int t = 0; t < PLAN_LSE + 1 + backward * 4; t++)
        p.ld[t] = distance(s, (plan_tensor)t);
    plan made;
    plan_make(l, NULL, device, &p, &made);
    const int64_t most =
        backward ? cudnn_workspace(s->n, s->H, s->K, s->d) : CUDNN_FORWARD_WORKSPACE;
    const bool ready = made.ready;
    printf("%-15s T %4lld, heads %2lld and %2lld of %3lld, %-8s  ", s->model,
           (long long)s->n, (long long)s->H, (long long)s->K, (long long)s->d,
           backward ? "backward" : "forward");
    if (ready)
        printf("%11lld bytes%s\n", (long long)made.workspace,
               made.workspace <= most ? "" : ": MORE THAN COUNTED");
    else
        printf("%s\n", l->text(made.status));
    plan_drop(l, &made);
    return ready && made.workspace <= most;
}

} // namespace

int main(int argc, char **argv)
{
    cudnn l = {};
    int missing = 0;
    setvbuf(stdout, NULL, _IOLBF, 1 << 12);
    if (argc != 2 || !open_library(&l, argv[1]))
        return argc == 2 ? 77 : 2;
    for (const card &c : cards) {
        const cudnn_descriptor device = describe(&l, &c);
        if (!device)
            return 77;
        printf("cuDNN %zu, %s\n", l.version(), c.name);
        for (const shape &s : shapes)
            for (int backward = 0; backward < 2; backward++)
                missing += !has_plan(&l, device, &s, backward);
        l.drop(device);
    }
    printf("%d plans are missing or work in too much memory\n", missing);
    return missing != 0;
}

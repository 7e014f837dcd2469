/* SPDX-License-Identifier: MIT
 *
 * Finds out whether there is a GPU that this device can use, and where its libraries are. */
#include "kernels/cuda/cuda.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

namespace CUDA_NS
{

static void version_text(char out[32], int v)
{
    snprintf(out, 32, "%d.%d", v / 1000, v % 1000 / 10);
}

/* The build has code for it where it has code for all kernels. */
__global__ void probe_kernel(void)
{
}

static bool lacks_code(cudaError_t e)
{
    return e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction ||
           e == cudaErrorUnsupportedPtxVersion || e == cudaErrorInvalidPtx ||
           e == cudaErrorJitCompilerNotFound;
}

/* Other failures, as of the context that this makes, are for the next call. */
static enum err check_code(const cudaDeviceProp *p)
{
    cudaFuncAttributes of;
    const cudaError_t e = cudaFuncGetAttributes(&of, probe_kernel);
    if (e != cudaSuccess)
        cudaGetLastError();
    FAIL_IF(lacks_code(e), ERR_SUPPORT,
            "device cuda: this build has no code for %s, compute capability %d.%d (%s); "
            "build with -Dgpu_arch=%d%d, or use --device cpu",
            p->name, p->major, p->minor, cudaGetErrorString(e), p->major, p->minor);
    return OK;
}

enum err find_gpu(struct dev *d)
{
    int n = 0, driver = 0, runtime = 0;
    char has[32], wants[32];
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    version_text(has, driver);
    version_text(wants, runtime);
    const cudaError_t e = cudaGetDeviceCount(&n);
    FAIL_IF(e == cudaErrorInsufficientDriver && driver, ERR_SUPPORT,
            "device cuda: the driver has CUDA %s, this build wants %s; install a newer "
            "driver, or use --device cpu",
            has, wants);
    FAIL_IF(e != cudaSuccess || !n, ERR_SUPPORT,
            "device cuda: no NVIDIA GPU found (%s); use --device cpu",
            cudaGetErrorString(e));
    cudaDeviceProp p;
    const cudaError_t pe = cudaGetDeviceProperties(&p, 0);
    FAIL_IF(pe != cudaSuccess, ERR_DEVICE, "device cuda: %s", cudaGetErrorString(pe));
    FAIL_IF(p.major < 8, ERR_SUPPORT,
            "device cuda: %s has compute capability %d.%d, bf16 needs 8.0; use --device "
            "cpu",
            p.name, p.major, p.minor);
    TRY(check_code(&p));
    snprintf(d->about, sizeof(d->about), "%s, %.1f GiB, compute capability %d.%d", p.name,
             (double)p.totalGlobalMem / 1073741824.0, p.major, p.minor);
    return OK;
}

/* Folders of CUDA's libraries, as patterns: below a folder that the environment names, or
 * absolute. The loader does not look into toolkits and Python packages. */
static const struct {
    const char *variable, *pattern;
} library_places[] = {{"CUDA_HOME", "/lib64"},
                      {"CUDA_HOME", "/targets/*/lib"},
                      {"CUDA_PATH", "/lib64"},
                      {"VIRTUAL_ENV", "/lib/python3*/site-packages/nvidia/*/lib"},
                      {"CONDA_PREFIX", "/lib"},
                      {"CONDA_PREFIX", "/lib/python3*/site-packages/nvidia/*/lib"},
                      {nullptr, "/usr/local/cuda/lib64"},
                      {nullptr, "/usr/local/cuda-*/lib64"},
                      {nullptr, "/usr/local/cuda*/targets/*/lib"},
                      {"HOME", "/.local/lib/python3*/site-packages/nvidia/*/lib"},
                      {nullptr, "/usr/local/lib/python3*/*-packages/nvidia/*/lib"},
                      {nullptr, "/usr/lib/python3*/*-packages/nvidia/*/lib"},
                      {nullptr, "/opt/conda/lib/python3*/site-packages/nvidia/*/lib"}};

static void *open_library(const char *path)
{
    return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

static void *open_matching(const char *pattern)
{
    glob_t found = {};
    void *file = nullptr;
    if (!glob(pattern, 0, nullptr, &found))
        for (size_t i = 0; i < found.gl_pathc && !file; i++)
            file = open_library(found.gl_pathv[i]);
    globfree(&found);
    return file;
}

void *find_library(const char *name, const char *variable)
{
    char pattern[4096];
    const char *chosen = getenv(variable);
    if (chosen && *chosen)
        return open_library(chosen);
    void *file = open_library(name);
    for (size_t i = 0; i < sizeof(library_places) / sizeof(*library_places) && !file; i++) {
        const char *place = library_places[i].variable;
        const char *below = place ? getenv(place) : "";
        if (!below || (place && !*below))
            continue;
        snprintf(pattern, sizeof(pattern), "%s%s/%s", below, library_places[i].pattern,
                 name);
        file = open_matching(pattern);
    }
    return file;
}

bool unusable(char why[WHY_TEXT], const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, WHY_TEXT, fmt, args);
    va_end(args);
    return false;
}

} // namespace CUDA_NS

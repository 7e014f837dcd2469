/* SPDX-License-Identifier: MIT
 *
 * Finds out whether there is a GPU that this device can use. */
#include "kernels/cuda/cuda.h"

#include <stdio.h>

namespace CUDA_NS
{

static void version_text(char out[32], int v)
{
    snprintf(out, 32, "%d.%d", v / 1000, v % 1000 / 10);
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
    snprintf(d->about, sizeof(d->about), "%s, %.1f GiB, compute capability %d.%d", p.name,
             (double)p.totalGlobalMem / 1073741824.0, p.major, p.minor);
    return OK;
}

} // namespace CUDA_NS

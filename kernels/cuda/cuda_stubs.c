/* SPDX-License-Identifier: MIT
 *
 * Replaces the cuda device in builds without nvcc. */
#include "kernels/cuda/cuda_fill.h"

enum err cuda_fill(struct dev *d, int threads)
{
    (void)d;
    (void)threads;
    FAIL(ERR_SUPPORT, "device cuda: this build has none; install the CUDA toolkit (nvcc, "
                      "cuBLAS) and configure "
                      "with -Dcuda=enabled, or use --device cpu");
}

bool cuda_built(void)
{
    return false;
}

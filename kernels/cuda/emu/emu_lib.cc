/* SPDX-License-Identifier: MIT
 *
 * The emulated device's counterpart of cuda_lib.cu: the reference's matrix product. */
#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/cuda/cuda_fill.h"
}

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace CUDA_NS
{

struct gemm_library {
    struct dev *ref;
};

enum err lib_open(struct dev *d)
{
    static gemm_library one; /* one is enough: there is one emulated card */
    gpu_of(d)->gemm = &one;
    emu_clear();
    const size_t n = strlen(d->about);
    snprintf(d->about + n, sizeof(d->about) - n, "; GEMM: reference");
    const struct dev_settings ref = {"ref", 1};
    return dev_open(&one.ref, &ref);
}

void lib_close(struct dev *d)
{
    if (gpu_of(d)->gemm)
        dev_close(&gpu_of(d)->gemm->ref);
    emu_card_closed();
}

void lib_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
              const struct tensor *a, const struct tensor *b, bool accumulate)
{
    struct dev *ref = gpu_of(d)->gemm->ref;
    emu_fence(true);
    ref->ops.gemm(ref, kind, c, a, b, accumulate);
    emu_fence(false);
}

} // namespace CUDA_NS

/* Registers the device in every program that links this whole library. EMU_NAME=cuda
 * makes it replace the GPU. */
__attribute__((constructor)) static void register_emulation(void)
{
    const char *name = getenv("EMU_NAME");
    dev_register(name ? name : "cuda-emu", cuda_emu_fill);
}

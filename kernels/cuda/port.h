/* SPDX-License-Identifier: MIT
 *
 * What every .cu file begins with. nvcc compiles it for the GPU; a host compiler compiles
 * the same file over kernels/cuda/emu. The differences that a kernel sees are the macros
 * here: shared memory has its own pointer type, so that the emulation can check each
 * access.
 *
 *     SHARED_ARRAY(float, part, 32);       static shared memory
 *     SHARED_DYNAMIC(float, tile);         what the launch asked for
 *     __device__ void f(SHARED(float) p)   a parameter
 *     CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, args...) */
#ifndef WKVQ_CUDA_PORT_H
#define WKVQ_CUDA_PORT_H

#include <math.h>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define CUDA_NS cuda_gpu
#define SHARED(T) T *
#define SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]
#define SHARED_DYNAMIC(T, name)                                                            \
    extern __shared__ __align__(16) unsigned char cuda_dynamic_shared[];                   \
    T *name = reinterpret_cast<T *>(cuda_dynamic_shared)
#define SHARED_AS(U, p) reinterpret_cast<U *>(p)
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                        \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

#else

#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/emu_runtime.h"

#define CUDA_NS cuda_emu
#define SHARED(T) emu::shared<T>
#define SHARED_ARRAY(T, name, n)                                                           \
    static const char name##_declared = 0;                                                 \
    const emu::shared<T> name = emu::declare<T>(&name##_declared, (n))
#define SHARED_DYNAMIC(T, name)                                                            \
    const emu::shared<T> name(0, 0, (long)(emu::dynamic_shared_bytes() / sizeof(T)))
#define SHARED_AS(U, p) ((p).as<U>())
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                        \
    emu::launch_body(#kernel, (grid), (block), (shared_bytes), [&] { kernel(__VA_ARGS__); })

#endif

#define WARP_SIZE 32
#define FULL_WARP 0xffffffffu

#endif

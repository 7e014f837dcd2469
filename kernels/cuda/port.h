/* SPDX-License-Identifier: MIT
 *
 * Every .cu file starts with this header. nvcc compiles it for the GPU; a host compiler
 * compiles the same file over kernels/cuda/emu. Kernels see the difference only through
 * the macros below. Shared memory has its own pointer type, so that the emulation can
 * check each access.
 *
 *     SHARED_ARRAY(float, part, 32);       static shared memory
 *     SHARED_DYNAMIC(float, tile);         the dynamic shared memory of the launch
 *     __device__ void f(SHARED(float) p)   a parameter
 *     SHARED_PART(p, begin, n)             n elements, checked as an array of their own
 *     SHARED_AS(uint4, p)                  the same bytes as another type
 *     CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, args...) */
#ifndef WKVQ_CUDA_PORT_H
#define WKVQ_CUDA_PORT_H

#include <math.h>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define CUDA_NS cuda_gpu
#define UNROLL _Pragma("unroll")
#define UNROLL_NOT _Pragma("unroll 1")
#define SHARED(T) T *
#define SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]
#define SHARED_DYNAMIC(T, name)                                                            \
    extern __shared__ __align__(16) unsigned char cuda_dynamic_shared[];                   \
    T *name = reinterpret_cast<T *>(cuda_dynamic_shared)
#define SHARED_AS(U, p) reinterpret_cast<U *>(p)
#define SHARED_PART(p, begin, n) ((p) + (begin))
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                        \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

/* Allows a kernel more than 48 KiB of dynamic shared memory. */
template <class K> cudaError_t cuda_allow_shared(K *kernel, size_t bytes)
{
    return cudaFuncSetAttribute((const void *)kernel,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

#else

#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/emu_runtime.h"

#define CUDA_NS cuda_emu
#define UNROLL
#define UNROLL_NOT
#define SHARED(T) emu::shared<T>
#define SHARED_ARRAY(T, name, n)                                                           \
    static const char name##_declared = 0;                                                 \
    const emu::shared<T> name = emu::declare<T>(&name##_declared, (n))
#define SHARED_DYNAMIC(T, name)                                                            \
    const emu::shared<T> name(0, 0, (long)(emu::dynamic_shared_bytes() / sizeof(T)))
#define SHARED_AS(U, p) ((p).template as<U>())
#define SHARED_PART(p, begin, n) ((p).part((begin), (n)))
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                        \
    ((void)(stream), emu::launch_body(#kernel, (grid), (block), (shared_bytes),            \
                                      [&] { kernel(__VA_ARGS__); }))

#endif

#define WARP_SIZE 32
#define FULL_WARP 0xffffffffu

#endif

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
 *     GLOBAL(float) p                      device memory that several threads may write
 *     PTX_...(text, operands...)           an instruction, whose text the emulation reads
 *     CUDA_SPOIL(p, bytes, stream)         makes contents NaN, in the emulation only
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

#define CUDA_SPOIL(p, bytes, stream) ((void)0)
template <class T> using global_pointer = T *;
#define GLOBAL(T) global_pointer<T>

/* Access to device memory in one piece, aligned to its size. */
template <class V> __device__ __forceinline__ V load_wide(const void *p)
{
    return *(const V *)p;
}

template <class V> __device__ __forceinline__ void store_wide(void *p, const V &v)
{
    *(V *)p = v;
}

#define PTX_LDMATRIX(text, r0, r1, row)                                                    \
    asm volatile(text                                                                      \
                 : "=r"(r0), "=r"(r1)                                                      \
                 : "r"((unsigned)__cvta_generic_to_shared(row))                            \
                 : "memory")
#define PTX_MMA(text, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1)                              \
    asm volatile(text                                                                      \
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)                                  \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))

/* Allows a kernel more than 48 KiB of dynamic shared memory. */
template <class K> cudaError_t cuda_allow_shared(K *kernel, size_t bytes)
{
    return cudaFuncSetAttribute((const void *)kernel,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

#else

#include "kernels/cuda/emu/emu.h"
#include "kernels/cuda/emu/emu_ptx.h"
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
    emu::queue_launch(                                                                     \
        #kernel, (const void *)(kernel), (grid), (block), (shared_bytes), (stream),        \
        [](auto... args) { kernel(args...); }, __VA_ARGS__)
#define CUDA_SPOIL(p, bytes, stream)                                                       \
    emu::queue(                                                                            \
        stream, [=] { memset(p, 0xff, bytes); }, false)
#define GLOBAL(T) emu::global<T>
#define PTX_LDMATRIX(text, r0, r1, row)                                                    \
    emu::ptx_ldmatrix(text, {&(r0), &(r1)}, row, __LINE__)
#define PTX_MMA(text, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1)                              \
    emu::ptx_mma(text, {&(c0), &(c1), &(c2), &(c3)}, {a0, a1, a2, a3}, {b0, b1}, __LINE__)

template <class V> V load_wide(const void *p)
{
    V v;
    emu::touch_global(p, sizeof(V), false);
    memcpy(&v, p, sizeof(v)); /* a misaligned access is reported, and defined here */
    return v;
}

template <class V> void store_wide(void *p, const V &v)
{
    emu::touch_global(p, sizeof(V), true);
    memcpy(p, &v, sizeof(v));
}

#endif

#define WARP_SIZE 32
#define FULL_WARP 0xffffffffu

#endif

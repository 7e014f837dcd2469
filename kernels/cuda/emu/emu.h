/* SPDX-License-Identifier: MIT
 *
 * CUDA kernels as host C++: kernels/cuda/port.h includes this where nvcc does not compile.
 * emu.cc explains how it works. It runs thread blocks one after the other and reports
 *   - a barrier or warp operation that not all threads reach,
 *   - an access outside a shared array,
 *   - two threads that use the same shared bytes without a barrier between, one writing.
 * emu_error() returns the first report. With a seed (emu_set_seed(), or EMU_SEED in the
 * environment) threads and blocks run in random order. Only one host thread may use it. */
#ifndef WKVQ_EMU_H
#define WKVQ_EMU_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c)
    {
    }
};

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

/* The first report since emu_clear(), or "". Static. */
const char *emu_error(void);
void emu_clear(void);
/* 0: threads and blocks run in ascending order. */
void emu_set_seed(uint64_t seed);

/* Device memory. The host can access it only between emu_fence(true) and
 * emu_fence(false), as launches, copies and matrix products do. Addresses are never
 * reused. NULL if there is no memory. */
void *emu_alloc(size_t bytes);
void emu_free(void *p);
void emu_fence(bool open);

namespace emu
{

constexpr int WARP = 32, MAX_THREADS = 1024;

struct place {
    dim3 thread_idx, block_idx, block_dim, grid_dim;
    int thread; /* thread_idx, flat */
};
extern place here;

/* Runs body(ctx) for every thread of every block. */
void launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
            void (*body)(void *), void *ctx);

template <class Body>
void launch_body(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body)
{
    launch(
        kernel, grid, block, shared_bytes, [](void *ctx) { (*(Body *)ctx)(); }, &body);
}

void barrier(int line);
/* All lanes of a warp hand in `bytes` bytes, at most LANE_BYTES, and wait for each other.
 * Returns the slot to pass to peek(), which reads what lane `from` handed in. */
constexpr size_t LANE_BYTES = 32;
int exchange(const void *in, size_t bytes, int line);
void peek(void *out, size_t bytes, int from, int slot);

/* Offset of a static shared array; the same for all threads of a block. */
size_t static_shared(const void *declaration, size_t bytes);
size_t dynamic_shared_bytes(void);
/* Checks an access for races; false after a report. */
bool touch(size_t at, size_t bytes, bool write);
void out_of_bounds(long index, long count);
unsigned char *shared_memory(void);

/* An element of shared memory. Reading and writing it are both checked. */
template <class T> class cell
{
    size_t at; /* SIZE_MAX: outside */

  public:
    explicit cell(size_t where) : at(where)
    {
    }
    operator T() const
    {
        T v;
        memset((void *)&v, 0xff, sizeof(v));
        if (at != SIZE_MAX && touch(at, sizeof(T), false))
            memcpy((void *)&v, shared_memory() + at, sizeof(v));
        return v;
    }
    T operator=(T v)
    {
        if (at != SIZE_MAX && touch(at, sizeof(T), true))
            memcpy(shared_memory() + at, (const void *)&v, sizeof(v));
        return v;
    }
    T operator=(const cell &o)
    {
        return *this = (T)o;
    }
    T operator+=(T v)
    {
        return *this = (T) * this + v;
    }
};

/* A pointer into a shared array that knows the array's bounds. */
template <class T> class shared
{
    size_t at;         /* bytes */
    long first, count; /* elements from `at` to the array's begin (<= 0) and end */

  public:
    shared(size_t where, long begin, long n) : at(where), first(begin), count(n)
    {
    }
    cell<T> operator[](long i) const
    {
        if (i >= first && i < count)
            return cell<T>(at + (size_t)i * sizeof(T));
        out_of_bounds(i, count);
        return cell<T>(SIZE_MAX);
    }
    shared operator+(long n) const
    {
        return shared(at + (size_t)n * sizeof(T), first - n, count - n);
    }
    /* n elements from `begin`, checked as an array of its own. */
    shared part(long begin, long n) const
    {
        if (begin < first || begin + n > count)
            out_of_bounds(begin + n, count);
        return shared(at + (size_t)begin * sizeof(T), 0, n);
    }
    /* The bytes from here to the array's end as elements of another type. */
    template <class U> shared<U> as() const
    {
        return shared<U>(at, 0, count * (long)sizeof(T) / (long)sizeof(U));
    }
};

template <class T> shared<T> declare(const void *declaration, long n)
{
    return shared<T>(static_shared(declaration, (size_t)n * sizeof(T)), 0, n);
}

template <class T> T shuffle(T v, int from, int line)
{
    T r = v;
    static_assert(sizeof(v) <= LANE_BYTES, "a lane hands in too much");
    peek(&r, sizeof(r), from, exchange(&v, sizeof(v), line));
    return r;
}

} // namespace emu

#define threadIdx (emu::here.thread_idx)
#define blockIdx (emu::here.block_idx)
#define blockDim (emu::here.block_dim)
#define gridDim (emu::here.grid_dim)

#define __syncthreads() emu::barrier(__LINE__)
#define __syncwarp() emu::shuffle(0, 0, __LINE__)
#define __shfl_xor_sync(mask, v, o)                                                        \
    emu::shuffle((v), (emu::here.thread % emu::WARP) ^ (o), __LINE__)
#define __shfl_sync(mask, v, lane) emu::shuffle((v), (lane) % emu::WARP, __LINE__)

#endif

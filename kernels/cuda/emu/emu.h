/* SPDX-License-Identifier: MIT
 *
 * CUDA kernels as host C++: kernels/cuda/port.h includes this where nvcc does not compile.
 * emu.cc explains how it works. It runs thread blocks one after the other and reports
 *   - a barrier or warp operation that not all threads reach,
 *   - a warp operation whose mask is not that of the lanes that meet,
 *   - an access outside a shared array, and one that is not aligned,
 *   - two threads that use the same shared bytes without a barrier between, one writing;
 *     with EMU_WATCH in the environment also the same bytes of device memory,
 *   - more shared memory than a kernel was allowed.
 * emu_error() returns the first report. With a seed (emu_set_seed(), or EMU_SEED in the
 * environment) threads and blocks run in random order. Only one host thread may use it. */
#ifndef WKVQ_EMU_H
#define WKVQ_EMU_H

#include "kernels/cuda/emu/emu_queue.h"

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
 * emu_fence(false), which nest, as queued work does. Addresses are never reused. NULL if
 * there is no memory. */
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

/* Reports a mistake of the host's code. */
void mistake(const char *what);
/* True if a GPU would accept the launch; else reports why not. allowed: bytes of dynamic
 * shared memory. */
bool launchable(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                size_t allowed);
/* Runs body(ctx) for every thread of every block. */
void launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
            void (*body)(void *), void *ctx);

template <class Body>
void launch_body(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body)
{
    launch(
        kernel, grid, block, shared_bytes, [](void *ctx) { (*(Body *)ctx)(); }, &body);
}

/* Dynamic shared memory that a kernel was allowed; 48 KiB at first. */
void allow_shared(const void *kernel, size_t bytes);
size_t allowed_shared(const void *kernel);

/* Queues a launch on a stream, with copies of its arguments. */
template <class Kernel, class... Args>
void queue_launch(const char *name, const void *id, dim3 grid, dim3 block,
                  size_t shared_bytes, int stream, Kernel kernel, Args... args)
{
    if (launchable(name, grid, block, shared_bytes, allowed_shared(id)))
        queue(stream, [=] {
            launch_body(name, grid, block, shared_bytes, [&] { kernel(args...); });
        });
}

void barrier(int line);
/* All lanes of the mask hand in `bytes` bytes, at most LANE_BYTES, and wait for each other.
 * Returns the slot to pass to peek(), which reads what lane `from` handed in. */
constexpr size_t LANE_BYTES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
int exchange(const void *in, size_t bytes, int line, unsigned mask);
void peek(void *out, size_t bytes, int from, int slot);

/* Offset of a static shared array; the same for all threads of a block. */
size_t static_shared(const void *declaration, size_t bytes);
size_t dynamic_shared_bytes(void);
/* Checks an access for races; false after a report. */
bool touch(size_t at, size_t bytes, bool write);
/* The same for device memory, of up to 16 bytes. */
void touch_global(const void *p, size_t bytes, bool write);
void out_of_bounds(long index, long count);
void misaligned(const char *what, size_t unit);
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
        const size_t where = at + (size_t)i * sizeof(T);
        if (i < first || i >= count)
            out_of_bounds(i, count);
        else if (where % alignof(T))
            misaligned("shared", alignof(T));
        else
            return cell<T>(where);
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

/* An element of device memory. */
template <class T> class global_cell
{
    T *p;

  public:
    explicit global_cell(T *where) : p(where)
    {
    }
    operator T() const
    {
        touch_global(p, sizeof(T), false);
        return *p;
    }
    T operator=(T v) const
    {
        touch_global(p, sizeof(T), true);
        return *p = v;
    }
    T operator=(const global_cell &o) const
    {
        return *this = (T)o;
    }
    T operator+=(T v) const
    {
        return *this = (T)((T) * this + v);
    }
    T operator-=(T v) const
    {
        return *this = (T)((T) * this - v);
    }
};

/* A pointer to device memory. */
template <class T> struct global {
    T *p;
    global(T *where = nullptr) : p(where)
    {
    }
    explicit operator bool() const
    {
        return p;
    }
    global_cell<T> operator[](int64_t i) const
    {
        return global_cell<T>(p + i);
    }
    global_cell<T> operator*() const
    {
        return global_cell<T>(p);
    }
    global operator+(int64_t n) const
    {
        return global(p + n);
    }
};

template <class T> T shuffle(T v, int from, int line, unsigned mask)
{
    T r = v;
    static_assert(sizeof(v) <= LANE_BYTES, "a lane hands in too much");
    peek(&r, sizeof(r), from, exchange(&v, sizeof(v), line, mask));
    return r;
}

} // namespace emu

#define threadIdx (emu::here.thread_idx)
#define blockIdx (emu::here.block_idx)
#define blockDim (emu::here.block_dim)
#define gridDim (emu::here.grid_dim)

#define __syncthreads() emu::barrier(__LINE__)
#define __syncwarp() emu::shuffle(0, 0, __LINE__, emu::ALL_LANES)
#define __shfl_xor_sync(mask, v, o)                                                        \
    emu::shuffle((v), (emu::here.thread % emu::WARP) ^ (o), __LINE__, (mask))
#define __shfl_sync(mask, v, lane) emu::shuffle((v), (lane) % emu::WARP, __LINE__, (mask))

#endif

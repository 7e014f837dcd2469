/* SPDX-License-Identifier: MIT
 *
 * The inside of the cuda device: how kernels see tensors, working memory, reductions, and
 * the functions that fill the operation table. All files are compiled twice: by nvcc, and
 * as host C++ over kernels/cuda/emu, where the device is called cuda-emu. -fmad=false
 * gives one rounding per source operation, so that both compute what
 * kernels/tensor/quant.h defines. Inner products request fused operations with fmaf(). */
#ifndef WKVQ_CUDA_H
#define WKVQ_CUDA_H

#include "kernels/cuda/port.h"

extern "C" {
#include "kernels/dev_ops.h"
#include "kernels/dev_report.h"
#include "kernels/dev_step.h"
#include "kernels/tensor/hadamard.h"
#include "kernels/tensor/quant.h"
}

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
#include <string.h>

namespace CUDA_NS
{

constexpr int BLOCK = 256; /* threads of a block, unless a kernel needs another number */
constexpr int ATTN_MOST_HEAD = 128; /* channels of a head, in attention */

/* Working memory that is kept between calls. An operation owns the slots it uses while it
 * runs. */
enum slot { SLOT_A, SLOT_B, SLOT_RESULT, N_SLOTS };

struct gemm_library; /* lib/cuda_lib.cu */
struct sum_library;  /* lib/cuda_lib.cu */
struct rank_link;    /* lib/cuda_link.cu */
struct attn_library; /* lib/cuda_cudnn.cu */
struct graph_store;  /* cuda_graph.cu */

struct gpu {
    cudaStream_t stream, copies;
    cudaEvent_t computed, copied;   /* copies wait for `computed`, compute for `copied` */
    cudaEvent_t sent[REPORT_SLOTS]; /* the host waits for these */
    void *slot[N_SLOTS];
    size_t slot_bytes[N_SLOTS];
    gemm_library *gemm;
    sum_library *sums; /* NULL: sums are added after their products */
    rank_link *link;
    attn_library *dnn; /* NULL: own kernels only */
    graph_store *graphs;
    bool capturing; /* operations are recorded for a graph, and nothing may wait */
    long moved;     /* how often memory was replaced that a graph may use */
};

static inline gpu *gpu_of(struct dev *d)
{
    return (gpu *)d->priv;
}

/* Device memory with undefined contents; NULL after dev_fail(), whose message begins with `what`.
 * The emulation fills it with 0xff, which is NaN. */
void *scratch(struct dev *d, slot s, size_t bytes, const char *what = "working memory");
/* If e is an error, calls dev_fail() and returns false. */
bool went_well(struct dev *d, cudaError_t e, const char *what);
/* Checks for a failed launch and records it with dev_fail(). */
void launched(struct dev *d, const char *what);
/* Waits for both streams before memory is freed: cudaFree() does not promise to. A failure
 * is sticky in CUDA, so the next operation reports it. */
void cuda_wait(struct dev *d);
/* After a failed call of a library: false after dev_fail() if an earlier kernel is to blame, since
 * then every call fails. A capture cannot ask. */
bool earlier_work_went_well(struct dev *d, const char *what);
/* Waits, then copies device memory to the host; false after dev_fail(). */
bool fetch(struct dev *d, void *host, const void *src, size_t bytes);

/* Finds a usable GPU and describes it in d->about. ERR_SUPPORT with advice if there is
 * none. */
enum err find_gpu(struct dev *d);
/* Opens a shared library and keeps it for the life of the process: the file that the
 * environment variable names, or the loader's, or one of CUDA's usual folders. NULL if there
 * is none. */
void *find_library(const char *name, const char *variable);
/* why = the reason for which an optional library is not used, for the line about the device.
 * Returns false. */
constexpr size_t WHY_TEXT = 64;
bool unusable(char why[WHY_TEXT], const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Sets a pointer to a function of a library; false if p is NULL, because the library lacks it. */
template <class F> static inline bool set_function(F *out, void *p)
{
    memcpy(out, &p, sizeof(p));
    return p;
}

/* Both streams, and the events between them. */
enum err streams_open(struct dev *d);
void streams_close(struct dev *d);

/* Graphs of repeated steps. d->about, of which this writes the end, says whether there are any. */
enum err graphs_open(struct dev *d);
void graphs_close(struct dev *d);
void fill_graph(struct dev_ops *o);

/* Matrix products. Opening fails without cuBLAS. d->about says whether cuBLASLt, for sums, is
 * there. */
enum err lib_open(struct dev *d);
void lib_close(struct dev *d);
void fill_lib(struct dev_ops *o);

/* Attention by cuDNN. Opening it fails only without host memory; d->about says whether it is
 * there. */
enum err dnn_open(struct dev *d);
void dnn_close(struct dev *d);

/* Frees what there is of a link; other ranks are not waited for. */
void link_close(struct dev *d);

void fill_copies(struct dev_ops *o);
void fill_link(struct dev_ops *o);
void fill_elem(struct dev_ops *o);
void fill_norm(struct dev_ops *o);
void fill_weight(struct dev_ops *o);
void fill_kv(struct dev_ops *o);
void fill_channel(struct dev_ops *o);
void fill_train(struct dev_ops *o);
void fill_refine(struct dev_ops *o);
void fill_attn(struct dev_ops *o);

/* --- tensors in kernels -------------------------------------------------------------- */

/* An act tensor as rows of contiguous elements. wide: four elements, the first at a
 * multiple of four, are read by one load. p NULL: there is no tensor. */
struct view {
    void *p;
    int64_t ld;
    bool bf16, wide;
};

static inline view view_of(const struct tensor *x)
{
    if (!x)
        return view{nullptr, 0, false, false};
    const bool bf16 = x->dtype == DT_BF16;
    const int64_t ld = x->n_dims == 1 ? 0 : x->ld;
    const bool wide = ld % 4 == 0 && (uintptr_t)x->data % (bf16 ? 8 : 16) == 0;
    return view{x->data, ld, bf16, wide};
}

__device__ __forceinline__ uint16_t to_bf16(float v)
{
#if defined(__CUDACC__)
    return __bfloat16_as_ushort(__float2bfloat16_rn(v));
#else
    return bf16_from_f32(v);
#endif
}

__device__ __forceinline__ float from_f16(uint16_t h)
{
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(h));
#else
    return f16_to_f32(h);
#endif
}

__device__ __forceinline__ float get(const view &x, int64_t i)
{
    GLOBAL(const uint16_t) half = (const uint16_t *)x.p;
    GLOBAL(const float) whole = (const float *)x.p;
    return x.bf16 ? bf16_to_f32(half[i]) : (float)whole[i];
}

__device__ __forceinline__ void put(const view &x, int64_t i, float v)
{
    GLOBAL(uint16_t) half = (uint16_t *)x.p;
    GLOBAL(float) whole = (float *)x.p;
    if (x.bf16)
        half[i] = to_bf16(v);
    else
        whole[i] = v;
}

/* Up to 4 neighbouring elements. get4() and put4() access n of them, 1 to 4; the first is
 * at a multiple of four within its row. */
struct quad {
    float v[4];
};

__device__ __forceinline__ quad get4(const view &x, int64_t i, int n)
{
    quad q = {{0, 0, 0, 0}};
    if (n < 4 || !x.wide) {
        for (int k = 0; k < 4; k++)
            if (k < n)
                q.v[k] = get(x, i + k);
    } else if (x.bf16) {
        const uint2 u = load_wide<uint2>((const uint16_t *)x.p + i);
        q.v[0] = f32_from_bits(u.x << 16);
        q.v[1] = f32_from_bits(u.x & 0xffff0000u);
        q.v[2] = f32_from_bits(u.y << 16);
        q.v[3] = f32_from_bits(u.y & 0xffff0000u);
    } else {
        const float4 f = load_wide<float4>((const float *)x.p + i);
        q.v[0] = f.x;
        q.v[1] = f.y;
        q.v[2] = f.z;
        q.v[3] = f.w;
    }
    return q;
}

__device__ __forceinline__ void put4(const view &x, int64_t i, int n, const quad &q)
{
    if (n < 4 || !x.wide) {
        for (int k = 0; k < 4; k++)
            if (k < n)
                put(x, i + k, q.v[k]);
    } else if (x.bf16) {
        uint2 u;
        u.x = to_bf16(q.v[0]) | (unsigned)to_bf16(q.v[1]) << 16;
        u.y = to_bf16(q.v[2]) | (unsigned)to_bf16(q.v[3]) << 16;
        store_wide((uint16_t *)x.p + i, u);
    } else {
        float4 f;
        f.x = q.v[0];
        f.y = q.v[1];
        f.z = q.v[2];
        f.w = q.v[3];
        store_wide((float *)x.p + i, f);
    }
}

/* --- reductions ---------------------------------------------------------------------- */

struct add_op {
    template <class T> __device__ T operator()(T a, T b) const
    {
        return a + b;
    }
};
struct min_op {
    template <class T> __device__ T operator()(T a, T b) const
    {
        return b < a ? b : a;
    }
};
struct max_op {
    template <class T> __device__ T operator()(T a, T b) const
    {
        return b > a ? b : a;
    }
};

/* Reduces over a warp, in a fixed order. Every lane gets the result. */
template <class T, class Op> __device__ __forceinline__ T warp_reduce(T v, Op op)
{
    for (int o = WARP_SIZE / 2; o; o /= 2)
        v = op(v, __shfl_xor_sync(FULL_WARP, v, o));
    return v;
}

/* Reduces over a block of BLOCK threads, all of which must call it. Every thread gets the
 * result. */
template <class T, class Op> __device__ __forceinline__ T block_reduce(T v, Op op)
{
    SHARED_ARRAY(T, part, BLOCK / WARP_SIZE);
    v = warp_reduce(v, op);
    __syncthreads(); /* the readers of an earlier call are done */
    if (threadIdx.x % WARP_SIZE == 0)
        part[threadIdx.x / WARP_SIZE] = v;
    __syncthreads();
    T r = part[0];
    for (int i = 1; i < BLOCK / WARP_SIZE; i++)
        r = op(r, (T)part[i]);
    return r;
}

/* Blocks for n pieces of work. The x of a grid may be up to 2^31 - 1. */
static inline unsigned blocks_all(int64_t n, int64_t per_block)
{
    const int64_t b = (n + per_block - 1) / per_block;
    return b < 1 ? 1 : b < 0x7fffffff ? (unsigned)b : 0x7fffffffu;
}

/* Blocks for a kernel that loops over its work: at most as many as fill the GPU. The
 * emulation counts as full with few, so that small tests reach the second turn of the
 * loop. */
#if defined(__CUDACC__)
constexpr unsigned FULL_GPU = 65535;
#else
constexpr unsigned FULL_GPU = 3;
#endif
static inline unsigned blocks_for(int64_t n, int64_t per_block, unsigned most = FULL_GPU)
{
    const unsigned b = blocks_all(n, per_block), full = most < FULL_GPU ? most : FULL_GPU;
    return b < full ? b : full;
}

} // namespace CUDA_NS

#endif

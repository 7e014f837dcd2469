/* SPDX-License-Identifier: MIT
 *
 * What the forward and the backward of attention share on the GPU: the operands, the mask,
 * and tiles in shared memory.
 *
 * Each pair of query i and key j has one form, FULL or QUANTIZED. A tile is processed
 * once for each form that it may contain, with all pairs of the other form masked out:
 *
 *   keys ->   sinks                 window
 *   query i  [FULL][ QUANTIZED ... ][FULL] i   (then the future: no pair)
 *
 * Away from the sinks and the diagonal all pairs are QUANTIZED, so most tiles are processed
 * once. tile_has() decides from the corners of a tile, has_form() per pair.
 *
 * A thread block has WARPS warps; each warp owns 16 rows of the result. Tiles in shared
 * memory are [rows][D + PAD]: PAD shifts each row to other banks, so that the 8 rows that
 * a warp reads at once do not collide. */
#ifndef WKVQ_CUDA_ATTN_TILES_H
#define WKVQ_CUDA_ATTN_TILES_H

#include "kernels/cuda/mma.h"

namespace CUDA_NS
{

enum form { FULL, QUANTIZED, N_FORMS };

/* A tensor [T, heads, d]. wide: it may be read in aligned pieces of 16 bytes. */
struct heads {
    void *p;
    int64_t ld;
    bool wide;
};

struct attn_args {
    heads q, k[N_FORMS], v[N_FORMS], o, dout;
    GLOBAL(float) lse, D; /* [H][T] */
    int T, H, rep, d;     /* rep = H / K: query heads per kv head */
    int window, sink, chunk, block;
    int reach;      /* tokens that a query sees */
    bool quantized; /* the keys have two forms */
    float scale;
};

/* Sizes per element type. WARPS: per thread block. FWD and BWD: rows of the tiles that the
 * forward and the backward walk over. F32 tiles must fit in 99 KiB with D = 128. PAD: extra
 * elements per row. VEC: elements in 16 bytes. BLOCKS: thread blocks that a multiprocessor
 * must hold, which limits registers; 0: the compiler decides. */
template <class T> struct sizes;
template <> struct sizes<uint16_t> {
    static constexpr int WARPS = 4, FWD = 64, BWD = 32, PAD = 8, VEC = 8, BLOCKS = 0;
};
template <> struct sizes<float> {
    static constexpr int WARPS = 2, FWD = 32, BWD = 32, PAD = 4, VEC = 4, BLOCKS = 1;
};

/* The key whose position decides for key j: the last one of its quantization block. */
__device__ __forceinline__ int deciding(const attn_args &a, int j)
{
    return a.block > 1 ? j / a.block * a.block + a.block - 1 : j;
}

__device__ __forceinline__ bool has_form(const attn_args &a, int i, int j, int form)
{
    /* A later key makes the difference negative, and so the unsigned number large. */
    if ((unsigned)(i - j) >= (unsigned)a.reach || i >= a.T)
        return false;
    const int last = deciding(a, j);
    const bool full = !a.quantized || last > i - a.window || j < a.sink ||
                      (a.chunk > 1 && last / a.chunk == i / a.chunk);
    return full == (form == FULL);
}

/* True if queries [i0, i1] and keys [j0, j1] may contain a pair of the form. May be true
 * without need, but is never wrongly false. */
__device__ __forceinline__ bool tile_has(const attn_args &a, int i0, int i1, int j0, int j1,
                                         int form)
{
    if (j0 > i1 || i0 - j1 >= a.reach)
        return false;
    if (!a.quantized)
        return form == FULL;
    if (form == QUANTIZED)
        return (j0 > a.sink ? j0 : a.sink) <= i1 - a.window && j1 >= a.sink;
    const int last = deciding(a, j1 < i1 ? j1 : i1);
    return last > i0 - a.window || j0 < a.sink ||
           (a.chunk > 1 && deciding(a, j1) / a.chunk >= i0 / a.chunk);
}

template <class T> __device__ __forceinline__ void from_float(T *out, float v);
template <> __device__ __forceinline__ void from_float(float *out, float v)
{
    *out = v;
}
template <> __device__ __forceinline__ void from_float(uint16_t *out, float v)
{
    *out = to_bf16(v);
}

__device__ __forceinline__ float to_float(float v)
{
    return v;
}
__device__ __forceinline__ float to_float(uint16_t v)
{
    return bf16_to_f32(v);
}

/* Loads ROWS tokens of one head, from token `row` on, into s [ROWS][D + PAD]. Tokens past T
 * and columns past d become zeros. */
template <class T, int D, int ROWS>
__device__ void load_tile(SHARED(T) s, const heads &x, const attn_args &a, int row,
                          int head)
{
    constexpr int VEC = sizes<T>::VEC, LD = D + sizes<T>::PAD, PER_ROW = D / VEC;
    for (int i = (int)threadIdx.x; i < ROWS * PER_ROW; i += sizes<T>::WARPS * WARP_SIZE) {
        const int r = i / PER_ROW, c = i % PER_ROW * VEC;
        const T *first =
            (const T *)x.p + (int64_t)(row + r) * x.ld + (int64_t)head * a.d + c;
        GLOBAL(const T) from = first;
        const bool there = row + r < a.T;
        if (x.wide && there && c + VEC <= a.d) {
            SHARED_AS(uint4, s + (r * LD + c))[0] = load_wide<uint4>(first);
        } else {
            for (int e = 0; e < VEC; e++)
                s[r * LD + c + e] = there && c + e < a.d ? (T)from[e] : (T)0;
        }
    }
}

/* Stores a warp's result [16, 8 NT] from registers to shared memory, as an operand of the
 * next product. Each lane stores its own elements. */
template <class T, int NT>
__device__ __forceinline__ void store_operand(SHARED(T) s, int ld, const float (&c)[NT][4])
{
    const int g = lane_row(), t = lane_col();
    UNROLL
    for (int n = 0; n < NT; n++)
        UNROLL
    for (int e = 0; e < 4; e++) {
        T v;
        from_float(&v, c[n][e]);
        s[(g + e / 2 * 8) * ld + n * 8 + t + e % 2] = v;
    }
}

/* Stores a warp's 16 rows of a result, x[row + r, head] = scale c. scale0 is for the lane's
 * first row, scale1 for its second one, 8 rows further. */
template <class T, int NT>
__device__ __forceinline__ void store_rows(const heads &x, const attn_args &a, int row,
                                           int head, const float (&c)[NT][4], float scale0,
                                           float scale1)
{
    GLOBAL(T) out = (T *)x.p;
    const int g = lane_row(), t = lane_col();
    UNROLL
    for (int n = 0; n < NT; n++)
        UNROLL
    for (int e = 0; e < 4; e++) {
        const int r = row + g + e / 2 * 8, col = n * 8 + t + e % 2;
        T v;
        from_float(&v, c[n][e] * (e < 2 ? scale0 : scale1));
        if (r < a.T && col < a.d)
            out[(int64_t)r * x.ld + (int64_t)head * a.d + col] = v;
    }
}

__device__ __forceinline__ float exp_of(float x)
{
    return exp2f(x * 1.4426950408889634f);
}

static inline heads heads_of(const struct tensor *x)
{
    if (!x)
        return heads{nullptr, 0, false};
    const int vec = x->dtype == DT_BF16 ? 8 : 4;
    const bool wide =
        x->dim[2] % vec == 0 && x->ld % vec == 0 && (uintptr_t)x->data % 16 == 0;
    return heads{x->data, x->ld, wide};
}

/* Kernels count positions in int. */
static inline int to_int(int64_t v)
{
    return v > 0x3fffffff ? 0x3fffffff : (int)v;
}

static inline attn_args args_of(const struct attn_inputs *in, const struct tensor *lse)
{
    attn_args a = {};
    a.q = heads_of(in->q);
    a.k[FULL] = heads_of(in->k);
    a.v[FULL] = heads_of(in->v);
    a.k[QUANTIZED] = heads_of(in->kq);
    a.v[QUANTIZED] = heads_of(in->vq);
    a.lse = (float *)lse->data;
    a.T = (int)in->q->dim[0];
    a.H = (int)in->q->dim[1];
    a.rep = a.H / (int)in->k->dim[1];
    a.d = (int)in->q->dim[2];
    a.quantized = in->kq != nullptr;
    a.reach = to_int(in->reach ? in->reach : INT64_MAX);
    if (in->mask) {
        a.window = to_int(in->mask->window);
        a.sink = to_int(in->mask->sink);
        a.chunk = to_int(in->mask->chunk);
        a.block = to_int(in->mask->block);
    }
    a.scale = in->scale;
    return a;
}

static inline bool attn_supported(struct dev *d, const struct tensor *q)
{
    if (q->dim[2] > ATTN_MOST_HEAD)
        dev_fail(d, ERR_SUPPORT, "attention with head_dim %lld, at most %d is supported",
                 (long long)q->dim[2], ATTN_MOST_HEAD);
    return q->dim[2] <= ATTN_MOST_HEAD;
}

/* CALL(T, D) with the smallest D >= d that is compiled. BF16 has the head widths of the
 * supported models; F32 has two, to save compile time. */
#define ATTN_DISPATCH(dtype, d, CALL)                                                      \
    do {                                                                                   \
        if ((dtype) == DT_BF16 && (d) <= 16)                                               \
            CALL(uint16_t, 16);                                                            \
        else if ((dtype) == DT_BF16 && (d) <= 64)                                          \
            CALL(uint16_t, 64);                                                            \
        else if ((dtype) == DT_BF16 && (d) <= 80)                                          \
            CALL(uint16_t, 80);                                                            \
        else if ((dtype) == DT_BF16 && (d) <= 96)                                          \
            CALL(uint16_t, 96);                                                            \
        else if ((dtype) == DT_BF16)                                                       \
            CALL(uint16_t, 128);                                                           \
        else if ((d) <= 16)                                                                \
            CALL(float, 16);                                                               \
        else                                                                               \
            CALL(float, 128);                                                              \
    } while (0)

} // namespace CUDA_NS

#endif

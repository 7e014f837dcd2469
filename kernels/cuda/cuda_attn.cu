/* SPDX-License-Identifier: MIT
 *
 * Causal attention, forward, with an online softmax (Milakov, Gimelshein 2018; Dao et al.
 * 2022): no score leaves the chip.
 *
 *   grid:   x = tiles of queries, the longest rows first; y = heads
 *   block:  16 WARPS queries; warp w owns queries i0 + 16 w .. + 15
 *
 *   shared memory:  sq [ROWS][D]   the queries, loaded once
 *                   sk [KEYS][D]   a tile of keys     } replaced for each tile and form
 *                   sv [KEYS][D]   a tile of values   }
 *                   sp [16][KEYS]  per warp: its weights, as operand of P V
 *
 *   for each tile of keys, for each form in it:
 *       S = Q K^T          registers, [16][KEYS] per warp
 *       P = exp(scale S - max'), O *= exp(max - max')
 *       O += P V           registers, [16][D] per warp
 *
 * Layout in registers: kernels/cuda/mma.h. A row of S is spread over the 4 lanes of a
 * group, so its maximum and sum take two exchanges. */
#include "kernels/cuda/attn_tiles.h"
#include "kernels/cuda/lib/cudnn.h"

namespace CUDA_NS
{

/* State of the two rows that a lane holds: the maximum so far, and the sum of
 * exp(S - maximum). */
struct softmax_state {
    float max[2], sum[2];
};

/* Maximum and sum over the 4 lanes that share a row. */
__device__ __forceinline__ float row_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 1));
    return fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 2));
}

__device__ __forceinline__ float row_add(float v)
{
    v += __shfl_xor_sync(FULL_WARP, v, 1);
    return v + __shfl_xor_sync(FULL_WARP, v, 2);
}

/* Turns scores s into weights exp(scale s - max'), 0 for pairs that do not have the form.
 * factor = exp(max - max') is what the earlier sums must be multiplied with. i and j are
 * the positions of s[0][0]. */
template <int NT>
__device__ __forceinline__ void softmax_tile(const attn_args &a, softmax_state *st,
                                             float (&s)[NT][4], float (&factor)[2], int i,
                                             int j, int form)
{
    const int t = lane_col();
    UNROLL
    for (int h = 0; h < 2; h++) {
        float max = -INFINITY, sum = 0;
        UNROLL
        for (int n = 0; n < NT; n++)
            UNROLL
        for (int e = 0; e < 2; e++) {
            float *x = &s[n][2 * h + e];
            *x = has_form(a, i + 8 * h, j + n * 8 + t + e, form) ? *x * a.scale : -INFINITY;
            max = fmaxf(max, *x);
        }
        max = fmaxf(st->max[h], row_max(max));
        const float base = max == -INFINITY ? 0 : max; /* no key seen so far */
        UNROLL
        for (int n = 0; n < NT; n++)
            UNROLL
        for (int e = 0; e < 2; e++) {
            s[n][2 * h + e] = exp_of(s[n][2 * h + e] - base);
            sum += s[n][2 * h + e];
        }
        factor[h] = exp_of(st->max[h] - base);
        st->sum[h] = st->sum[h] * factor[h] + row_add(sum);
        st->max[h] = max;
    }
}

template <class T, int D>
__global__ void __launch_bounds__(sizes<T>::WARPS *WARP_SIZE) attn_kernel(attn_args a)
{
    constexpr int WARPS = sizes<T>::WARPS, ROWS = 16 * WARPS, KEYS = sizes<T>::FWD;
    constexpr int LD = D + sizes<T>::PAD, LP = KEYS + sizes<T>::PAD;
    SHARED_DYNAMIC(T, mem);
    const auto sq = SHARED_PART(mem, 0, ROWS * LD),
               sk = SHARED_PART(mem, ROWS * LD, KEYS * LD);
    const auto sv = SHARED_PART(mem, (ROWS + KEYS) * LD, KEYS * LD);
    const int warp = (int)threadIdx.x / WARP_SIZE, head = (int)blockIdx.y;
    const auto sp = SHARED_PART(mem, (ROWS + 2 * KEYS) * LD + warp * 16 * LP, 16 * LP);
    /* The longest rows come first, so that blocks end together. */
    const int i0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int last = i0 + ROWS < a.T ? i0 + ROWS - 1 : a.T - 1, row = i0 + warp * 16;
    float o[D / 8][4] = {};
    softmax_state st = {{-INFINITY, -INFINITY}, {0, 0}};
    load_tile<T, D, ROWS>(sq, a.q, a, i0, head);
    for (int j = 0; j <= last; j += KEYS)
        for (int form = FULL; form < N_FORMS; form++) {
            if (!tile_has(a, i0, last, j, j + KEYS - 1, form))
                continue;
            __syncthreads();
            load_tile<T, D, KEYS>(sk, a.k[form], a, j, head / a.rep);
            load_tile<T, D, KEYS>(sv, a.v[form], a, j, head / a.rep);
            __syncthreads();
            float s[KEYS / 8][4] = {}, factor[2];
            product<false, D>(s, sq + warp * 16 * LD, LD, sk + 0, LD);
            softmax_tile(a, &st, s, factor, row + lane_row(), j, form);
            store_operand<T>(sp, LP, s);
            __syncwarp();
            UNROLL
            for (int n = 0; n < D / 8; n++)
                UNROLL
            for (int e = 0; e < 4; e++)
                o[n][e] *= factor[e / 2];
            product<true, KEYS>(o, sp + 0, LP, sv + 0, LD);
        }
    store_rows<T>(a.o, a, row, head, o, 1 / st.sum[0], 1 / st.sum[1]);
    for (int h = 0; h < 2; h++)
        if (threadIdx.x % 4 == 0 && row + lane_row() + 8 * h < a.T)
            a.lse[head * a.T + row + lane_row() + 8 * h] = st.max[h] + logf(st.sum[h]);
}

template <class T, int D> static void run_attn(struct dev *d, const attn_args &a)
{
    constexpr int ROWS = 16 * sizes<T>::WARPS, KEYS = sizes<T>::FWD, PAD = sizes<T>::PAD;
    const size_t bytes =
        (size_t)((ROWS + 2 * KEYS) * (D + PAD) + ROWS * (KEYS + PAD)) * sizeof(T);
    const dim3 grid(blocks_all(a.T, ROWS), (unsigned)a.H);
    if (!went_well(d, cuda_allow_shared(attn_kernel<T, D>, bytes), "attn"))
        return;
    CUDA_LAUNCH((attn_kernel<T, D>), grid, ROWS * 2, bytes, gpu_of(d)->stream, a);
    launched(d, "attn");
}

static void cuda_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                      const struct attn_inputs *in)
{
    if (!attn_supported(d, in->q))
        return;
    if (parts_attn(d, o, lse, in))
        return;
    attn_args a = args_of(in, lse);
    a.o = heads_of(o);
#define RUN_ATTN(T, D) run_attn<T, D>(d, a)
    ATTN_DISPATCH(in->q->dtype, a.d, RUN_ATTN);
}

void fill_attn_bwd(struct dev_ops *o);

void fill_attn(struct dev_ops *o)
{
    o->attn = cuda_attn;
    fill_attn_bwd(o);
}

} // namespace CUDA_NS

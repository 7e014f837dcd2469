/* SPDX-License-Identifier: MIT
 *
 * Attention backward, without atomics. kernels/cpu/cpu_attn_bwd.c states the formulas.
 * Three kernels run in order; P and dS are computed again in both of the last two:
 *
 *   row_dot_kernel      D_i = dout_i . o_i; one warp per query
 *   query_grad_kernel   dq; a block owns a tile of queries and walks over the keys before
 *                       them
 *   key_grad_kernel     dk', dv' of one form; a block owns a tile of keys and walks over the
 *                       queries after them, of all heads that share the kv head
 *
 *            keys ->                                    keys ->
 *          +---------+                                +---------+
 *   query  |===>     |  query_grad: rows       query  |  | | |  |  key_grad: columns
 *     |    |======>  |                            |   |  v | |  |
 *     v    |=========|                            v   |    v v  |
 *          +---------+                                +---------+
 *
 * Each gradient has one writer, so the order of all sums is fixed. Shared memory holds,
 * beside the four tiles, one operand per warp for dS (and one for P in key_grad_kernel). */
#include "kernels/cuda/attn_tiles.h"
#include "kernels/cuda/lib/cudnn.h"

namespace CUDA_NS
{

/* D_i = dout_i . o_i; one warp per query and head. */
template <class T> __global__ void row_dot_kernel(attn_args a)
{
    const int64_t i = (int64_t)blockIdx.x * (BLOCK / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= (int64_t)a.T * a.H)
        return;
    const int64_t head = i / a.T, t = i % a.T;
    GLOBAL(const T) x = (const T *)a.dout.p + t * a.dout.ld + head * a.d;
    GLOBAL(const T) y = (const T *)a.o.p + t * a.o.ld + head * a.d;
    float sum = 0;
    for (int c = (int)threadIdx.x % WARP_SIZE; c < a.d; c += WARP_SIZE)
        sum = fmaf(to_float(x[c]), to_float(y[c]), sum);
    sum = warp_reduce(sum, add_op());
    if (threadIdx.x % WARP_SIZE == 0)
        a.D[i] = sum;
}

/* Turns S into P and dP into dS, both 0 for pairs that do not have the form. KEY_ROWS: rows
 * are keys and columns queries. */
template <bool KEY_ROWS, int NT>
__device__ __forceinline__ void weight_grads(const attn_args &a, float (&s)[NT][4],
                                             float (&dp)[NT][4], int row, int col, int head,
                                             int form)
{
    const int g = lane_row(), t = lane_col();
    UNROLL
    for (int n = 0; n < NT; n++)
        UNROLL
    for (int e = 0; e < 4; e++) {
        const int r = row + g + e / 2 * 8, c = col + n * 8 + t + e % 2;
        const int i = KEY_ROWS ? c : r, j = KEY_ROWS ? r : c;
        const bool seen = has_form(a, i, j, form);
        const int64_t at = seen ? (int64_t)head * a.T + i : 0;
        const float P = seen ? exp_of(s[n][e] * a.scale - a.lse[at]) : 0;
        s[n][e] = P;
        dp[n][e] = seen ? P * (dp[n][e] - a.D[at]) : 0;
    }
}

/* dq; see the drawing at the top. */
template <class T, int D>
__global__ void __launch_bounds__(sizes<T>::WARPS *WARP_SIZE, sizes<T>::BLOCKS)
    query_grad_kernel(attn_args a, heads dq)
{
    constexpr int WARPS = sizes<T>::WARPS, ROWS = 16 * WARPS, KEYS = sizes<T>::BWD;
    constexpr int LD = D + sizes<T>::PAD, LP = KEYS + sizes<T>::PAD;
    SHARED_DYNAMIC(T, mem);
    const auto sq = SHARED_PART(mem, 0, ROWS * LD),
               sdo = SHARED_PART(mem, ROWS * LD, ROWS * LD);
    const auto sk = SHARED_PART(mem, 2 * ROWS * LD, KEYS * LD),
               sv = SHARED_PART(mem, (2 * ROWS + KEYS) * LD, KEYS * LD);
    const int warp = (int)threadIdx.x / WARP_SIZE, head = (int)blockIdx.y;
    const auto sds = SHARED_PART(mem, 2 * (ROWS + KEYS) * LD + warp * 16 * LP, 16 * LP);
    const int i0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int last = i0 + ROWS < a.T ? i0 + ROWS - 1 : a.T - 1, row = i0 + warp * 16;
    float acc[D / 8][4] = {};
    load_tile<T, D, ROWS>(sq, a.q, a, i0, head);
    load_tile<T, D, ROWS>(sdo, a.dout, a, i0, head);
    for (int j = 0; j <= last; j += KEYS)
        for (int form = FULL; form < N_FORMS; form++) {
            if (!tile_has(a, i0, last, j, j + KEYS - 1, form))
                continue;
            __syncthreads();
            load_tile<T, D, KEYS>(sk, a.k[form], a, j, head / a.rep);
            load_tile<T, D, KEYS>(sv, a.v[form], a, j, head / a.rep);
            __syncthreads();
            float s[KEYS / 8][4] = {}, dp[KEYS / 8][4] = {};
            product<false, D>(s, sq + warp * 16 * LD, LD, sk + 0, LD);
            product<false, D>(dp, sdo + warp * 16 * LD, LD, sv + 0, LD);
            weight_grads<false>(a, s, dp, row, j, head, form);
            store_operand<T>(sds, LP, dp);
            __syncwarp();
            product<true, KEYS>(acc, sds + 0, LP, sk + 0, LD);
        }
    store_rows<T>(dq, a, row, head, acc, a.scale, a.scale);
}

/* dk and dv of one form; see the drawing at the top. */
template <class T, int D>
__global__ void __launch_bounds__(sizes<T>::WARPS *WARP_SIZE)
    key_grad_kernel(attn_args a, heads dk, heads dv, int form)
{
    constexpr int WARPS = sizes<T>::WARPS, ROWS = 16 * WARPS, QUERIES = sizes<T>::BWD;
    constexpr int LD = D + sizes<T>::PAD, LP = QUERIES + sizes<T>::PAD;
    SHARED_DYNAMIC(T, mem);
    const auto sk = SHARED_PART(mem, 0, ROWS * LD),
               sv = SHARED_PART(mem, ROWS * LD, ROWS * LD);
    const auto sq = SHARED_PART(mem, 2 * ROWS * LD, QUERIES * LD);
    const auto sdo = SHARED_PART(mem, (2 * ROWS + QUERIES) * LD, QUERIES * LD);
    const int warp = (int)threadIdx.x / WARP_SIZE, kv_head = (int)blockIdx.y;
    const auto sp = SHARED_PART(mem, 2 * (ROWS + QUERIES) * LD + warp * 32 * LP, 16 * LP);
    const auto sds =
        SHARED_PART(mem, 2 * (ROWS + QUERIES) * LD + (warp * 32 + 16) * LP, 16 * LP);
    const int j0 = (int)blockIdx.x * ROWS, row = j0 + warp * 16;
    float acc_k[D / 8][4] = {}, acc_v[D / 8][4] = {};
    load_tile<T, D, ROWS>(sk, a.k[form], a, j0, kv_head);
    load_tile<T, D, ROWS>(sv, a.v[form], a, j0, kv_head);
    for (int head = kv_head * a.rep; head < (kv_head + 1) * a.rep; head++)
        for (int i = j0 / QUERIES * QUERIES; i < a.T; i += QUERIES) {
            if (!tile_has(a, i, i + QUERIES - 1, j0, j0 + ROWS - 1, form))
                continue;
            __syncthreads();
            load_tile<T, D, QUERIES>(sq, a.q, a, i, head);
            load_tile<T, D, QUERIES>(sdo, a.dout, a, i, head);
            __syncthreads();
            float s[QUERIES / 8][4] = {}, dp[QUERIES / 8][4] = {};
            product<false, D>(s, sk + warp * 16 * LD, LD, sq + 0, LD);
            product<false, D>(dp, sv + warp * 16 * LD, LD, sdo + 0, LD);
            weight_grads<true>(a, s, dp, row, i, head, form);
            store_operand<T>(sp, LP, s);
            store_operand<T>(sds, LP, dp);
            __syncwarp();
            product<true, QUERIES>(acc_v, sp + 0, LP, sdo + 0, LD);
            product<true, QUERIES>(acc_k, sds + 0, LP, sq + 0, LD);
        }
    store_rows<T>(dk, a, row, kv_head, acc_k, a.scale, a.scale);
    store_rows<T>(dv, a, row, kv_head, acc_v, 1, 1);
}

struct grad_views {
    heads dq, dk[N_FORMS], dv[N_FORMS];
};

template <class T, int D>
static void run_bwd(struct dev *d, const attn_args &a, const grad_views &g)
{
    constexpr int ROWS = 16 * sizes<T>::WARPS, WALK = sizes<T>::BWD, PAD = sizes<T>::PAD;
    const size_t tiles = (size_t)(2 * (ROWS + WALK) * (D + PAD)) * sizeof(T);
    const size_t operand = (size_t)(ROWS * (WALK + PAD)) * sizeof(T);
    const cudaStream_t st = gpu_of(d)->stream;
    const dim3 q_grid(blocks_all(a.T, ROWS), (unsigned)a.H),
        k_grid(q_grid.x, (unsigned)(a.H / a.rep));
    if (!went_well(d, cuda_allow_shared(query_grad_kernel<T, D>, tiles + operand),
                   "attn_bwd") ||
        !went_well(d, cuda_allow_shared(key_grad_kernel<T, D>, tiles + 2 * operand),
                   "attn_bwd"))
        return;
    CUDA_LAUNCH(row_dot_kernel<T>, blocks_all((int64_t)a.T * a.H, BLOCK / WARP_SIZE), BLOCK,
                0, st, a);
    CUDA_LAUNCH((query_grad_kernel<T, D>), q_grid, ROWS * 2, tiles + operand, st, a, g.dq);
    for (int form = FULL; form < (a.quantized ? N_FORMS : QUANTIZED); form++)
        CUDA_LAUNCH((key_grad_kernel<T, D>), k_grid, ROWS * 2, tiles + 2 * operand, st, a,
                    g.dk[form], g.dv[form], form);
    launched(d, "attn_bwd");
}

static void cuda_attn_bwd(struct dev *d, const struct attn_grads *grads,
                          const struct tensor *dout, const struct tensor *o,
                          const struct tensor *lse, const struct attn_inputs *in)
{
    if (!attn_supported(d, in->q))
        return;
    if (parts_attn_bwd(d, grads, dout, o, lse, in))
        return;
    attn_args a = args_of(in, lse);
    a.o = heads_of(o);
    a.dout = heads_of(dout);
    a.D = (float *)scratch(d, SLOT_A, (size_t)a.T * (size_t)a.H * sizeof(float));
    if (!a.D)
        return;
    const grad_views g = {heads_of(grads->dq),
                          {heads_of(grads->dk), heads_of(grads->dkq)},
                          {heads_of(grads->dv), heads_of(grads->dvq)}};
#define RUN_BWD(T, D) run_bwd<T, D>(d, a, g)
    ATTN_DISPATCH(in->q->dtype, a.d, RUN_BWD);
}

void fill_attn_bwd(struct dev_ops *o)
{
    o->attn_bwd = cuda_attn_bwd;
}

} // namespace CUDA_NS

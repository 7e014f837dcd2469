/* SPDX-License-Identifier: MIT
 *
 * The operations a device offers: one interface, checked here, carried out by the table of
 * an implementation (ref: plain loops, f64 accumulation, the definition; cpu: threads and
 * SIMD; cuda: one GPU). Alphabet: T tokens, D model width, F MLP width, H query heads, K kv
 * heads, d head width, R rows, C columns, N = weight rows (outputs).
 *
 * Laws: all tensors are in memory of d (dev_alloc) unless "host" is said. "act" tensors are
 * F32 or BF16, each independently unless said otherwise; everything else is F32. Arithmetic
 * is F32 or better whatever the storage. Outputs are overwritten unless the comment says
 * "+=". Outputs do not overlap inputs unless the comment allows it. Work may be queued:
 * results are visible to the host after dev_sync or dev_download. Deterministic: same
 * inputs, same bits, same device and thread count. One caller per device. Errors: ERR_SHAPE
 * for tensors that do not fit, ERR_DEVICE for an operation the device lacks or an earlier
 * failure (sticky), ERR_MEMORY. No operation allocates after its first call with a shape.
 */
#ifndef WKVQ_DEV_H
#define WKVQ_DEV_H

#include "kernels/tensor/qtensor.h"
#include "kernels/tensor/tensor.h"

struct dev; /* opaque */

struct dev_settings {
    const char *name; /* "ref", "cpu" or "cuda" */
    int threads;      /* 0 = all cores */
};

enum err dev_open(struct dev **out, const struct dev_settings *s);
void dev_close(struct dev **d);
const char *dev_name(const struct dev *d);
int dev_threads(const struct dev *d);
/* What was picked and why, one line ("bf16 GEMM: oneDNN 2.6.3 avx512_core_bf16; ...").
 * Owned by d. */
const char *dev_about(const struct dev *d);
/* The act type that `compute: auto` stands for on this device. */
enum dtype dev_preferred_act(const struct dev *d);
/* Seconds spent in GEMM calls (attention products not included) since the last reset; the
 * devices that cannot tell return 0. */
double dev_gemm_seconds(struct dev *d, bool reset);

/* Where time goes: seconds spent inside the operations of each part since dev_open (on a
 * device that queues work: spent queueing, but see dev_wait_each()). FAKE_QUANT is fake_quant_weights, fake_quant_kv
 * and exp; LOSS includes cross entropy, OPTIMIZER the test for finite values; ELEMENTWISE
 * is norms, rope, silu, add and bias; COPY is conversions and transfers. */
enum dev_part {
    DEV_GEMM,
    DEV_ATTENTION,
    DEV_ATTENTION_BWD,
    DEV_FAKE_QUANT,
    DEV_LOSS,
    DEV_OPTIMIZER,
    DEV_ELEMENTWISE,
    DEV_COPY,
    N_DEV_PARTS
};
double dev_part_seconds(const struct dev *d, enum dev_part part);
/* Whether operations wait until their work is done. False, and nothing changes, on a device
 * where they always do. */
bool dev_wait_each(struct dev *d, bool on);

/* --- memory ------------------------------------------------------------------------- */

/* bytes > 0, 64-byte aligned. */
enum err dev_alloc(struct dev *d, void **out, size_t bytes);
/* NULL is fine. Waits for what is queued, copies too. */
void dev_free(struct dev *d, void *p);
enum err dev_upload(struct dev *d, void *dst, const void *host_src, size_t bytes);
enum err dev_download(struct dev *d, void *host_dst, const void *src, size_t bytes);
enum err dev_zero(struct dev *d, void *dst, size_t bytes);
enum err dev_sync(struct dev *d);

/* Whether the memory is the device's own, not the host's; then *free, *total of its bytes
 * (0 and 0 after a failure). */
bool dev_memory(struct dev *d, uint64_t *free, uint64_t *total);

/* One queue of copies that runs beside compute, in order: at once where the memory is the
 * host's. A copy begins behind the operations queued before it; those queued after it see
 * neither its result nor that it has read its source, until dev_copy_wait. The host sees
 * its end after dev_copy_sync or dev_sync, and leaves its own side alone until then. */
enum err dev_copy_in(struct dev *d, void *dst, const void *host_src, size_t bytes);
enum err dev_copy_out(struct dev *d, void *host_dst, const void *src, size_t bytes);
/* Operations queued from now on begin behind the copies queued so far. */
enum err dev_copy_wait(struct dev *d);
/* The host waits for the copies queued so far, not for all operations. */
enum err dev_copy_sync(struct dev *d);
/* Host memory, undefined contents, that copies beside compute want (page-locked): from
 * other memory they are right, but the host waits. ERR_MEMORY is not sticky. */
enum err dev_host_alloc(struct dev *d, void **out, size_t bytes);
void dev_host_free(struct dev *d, void *p); /* NULL is fine */

/* y = x with conversion between F32 and BF16. y, x any equal shape, each with its own ld.
 */
enum err dev_copy(struct dev *d, const struct tensor *y, const struct tensor *x);

/* --- linear algebra ----------------------------------------------------------------- */

enum gemm_kind {
    GEMM_NT, /* C[M,N] = A[M,K] B[N,K]^T    forward:         y = x W^T   */
    GEMM_NN, /* C[M,N] = A[M,K] B[K,N]      input gradient:  dx = dy W   */
    GEMM_TN, /* C[M,N] = A[K,M]^T B[K,N]    weight gradient: dW = dy^T x */
};

/* A, B both F32 or both BF16; C F32 or BF16 (BF16 only with BF16 operands). F32
 * accumulation. accumulate: C += (F32 C only). Rows may be strided (ld). */
enum err dev_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                  const struct tensor *a, const struct tensor *b, bool accumulate);

/* y[r,c] += b[c]. y act [R,C] (ld), b [C]. */
enum err dev_bias(struct dev *d, const struct tensor *y, const struct tensor *b);

/* --- norms -------------------------------------------------------------------------- */

/* With add == NULL:  y[r,c] = x[r,c] s[r] g[c],  s[r] = 1 / sqrt(mean_c x[r,c]^2 + eps).
 * With add: h = x + add is stored first and normalized instead of x.
 *   x, h [R,C] F32 (h NULL iff add NULL; h may be x); add, y act [R,C]; s [R]; g [C].
 *   3-D views [T,H,d] are R = T*H rows of d: the q/k norm; then x may be act, and s is
 * [T*H]. y may be x (backward then cannot be used). */
enum err dev_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                     const struct tensor *h, const struct tensor *x,
                     const struct tensor *add, const struct tensor *g, float eps);
/* dx (+)= s (g dy - x s^2 mean(g dy x)); s as forward stored it. accumulate: dx +=.
 *   dx, dy, x act (2-D or 3-D); dx may be dy when not accumulating. */
enum err dev_rmsnorm_bwd(struct dev *d, const struct tensor *dx, const struct tensor *dy,
                         const struct tensor *x, const struct tensor *s,
                         const struct tensor *g, bool accumulate);

/* y = a + b (y may be a or b), [R,C], each act. */
enum err dev_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                 const struct tensor *b);

/* --- attention ---------------------------------------------------------------------- */

/* Rotate x [T,H,d] act (3-D view, ld) in place: (x1, x2) = halves of a head,
 * (x1 cos - x2 sin, x2 cos + x1 sin), cos, sin [T, d/2]. inverse: the opposite rotation,
 * which is the backward. */
enum err dev_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                  const struct tensor *sin, bool inverse);

/* Rotate every head of x [T,H,d] act (3-D view, ld) in place by the normalized Hadamard
 * matrix (kernels/tensor/hadamard.h): its own inverse, and its own backward. d a power of
 * two, 2 to HADAMARD_MAX. */
enum err dev_hadamard(struct dev *d, const struct tensor *x);

/* Which keys a query sees in full precision (past-only quantization). Query i sees key j <=
 * i in full precision iff j > i - window, or j < sink, or chunk > 1 and j / chunk == i /
 * chunk (prefill in chunks: a query's own chunk is not quantized yet); quantized otherwise.
 * window 0 and chunk <= 1: none recent (kv.past_only: false). block > 1: keys are quantized
 * block tokens at a time, so the last key of j's block stands for j but in j < sink; one
 * whose last key is still to come is in full precision. dev_attn_bwd wants chunk <= 1. */
struct attn_mask {
    int64_t window, sink, chunk, block;
};

/* Causal attention with grouped heads, head h of q using kv head h / (H/K):
 *   S_ij = scale q_i . k'_j  (j <= i),  P = softmax(S),  o_i = sum_j P_ij v'_j
 * with k', v' = k, v where the mask says full precision (everywhere when kq == NULL) and
 * kq, vq elsewhere.
 *   q, o [T,H,d]; k, v, kq, vq [T,K,d]: 3-D views, ld, all one act type.
 *   lse [H,T] F32: log sum exp of S, backward needs it.
 * BF16 inputs: P, and dS in backward, may be rounded to BF16 before their products. */
enum err dev_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                  const struct tensor *q, const struct tensor *k, const struct tensor *v,
                  const struct tensor *kq, const struct tensor *vq,
                  const struct attn_mask *mask, float scale);
/* Gradients for all inputs; dkq, dvq NULL iff kq NULL. dq, dk, dv, dkq, dvq, dout have the
 * act type and views of their counterparts. */
enum err dev_attn_bwd(struct dev *d, const struct tensor *dq, const struct tensor *dk,
                      const struct tensor *dv, const struct tensor *dkq,
                      const struct tensor *dvq, const struct tensor *dout,
                      const struct tensor *o, const struct tensor *lse,
                      const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct tensor *kq,
                      const struct tensor *vq, const struct attn_mask *mask, float scale);

/* --- MLP ---------------------------------------------------------------------------- */

/* y[r,f] = silu(gu[r,f]) gu[r,F+f], silu(x) = x / (1 + exp(-x)). y act [R,F], gu act
 * [R,2F]. */
enum err dev_silu_gate(struct dev *d, const struct tensor *y, const struct tensor *gu);
/* dgu [R,2F] from dy [R,F], gu. dgu may be gu. */
enum err dev_silu_gate_bwd(struct dev *d, const struct tensor *dgu, const struct tensor *dy,
                           const struct tensor *gu);

/* --- fake quantization -------------------------------------------------------------- */

/* Learnable weight clipping (OmniQuant's LWC as WKVQuant uses it), groups of G consecutive
 * columns, the last may be shorter, G = 0 the whole row, n = groups of a row:
 *   gamma = sigma(a), beta = sigma(b);  lo = beta min(0, min W), hi = gamma max(0, max W)
 *   h, z, q, w^ as kernels/tensor/quant.h defines them.
 * a, b NULL: gamma = beta = 1. v NULL: round to nearest; else v is inside the rounding.
 *   wq act [N,C]; scales U16-in-DT_F16 [N,n]; zeros U8 [N,n]; w, v F32 [N,C]; a, b [N,n].
 *   scales, zeros are written; wq may be NULL (scales and zeros only). */
enum err dev_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                const struct tensor *scales, const struct tensor *zeros,
                                const struct tensor *w, const struct tensor *a,
                                const struct tensor *b, const struct tensor *v, int bits,
                                int64_t group_size);
/* The same w^ from stored scales and zeros: bit-equal to what dev_fake_quant_weights gave. */
enum err dev_fake_quant_stored(struct dev *d, const struct tensor *wq,
                               const struct tensor *scales, const struct tensor *zeros,
                               const struct tensor *w, const struct tensor *v, int bits,
                               int64_t group_size);
/* da, db [N,n] from dw^ [N,C] F32 (straight through round and fp16; docs/method.md). */
enum err dev_fake_quant_weights_bwd(struct dev *d, const struct tensor *da,
                                    const struct tensor *db, const struct tensor *dwq,
                                    const struct tensor *w, const struct tensor *a,
                                    const struct tensor *b, const struct tensor *v,
                                    int bits, int64_t group_size);
/* v -= rate sign(dw^) where the code is not clamped, then into [-1/2, 1/2]: the gradient of
 * v is h dw^, and h > 0. v, dwq, w F32 [N,C]; scales, zeros of the w^ that dwq is of. */
enum err dev_round_step(struct dev *d, const struct tensor *v, const struct tensor *dwq,
                        const struct tensor *scales, const struct tensor *zeros,
                        const struct tensor *w, float rate, int bits, int64_t group_size);

/* Two-dimensional KV fake quantization, dynamic per token and group of G channels inside a
 * head, with static per-channel smoothing s = exp(ls) and shift shift:
 *   xq act [T,K,d]; x act [T,K,d]; s, shift [K*d] (s NULL: 1, shift NULL: 0); xq may be
 * x. */
enum err dev_fake_quant_kv(struct dev *d, const struct tensor *xq, const struct tensor *x,
                           const struct tensor *s, const struct tensor *shift, int bits,
                           int64_t group_size);
/* dx (+)= ..., dls += dL/d(log s), dshift += dL/d shift, from dxq. dx, dxq, x act [T,K,d];
 * dls, dshift [K*d], both NULL to skip; dx may be dxq when not accumulating. The path
 * through h goes to the first channel that holds the group's max (min). */
enum err dev_fake_quant_kv_bwd(struct dev *d, const struct tensor *dx,
                               const struct tensor *dls, const struct tensor *dshift,
                               const struct tensor *dxq, const struct tensor *x,
                               const struct tensor *s, const struct tensor *shift, int bits,
                               int64_t group_size, bool accumulate);

/* Fake quantization per channel, dynamic over blocks of `tokens` consecutive tokens from
 * token 0 (kv.method: channel): every channel of every whole block is a group of
 * kernels/tensor/quant.h's arithmetic with s = 1, shift = 0. The last T % tokens tokens
 * fill no block and are copied. xq, x act [T,K,d], tokens > 0; xq may be x. */
enum err dev_fake_quant_kv_channel(struct dev *d, const struct tensor *xq,
                                   const struct tensor *x, int bits, int64_t tokens);
/* dx (+)= the gradient, from dxq; dx may be dxq when not accumulating. The path through h
 * goes to the first token that holds the block's max (min). */
enum err dev_fake_quant_kv_channel_bwd(struct dev *d, const struct tensor *dx,
                                       const struct tensor *dxq, const struct tensor *x,
                                       int bits, int64_t tokens, bool accumulate);

/* mn[c] = min(mn[c], min_r x[r,c]), mx likewise. x act [R,C] (or [T,K,d]); mn, mx [C]. */
enum err dev_col_minmax(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                        const struct tensor *x);
/* s[c] = exp(ls[c]), [C]. */
enum err dev_exp(struct dev *d, const struct tensor *s, const struct tensor *ls);

/* --- training ----------------------------------------------------------------------- */

enum loss_kind { LOSS_MAE, LOSS_MSE };

/* *loss (host, valid on return) = weight * mean |y - t| or weight * mean (y - t)^2;
 * dy (+)= its gradient (sign(0) = 0); dy NULL: loss only. y, dy F32 or act [R,C]; t act.
 * Sums in f64, fixed order. accumulate: dy += (F32 dy). */
enum err dev_loss(struct dev *d, double *loss, const struct tensor *dy,
                  const struct tensor *y, const struct tensor *t, enum loss_kind kind,
                  float weight, bool accumulate);

struct adamw {
    float lr, beta1, beta2, eps, weight_decay;
    int64_t step; /* 1 for the first */
};
/* p, g, m, v [n] F32. p -= lr (mhat / (sqrt(vhat) + eps) + weight_decay p). */
enum err dev_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                   const struct tensor *m, const struct tensor *v, const struct adamw *o);

/* *finite (host) = no NaN or infinity in x (act or F32, any shape). */
enum err dev_all_finite(struct dev *d, bool *finite, const struct tensor *x);

/* --- model ends --------------------------------------------------------------------- */

/* nll[r] = log sum_c exp(x[r,c]) - x[r, target[r]]; x act [R,V], target I32 [R], nll [R].
 */
enum err dev_cross_entropy(struct dev *d, const struct tensor *nll, const struct tensor *x,
                           const struct tensor *target);

#endif

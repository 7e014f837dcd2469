/* SPDX-License-Identifier: MIT
 *
 * The operations of a device. A device is a table of functions (kernels/dev_ops.h): `ref`
 * is plain loops with f64 accumulation and defines each operation, `cpu` uses threads and
 * SIMD, `cuda` one GPU. The functions here check their arguments and call the table.
 *
 * Alphabet: T tokens, D model width, F MLP width, H query heads, K key-value heads, d
 * head width, R rows, C columns, N weight rows (outputs), G columns of a group, n groups
 * of a row.
 *
 * Rules for all operations:
 *  - Memory: tensors are in memory of the device (dev_alloc), unless a comment says "host".
 *  - Types: an "act" tensor is F32 or BF16, each one independently unless a comment ties
 *    them. All others are F32. Arithmetic is F32 or better, whatever the storage.
 *  - Outputs are overwritten, unless the comment says "+=". They may overlap an input only
 *    where the comment allows it.
 *  - Work may be queued. The host sees results after dev_sync() or dev_download().
 *  - Same inputs, device and thread count give the same bits.
 *  - Threads: one caller per device at a time. Different devices are independent.
 *  - Errors: ERR_SHAPE if tensors do not fit together, ERR_DEVICE if the device lacks the
 *    operation, ERR_MEMORY. A failure inside a device is sticky: later calls return it.
 *  - An operation allocates working memory at most in its first call with a shape. */
#ifndef WKVQ_DEV_H
#define WKVQ_DEV_H

#include "kernels/tensor/gate.h"
#include "kernels/tensor/qtensor.h"
#include "kernels/tensor/tensor.h"

struct dev; /* opaque */

struct dev_settings {
    const char *name; /* "ref", "cpu" or "cuda" */
    int threads;      /* 0 = all cores */
};

/* On success the caller owns *out; on failure *out is unchanged. ERR_USAGE for a device
 * that this build lacks, ERR_SUPPORT if the machine has no such device. */
enum err dev_open(struct dev **out, const struct dev_settings *s);
/* Frees the device and sets *d to NULL; *d may be NULL. Memory from dev_alloc() must have
 * been freed. */
void dev_close(struct dev **d);
const char *dev_name(const struct dev *d); /* static */
int dev_threads(const struct dev *d);
/* One line on which libraries and instructions were chosen, and why ("bf16 GEMM: oneDNN
 * 2.6.3 avx512_core_bf16; ..."). Owned by d. */
const char *dev_about(const struct dev *d);
/* Returns true if operations may return before their work is done. */
bool dev_queues(const struct dev *d);
/* The act type that `compute: auto` stands for on this device. */
enum dtype dev_preferred_act(const struct dev *d);
/* Returns true if products widen BF16 operands to F32 in memory first. */
bool dev_widens(const struct dev *d);
/* Seconds spent in dev_gemm() since the last reset, 0 on a device that does not measure.
 * Products inside attention are not included. */
double dev_gemm_seconds(struct dev *d, bool reset);

/* Parts of the work, for measurements. FAKE_QUANT contains all fake quantizers and exp,
 * LOSS also cross entropy, OPTIMIZER also the test for finite values. ELEMENTWISE is
 * norms, rope, gate, add and bias; COPY is conversions and transfers. */
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
/* Seconds spent inside the operations of one part since dev_open(). A device that queues
 * work counts only the queueing, unless dev_set_synchronous() is on. */
double dev_part_seconds(const struct dev *d, enum dev_part part);
/* Makes every operation wait until its work is done, for measurements. Returns false, and
 * changes nothing, on a device whose operations always wait. */
bool dev_set_synchronous(struct dev *d, bool on);

/* --- memory -------------------------------------------------------------------------- */

/* *out is 64-byte aligned, with undefined contents; bytes > 0. The caller frees it. */
enum err dev_alloc(struct dev *d, void **out, size_t bytes);
/* Waits for all queued work and copies first. p may be NULL. */
void dev_free(struct dev *d, void *p);
/* Copies from and to host memory, and waits for the copy. */
enum err dev_upload(struct dev *d, void *dst, const void *host_src, size_t bytes);
enum err dev_download(struct dev *d, void *host_dst, const void *src, size_t bytes);
enum err dev_zero(struct dev *d, void *dst, size_t bytes);
/* Queues the write of a few bytes, a multiple of 4 up to DEV_PUT_BYTES, to dst, which is aligned to
 * 4. The host may change host_src at once. */
enum err dev_put(struct dev *d, void *dst, const void *host_src, size_t bytes);
#define DEV_PUT_BYTES 128
/* Uploads elements of type `from` (F32, F16 or BF16, any alignment) as those of y, act or of that
 * type, and contiguous: the values of host_to_f32() and host_to_bf16(). The host may change
 * host_src at once. A device with memory of its own keeps DEV_UPLOAD_BYTES of it from the first
 * call on, and as much of the host's, page-locked unless that is short. */
enum err dev_upload_as(struct dev *d, const struct tensor *y, const void *host_src,
                       enum dtype from);
#define DEV_UPLOAD_BYTES (4 << 20)
/* w = the values of q's codes, as dev_upload_as() converts them from F32. w act [out,in],
 * contiguous. ERR_MEMORY. */
enum err dev_upload_values(struct dev *d, const struct tensor *w, const struct qlinear *q);
/* Downloads the elements of x, which is F32, F16 or BF16 and contiguous, as F32, and waits for the
 * copy. */
enum err dev_download_f32(struct dev *d, float *host_dst, const struct tensor *x);
/* Waits for all queued work; returns the device's failure, if there was one. */
enum err dev_sync(struct dev *d);

/* True if the device has memory of its own. *free and *total are then its bytes, or 0 if
 * they are unknown. */
bool dev_memory(struct dev *d, uint64_t *free, uint64_t *total);
/* Returns the threads of a device that works in the host's memory; 0: it has its own. */
int dev_host_threads(struct dev *d);

/* Asynchronous copies. They run in order in a queue of their own, beside compute; on a
 * device that works in host memory they happen at once. A copy starts after the
 * operations queued before it. Operations queued later may run at the same time, so they
 * must not touch either side of it before dev_copy_wait(). The host must not touch its
 * side before dev_copy_sync() or dev_sync(). */
enum err dev_copy_in(struct dev *d, void *dst, const void *host_src, size_t bytes);
enum err dev_copy_out(struct dev *d, void *host_dst, const void *src, size_t bytes);
/* Operations queued from now on start after the copies queued so far. */
enum err dev_copy_wait(struct dev *d);
/* Makes the host wait for the copies queued so far, but not for other operations. */
enum err dev_copy_sync(struct dev *d);
/* Page-locked host memory, with undefined contents. Asynchronous copies are correct from
 * any memory, but only from this one does the host not wait. ERR_MEMORY here is not
 * sticky. */
enum err dev_host_alloc(struct dev *d, void **out, size_t bytes);
void dev_host_free(struct dev *d, void *p); /* p may be NULL */

/* y = x, converted between F32 and BF16, or from F16, which x alone may be. y and x have one shape,
 * each its own ld. */
enum err dev_copy(struct dev *d, const struct tensor *y, const struct tensor *x);

/* --- linear algebra ------------------------------------------------------------------ */

enum gemm_kind {
    GEMM_NT, /* C[M,N] = A[M,K] B[N,K]^T    forward:         y = x W^T */
    GEMM_NN, /* C[M,N] = A[M,K] B[K,N]      input gradient:  dx = dy W */
    GEMM_TN, /* C[M,N] = A[K,M]^T B[K,N]    weight gradient: dW = dy^T x */
};

/* A and B are both F32 or both BF16. C is F32, or BF16 if they are. Sums are F32.
 * accumulate: C += instead of C =, for F32 C only. Rows may be strided (ld). */
enum err dev_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                  const struct tensor *a, const struct tensor *b, bool accumulate);

/* y = x + A B, where A B is a product as above, and this sum its only use.
 *   y, x  F32 [M,N]; y may be x, with its ld
 *   part  working memory: what dev_gemm() could write A B to
 * A B is rounded to part's type before the sum. A device that adds inside the product does not
 * round. */
enum err dev_gemm_add(struct dev *d, enum gemm_kind kind, const struct tensor *y,
                      const struct tensor *x, const struct tensor *a,
                      const struct tensor *b, const struct tensor *part);

/* y[r,c] += b[c]. y act [R,C] (ld), b [C]. */
enum err dev_bias(struct dev *d, const struct tensor *y, const struct tensor *b);

/* --- norms --------------------------------------------------------------------------- */

/* What is normalized, and with which gain. */
struct rmsnorm_inputs {
    /* F32 [R,C], or act [T,H,d] for the norm of each head (then R = T H, C = d). */
    const struct tensor *x;
    const struct tensor *add; /* act [R,C], or NULL */
    const struct tensor *g;   /* [C] */
    float eps;
};

/* y[r,c] = x[r,c] s[r] g[c] with s[r] = 1 / sqrt(mean_c x[r,c]^2 + eps).
 * With add, first h = x + add, and h is normalized instead of x.
 *   y       act [R,C]; may be x, but the backward then lacks its input
 *   s       [R], stored for the backward
 *   h       F32 [R,C], NULL exactly if add is; may be x */
enum err dev_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                     const struct tensor *h, const struct rmsnorm_inputs *in);
/* Gradient of the loss in what is normalized. */
struct rmsnorm_grads {
    const struct tensor *dx; /* act [R,C] or [T,H,d]; may be dy unless accumulating */
    /* act, as dx, which is F32: gets dx once more, as dev_copy() would; may be dy. NULL: not
     * wanted. */
    const struct tensor *copy;
    bool accumulate; /* dx += instead of dx = */
};

/* dx (+)= s (g dy - x s^2 mean_c(g dy x)), with s as the forward stored it. dy and x are act
 * [R,C] or [T,H,d]. */
enum err dev_rmsnorm_bwd(struct dev *d, const struct rmsnorm_grads *grads,
                         const struct tensor *dy, const struct tensor *x,
                         const struct tensor *s, const struct tensor *g);

/* y = a + b (y may be a or b), [R,C], each act. */
enum err dev_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                 const struct tensor *b);
/* y *= factor, in place. y act [R,C]. */
enum err dev_scale(struct dev *d, const struct tensor *y, float factor);

/* --- attention ----------------------------------------------------------------------- */

/* Rotary position embedding in place: (x1, x2) = (x1 cos - x2 sin, x2 cos + x1 sin), with x1,
 * x2 the halves of a head's first r channels. x act [T,H,d]; cos, sin [T,r/2], r even, <= d.
 * inverse: rotates back, which is the backward. */
enum err dev_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                  const struct tensor *sin, bool inverse);

/* Multiplies every head of x in place by the normalized Hadamard matrix of
 * kernels/tensor/hadamard.h, which is its own inverse and its own backward. x act
 * [T,H,d], d a power of two from 2 to HADAMARD_MAX. */
enum err dev_hadamard(struct dev *d, const struct tensor *x);

/* Which keys a query sees in full precision (past-only quantization). Query i sees key
 * j <= i in full precision if one of these holds, and quantized otherwise:
 *   j > i - window                             the most recent tokens
 *   j < sink                                   the first tokens
 *   chunk > 1 and j / chunk == i / chunk       the query's own chunk of a prefill
 * window 0 with chunk <= 1 is kv.past_only: false. block > 1 says that keys are quantized
 * `block` tokens at a time: the last key of j's block then stands for j in the conditions
 * on window and chunk, so that a block is in full precision until it is complete.
 * dev_attn_bwd() needs chunk <= 1. */
struct attn_mask {
    int64_t window, sink, chunk, block; /* tokens */
};

/* The inputs of attention. All tensors have one act type; views with ld are allowed. */
struct attn_inputs {
    const struct tensor *q;       /* [T,H,d] */
    const struct tensor *k, *v;   /* [T,K,d], in full precision; H is a multiple of K */
    const struct tensor *kq, *vq; /* [T,K,d], quantized; both NULL: nothing is */
    const struct attn_mask *mask; /* chooses between k and kq; may be NULL without kq */
    int64_t reach; /* tokens that a query sees, itself included (sliding window); 0: all */
    float scale;   /* 1 / sqrt(d) in every supported model */
    /* T changes from call to call, so nothing that takes long is prepared for this one. The same
     * inputs with the same value give the same bits. */
    bool varies;
};

/* Causal attention with grouped heads; head h of q uses head h / (H/K) of keys and values:
 *   S_ij = scale q_i . k'_j  (i - reach < j <= i)   P = softmax(S)   o_i = sum_j P_ij v'_j
 * where k'_j, v'_j are k_j, v_j or kq_j, vq_j, as the mask says for the pair (i, j).
 *   o       [T,H,d], type of q
 *   lse     F32 [H,T], log sum_j exp(S_ij): the backward needs it
 * A probability P_ij below 2^-64 may be taken as 0.
 * With BF16 inputs, P (and dS in the backward) may be rounded to BF16 before its product, and
 * so may sums over the past, or over the queries of one head, before others are added. */
enum err dev_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                  const struct attn_inputs *in);
/* ERR_SUPPORT if the device has no attention for heads of d channels. A run asks before its work
 * begins. */
enum err dev_attn_check(const struct dev *d, int64_t head_dim);

/* Gradients of the loss in the inputs: type and shape as their counterparts. */
struct attn_grads {
    const struct tensor *dq;        /* [T,H,d] */
    const struct tensor *dk, *dv;   /* [T,K,d] */
    const struct tensor *dkq, *dvq; /* [T,K,d], NULL exactly if kq is */
};

/* All gradients, from dout [T,H,d] and the forward's o and lse. */
enum err dev_attn_bwd(struct dev *d, const struct attn_grads *grads,
                      const struct tensor *dout, const struct tensor *o,
                      const struct tensor *lse, const struct attn_inputs *in);

/* --- MLP ----------------------------------------------------------------------------- */

/* y[r,f] = act(gu[r,f]) gu[r,F+f], with the activation of enum gate_act. y act [R,F], gu act
 * [R,2F]. */
enum err dev_gate(struct dev *d, enum gate_act act, const struct tensor *y,
                  const struct tensor *gu);
/* dgu [R,2F] from dy [R,F], gu. dgu may be gu. */
enum err dev_gate_bwd(struct dev *d, enum gate_act act, const struct tensor *dgu,
                      const struct tensor *dy, const struct tensor *gu);

/* --- fake quantization --------------------------------------------------------------- */

/* A weight and how it is quantized. Groups are G consecutive columns of a row; the last one
 * of a row may be shorter. */
struct weight_quant {
    const struct tensor *w;     /* F32, F16 or BF16 [N,C], read as F32 */
    const struct tensor *a, *b; /* F32 [N,n], clipping parameters; both NULL: no clipping */
    const struct tensor *v;     /* F32 [N,C], offsets inside the rounding; NULL: all 0 */
    int bits;                   /* 2 to 8 */
    int64_t group_size;         /* G in columns; 0: the whole row */
    int scale_bits;             /* significant bits of h, 1 to 11; 0: all 11 of fp16 */
};

/* Learnable weight clipping. Per group, with gamma = sigma(a) and beta = sigma(b), 1
 * without clipping:
 *   lo = beta min(0, min W)        hi = gamma max(0, max W)
 * and h, z, q, w^ follow from lo and hi by kernels/tensor/quant.h.
 *   wq      act [N,C], w^; may be NULL, then only scales and zeros are written
 *   scales  F16 [N,n], h
 *   zeros   U8 [N,n], z */
enum err dev_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                const struct tensor *scales, const struct tensor *zeros,
                                const struct weight_quant *p);
/* wq = w^ from stored scales and zeros; p's a and b are not read. Gives the bits that
 * dev_fake_quant_weights() gave when it wrote them. */
enum err dev_fake_quant_stored(struct dev *d, const struct tensor *wq,
                               const struct tensor *scales, const struct tensor *zeros,
                               const struct weight_quant *p);
/* da, db [N,n] from dwq, the loss's gradient in w^, F32 [N,C]: straight through the
 * rounding of weights and scales (docs/method.md). p's a and b must not be NULL. */
enum err dev_fake_quant_weights_bwd(struct dev *d, const struct tensor *da,
                                    const struct tensor *db, const struct tensor *dwq,
                                    const struct weight_quant *p);
/* One signed step of the rounding offsets p->v, which must not be NULL and is updated:
 * v -= rate sign(dwq), clamped to [-1/2, 1/2]. Offsets whose code is clamped keep their
 * value. (The gradient in v is h dwq, and h > 0.) scales and zeros are those of the w^ in
 * which dwq is the gradient; p's a and b are not read. */
enum err dev_offset_step(struct dev *d, const struct tensor *dwq,
                         const struct tensor *scales, const struct tensor *zeros,
                         const struct weight_quant *p, float rate);

/* Keys or values and how they are quantized: per token and group of G channels inside a
 * head, after a static shift and smoothing per channel. */
struct kv_quant {
    const struct tensor *x;         /* act [T,K,d] */
    const struct tensor *s, *shift; /* [K*d]; both NULL: s = 1, shift = 0 */
    int bits;                       /* 2 to 8 */
    int64_t group_size;             /* G in channels, capped at d; 0: d */
};

/* Two-dimensional fake quantization: xq = s (m + h q) + shift, where h, m, q quantize
 * x~ = (x - shift) / s (kernels/tensor/quant.h). xq act [T,K,d]; it may be x. */
enum err dev_fake_quant_kv(struct dev *d, const struct tensor *xq,
                           const struct kv_quant *p);

/* Gradients of the loss in the quantizer's input and parameters. */
struct kv_grads {
    const struct tensor *dx; /* act [T,K,d]; may be dxq unless accumulating */
    const struct tensor *dls,
        *dshift;     /* [K*d], in log s and shift: added to; or both NULL */
    bool accumulate; /* dx += instead of dx = */
};

/* All gradients from dxq, act [T,K,d]. The path through h goes to the first channel that
 * holds the group's maximum, and to the first that holds its minimum. */
enum err dev_fake_quant_kv_bwd(struct dev *d, const struct kv_grads *grads,
                               const struct tensor *dxq, const struct kv_quant *p);

/* Fake quantization per channel (kv.method: channel): every channel of every `tokens`
 * consecutive tokens, counted from token 0, is a group of its own, with s = 1 and shift =
 * 0. The last T % tokens tokens do not fill a block and are copied. xq, x act [T,K,d];
 * tokens > 0; xq may be x. */
enum err dev_fake_quant_kv_channel(struct dev *d, const struct tensor *xq,
                                   const struct tensor *x, int bits, int64_t tokens);
/* dx (+)= the gradient, from dxq; dx may be dxq unless accumulating. The path through h
 * goes to the first token that holds the maximum, and to the first that holds the
 * minimum. */
enum err dev_fake_quant_kv_channel_bwd(struct dev *d, const struct tensor *dx,
                                       const struct tensor *dxq, const struct tensor *x,
                                       int bits, int64_t tokens, bool accumulate);

/* mn[c] = min(mn[c], min_r x[r,c]), and mx likewise: mn and mx are updated. x act [R,C] or
 * [T,K,d]; mn, mx [C]. */
enum err dev_col_minmax(struct dev *d, const struct tensor *mn, const struct tensor *mx,
                        const struct tensor *x);
/* s[c] = exp(ls[c]), [C]. */
enum err dev_exp(struct dev *d, const struct tensor *s, const struct tensor *ls);

/* --- training ------------------------------------------------------------------------ */

enum loss_kind { LOSS_MAE, LOSS_MSE };

struct loss_inputs {
    const struct tensor *y, *t; /* act [R,C]: output and target */
    enum loss_kind kind;
    float weight;
    bool accumulate; /* dy += instead of dy =, for F32 dy only */
};

/* *loss = weight mean |y - t| or weight mean (y - t)^2, on the host and valid on return:
 * this call waits. dy (+)= the gradient in y, act [R,C], with sign(0) = 0; dy NULL: none.
 * Sums are f64 in a fixed order. */
enum err dev_loss(struct dev *d, double *loss, const struct tensor *dy,
                  const struct loss_inputs *in);

/* fix1 and fix2, 1 - beta^step, remove the bias of moments that start at 0. */
struct adamw_rates {
    float lr, fix1, fix2;
    int64_t step;
};

struct adamw {
    float lr, beta1, beta2, eps, weight_decay;
    int64_t step; /* counts from 1 */
    /* Nothing changes if this is not 0 when the step's turn comes; memory of the device, as
     * kernels/dev_report.h has it. NULL: 0. */
    const int32_t *unless;
    /* Replace lr and step: read from memory of the device when the step's turn comes
     * (kernels/dev_step.h). NULL: lr and step count. */
    const struct adamw_rates *rates;
};
/* One step of AdamW on p, with gradient g and moments m, v, all F32 [n] (Loshchilov, Hutter
 * 2019): p -= lr (mhat / (sqrt(vhat) + eps) + weight_decay p). */
enum err dev_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                   const struct tensor *m, const struct tensor *v, const struct adamw *o);

/* *finite = x has no NaN and no infinity, on the host and valid on return. x act, any
 * shape. */
enum err dev_all_finite(struct dev *d, bool *finite, const struct tensor *x);

/* --- model ends ---------------------------------------------------------------------- */

/* nll[r] = log sum_c exp(x[r,c]) - x[r, target[r]]. x act [R,V], target I32 [R], each
 * 0 to V - 1, which is not checked; nll [R]. */
enum err dev_cross_entropy(struct dev *d, const struct tensor *nll, const struct tensor *x,
                           const struct tensor *target);

#endif

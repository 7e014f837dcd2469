/* SPDX-License-Identifier: MIT
 *
 * One transformer block on a device: forward with what backward needs kept, and backward.
 *
 *   h   = x + Wo attn(rope(norm(Wq n1)), rope(norm(Wk n1)), Wv n1),  n1 = rmsnorm(x)
 *   out = h + Wdown (silu(Wgate n2) * (Wup n2)),                     n2 = rmsnorm(h) */
#ifndef WKVQ_BLOCK_H
#define WKVQ_BLOCK_H

#include "calib/model/weights.h"

/* Every activation kept for backward, sized once for T tokens; act is F32 or BF16. One
 * allocation. Backward consumes them: one backward a forward. */
struct block_acts {
    struct dev *dev;
    void *memory;
    int64_t T;
    enum dtype act;
    struct tensor x;      /* [T,D] F32 residual in: a view set by block_forward */
    struct tensor n1, s1; /* [T,D] act, [T] */
    struct tensor
        qkv_raw;          /* [T,(H+K)d] act, q and k before their norm; only with qk_norm */
    struct tensor sq, sk; /* [T*H], [T*K]: only with qk_norm */
    struct tensor qkv;    /* [T,(H+2K)d] act, q and k rotated */
    struct tensor k_pre;  /* [T,K*d] act, key before rope; only for pre-rope KV */
    struct tensor kq, vq; /* [T,K*d] act, fake-quantized; only for the quantized block */
    struct tensor o, lse; /* [T,H*d] act, [H,T] */
    struct tensor h, n2, s2; /* [T,D] F32, [T,D] act, [T] */
    struct tensor gu, m;     /* [T,2F] act, [T,F] act */
    struct tensor cos, sin;  /* [T,d/2] F32, shared by all blocks of a run: borrowed views,
                                set by the caller after block_acts_alloc */
};

/* How the block's KV cache is quantized, and the inputs of its projections; NULL in
 * block_forward: not at all. */
struct block_kv {
    struct kv_spec spec;
    int64_t layer; /* the block's number: spec may say another format for each */
    struct tensor k_s, k_delta, v_s, v_delta; /* [K*d] F32; data NULL: 1 and 0 */
    int act_bits;  /* 2..8: those inputs, per token, as the cache without s and delta; their
                      gradient goes straight through. 0, 16: left alone */
    int64_t chunk; /* prefill chunk in evaluation, as struct attn_mask has it; no backward
                      above 1 */
};

/* Gradients of the quantized block. Any data may be NULL: not wanted. */
struct block_grads {
    struct tensor dwqkv, dwo, dwgu, dwdown;         /* F32, overwritten */
    struct tensor k_dls, k_ddelta, v_dls, v_ddelta; /* [K*d], overwritten */
};

struct block_scratch; /* device buffers of forward and backward, shared by all blocks */

/* Rotary tables of positions 0 .. T - 1 on d; release with dev_free(d, cos->data). */
enum err block_rope_alloc(struct tensor *cos, struct tensor *sin, struct dev *d,
                          const struct arch *a, int64_t T);

/* An upper bound: quantized counts kq, vq and k_pre. */
size_t block_acts_bytes(const struct arch *a, int64_t T, enum dtype act, bool quantized);
/* kv not NULL and below 16 bits in any layer: with kq, vq (and k_pre when it says
 * pre-rope). */
enum err block_acts_alloc(struct block_acts *acts, struct dev *d, const struct arch *a,
                          int64_t T, enum dtype act, const struct kv_spec *kv);
void block_acts_free(struct block_acts *acts); /* accepts a zeroed one */

enum err block_scratch_open(struct block_scratch **out, struct dev *d, const struct arch *a,
                            int64_t T, enum dtype act);
void block_scratch_close(struct block_scratch **s);
size_t block_scratch_bytes(const struct arch *a, int64_t T, enum dtype act);

/* out [T,D] F32 from x [T,D] F32 (not aliased; x must live until backward). kv NULL: full
 * precision. */
enum err block_forward(struct block_acts *acts, struct block_scratch *s,
                       const struct arch *a, const struct block_weights *w,
                       const struct block_kv *kv, const struct tensor *out,
                       const struct tensor *x);

/* The same for rows [first, T) alone: those before begin the window of the last forward
 * too, whose keys and values acts still holds. They are not written to out; no backward. */
enum err block_forward_from(struct block_acts *acts, struct block_scratch *s,
                            const struct arch *a, const struct block_weights *w,
                            const struct block_kv *kv, const struct tensor *out,
                            const struct tensor *x, int64_t first);

/* What forward left, in full precision: keys as kv quantizes them, and values. Views,
 * [T,K*d] act. */
struct tensor block_keys(const struct block_acts *acts, const struct arch *a,
                         const struct kv_spec *kv);
struct tensor block_values(const struct block_acts *acts, const struct arch *a);

/* dx [T,D] F32 from dout [T,D] F32 through a full-precision block; dx may be dout. */
enum err block_backward(struct block_acts *acts, struct block_scratch *s,
                        const struct arch *a, const struct block_weights *w,
                        const struct tensor *dx, const struct tensor *dout);

/* Gradients that a full-precision block's backward comes by, for who measures them: of the
 * output of down; of gate over up; of o; of q, k, v as attention takes them; of q, k, v as
 * the projection gives them. */
enum block_grad {
    BLOCK_GRAD_DOWN,      /* [T,D] F32 */
    BLOCK_GRAD_GATE_UP,   /* [T,2F] act */
    BLOCK_GRAD_O,         /* [T,D] F32 */
    BLOCK_GRAD_ATTENTION, /* [T,(H+2K)d] act */
    BLOCK_GRAD_QKV,       /* [T,(H+2K)d] act */
};
struct block_watch {
    void *ctx;
    /* In the order above. g is borrowed for the call. */
    enum err (*grad)(void *ctx, enum block_grad what, const struct tensor *g);
};
/* block_backward; watch NULL: nobody looks. */
enum err block_backward_watched(struct block_acts *acts, struct block_scratch *s,
                                const struct arch *a, const struct block_weights *w,
                                const struct tensor *dx, const struct tensor *dout,
                                const struct block_watch *watch);

/* Parameter gradients of the quantized block from dout [T,D] F32 (destroyed). The block's
 * input does not learn, so no dx is computed below the q, k, v weights. */
enum err block_backward_params(struct block_acts *acts, struct block_scratch *s,
                               const struct arch *a, const struct block_weights *w,
                               const struct block_kv *kv, const struct block_grads *g,
                               const struct tensor *dout);

#endif

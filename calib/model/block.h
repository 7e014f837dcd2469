/* SPDX-License-Identifier: MIT
 *
 * One transformer block on a device: forward with what backward needs kept, and backward.
 *
 *   h   = x + r Wo attn(rope(norm(Wq n1)), rope(norm(Wk n1)), Wv n1),  n1 = rmsnorm(x)
 *   out = h + r Wdown (silu(Wgate n2) * (Wup n2)),                     n2 = rmsnorm(h)
 *
 * r is the architecture's residual_scale, 1 in most families. With NORMS_BEHIND, n1 = x and n2 = h,
 * and rmsnorm applies to what Wo and Wdown return. With experts, the MLP is the weighted sum of
 * experts.c. */
#ifndef WKVQ_BLOCK_H
#define WKVQ_BLOCK_H

#include "calib/model/route.h"
#include "calib/model/weights.h"

/* What a mixture of experts needs of T tokens and R = T k rows, a row for each expert that a token
 * goes to, in the order of route.h. */
struct expert_acts {
    struct route route; /* host */
    struct tensor x, y; /* [R,D] act: n2 of the rows' tokens, and what the experts return */
    struct tensor logits;     /* [T,E] F32, of the router, or their gradients */
    struct tensor dlogits;    /* [T,E] act */
    struct tensor slot;       /* [T,k] I32, rows */
    struct tensor token;      /* [R,1] I32 */
    struct tensor weight;     /* [T,k] F32, or gradients of the weights */
    struct tensor row_weight; /* [R,1] F32 */
};

/* Every activation that backward needs, sized once for T tokens in one allocation; act is
 * F32 or BF16. Backward overwrites them: one backward per forward. */
struct block_acts {
    struct dev *dev;
    void *memory;
    int64_t T;
    enum dtype act;
    bool varies;     /* other acts have another T (dev_attn()); false after allocation */
    struct tensor x; /* [T,D] F32 residual in: a view set by block_forward */
    struct tensor n1, s1; /* [T,D] act, [T] */
    struct tensor
        qkv_raw;          /* [T,(H+K)d] act, q and k before their norm; only with qk_norm */
    struct tensor sq, sk; /* [T*H], [T*K], or [T] of all heads: only with qk_norm */
    struct tensor qkv;    /* [T,(H+2K)d] act, q and k rotated */
    struct tensor k_pre;  /* [T,K*d] act, key before rope; only for pre-rope KV */
    struct tensor kq, vq; /* [T,K*d] act, fake-quantized; only for the quantized block */
    struct tensor o, lse; /* [T,H*d] act, [H,T] */
    struct tensor y1, t1; /* [T,D] act, [T]: Wo o; only with a norm behind attention */
    struct tensor h, n2, s2; /* [T,D] F32, [T,D] act, [T] */
    struct tensor gu, m;     /* [T,2F] act, [T,F] act; with experts R rows */
    struct expert_acts experts;
    struct tensor y2, t2; /* [T,D] act, [T]: Wdown m; only with a norm behind the MLP */
    /* [T,arch_rope_columns] F32, shared by all blocks of a run: borrowed views, set by the
     * caller after block_acts_alloc */
    struct tensor cos, sin;
};

/* How the block's KV cache and the inputs of its projections are quantized. NULL in calls:
 * not at all. */
struct block_kv {
    struct kv_spec spec;
    int64_t layer; /* number of the block: formats may differ by layer */
    struct tensor k_s, k_shift, v_s, v_shift; /* [K*d] F32; data NULL: 1 and 0 */
    float scale[2]; /* by enum kv_side, positive; only with kv_target_has_scales() */
    /* 2..8: inputs of projections, per token, like the cache without s and delta; their
     * gradient is passed straight through. 0, 16: unquantized. */
    int act_bits;
    int64_t chunk; /* prefill chunk in evaluation, see struct attn_mask; backward: <= 1 */
};

/* Gradients of the quantized block's parameters. Data may be NULL: not wanted. */
struct block_grads {
    struct tensor dwqkv, dwo, dwgu, dwdown;         /* F32, overwritten */
    struct tensor k_dls, k_dshift, v_dls, v_dshift; /* [K*d], overwritten */
    struct tensor dnorm[N_BLOCK_GAINS]; /* of gains, by enum norm_gain; added to */
};

struct block_scratch; /* device buffers of forward and backward, shared by all blocks */

/* Rotary tables of positions 0 .. T - 1 on d; release with dev_free(d, cos->data). */
enum err block_rope_alloc(struct tensor *cos, struct tensor *sin, struct dev *d,
                          const struct arch *a, int64_t T);

/* y [R,C] act *= factor, a field of struct arch; nothing to do if it is 0 or 1. */
enum err block_scale(struct dev *d, const struct tensor *y, double factor);

/* Returns an upper bound of the bytes; quantized: including kq, vq and k_pre. */
size_t block_acts_bytes(const struct arch *a, int64_t T, enum dtype act, bool quantized);
/* With kv below 16 bits in any layer, kq and vq are allocated, and k_pre for pre-rope keys.
 * Errors: ERR_MEMORY, ERR_USAGE for a T that is out of range. */
enum err block_acts_alloc(struct block_acts *acts, struct dev *d, const struct arch *a,
                          int64_t T, enum dtype act, const struct kv_spec *kv);
/* Activations of attention alone, for the texts of packed rows. Errors as above. */
enum err block_text_alloc(struct block_acts *text, struct dev *d, const struct arch *a,
                          int64_t T, enum dtype act, const struct kv_spec *kv);
void block_acts_free(struct block_acts *acts); /* accepts a zeroed one */

enum err block_scratch_open(struct block_scratch **out, struct dev *d, const struct arch *a,
                            int64_t T, enum dtype act);
void block_scratch_close(struct block_scratch **s);
size_t block_scratch_bytes(const struct arch *a, int64_t T, enum dtype act);
/* Returns an upper bound of what attention allocates inside a device: the cpu device with that many
 * threads, or a GPU with cpu_threads 0. */
size_t block_inside_bytes(const struct arch *a, int64_t T, enum dtype act, int cpu_threads);
/* Returns an upper bound of what a GPU with memory of its own allocates after all buffers: inside
 * attention, and for uploads. */
size_t block_later_bytes(const struct arch *a, int64_t T, enum dtype act);
/* Returns the most that a product of a block takes where BF16 operands are widened to F32 first. */
size_t block_widened_bytes(const struct arch *a, int64_t T);

/* out [T,D] F32 = block(x [T,D] F32). They do not overlap; x must live until backward. kv
 * NULL: full precision. Errors: ERR_SHAPE if acts has no room for a quantized cache. */
enum err block_forward(struct block_acts *acts, struct block_scratch *s,
                       const struct arch *a, const struct block_weights *w,
                       const struct block_kv *kv, const struct tensor *out,
                       const struct tensor *x);

/* Computes only what a cache holds of x [T,D] F32: block_keys() and block_values(), and in kq and
 * vq what kv makes of them. No backward follows. */
enum err block_forward_cache(struct block_acts *acts, const struct arch *a,
                             const struct block_weights *w, const struct block_kv *kv,
                             const struct tensor *x);

/* A text among the rows of several. Its tokens are the first `past` ones of an earlier text, whose
 * rows begin at `from` and have no past themselves, and then rows [first, first + n) of its own. */
struct sequence {
    int64_t from, past, first, n;
};

/* Texts whose rows go through projections and MLP together; attention sees each by itself. */
struct packed_rows {
    const struct tensor *out, *x; /* [R,D] F32 */
    const struct sequence *sequence;
    int64_t n;
    struct block_acts *text; /* working memory for the longest, with its rotary tables */
};
/* The forward of packed rows. acts and s have room for R tokens. No backward follows. */
enum err block_forward_packed(struct block_acts *acts, struct block_scratch *s,
                              const struct arch *a, const struct block_weights *w,
                              const struct block_kv *kv, const struct packed_rows *rows);

/* Return the keys (at the stage where kv quantizes them) and values of the last forward in
 * full precision. Views, [T,K*d] act. */
struct tensor block_keys(const struct block_acts *acts, const struct arch *a,
                         const struct kv_spec *kv);
struct tensor block_values(const struct block_acts *acts, const struct arch *a);

/* dx [T,D] F32 from dout [T,D] F32 through a full-precision block; dx may be dout. */
enum err block_backward(struct block_acts *acts, struct block_scratch *s,
                        const struct arch *a, const struct block_weights *w,
                        const struct tensor *dx, const struct tensor *dout);

/* Intermediate gradients a caller can observe during block_backward_watched(). */
enum block_grad {
    BLOCK_GRAD_DOWN,      /* [T,D] act, of the output of down */
    BLOCK_GRAD_GATE_UP,   /* [T,2F] act, of the outputs of gate and up */
    BLOCK_GRAD_O,         /* [T,D] act, of the output of o */
    BLOCK_GRAD_ATTENTION, /* [T,(H+2K)d] act, of q, k, v as attention reads them */
    BLOCK_GRAD_QKV,       /* [T,(H+2K)d] act, of the outputs of q, k, v */
};
struct block_watch {
    void *ctx;
    /* Called in the order above. g is borrowed for the call. */
    enum err (*grad)(void *ctx, enum block_grad what, const struct tensor *g);
};
/* block_backward with calls to watch, which may be NULL. */
enum err block_backward_watched(struct block_acts *acts, struct block_scratch *s,
                                const struct arch *a, const struct block_weights *w,
                                const struct tensor *dx, const struct tensor *dout,
                                const struct block_watch *watch);

/* Gradients of the quantized block's parameters into g, from dout [T,D] F32 (destroyed).
 * Its input does not learn, so backward ends at the q, k, v weights. */
enum err block_backward_params(struct block_acts *acts, struct block_scratch *s,
                               const struct arch *a, const struct block_weights *w,
                               const struct block_kv *kv, const struct block_grads *g,
                               const struct tensor *dout);

/* The same, and dx [T,D] F32 of the block's input. dx may be dout. */
enum err block_backward_full(struct block_acts *acts, struct block_scratch *s,
                             const struct arch *a, const struct block_weights *w,
                             const struct block_kv *kv, const struct block_grads *g,
                             const struct tensor *dx, const struct tensor *dout);

#endif

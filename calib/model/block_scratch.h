/* SPDX-License-Identifier: MIT
 *
 * What forward and backward share: temporaries, and the views into a stacked qkv row.
 * Private to calib/model. */
#ifndef WKVQ_BLOCK_SCRATCH_H
#define WKVQ_BLOCK_SCRATCH_H

#include "calib/model/block.h"
#include "calib/model/carve.h"
#include "kernels/dev_engine.h"

/* Buffers live only inside one call, so a few of them serve several purposes in turn. */
struct block_scratch {
    struct dev *dev;
    void *memory;
    struct tensor y;        /* [T,D] act: a sum's summand, or its gradient */
    struct tensor dm, d_o;  /* [T,F], [T,H*d] act: one memory, dm is done before d_o */
    struct tensor dx, dn;   /* [R,D], [T,D] F32: only with experts; dm then has R rows */
    struct tensor dqkv;     /* [T,(H+2K)d] act */
    struct tensor dkq, dvq; /* [T,K*d] act */
};

/* Columns of a [T,(H+2K)d] (or, for q and k, [T,(H+K)d]) tensor as heads. */
static inline struct tensor q_heads(const struct arch *a, struct tensor qkv)
{
    return tensor_heads(tensor_cols(qkv, 0, a->n_heads * a->head_dim), a->n_heads);
}

static inline struct tensor k_heads(const struct arch *a, struct tensor qkv)
{
    const int64_t d = a->head_dim;
    return tensor_heads(tensor_cols(qkv, a->n_heads * d, a->n_kv * d), a->n_kv);
}

static inline struct tensor v_heads(const struct arch *a, struct tensor qkv)
{
    const int64_t d = a->head_dim;
    return tensor_heads(tensor_cols(qkv, (a->n_heads + a->n_kv) * d, a->n_kv * d), a->n_kv);
}

/* q and k side by side: rotated in one operation. */
static inline struct tensor qk_heads(const struct arch *a, struct tensor qkv)
{
    const int64_t heads = a->n_heads + a->n_kv;
    return tensor_heads(tensor_cols(qkv, 0, heads * a->head_dim), heads);
}

/* Returns into how many vectors the q/k norm divides the heads of a token. */
static inline int64_t normed_vectors(const struct arch *a, int64_t heads)
{
    return a->qk_norm == QK_NORM_ALL ? 1 : heads;
}

/* [T,H,d] heads as [T,H*d]. */
static inline struct tensor side_by_side(const struct tensor *x)
{
    struct tensor y = tensor_2d(x->data, x->dtype, x->dim[0], x->dim[1] * x->dim[2]);
    y.ld = x->ld;
    return y;
}

/* q or k [T,heads,d] as its norm sees them: so, or [T,1,heads*d] if it covers all heads. */
static inline struct tensor normed_heads(const struct arch *a, struct tensor x)
{
    return tensor_heads(side_by_side(&x), normed_vectors(a, x.dim[1]));
}

/* Returns true if kv.rotate applies to keys: in full precision too, so that caches
 * compare. */
static inline bool keys_rotated(const struct block_kv *kv)
{
    return kv && (kv->spec.rotate & ROTATE_K);
}

static inline bool kv_quantized(const struct block_kv *kv)
{
    return kv && kv_quantizes_layer(&kv->spec, kv->layer);
}

static inline struct kv_format side_format(const struct block_kv *kv, enum kv_side side)
{
    return kv_format(&kv->spec, kv->layer, side);
}

/* Smoothing or shift for dev_fake_quant_kv: NULL, which is cheaper, where it is 1 or 0. */
static inline const struct tensor *kv_param(const struct block_kv *kv,
                                            const struct tensor *p)
{
    return kv->spec.method != KV_CHANNEL_TOKEN || !p->data ? NULL : p;
}

/* The quantizer of another engine's cache for keys or values `in`. Only values have smoothing and
 * shift, which weights can hold: those of keys would have to pass the rotary embedding. */
static inline struct engine_quant engine_of(const struct arch *a, const struct block_kv *kv,
                                            enum kv_side side, const struct tensor *in)
{
    return (struct engine_quant){.x = in,
                                 .s = side == KV_K ? NULL : kv_param(kv, &kv->v_s),
                                 .shift = side == KV_K ? NULL : kv_param(kv, &kv->v_shift),
                                 .scale = kv->scale[side],
                                 .target = kv->spec.target,
                                 .side = side,
                                 .interleaved = side == KV_K &&
                                                kv_target_folds(kv->spec.target) &&
                                                arch_interleaves_keys(a)};
}

/* Returns how many tokens of keys are quantized together; 1: each token by itself. With a residual
 * of another engine, keys and values are quantized token by token, but not before their block is
 * complete. */
static inline int64_t kv_block(const struct block_kv *kv)
{
    if (kv->spec.target)
        return kv_target_residual(kv->spec.target);
    const struct kv_format f = side_format(kv, KV_K);
    return kv->spec.method == KV_CHANNEL && f.bits < 16 ? f.group_size : 1;
}

static inline struct attn_mask kv_mask(const struct block_kv *kv)
{
    const struct kv_spec *s = &kv->spec;
    return (struct attn_mask){.window = s->past_only ? s->window : 0,
                              .sink = s->sink,
                              .chunk = s->past_only ? kv->chunk : 0,
                              .block = kv_block(kv)};
}

static inline bool acts_quantized(const struct block_kv *kv)
{
    return kv && kv->act_bits && kv->act_bits < 16;
}

/* Rotates x [T,heads,d], q or k or their gradients, unless layer has no rotary embedding. */
static inline enum err apply_rope(const struct block_acts *x, const struct arch *a,
                                  int64_t layer, const struct tensor *heads, bool inverse)
{
    const int64_t first = arch_rope_column(a, layer), n = arch_rotary_dim(a) / 2;
    const struct tensor cos = tensor_cols(x->cos, first, n);
    const struct tensor sin = tensor_cols(x->sin, first, n);
    return layer_set_has(&a->no_rope, layer) ? OK
                                             : dev_rope(x->dev, heads, &cos, &sin, inverse);
}

/* y = x [T,n], an input of projections, quantized per token if kv says so, else untouched.
 * y may be x. */
enum err quantize_input(struct dev *d, const struct block_kv *kv, const struct tensor *y,
                        const struct tensor *x);
/* --- experts.c ---------------------------------------------------------------------- */

/* Places what a mixture of experts needs of T tokens; nothing without experts. */
void experts_layout(struct expert_acts *e, struct carve *c, const struct arch *a, int64_t T,
                    enum dtype act);
/* y [T,D] act = the weighted sum of the experts, from x->n2. */
enum err experts_forward(struct block_acts *x, const struct arch *a,
                         const struct block_weights *w, const struct block_kv *kv,
                         const struct tensor *y);
/* s->dn = the gradient of n2 from dy [T,D], through the experts and the router's weights; which
 * experts were chosen is constant. With g also the gradients of weights, 0 for an expert that no
 * token went to. */
enum err experts_bwd(struct block_acts *x, struct block_scratch *s, const struct arch *a,
                     const struct block_weights *w, const struct block_grads *g,
                     const struct tensor *dy);

/* *in = input of wo: o itself, which backward of attention needs unchanged, or o quantized,
 * in s->d_o. */
enum err output_input(struct tensor *in, struct block_acts *x, struct block_scratch *s,
                      const struct block_kv *kv);

#endif

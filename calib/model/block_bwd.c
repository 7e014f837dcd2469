/* SPDX-License-Identifier: MIT
 *
 * Backward of one block: to its input (a full-precision block on the way down), or to its
 * parameters (the quantized block in work). The gradient of the residual stream is F32 and
 * grows in place; every other gradient has the act type. gu is overwritten by its
 * gradient. */
#include "calib/model/block_scratch.h"
#include "kernels/dev_refine.h"

/* The gradient of the residual stream. */
struct stream_grad {
    const struct tensor *dh; /* F32 [T,D] */
    bool wants_copy; /* a norm before a part writes it to s->y as well, in the act type */
    bool in_y;       /* s->y has it */
};

/* Returns true if products take dh as it is: in F32, where r = 1. */
static bool is_operand(const struct block_scratch *s, const struct arch *a)
{
    return s->y.dtype == DT_F32 && arch_factor(a->residual_scale) == 1;
}

/* The gradient of what a product added to the residual stream, in the act type: r dh. That
 * is dh itself or in s->y, which may then be overwritten. */
static enum err as_operand(struct tensor *g, struct block_scratch *s, const struct arch *a,
                           struct stream_grad *stream)
{
    *g = is_operand(s, a) ? *stream->dh : s->y;
    if (is_operand(s, a))
        return OK;
    if (!stream->in_y)
        TRY(dev_copy(s->dev, &s->y, stream->dh));
    stream->in_y = false;
    return block_scale(s->dev, &s->y, a->residual_scale);
}

/* *dw = dy^T x unless it is not wanted. */
static enum err weight_grad(struct dev *d, const struct tensor *dw, const struct tensor *dy,
                            const struct tensor *x)
{
    return dw && dw->data ? dev_gemm(d, GEMM_TN, dw, dy, x, false) : OK;
}

/* dg += the gain's gradient unless it is not wanted. */
static enum err gain_grad(struct dev *d, const struct tensor *dg, const struct tensor *dy,
                          const struct tensor *x, const struct tensor *s)
{
    return dg && dg->data ? dev_rmsnorm_gain_bwd(d, dg, dy, x, s) : OK;
}

/* A norm of the block: its gain, and the input and s of its forward. */
struct normed {
    enum norm_gain gain;
    const struct tensor *x, *s;
};

/* dh += the gradient of a part's input, dn [T,D] of what its norm returned, or of the input itself
 * if no norm stands before it. Adds the gradient of the norm's gain. */
static enum err input_bwd(struct block_scratch *s, const struct block_weights *w,
                          const struct block_grads *g, struct normed n,
                          struct stream_grad *stream, const struct tensor *dn)
{
    const struct tensor *gain = &w->norm[n.gain], *dh = stream->dh;
    const struct rmsnorm_grads grads = {dh, stream->wants_copy ? &s->y : NULL, true};
    if (!gain->data)
        return dev_add(s->dev, dh, dh, dn);
    TRY(gain_grad(s->dev, g ? &g->dnorm[n.gain] : NULL, dn, n.x, n.s));
    stream->in_y = stream->wants_copy;
    return dev_rmsnorm_bwd(s->dev, &grads, dn, n.x, n.s, gain);
}

/* The same from dy, the gradient of what the product with `weight` returned. */
static enum err product_input_bwd(struct block_scratch *s, const struct block_weights *w,
                                  const struct block_grads *g, struct normed n,
                                  struct stream_grad *stream, const struct tensor *dy,
                                  const struct tensor *weight)
{
    const struct tensor *dh = stream->dh;
    if (!w->norm[n.gain].data)
        return dev_gemm_add(s->dev, GEMM_NN, dh, dh, dy, weight, &s->y);
    TRY(dev_gemm(s->dev, GEMM_NN, &s->y, dy, weight, false));
    return input_bwd(s, w, g, n, stream, &s->y);
}

/* *dy = the gradient of what a product returned: that of what was added to the residual stream,
 * taken through the norm if one stands behind the product. It is dh itself, or in s->y. Adds the
 * gradient of the norm's gain. */
static enum err output_bwd(struct tensor *dy, struct block_scratch *s, const struct arch *a,
                           const struct block_weights *w, const struct block_grads *g,
                           struct normed n, struct stream_grad *stream)
{
    const struct tensor *gain = &w->norm[n.gain];
    const struct rmsnorm_grads grads = {.dx = &s->y};
    TRY(as_operand(dy, s, a, stream));
    if (!gain->data)
        return OK;
    TRY(gain_grad(s->dev, g ? &g->dnorm[n.gain] : NULL, dy, n.x, n.s));
    TRY(dev_rmsnorm_bwd(s->dev, &grads, dy, n.x, n.s, gain));
    *dy = s->y;
    return OK;
}

static struct normed after_attention(const struct block_acts *x)
{
    return (struct normed){GAIN_ATTENTION_OUT, &x->y1, &x->t1};
}

static struct normed after_mlp(const struct block_acts *x)
{
    return (struct normed){GAIN_MLP_OUT, &x->y2, &x->t2};
}

/* x->gu = the gradient of [gate up] = Wgu n2 from dy, that of Wdown m, m = silu(gate) up. */
static enum err gated_bwd(struct block_acts *x, struct block_scratch *s,
                          const struct arch *a, const struct block_weights *w,
                          const struct block_grads *g, const struct tensor *dy)
{
    struct dev *d = x->dev;
    TRY(weight_grad(d, g ? &g->dwdown : NULL, dy, &x->m));
    TRY(dev_gemm(d, GEMM_NN, &s->dm, dy, &w->wdown, false));
    TRY(dev_gate_bwd(d, a->gate, &x->gu, &s->dm, &x->gu));
    return weight_grad(d, g ? &g->dwgu : NULL, &x->gu, &x->n2);
}

/* dh += the MLP's share, out = h + r MLP(n2). */
static enum err mlp_bwd(struct block_acts *x, struct block_scratch *s, const struct arch *a,
                        const struct block_weights *w, const struct block_grads *g,
                        struct stream_grad *stream)
{
    const struct normed before = {GAIN_MLP, &x->h, &x->s2};
    struct tensor dy;
    TRY(output_bwd(&dy, s, a, w, g, after_mlp(x), stream));
    TRY((a->n_experts ? experts_bwd : gated_bwd)(x, s, a, w, g, &dy));
    stream->wants_copy = !is_operand(s, a); /* for attention */
    if (a->n_experts)
        return input_bwd(s, w, g, before, stream, &s->dn);
    return product_input_bwd(s, w, g, before, stream, &x->gu, &w->wgu);
}

/* Gradients of q, k, v as attention saw them into s->dqkv, and of kq, vq. h = x + r Wo o. */
static enum err attention_bwd(struct block_acts *x, struct block_scratch *s,
                              const struct arch *a, const struct block_weights *w,
                              const struct block_kv *kv, const struct block_grads *g,
                              struct stream_grad *stream)
{
    struct dev *d = x->dev;
    struct tensor dy, in;
    TRY(output_bwd(&dy, s, a, w, g, after_attention(x), stream));
    TRY(output_input(&in, x, s, kv));
    TRY(weight_grad(d, g ? &g->dwo : NULL, &dy, &in));
    TRY(dev_gemm(d, GEMM_NN, &s->d_o, &dy, &w->wo, false));

    const struct tensor q = q_heads(a, x->qkv), dq = q_heads(a, s->dqkv);
    const struct tensor k = k_heads(a, x->qkv), dk = k_heads(a, s->dqkv);
    const struct tensor v = v_heads(a, x->qkv), dv = v_heads(a, s->dqkv);
    const struct tensor o = tensor_heads(x->o, a->n_heads);
    const struct tensor d_o = tensor_heads(s->d_o, a->n_heads);
    struct attn_inputs attn = {.q = &q,
                               .k = &k,
                               .v = &v,
                               .reach = arch_reach(a, w->layer),
                               .scale = arch_attn_scale(a)};
    struct attn_grads grads = {.dq = &dq, .dk = &dk, .dv = &dv};
    if (!kv_quantized(kv))
        return dev_attn_bwd(d, &grads, &d_o, &o, &x->lse, &attn);
    const struct tensor kq = tensor_heads(x->kq, a->n_kv),
                        vq = tensor_heads(x->vq, a->n_kv);
    const struct tensor dkq = tensor_heads(s->dkq, a->n_kv);
    const struct tensor dvq = tensor_heads(s->dvq, a->n_kv);
    const struct attn_mask mask = kv_mask(kv);
    attn.kq = &kq;
    attn.vq = &vq;
    attn.mask = &mask;
    grads.dkq = &dkq;
    grads.dvq = &dvq;
    return dev_attn_bwd(d, &grads, &d_o, &o, &x->lse, &attn);
}

/* The backward of rotations is their inverse: R is its own, and rope turns back. */
static enum err unrotate(struct block_acts *x, const struct arch *a, int64_t layer,
                         const struct block_kv *kv, const struct tensor *grad)
{
    if (keys_rotated(kv))
        TRY(dev_hadamard(x->dev, grad));
    return apply_rope(x, a, layer, grad, true);
}

/* Parameters of K or V, and their gradients. */
struct kv_params {
    enum kv_side side;
    const struct tensor *s, *delta, *dls, *ddelta;
};

/* Clears the parameters' gradients if they are wanted. */
static enum err start_params(struct dev *d, const struct kv_params *p, bool *wanted)
{
    *wanted = p->dls->data && p->ddelta->data;
    if (!*wanted)
        return OK;
    const size_t bytes = (size_t)tensor_count(p->dls) * sizeof(float);
    TRY(dev_zero(d, p->dls->data, bytes));
    return dev_zero(d, p->ddelta->data, bytes);
}

/* Adds the gradient through the quantizer to dx, and computes those of the parameters if
 * they are wanted. Unquantized sides and blocks of tokens have no parameters: gradients are
 * 0. */
static enum err kv_grad(struct block_acts *x, const struct arch *a,
                        const struct block_kv *kv, struct kv_params p,
                        const struct tensor *dx, const struct tensor *dxq,
                        const struct tensor *in)
{
    struct dev *d = x->dev;
    const struct kv_format f = side_format(kv, p.side);
    bool wanted;
    TRY(start_params(d, &p, &wanted));
    if (f.bits >= 16) {
        const struct tensor sum = side_by_side(dx), share = side_by_side(dxq);
        return dev_add(d, &sum, &sum, &share);
    }
    if (p.side == KV_K && kv->spec.method == KV_CHANNEL)
        return dev_fake_quant_kv_channel_bwd(d, dx, dxq, in, f.bits, f.group_size, true);
    wanted = wanted && !(kv->spec.target && p.side == KV_K);
    const struct kv_grads grads = {.dx = dx,
                                   .dls = wanted ? p.dls : NULL,
                                   .dshift = wanted ? p.ddelta : NULL,
                                   .accumulate = true};
    if (kv->spec.target) {
        const struct engine_quant engine = engine_of(a, kv, p.side, in);
        return dev_fake_quant_engine_bwd(d, &grads, dxq, &engine);
    }
    const struct kv_quant quant = {.x = in,
                                   .s = kv_param(kv, p.s),
                                   .shift = kv_param(kv, p.delta),
                                   .bits = f.bits,
                                   .group_size = kv_group(a->head_dim, f.group_size)};
    return dev_fake_quant_kv_bwd(d, &grads, dxq, &quant);
}

/* Adds the gradients through the quantizers (dkq, dvq) to s->dqkv and takes it back through
 * rope. */
static enum err quantizers_bwd(struct block_acts *x, struct block_scratch *s,
                               const struct arch *a, int64_t layer,
                               const struct block_kv *kv, const struct block_grads *g)
{
    const struct kv_params k_side = {KV_K, &kv->k_s, &kv->k_shift, &g->k_dls, &g->k_dshift};
    const struct kv_params v_side = {KV_V, &kv->v_s, &kv->v_shift, &g->v_dls, &g->v_dshift};
    const struct tensor dqk = qk_heads(a, s->dqkv), dk = k_heads(a, s->dqkv);
    const struct tensor k = k_heads(a, x->qkv), k_pre = tensor_heads(x->k_pre, a->n_kv);
    const struct tensor v = v_heads(a, x->qkv), dv = v_heads(a, s->dqkv);
    const struct tensor dkq = tensor_heads(s->dkq, a->n_kv);
    const struct tensor dvq = tensor_heads(s->dvq, a->n_kv);
    TRY(kv_grad(x, a, kv, v_side, &dv, &dvq, &v));
    if (kv->spec.key_stage == KEY_POST_ROPE) {
        TRY(kv_grad(x, a, kv, k_side, &dk, &dkq, &k));
        return unrotate(x, a, layer, kv, &dqk);
    }
    TRY(unrotate(x, a, layer, kv, &dqk));
    TRY(unrotate(x, a, layer, kv, &dkq));
    return kv_grad(x, a, kv, k_side, &dk, &dkq, &k_pre);
}

/* Moves s->dqkv, in place, back through the q/k norm. */
static enum err qk_norm_bwd(struct block_acts *x, struct block_scratch *s,
                            const struct arch *a, const struct block_weights *w,
                            const struct block_grads *g)
{
    if (!a->qk_norm)
        return OK;
    const struct tensor dq = normed_heads(a, q_heads(a, s->dqkv));
    const struct tensor dk = normed_heads(a, k_heads(a, s->dqkv));
    const struct tensor q = normed_heads(a, q_heads(a, x->qkv_raw));
    const struct tensor k = normed_heads(a, k_heads(a, x->qkv_raw));
    TRY(gain_grad(x->dev, g ? &g->dnorm[GAIN_Q] : NULL, &dq, &q, &x->sq));
    TRY(gain_grad(x->dev, g ? &g->dnorm[GAIN_K] : NULL, &dk, &k, &x->sk));
    const struct rmsnorm_grads to_q = {.dx = &dq}, to_k = {.dx = &dk};
    TRY(dev_rmsnorm_bwd(x->dev, &to_q, &dq, &q, &x->sq, &w->norm[GAIN_Q]));
    return dev_rmsnorm_bwd(x->dev, &to_k, &dk, &k, &x->sk, &w->norm[GAIN_K]);
}

static enum err show(const struct block_watch *watch, enum block_grad what,
                     const struct tensor *g)
{
    return watch ? watch->grad(watch->ctx, what, g) : OK;
}

/* Shows the gradient of a product's output, in front of the norm if one stands behind. */
static enum err show_output(const struct block_watch *watch, enum block_grad what,
                            struct block_scratch *s, const struct arch *a,
                            const struct block_weights *w, struct normed n,
                            struct stream_grad *stream)
{
    struct tensor g;
    if (!watch)
        return OK;
    TRY(output_bwd(&g, s, a, w, NULL, n, stream));
    return show(watch, what, &g);
}

/* dx += the gradient of the block's input, from that of q, k and v in s->dqkv. */
static enum err qkv_bwd(struct block_acts *x, struct block_scratch *s,
                        const struct block_weights *w, const struct block_grads *g,
                        const struct tensor *dx)
{
    const struct normed before = {GAIN_ATTENTION, &x->x, &x->s1};
    struct stream_grad stream = {.dh = dx};
    return product_input_bwd(s, w, g, before, &stream, &s->dqkv, &w->wqkv);
}

enum err block_backward_watched(struct block_acts *acts, struct block_scratch *s,
                                const struct arch *a, const struct block_weights *w,
                                const struct tensor *dx, const struct tensor *dout,
                                const struct block_watch *watch)
{
    struct dev *d = acts->dev;
    struct stream_grad stream = {.dh = dx};
    if (dx->data != dout->data)
        TRY(dev_copy(d, dx, dout));
    TRY(show_output(watch, BLOCK_GRAD_DOWN, s, a, w, after_mlp(acts), &stream));
    TRY(mlp_bwd(acts, s, a, w, NULL, &stream));
    TRY(show(watch, BLOCK_GRAD_GATE_UP, &acts->gu));
    TRY(show_output(watch, BLOCK_GRAD_O, s, a, w, after_attention(acts), &stream));
    TRY(attention_bwd(acts, s, a, w, NULL, NULL, &stream));
    TRY(show(watch, BLOCK_GRAD_ATTENTION, &s->dqkv));
    const struct tensor dqk = qk_heads(a, s->dqkv);
    TRY(unrotate(acts, a, w->layer, NULL, &dqk));
    TRY(qk_norm_bwd(acts, s, a, w, NULL));
    TRY(show(watch, BLOCK_GRAD_QKV, &s->dqkv));
    return qkv_bwd(acts, s, w, NULL, dx);
}

enum err block_backward(struct block_acts *acts, struct block_scratch *s,
                        const struct arch *a, const struct block_weights *w,
                        const struct tensor *dx, const struct tensor *dout)
{
    return block_backward_watched(acts, s, a, w, dx, dout, NULL);
}

/* Takes the gradient of the block's output in dh to s->dqkv before rope. dh becomes the
 * gradient of h, the residual stream after attention. */
static enum err heads_bwd(struct block_acts *acts, struct block_scratch *s,
                          const struct arch *a, const struct block_weights *w,
                          const struct block_kv *kv, const struct block_grads *g,
                          const struct tensor *dh)
{
    struct stream_grad stream = {.dh = dh};
    TRY(mlp_bwd(acts, s, a, w, g, &stream));
    TRY(attention_bwd(acts, s, a, w, kv, g, &stream));
    if (kv_quantized(kv))
        return quantizers_bwd(acts, s, a, w->layer, kv, g);
    const struct tensor dqk = qk_heads(a, s->dqkv);
    return unrotate(acts, a, w->layer, kv, &dqk);
}

enum err block_backward_params(struct block_acts *acts, struct block_scratch *s,
                               const struct arch *a, const struct block_weights *w,
                               const struct block_kv *kv, const struct block_grads *g,
                               const struct tensor *dout)
{
    TRY(heads_bwd(acts, s, a, w, kv, g, dout));
    if (!g->dwqkv.data)
        return OK;
    TRY(qk_norm_bwd(acts, s, a, w, g));
    return weight_grad(acts->dev, &g->dwqkv, &s->dqkv, &acts->n1);
}

enum err block_backward_full(struct block_acts *acts, struct block_scratch *s,
                             const struct arch *a, const struct block_weights *w,
                             const struct block_kv *kv, const struct block_grads *g,
                             const struct tensor *dx, const struct tensor *dout)
{
    struct dev *d = acts->dev;
    if (dx->data != dout->data)
        TRY(dev_copy(d, dx, dout));
    TRY(heads_bwd(acts, s, a, w, kv, g, dx));
    TRY(qk_norm_bwd(acts, s, a, w, g));
    TRY(weight_grad(d, &g->dwqkv, &s->dqkv, &acts->n1));
    return qkv_bwd(acts, s, w, g, dx);
}

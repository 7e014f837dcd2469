/* SPDX-License-Identifier: MIT
 *
 * Forward of one block. Weights come fake-quantized or not; the cache is fake-quantized
 * here. */
#include "calib/model/block_scratch.h"

/* n1 = rmsnorm(x), or x itself if norms stand behind. */
static enum err attention_input(struct block_acts *x, const struct arch *a,
                                const struct block_weights *w)
{
    const struct tensor *g = &w->norm[GAIN_ATTENTION];
    const struct rmsnorm_inputs in = {.x = &x->x, .g = g, .eps = a->norm_eps};
    return g->data ? dev_rmsnorm(x->dev, &x->n1, &x->s1, NULL, &in)
                   : dev_copy(x->dev, &x->n1, &x->x);
}

/* y = rmsnorm(raw), s as it is stored: the norm behind a part. g without data: there is none. */
static enum err norm_behind(struct dev *d, const struct arch *a, const struct tensor *y,
                            const struct tensor *s, const struct tensor *raw,
                            const struct tensor *g)
{
    const struct rmsnorm_inputs in = {.x = raw, .g = g, .eps = a->norm_eps};
    return g->data ? dev_rmsnorm(d, y, s, NULL, &in) : OK;
}

/* Rows [first, first + n) of qkv = n1 wqkv^T + bqkv, into columns of y. */
static enum err project(struct dev *d, struct tensor y, const struct tensor *n1,
                        const struct block_weights *w, int64_t first, int64_t n)
{
    const struct tensor rows = tensor_rows(w->wqkv, first, n);
    TRY(dev_gemm(d, GEMM_NT, &y, n1, &rows, false));
    if (!w->bqkv.data)
        return OK;
    const struct tensor b = tensor_rows(w->bqkv, first, n);
    return dev_bias(d, &y, &b);
}

/* q, k, v before rope. With q/k norm, backward needs q and k as they were before it, so
 * they are projected elsewhere and the norm moves them; v goes straight to its place. */
static enum err project_qkv(struct block_acts *x, const struct arch *a,
                            const struct block_weights *w)
{
    const int64_t qk = (a->n_heads + a->n_kv) * a->head_dim, kv = a->n_kv * a->head_dim;
    if (!a->qk_norm)
        return project(x->dev, x->qkv, &x->n1, w, 0, qk + kv);
    TRY(project(x->dev, x->qkv_raw, &x->n1, w, 0, qk));
    TRY(project(x->dev, tensor_cols(x->qkv, qk, kv), &x->n1, w, qk, kv));
    const struct tensor q = normed_heads(a, q_heads(a, x->qkv));
    const struct tensor k = normed_heads(a, k_heads(a, x->qkv));
    const struct tensor q_raw = normed_heads(a, q_heads(a, x->qkv_raw));
    const struct tensor k_raw = normed_heads(a, k_heads(a, x->qkv_raw));
    const struct rmsnorm_inputs raw_q = {
        .x = &q_raw, .g = &w->norm[GAIN_Q], .eps = a->norm_eps};
    const struct rmsnorm_inputs raw_k = {
        .x = &k_raw, .g = &w->norm[GAIN_K], .eps = a->norm_eps};
    TRY(dev_rmsnorm(x->dev, &q, &x->sq, NULL, &raw_q));
    return dev_rmsnorm(x->dev, &k, &x->sk, NULL, &raw_k);
}

/* Applies rope, then the rotation of kv.rotate. */
static enum err rotate(struct block_acts *x, const struct arch *a, int64_t layer,
                       const struct block_kv *kv)
{
    const struct tensor qk = qk_heads(a, x->qkv);
    TRY(apply_rope(x, a, layer, &qk, false));
    return keys_rotated(kv) ? dev_hadamard(x->dev, &qk) : OK;
}

/* y = keys or values `in` as the cache would return them. */
static enum err quantize_side(struct block_acts *x, const struct arch *a,
                              const struct block_kv *kv, enum kv_side side,
                              const struct tensor *y, const struct tensor *in)
{
    const struct kv_format f = side_format(kv, side);
    const struct tensor *const s = side == KV_K ? &kv->k_s : &kv->v_s;
    const struct tensor *const delta = side == KV_K ? &kv->k_shift : &kv->v_shift;
    if (f.bits >= 16)
        return dev_copy(x->dev, y, in);
    if (kv->spec.target) {
        const struct engine_quant engine = engine_of(a, kv, side, in);
        return dev_fake_quant_engine(x->dev, y, &engine);
    }
    if (side == KV_K && kv->spec.method == KV_CHANNEL)
        return dev_fake_quant_kv_channel(x->dev, y, in, f.bits, f.group_size);
    const struct kv_quant p = {.x = in,
                               .s = kv_param(kv, s),
                               .shift = kv_param(kv, delta),
                               .bits = f.bits,
                               .group_size = kv_group(a->head_dim, f.group_size)};
    return dev_fake_quant_kv(x->dev, y, &p);
}

/* Computes kq and vq. Pre-rope keys are quantized before rope and rotated afterwards, as
 * the runtime does when it reads its cache. */
static enum err quantize_kv(struct block_acts *x, const struct arch *a, int64_t layer,
                            const struct block_kv *kv)
{
    const struct tensor kq = tensor_heads(x->kq, a->n_kv),
                        vq = tensor_heads(x->vq, a->n_kv);
    const struct tensor k = k_heads(a, x->qkv), v = v_heads(a, x->qkv);
    if (kv->spec.key_stage == KEY_PRE_ROPE) {
        const struct tensor k_pre = tensor_heads(x->k_pre, a->n_kv);
        TRY(quantize_side(x, a, kv, KV_K, &kq, &k_pre));
        TRY(apply_rope(x, a, layer, &kq, false));
    } else {
        TRY(quantize_side(x, a, kv, KV_K, &kq, &k));
    }
    return quantize_side(x, a, kv, KV_V, &vq, &v);
}

/* Attention over k and v, or over the mixture of full-precision and quantized keys that
 * past-only quantization gives each query (struct attn_mask). */
static enum err attend(struct block_acts *x, const struct arch *a, int64_t layer,
                       const struct block_kv *kv)
{
    const struct tensor q = q_heads(a, x->qkv), k = k_heads(a, x->qkv);
    const struct tensor v = v_heads(a, x->qkv), o = tensor_heads(x->o, a->n_heads);
    struct attn_inputs in = {.q = &q,
                             .k = &k,
                             .v = &v,
                             .reach = arch_reach(a, layer),
                             .scale = arch_attn_scale(a),
                             .varies = x->varies};
    if (!kv_quantized(kv))
        return dev_attn(x->dev, &o, &x->lse, &in);
    const struct tensor kq = tensor_heads(x->kq, a->n_kv),
                        vq = tensor_heads(x->vq, a->n_kv);
    const struct attn_mask mask = kv_mask(kv);
    in.kq = &kq;
    in.vq = &vq;
    in.mask = &mask;
    return dev_attn(x->dev, &o, &x->lse, &in);
}

struct tensor block_keys(const struct block_acts *acts, const struct arch *a,
                         const struct kv_spec *kv)
{
    const int64_t H = a->n_heads * a->head_dim, C = a->n_kv * a->head_dim;
    return kv->key_stage == KEY_PRE_ROPE ? acts->k_pre : tensor_cols(acts->qkv, H, C);
}

struct tensor block_values(const struct block_acts *acts, const struct arch *a)
{
    const int64_t H = a->n_heads * a->head_dim, C = a->n_kv * a->head_dim;
    return tensor_cols(acts->qkv, H + C, C);
}

/* --- rows --------------------------------------------------------------------------- */

static struct tensor from(struct tensor x, int64_t first)
{
    return x.data ? tensor_rows(x, first, x.dim[0] - first) : x;
}

/* Rows [first, T) of all activations but lse. */
static struct block_acts acts_from(const struct block_acts *acts, const struct arch *a,
                                   int64_t first)
{
    struct block_acts t = *acts;
    struct tensor *const all[] = {&t.x,  &t.n1, &t.s1, &t.qkv_raw, &t.qkv, &t.k_pre,
                                  &t.kq, &t.vq, &t.o,  &t.y1,      &t.t1,  &t.h,
                                  &t.n2, &t.s2, &t.y2, &t.t2,      &t.cos, &t.sin};
    t.T -= first;
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        *all[i] = from(*all[i], first);
    t.sq = from(t.sq, first * normed_vectors(a, a->n_heads));
    t.sk = from(t.sk, first * normed_vectors(a, a->n_kv));
    t.gu = from(t.gu, first * arch_mlp_rows(a));
    t.m = from(t.m, first * arch_mlp_rows(a));
    return t;
}

/* Prepares keys and values of rows [first, T) for attention; rotates their q and k. With
 * keys quantized in blocks of tokens, a block that began before first is quantized as a
 * whole. */
static enum err make_cache(struct block_acts *acts, const struct arch *a, int64_t layer,
                           const struct block_kv *kv, int64_t first)
{
    struct block_acts tail = acts_from(acts, a, first);
    if (!kv_quantized(kv))
        return rotate(&tail, a, layer, kv);
    if (kv->spec.key_stage == KEY_PRE_ROPE) {
        const struct tensor k_pre = tensor_heads(tail.k_pre, a->n_kv);
        const struct tensor k = k_heads(a, tail.qkv);
        TRY(dev_copy(acts->dev, &k_pre, &k));
    }
    TRY(rotate(&tail, a, layer, kv));
    struct block_acts blocks = acts_from(acts, a, first - first % kv_block(kv));
    return quantize_kv(&blocks, a, layer, kv);
}

enum err quantize_input(struct dev *d, const struct block_kv *kv, const struct tensor *y,
                        const struct tensor *x)
{
    const struct tensor to = tensor_heads(*y, 1), in = tensor_heads(*x, 1);
    if (!acts_quantized(kv))
        return OK;
    const struct kv_quant p = {.x = &in, .bits = kv->act_bits};
    return dev_fake_quant_kv(d, &to, &p);
}

enum err output_input(struct tensor *in, struct block_acts *x, struct block_scratch *s,
                      const struct block_kv *kv)
{
    *in = acts_quantized(kv) ? tensor_rows(s->d_o, 0, x->o.dim[0]) : x->o;
    return quantize_input(x->dev, kv, in, &x->o);
}

/* y = r Wo o of rows t, normalized if the norm stands behind. */
static enum err attention_out(struct block_acts *t, struct block_scratch *s,
                              const struct arch *a, const struct block_weights *w,
                              const struct block_kv *kv, const struct tensor *y)
{
    struct dev *d = t->dev;
    struct tensor o;
    const struct tensor *raw = t->y1.data ? &t->y1 : y;
    TRY(output_input(&o, t, s, kv));
    TRY(dev_gemm(d, GEMM_NT, raw, &o, &w->wo, false));
    if (w->bo.data)
        TRY(dev_bias(d, raw, &w->bo));
    TRY(norm_behind(d, a, y, &t->t1, raw, &w->norm[GAIN_ATTENTION_OUT]));
    return block_scale(d, y, a->residual_scale);
}

/* h = x + y, and n2 = rmsnorm(h), or h itself if norms stand behind. One norm operation forms h
 * as well, which saves a pass over the residual stream. */
static enum err mlp_input(struct block_acts *t, const struct arch *a,
                          const struct block_weights *w, const struct tensor *y)
{
    const struct tensor *g = &w->norm[GAIN_MLP];
    const struct rmsnorm_inputs sum = {.x = &t->x, .add = y, .g = g, .eps = a->norm_eps};
    if (g->data)
        return dev_rmsnorm(t->dev, &t->n2, &t->s2, &t->h, &sum);
    TRY(dev_add(t->dev, &t->h, &t->x, y));
    return dev_copy(t->dev, &t->n2, &t->h);
}

/* y = Wdown (silu(Wgate n2) * (Wup n2)) of rows t. */
static enum err one_mlp(struct block_acts *t, const struct arch *a,
                        const struct block_weights *w, const struct block_kv *kv,
                        const struct tensor *y)
{
    struct dev *d = t->dev;
    TRY(dev_gemm(d, GEMM_NT, &t->gu, &t->n2, &w->wgu, false));
    if (w->bgu.data)
        TRY(dev_bias(d, &t->gu, &w->bgu));
    TRY(dev_gate(d, a->gate, &t->m, &t->gu));
    TRY(quantize_input(d, kv, &t->m, &t->m));
    TRY(dev_gemm(d, GEMM_NT, y, &t->m, &w->wdown, false));
    return w->bdown.data ? dev_bias(d, y, &w->bdown) : OK;
}

/* y = r times the MLP of rows t, normalized if the norm stands behind. */
static enum err mlp(struct block_acts *t, const struct arch *a,
                    const struct block_weights *w, const struct block_kv *kv,
                    const struct tensor *y)
{
    struct dev *d = t->dev;
    const struct tensor *raw = t->y2.data ? &t->y2 : y;
    TRY(quantize_input(d, kv, &t->n2, &t->n2));
    TRY((a->n_experts ? experts_forward : one_mlp)(t, a, w, kv, raw));
    TRY(norm_behind(d, a, y, &t->t2, raw, &w->norm[GAIN_MLP_OUT]));
    return block_scale(d, y, a->residual_scale);
}

enum err block_forward_from(struct block_acts *acts, struct block_scratch *s,
                            const struct arch *a, const struct block_weights *w,
                            const struct block_kv *kv, const struct block_rows *rows)
{
    const int64_t first = rows->first;
    FAIL_IF(kv_quantized(kv) && (!acts->kq.data ||
                                 (kv->spec.key_stage == KEY_PRE_ROPE && !acts->k_pre.data)),
            ERR_SHAPE,
            "block: activations were allocated without room for a quantized cache");
    acts->x = *rows->x;
    struct block_acts tail = acts_from(acts, a, first);
    const struct tensor y = from(s->y, first), out = from(*rows->out, first);
    TRY(attention_input(&tail, a, w));
    TRY(quantize_input(acts->dev, kv, &tail.n1, &tail.n1));
    TRY(project_qkv(&tail, a, w));
    TRY(make_cache(acts, a, w->layer, kv, first));
    /* This also recomputes queries before `first`: few, and their inputs are still in
     * acts. */
    TRY(attend(acts, a, w->layer, kv));
    TRY(attention_out(&tail, s, a, w, kv, &y));
    TRY(mlp_input(&tail, a, w, &y));
    TRY(mlp(&tail, a, w, kv, &y));
    return dev_add(acts->dev, &out, &tail.h, &y);
}

enum err block_forward(struct block_acts *acts, struct block_scratch *s,
                       const struct arch *a, const struct block_weights *w,
                       const struct block_kv *kv, const struct tensor *out,
                       const struct tensor *x)
{
    const struct block_rows all = {out, x, 0};
    return block_forward_from(acts, s, a, w, kv, &all);
}

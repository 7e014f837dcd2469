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

/* Prepares q, k and v for attention: rotates them, and quantizes keys and values. */
static enum err make_cache(struct block_acts *x, const struct arch *a, int64_t layer,
                           const struct block_kv *kv)
{
    if (!kv_quantized(kv))
        return rotate(x, a, layer, kv);
    if (kv->spec.key_stage == KEY_PRE_ROPE) {
        const struct tensor k_pre = tensor_heads(x->k_pre, a->n_kv);
        const struct tensor k = k_heads(a, x->qkv);
        TRY(dev_copy(x->dev, &k_pre, &k));
    }
    TRY(rotate(x, a, layer, kv));
    return quantize_kv(x, a, layer, kv);
}

/* --- sequences ---------------------------------------------------------------------- */

static struct tensor cut(struct tensor x, int64_t n)
{
    return x.data ? tensor_rows(x, 0, n) : x;
}

/* Rows [0, n) of all activations but x. lse, which nothing of a forward reads, is laid out anew. */
static struct block_acts acts_rows(const struct block_acts *acts, const struct arch *a,
                                   int64_t n)
{
    struct block_acts t = *acts;
    struct tensor *const all[] = {&t.n1, &t.s1, &t.qkv_raw, &t.qkv, &t.k_pre,
                                  &t.kq, &t.vq, &t.o,       &t.y1,  &t.t1,
                                  &t.h,  &t.n2, &t.s2,      &t.y2,  &t.t2};
    t.T = n;
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        *all[i] = cut(*all[i], n);
    t.sq = cut(t.sq, n * normed_vectors(a, a->n_heads));
    t.sk = cut(t.sk, n * normed_vectors(a, a->n_kv));
    t.gu = cut(t.gu, n * arch_mlp_rows(a));
    t.m = cut(t.m, n * arch_mlp_rows(a));
    t.lse = tensor_2d(t.lse.data, DT_F32, a->n_heads, n);
    return t;
}

/* Copies rows [from, from + n) of x to rows [to, to + n) of y. */
static enum err copy_rows(struct dev *d, const struct tensor *y, int64_t to,
                          const struct tensor *x, int64_t from, int64_t n)
{
    const struct tensor target = tensor_rows(*y, to, n), source = tensor_rows(*x, from, n);
    return n ? dev_copy(d, &target, &source) : OK;
}

/* Attention of one sequence. text receives its q, k and v as projected, because a token's position
 * and its block of the cache are those in the sequence. */
static enum err attend_sequence(struct block_acts *acts, const struct block_acts *text,
                                const struct arch *a, int64_t layer,
                                const struct block_kv *kv, const struct sequence *q)
{
    struct dev *d = acts->dev;
    struct block_acts t = acts_rows(text, a, q->past + q->n);
    t.cos = tensor_rows(text->cos, 0, t.T);
    t.sin = tensor_rows(text->sin, 0, t.T);
    TRY(copy_rows(d, &t.qkv, 0, &acts->qkv, q->from, q->past));
    TRY(copy_rows(d, &t.qkv, q->past, &acts->qkv, q->first, q->n));
    TRY(make_cache(&t, a, layer, kv));
    TRY(attend(&t, a, layer, kv));
    return copy_rows(d, &acts->o, q->first, &t.o, q->past, q->n);
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

/* m = act(Wgate n2) * (Wup n2) of rows t, as Wdown reads it. */
static enum err gated(struct block_acts *t, const struct arch *a,
                      const struct block_weights *w, const struct block_kv *kv)
{
    struct dev *d = t->dev;
    TRY(dev_gemm(d, GEMM_NT, &t->gu, &t->n2, &w->wgu, false));
    if (w->bgu.data)
        TRY(dev_bias(d, &t->gu, &w->bgu));
    TRY(dev_gate(d, a->gate, &t->m, &t->gu));
    return quantize_input(d, kv, &t->m, &t->m);
}

/* y = Wdown m of rows t. */
static enum err one_mlp(struct block_acts *t, const struct arch *a,
                        const struct block_weights *w, const struct block_kv *kv,
                        const struct tensor *y)
{
    TRY(gated(t, a, w, kv));
    TRY(dev_gemm(t->dev, GEMM_NT, y, &t->m, &w->wdown, false));
    return w->bdown.data ? dev_bias(t->dev, y, &w->bdown) : OK;
}

/* Returns whether nothing stands between the product with Wdown and the residual sum. */
static bool sum_follows_product(const struct block_acts *t, const struct arch *a,
                                const struct block_weights *w)
{
    return !a->n_experts && !w->bdown.data && !t->y2.data &&
           arch_factor(a->residual_scale) == 1;
}

/* out = h + r MLP(n2) of rows t, where the MLP is normalized if the norm stands behind. y is
 * overwritten. */
static enum err add_mlp(struct block_acts *t, const struct arch *a,
                        const struct block_weights *w, const struct block_kv *kv,
                        const struct tensor *out, const struct tensor *y)
{
    struct dev *d = t->dev;
    const struct tensor *raw = t->y2.data ? &t->y2 : y;
    TRY(quantize_input(d, kv, &t->n2, &t->n2));
    if (sum_follows_product(t, a, w)) {
        TRY(gated(t, a, w, kv));
        return dev_gemm_add(d, GEMM_NT, out, &t->h, &t->m, &w->wdown, y);
    }
    TRY((a->n_experts ? experts_forward : one_mlp)(t, a, w, kv, raw));
    TRY(norm_behind(d, a, y, &t->t2, raw, &w->norm[GAIN_MLP_OUT]));
    TRY(block_scale(d, y, a->residual_scale));
    return dev_add(d, out, &t->h, y);
}

/* Returns ERR_SHAPE if acts have no room for a cache that kv quantizes. */
static enum err check_cache(const struct block_acts *acts, const struct block_kv *kv)
{
    FAIL_IF(kv_quantized(kv) && (!acts->kq.data ||
                                 (kv->spec.key_stage == KEY_PRE_ROPE && !acts->k_pre.data)),
            ERR_SHAPE,
            "block: activations were allocated without room for a quantized cache");
    return OK;
}

/* What comes before attention: q, k, v of x->x. */
static enum err before_attention(struct block_acts *x, const struct arch *a,
                                 const struct block_weights *w, const struct block_kv *kv)
{
    TRY(attention_input(x, a, w));
    TRY(quantize_input(x->dev, kv, &x->n1, &x->n1));
    return project_qkv(x, a, w);
}

/* What comes after attention: out from x->x and x->o. */
static enum err behind_attention(struct block_acts *x, struct block_scratch *s,
                                 const struct arch *a, const struct block_weights *w,
                                 const struct block_kv *kv, const struct tensor *out)
{
    const struct tensor y = tensor_rows(s->y, 0, x->T);
    TRY(attention_out(x, s, a, w, kv, &y));
    TRY(mlp_input(x, a, w, &y));
    return add_mlp(x, a, w, kv, out, &y);
}

enum err block_forward_cache(struct block_acts *acts, const struct arch *a,
                             const struct block_weights *w, const struct block_kv *kv,
                             const struct tensor *x)
{
    TRY(check_cache(acts, kv));
    acts->x = *x;
    TRY(before_attention(acts, a, w, kv));
    return make_cache(acts, a, w->layer, kv);
}

enum err block_forward(struct block_acts *acts, struct block_scratch *s,
                       const struct arch *a, const struct block_weights *w,
                       const struct block_kv *kv, const struct tensor *out,
                       const struct tensor *x)
{
    TRY(block_forward_cache(acts, a, w, kv, x));
    TRY(attend(acts, a, w->layer, kv));
    return behind_attention(acts, s, a, w, kv, out);
}

enum err block_forward_packed(struct block_acts *acts, struct block_scratch *s,
                              const struct arch *a, const struct block_weights *w,
                              const struct block_kv *kv, const struct packed_rows *rows)
{
    struct block_acts packed = acts_rows(acts, a, rows->x->dim[0]);
    TRY(check_cache(rows->text, kv));
    packed.x = *rows->x;
    TRY(before_attention(&packed, a, w, kv));
    for (int64_t i = 0; i < rows->n; i++)
        TRY(attend_sequence(&packed, rows->text, a, w->layer, kv, &rows->sequence[i]));
    return behind_attention(&packed, s, a, w, kv, rows->out);
}

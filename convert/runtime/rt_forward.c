/* SPDX-License-Identifier: MIT
 *
 * One chunk of tokens through the decoder:
 *
 *   h = x + r Wo attn(rope(norm(Wq n1)), rope(norm(Wk n1)), Wv n1),  n1 = rmsnorm(x)
 *   x = h + r Wdown (silu(Wgate n2) * (Wup n2)),                     n2 = rmsnorm(h)
 *
 * r, the embedding's factor and that of the logits are 1 in most families. OLMo 2 has n1 = x and
 * n2 = h, and rmsnorm of what Wo and Wdown return instead. Experts are in rt_experts.c.
 *
 * Written from the formulas, not from calib/model: verification compares the two, so they
 * must not share mistakes. */
#include "convert/runtime/rt_priv.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/hadamard.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* --- buffers ------------------------------------------------------------------------ */

void rt_acts_free(struct rt_acts *a)
{
    const struct rt_experts *e = &a->experts;
    float *const p[] = {a->x,    a->norm, a->q, a->o,     a->k, a->k_pre, a->v,
                        a->gate, a->up,   e->p, e->share, e->x, e->y,     e->sum};
    for (size_t i = 0; i < ARRAY_LEN(p); i++)
        mem_free(p[i]);
    mem_free(e->token);
    *a = (struct rt_acts){0};
}

static enum err experts_alloc(struct rt_experts *e, const struct arch *m, int64_t n)
{
    float **const by_expert[] = {&e->p, &e->share},
                  **const wide[] = {&e->x, &e->y, &e->sum};
    for (size_t i = 0; i < ARRAY_LEN(by_expert); i++)
        TRY(mem_alloc(by_expert[i], (size_t)n, (size_t)m->n_experts * sizeof(float)));
    for (size_t i = 0; i < ARRAY_LEN(wide); i++)
        TRY(mem_alloc(wide[i], (size_t)n, (size_t)m->d_model * sizeof(float)));
    return mem_alloc(&e->token, (size_t)n, sizeof(*e->token));
}

static enum err acts_alloc(struct rt_acts *a, const struct arch *m, int64_t n)
{
    const int64_t D = m->d_model, Hd = m->n_heads * m->head_dim, C = m->n_kv * m->head_dim;
    const struct {
        float **p;
        int64_t width;
    } part[] = {{&a->x, D},  {&a->norm, D},       {&a->q, Hd},
                {&a->o, Hd}, {&a->k, C},          {&a->k_pre, C},
                {&a->v, C},  {&a->gate, m->d_ff}, {&a->up, m->d_ff}};
    for (size_t i = 0; i < ARRAY_LEN(part); i++)
        TRY(mem_alloc(part[i].p, (size_t)n, (size_t)part[i].width * sizeof(float)));
    a->room = n;
    return m->n_experts ? experts_alloc(&a->experts, m, n) : OK;
}

/* Grows the activations to n tokens. */
static enum err make_room(struct runtime *r, int64_t n)
{
    TRY(rt_linear_reserve(&r->linear, n));
    if (n <= r->acts.room)
        return OK;
    rt_acts_free(&r->acts);
    const enum err err = acts_alloc(&r->acts, r->arch, n);
    if (err)
        rt_acts_free(&r->acts);
    return err;
}

/* --- pieces ------------------------------------------------------------------------- */

/* y = x g / sqrt(mean x^2 + eps), with the sum of squares in f64. */
static void rmsnorm_row(float *y, const float *x, const float *g, int64_t n, float eps)
{
    double part[8] = {0}, sum = 0; /* eight sums, so that additions overlap */
    int64_t k = 0;
    for (; k + 8 <= n; k += 8)
        for (int i = 0; i < 8; i++)
            part[i] += (double)x[k + i] * (double)x[k + i];
    for (; k < n; k++)
        sum += (double)x[k] * (double)x[k];
    for (int i = 0; i < 8; i++)
        sum += part[i];
    const float s = (float)(1 / sqrt(sum / (double)n + (double)eps));
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * s * g[i];
}

static void rmsnorm(float *y, const float *x, const float *g, int64_t rows, int64_t n,
                    float eps)
{
    for (int64_t t = 0; t < rows; t++)
        rmsnorm_row(y + t * n, x + t * n, g, n, eps);
}

/* Rotary embedding (Su et al. 2021): pair i of a head, (x[i], x[i + r/2]), turns by its
 * angle at the token's position, which counts from the start of the text, not of the
 * chunk. Channels from r on stay as they are. */
static void rotate(const struct runtime *r, int64_t layer, float *x, int64_t heads,
                   int64_t n)
{
    const int64_t d = r->arch->head_dim, half = arch_rotary_dim(r->arch) / 2;
    const int64_t columns = arch_rope_columns(r->arch);
    const int64_t column = arch_rope_column(r->arch, layer);
    for (int64_t t = 0; t < n; t++) {
        const int64_t at = (r->length + t) * columns + column;
        const float *c = r->cos + at, *s = r->sin + at;
        for (int64_t h = 0; h < heads; h++) {
            float *lo = x + (t * heads + h) * d, *hi = lo + half;
            for (int64_t i = 0; i < half; i++) {
                const float a = lo[i], b = hi[i];
                lo[i] = a * c[i] - b * s[i];
                hi[i] = b * c[i] + a * s[i];
            }
        }
    }
}

/* kv.rotate: queries and keys get the same orthogonal R, which leaves their products as
 * they are: (R q) . (R k) = q . k. The cache then stores R k, whose channels are of like
 * size. */
static void hadamard_heads(float *x, int64_t heads, int64_t d)
{
    for (int64_t h = 0; h < heads; h++)
        hadamard_f32(x + h * d, d);
}

/* x += factor y. With factor 1 this is the plain sum, to the bit. */
static void add(float *x, const float *y, float factor, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += factor * y[i];
}

/* x *= factor, a field of struct arch in which 0 stands for 1. */
static void scale(float *x, double factor, int64_t n)
{
    const float by = arch_factor(factor);
    for (int64_t i = 0; by != 1 && i < n; i++)
        x[i] *= by;
}

/* gate = act(gate) up, a row of `width` per token. */
struct gate_job {
    enum gate_act act;
    const struct rt_kernels *kern;
    float *gate;
    const float *up;
    int64_t width;
};

static void gate_row(void *ctx, int64_t t, int thread)
{
    const struct gate_job *j = ctx;
    j->kern->kv->gate(j->act, j->gate + t * j->width, j->up + t * j->width, j->width);
}

/* activations.bits: each token's x becomes what codes in one group stand for. */
struct round_job {
    float *x; /* [n][width] */
    int64_t width;
    int bits;
};

static void round_row(void *ctx, int64_t t, int thread)
{
    const struct round_job *j = ctx;
    float *x = j->x + t * j->width, lo = x[0], hi = x[0];
    for (int64_t i = 1; i < j->width; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    const float h = f16_to_f32(quant_kv_scale(lo, hi, j->bits));
    const float m = f16_to_f32(quant_kv_min(lo));
    for (int64_t i = 0; i < j->width; i++)
        x[i] = quant_kv_out(quant_kv_code(x[i], h, m, j->bits), h, m, 1, 0);
}

static void round_inputs(struct runtime *r, float *x, int64_t width, int64_t n)
{
    struct round_job j = {x, width, r->act_bits};
    if (r->act_bits)
        pool_run(n > 1 ? r->pool : NULL, n, round_row, &j);
}

/* --- a block ------------------------------------------------------------------------ */

/* Returns the input [n][D] of attention or the MLP: the residual stream through the norm before
 * it, or the stream itself if there is none. What is rounded is a copy of the stream. */
static const float *part_input(struct runtime *r, int64_t layer, enum norm_gain before,
                               int64_t n)
{
    const float *g = r->norms[layer].norm[before];
    const int64_t D = r->arch->d_model;
    float *y = r->acts.norm;
    if (!g && !r->act_bits)
        return r->acts.x;
    if (g)
        rmsnorm(y, r->acts.x, g, n, D, r->arch->norm_eps);
    else
        memcpy(y, r->acts.x, (size_t)(n * D) * sizeof(*y));
    round_inputs(r, y, D, n);
    return y;
}

/* Adds the output of attention or the MLP, in acts.norm, to the residual stream: through the norm
 * behind it if there is one. */
static void add_output(struct runtime *r, int64_t layer, enum norm_gain behind, int64_t n)
{
    const struct arch *m = r->arch;
    const float *g = r->norms[layer].norm[behind];
    float *y = r->acts.norm;
    if (g)
        rmsnorm(y, y, g, n, m->d_model, m->norm_eps);
    add(r->acts.x, y, arch_factor(m->residual_scale), n * m->d_model);
}

/* The norm of queries or keys x [n][heads*d], of each head or of all of them together. g NULL:
 * there is none. */
static void norm_heads(const struct arch *m, float *x, const float *g, int64_t heads,
                       int64_t n)
{
    const bool together = m->qk_norm == QK_NORM_ALL;
    const int64_t rows = together ? n : n * heads;
    if (g)
        rmsnorm(x, x, g, rows, together ? heads * m->head_dim : m->head_dim, m->norm_eps);
}

static void project_qkv(struct runtime *r, int64_t layer, int64_t n)
{
    const struct arch *m = r->arch;
    const struct packed_block *b = artifact_block(r->a, layer);
    struct rt_acts *a = &r->acts;
    float *const y[] = {a->q, a->k, a->v};
    const struct packed_linear *const p[] = {&b->lin[LIN_Q], &b->lin[LIN_K],
                                             &b->lin[LIN_V]};
    const float *x = part_input(r, layer, GAIN_ATTENTION, n);
    r->linear.next = &b->lin[LIN_O];
    rt_linear_run(&r->linear, y, p, 3, x, n);
    norm_heads(m, a->q, r->norms[layer].norm[GAIN_Q], m->n_heads, n);
    norm_heads(m, a->k, r->norms[layer].norm[GAIN_K], m->n_kv, n);
    memcpy(a->k_pre, a->k, (size_t)(n * m->n_kv * m->head_dim) * sizeof(float));
    if (!layer_set_has(&m->no_rope, layer)) {
        rotate(r, layer, a->q, m->n_heads, n);
        rotate(r, layer, a->k, m->n_kv, n);
    }
    if (r->cache.spec.rotate & ROTATE_K) {
        hadamard_heads(a->q, n * m->n_heads, m->head_dim);
        hadamard_heads(a->k, n * m->n_kv, m->head_dim);
    }
}

/* Packs the new keys and values, attends, and keeps the most recent ones in full precision
 * for the next call. */
static enum err attention(struct runtime *r, int64_t layer, int64_t n)
{
    struct rt_acts *a = &r->acts;
    struct rt_cache *c = &r->cache;
    const struct rt_attn job = {.cache = c,
                                .kern = r->kern,
                                .layer = layer,
                                .past = r->length,
                                .n = n,
                                .H = r->arch->n_heads,
                                .scale = arch_attn_scale(r->arch),
                                .reach = arch_reach(r->arch, layer),
                                .q = a->q,
                                .k = a->k,
                                .v = a->v,
                                .out = a->o};
    const struct rt_new_kv t = {layer, r->length, n, a->k, a->k_pre, a->v};
    rt_cache_pack(c, r->pool, &t);
    TRY(rt_attn_run(&job, &r->attn, r->pool));
    rt_cache_keep(c, &t);
    return OK;
}

/* Returns the head if it is packed: only then are its scales worth a prefetch. */
static const struct packed_linear *packed_head(const struct runtime *r)
{
    const struct packed_linear *head = artifact_head(r->a);
    return head->bits < 16 ? head : NULL;
}

void rt_gate(struct runtime *r, int64_t n)
{
    struct gate_job gate = {r->arch->gate, r->kern, r->acts.gate, r->acts.up,
                            r->arch->d_ff};
    pool_run(n > 1 ? r->pool : NULL, n, gate_row, &gate);
    round_inputs(r, r->acts.gate, r->arch->d_ff, n);
}

/* acts.norm = Wdown (silu(Wgate x) * (Wup x)). Each product names the next one, so that its
 * weights are prefetched; after the last layer, that is a packed head. */
static void one_mlp(struct runtime *r, int64_t layer, const float *x, int64_t n)
{
    const struct packed_block *b = artifact_block(r->a, layer);
    struct rt_acts *a = &r->acts;
    float *const y[] = {a->gate, a->up}, *const back[] = {a->norm};
    const struct packed_linear *const p[] = {&b->lin[LIN_GATE], &b->lin[LIN_UP]};
    const struct packed_linear *const down[] = {&b->lin[LIN_DOWN]};
    const bool last = layer + 1 == r->arch->n_layers;
    const struct packed_linear *next =
        last ? packed_head(r) : &artifact_block(r->a, layer + 1)->lin[LIN_Q];
    r->linear.next = &b->lin[LIN_DOWN];
    rt_linear_run(&r->linear, y, p, 2, x, n);
    rt_gate(r, n);
    r->linear.next = next;
    rt_linear_run(&r->linear, back, down, 1, a->gate, n);
}

static void mlp(struct runtime *r, int64_t layer, int64_t n)
{
    const float *x = part_input(r, layer, GAIN_MLP, n);
    if (r->arch->n_experts)
        rt_experts_run(r, layer, x, n);
    else
        one_mlp(r, layer, x, n);
    add_output(r, layer, GAIN_MLP_OUT, n);
}

static enum err block(struct runtime *r, int64_t layer, int64_t n)
{
    const struct packed_block *b = artifact_block(r->a, layer);
    struct rt_acts *a = &r->acts;
    float *const back[] = {a->norm};
    const struct packed_linear *const out[] = {&b->lin[LIN_O]};
    project_qkv(r, layer, n);
    TRY(attention(r, layer, n));
    round_inputs(r, a->o, r->arch->n_heads * r->arch->head_dim, n);
    r->linear.next = r->arch->n_experts ? NULL : &b->lin[LIN_GATE];
    rt_linear_run(&r->linear, back, out, 1, a->o, n);
    add_output(r, layer, GAIN_ATTENTION_OUT, n);
    mlp(r, layer, n);
    return OK;
}

/* --- the whole ---------------------------------------------------------------------- */

static enum err embed(struct runtime *r, const int32_t *ids, int64_t n)
{
    const struct packed_linear *e = artifact_embed(r->a);
    for (int64_t t = 0; t < n; t++) {
        FAIL_IF(ids[t] < 0 || ids[t] >= e->out, ERR_FORMAT,
                "token %" PRId64 " has id %" PRId32 ", the model has %" PRId64
                " tokens: the tokenizer belongs to another model",
                r->length + t, ids[t], e->out);
        packed_linear_unpack_row(r->acts.x + t * e->in, e, ids[t]);
    }
    scale(r->acts.x, r->arch->embed_scale, n * e->in);
    return OK;
}

static void show(struct runtime *r, int64_t layer, int64_t n)
{
    if (r->watch)
        r->watch(r->watch_ctx, layer, r->acts.x, n);
}

enum err rt_forward(struct runtime *r, const int32_t *ids, int64_t n)
{
    TRY(make_room(r, n));
    TRY(embed(r, ids, n));
    for (int64_t i = 0; i < r->arch->n_layers; i++) {
        show(r, i, n);
        TRY(block(r, i, n));
    }
    show(r, r->arch->n_layers, n);
    return OK;
}

enum err runtime_products(struct runtime *r, int64_t n)
{
    struct rt_acts *a = &r->acts;
    const int64_t Hd = r->arch->n_heads * r->arch->head_dim;
    TRY(make_room(r, n));
    memset(a->norm, 0, (size_t)(n * r->arch->d_model) * sizeof(float));
    memset(a->o, 0, (size_t)(n * Hd) * sizeof(float));
    for (int64_t i = 0; i < r->arch->n_layers; i++) {
        const struct packed_block *b = artifact_block(r->a, i);
        struct packed_linear one[N_LIN];
        const struct packed_linear *p[N_LIN];
        for (int l = 0; l < N_LIN; l++) {
            one[l] =
                packed_linear_rows(&b->lin[l], 0, b->lin[l].out / arch_stacked(r->arch, l));
            p[l] = &one[l];
        }
        float *const qkv[] = {a->q, a->k, a->v}, *const up[] = {a->gate, a->up};
        rt_linear_run(&r->linear, qkv, p + LIN_Q, 3, a->norm, n);
        rt_linear_run(&r->linear, &a->x, p + LIN_O, 1, a->o, n);
        rt_linear_run(&r->linear, up, p + LIN_GATE, 2, a->norm, n);
        rt_linear_run(&r->linear, &a->x, p + LIN_DOWN, 1, a->gate, n);
    }
    return OK;
}

/* Logits of the last `rows` tokens: final norm, then the head. */
void rt_logits(struct runtime *r, float *logits, int64_t n, int64_t rows)
{
    const struct arch *m = r->arch;
    const struct packed_linear *const head[] = {artifact_head(r->a)};
    float *last = r->acts.x + (n - rows) * m->d_model;
    rmsnorm(r->acts.norm, last, r->final_norm, rows, m->d_model, m->norm_eps);
    scale(r->acts.norm, m->logit_scale, rows * m->d_model);
    r->linear.next = &artifact_block(r->a, 0)->lin[LIN_Q];
    rt_linear_run(&r->linear, &logits, head, 1, r->acts.norm, rows);
}

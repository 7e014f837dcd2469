/* SPDX-License-Identifier: MIT
 *
 * Memory of a block's forward and backward: one layout each, allocated at once. */
#include "calib/model/block_scratch.h"
#include "kernels/attn_memory.h"

#include <inttypes.h>

/* With the bounds of arch_check, no layout overflows below this many tokens. */
#define MAX_TOKENS (INT64_C(1) << 31)

struct wants {
    bool kv, k_pre, attention_alone;
};

/* What attention reads and writes. */
static void attention_layout(struct block_acts *x, struct carve *c, const struct arch *a,
                             struct wants want)
{
    const int64_t T = x->T, d = a->head_dim, H = a->n_heads, K = a->n_kv;
    x->qkv = carve_2d(c, x->act, T, (H + 2 * K) * d);
    if (want.k_pre)
        x->k_pre = carve_2d(c, x->act, T, K * d);
    if (want.kv) {
        x->kq = carve_2d(c, x->act, T, K * d);
        x->vq = carve_2d(c, x->act, T, K * d);
    }
    x->o = carve_2d(c, x->act, T, H * d);
    x->lse = carve_2d(c, DT_F32, H, T);
}

static void acts_layout(struct block_acts *x, struct carve *c, const struct arch *a,
                        struct wants want)
{
    const int64_t T = x->T, D = a->d_model, F = a->d_ff, d = a->head_dim;
    const int64_t H = a->n_heads, K = a->n_kv;
    if (want.attention_alone) {
        attention_layout(x, c, a, want);
        return;
    }
    x->n1 = carve_2d(c, x->act, T, D);
    x->s1 = carve_1d(c, DT_F32, T);
    if (a->norms != NORMS_BEFORE) {
        x->y1 = carve_2d(c, x->act, T, D);
        x->t1 = carve_1d(c, DT_F32, T);
        x->y2 = carve_2d(c, x->act, T, D);
        x->t2 = carve_1d(c, DT_F32, T);
    }
    if (a->qk_norm) {
        x->qkv_raw = carve_2d(c, x->act, T, (H + K) * d);
        x->sq = carve_1d(c, DT_F32, T * normed_vectors(a, H));
        x->sk = carve_1d(c, DT_F32, T * normed_vectors(a, K));
    }
    attention_layout(x, c, a, want);
    x->h = carve_2d(c, DT_F32, T, D);
    x->n2 = carve_2d(c, x->act, T, D);
    x->s2 = carve_1d(c, DT_F32, T);
    x->gu = carve_2d(c, x->act, T * arch_mlp_rows(a), 2 * F);
    x->m = carve_2d(c, x->act, T * arch_mlp_rows(a), F);
    experts_layout(&x->experts, c, a, T, x->act);
}

size_t block_acts_bytes(const struct arch *a, int64_t T, enum dtype act, bool quantized)
{
    struct block_acts x = {.T = T, .act = act};
    struct carve c = {0};
    acts_layout(&x, &c, a, (struct wants){.kv = quantized, .k_pre = quantized});
    return c.used;
}

static enum err check_tokens(int64_t T)
{
    FAIL_IF(T < 1 || T > MAX_TOKENS, ERR_USAGE, "a sequence of %" PRId64 " tokens", T);
    return OK;
}

static struct wants wants_of(const struct kv_spec *kv)
{
    const bool quantized = kv && kv_quantizes(kv);
    return (struct wants){.kv = quantized,
                          .k_pre = quantized && kv->key_stage == KEY_PRE_ROPE};
}

static enum err alloc(struct block_acts *acts, struct dev *d, const struct arch *a,
                      int64_t T, enum dtype act, struct wants want)
{
    TRY(check_tokens(T));
    struct block_acts fresh = {.dev = d, .T = T, .act = act};
    struct carve c = {0};
    acts_layout(&fresh, &c, a, want);
    TRY(dev_alloc(d, &fresh.memory, c.used));
    c = (struct carve){.base = fresh.memory};
    acts_layout(&fresh, &c, a, want);
    const bool routes = a->n_experts && !want.attention_alone;
    const enum err err = routes ? route_alloc(&fresh.experts.route, a, T) : OK;
    if (err)
        dev_free(d, fresh.memory);
    else
        *acts = fresh;
    return err;
}

enum err block_acts_alloc(struct block_acts *acts, struct dev *d, const struct arch *a,
                          int64_t T, enum dtype act, const struct kv_spec *kv)
{
    return alloc(acts, d, a, T, act, wants_of(kv));
}

enum err block_text_alloc(struct block_acts *text, struct dev *d, const struct arch *a,
                          int64_t T, enum dtype act, const struct kv_spec *kv)
{
    struct wants want = wants_of(kv);
    want.attention_alone = true;
    return alloc(text, d, a, T, act, want);
}

void block_acts_free(struct block_acts *acts)
{
    if (acts->dev)
        dev_free(acts->dev, acts->memory);
    route_free(&acts->experts.route);
    *acts = (struct block_acts){0};
}

/* --- scratch ------------------------------------------------------------------------ */

static void scratch_layout(struct block_scratch *s, struct carve *c, const struct arch *a,
                           int64_t T, enum dtype act)
{
    const int64_t d = a->head_dim, H = a->n_heads, K = a->n_kv, k = arch_mlp_rows(a);
    const int64_t wide = k * a->d_ff > H * d ? k * a->d_ff : H * d;
    s->y = carve_2d(c, act, T, a->d_model);
    const struct tensor w = carve_2d(c, act, T, wide);
    s->dm = tensor_2d(w.data, act, T * k, a->d_ff);
    s->d_o = tensor_2d(w.data, act, T, H * d);
    s->dqkv = carve_2d(c, act, T, (H + 2 * K) * d);
    s->dkq = carve_2d(c, act, T, K * d);
    s->dvq = carve_2d(c, act, T, K * d);
    if (!a->n_experts)
        return;
    s->dx = carve_2d(c, DT_F32, T * k, a->d_model);
    s->dn = carve_2d(c, DT_F32, T, a->d_model);
}

size_t block_scratch_bytes(const struct arch *a, int64_t T, enum dtype act)
{
    struct block_scratch s = {0};
    struct carve c = {0};
    scratch_layout(&s, &c, a, T, act);
    return c.used;
}

size_t block_inside_bytes(const struct arch *a, int64_t T, enum dtype act, int cpu_threads)
{
    const struct attn_shape s = {
        .T = T, .H = a->n_heads, .K = a->n_kv, .d = a->head_dim, .act = act};
    return (size_t)attn_inside_bytes(&s, cpu_threads);
}

size_t block_later_bytes(const struct arch *a, int64_t T, enum dtype act)
{
    return block_inside_bytes(a, T, act, 0) + DEV_UPLOAD_BYTES;
}

/* Forward widens x [T,in], W [out,in] and y [T,out], and backward the same shapes. Each expert has
 * products of its own, of T tokens at most. */
size_t block_widened_bytes(const struct arch *a, int64_t T)
{
    const int64_t D = a->d_model, q = arch_out(a, LIN_Q), F = a->d_ff;
    const int64_t qkv = q + 2 * arch_out(a, LIN_K);
    const int64_t product[][2] = {{qkv, D}, {D, q}, {2 * F, D}, {D, F}};
    int64_t most = 0;
    for (size_t i = 0; i < ARRAY_LEN(product); i++) {
        const int64_t out = product[i][0], in = product[i][1];
        const int64_t n = T * in + out * in + T * out;
        most = n > most ? n : most;
    }
    return (size_t)most * sizeof(float);
}

enum err block_scratch_open(struct block_scratch **out, struct dev *d, const struct arch *a,
                            int64_t T, enum dtype act)
{
    TRY(check_tokens(T));
    struct block_scratch *s = NULL;
    TRY(mem_calloc(&s, 1, sizeof(*s)));
    s->dev = d;
    const enum err err = dev_alloc(d, &s->memory, block_scratch_bytes(a, T, act));
    if (err) {
        block_scratch_close(&s);
        return err;
    }
    struct carve c = {.base = s->memory};
    scratch_layout(s, &c, a, T, act);
    *out = s;
    return OK;
}

void block_scratch_close(struct block_scratch **ps)
{
    struct block_scratch *s = *ps;
    if (!s)
        return;
    dev_free(s->dev, s->memory);
    mem_free(s);
    *ps = NULL;
}

/* --- what all blocks share ---------------------------------------------------------- */

enum err block_rope_alloc(struct tensor *cos, struct tensor *sin, struct dev *d,
                          const struct arch *a, int64_t T)
{
    TRY(check_tokens(T));
    const int64_t columns = arch_rope_columns(a);
    const size_t n = (size_t)T * (size_t)columns;
    float *host = NULL;
    void *table = NULL;
    enum err err = mem_alloc(&host, 2 * n, sizeof(*host));
    if (err)
        return err;
    arch_rope_table(a, 0, T, host, host + n);
    TRY_OUT(dev_alloc(d, &table, 2 * n * sizeof(*host)));
    TRY_OUT(dev_upload(d, table, host, 2 * n * sizeof(*host)));
    *cos = tensor_2d(table, DT_F32, T, columns);
    *sin = tensor_2d((float *)table + n, DT_F32, T, columns);
    table = NULL;
out:
    dev_free(d, table);
    mem_free(host);
    return err;
}

enum err block_scale(struct dev *d, const struct tensor *y, double factor)
{
    const float by = arch_factor(factor);
    return by == 1 ? OK : dev_scale(d, y, by);
}

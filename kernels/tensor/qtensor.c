/* SPDX-License-Identifier: MIT */
#include "kernels/tensor/qtensor.h"

#include "kernels/base/mem.h"
#include "kernels/base/pool.h"
#include "kernels/tensor/hadamard.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>

const char *const lin_name[N_LIN] = {"q", "k", "v", "o", "gate", "up", "down"};
const char *const lin_module[N_LIN] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

/* The format of a layer's kind: by its rule, or else that of all others. */
static struct mix_format format_of(const struct mix *mixed, int64_t layer, int kind,
                                   struct mix_format others)
{
    struct mix_format f;
    if (!mix_find(&f, mixed, layer, kind))
        return others;
    if (f.group_size == MIX_NO_GROUP)
        f.group_size = others.group_size;
    return f;
}

struct lin_format weight_format(const struct weight_spec *w, int64_t layer, int lin)
{
    const struct mix_format others = {w->bits, w->group_size};
    const struct mix_format f = format_of(w->mixed, layer, lin, others);
    return (struct lin_format){f.bits, f.group_size, w->scale_bits};
}

struct lin_format head_format(const struct weight_spec *w)
{
    return (struct lin_format){w->head_bits ? w->head_bits : 16, w->head_group,
                               w->scale_bits};
}

bool weight_quantizes_head(const struct weight_spec *w)
{
    return head_format(w).bits < 16;
}

bool weight_rounds_inputs(const struct weight_spec *w)
{
    return w->act_bits && w->act_bits < QUANT_BITS_NONE;
}

bool weight_quantizes(const struct weight_spec *w)
{
    return w->bits < 16 || mix_quantizes(w->mixed);
}

bool weight_quantizes_layer(const struct weight_spec *w, int64_t layer)
{
    for (int l = 0; l < N_LIN; l++)
        if (weight_format(w, layer, l).bits < 16)
            return true;
    return false;
}

struct kv_format kv_format(const struct kv_spec *kv, int64_t layer, enum kv_side side)
{
    const struct mix_format others = {kv->bits, kv->group_size};
    const struct mix_format f = format_of(kv->mixed, layer, side, others);
    return (struct kv_format){f.bits, f.group_size};
}

bool kv_quantizes(const struct kv_spec *kv)
{
    return kv->bits < 16 || mix_quantizes(kv->mixed);
}

bool kv_quantizes_layer(const struct kv_spec *kv, int64_t layer)
{
    return kv_format(kv, layer, KV_K).bits < 16 || kv_format(kv, layer, KV_V).bits < 16;
}

void kv_set_unquantized(struct kv_spec *kv)
{
    kv->bits = 16;
    kv->mixed = NULL;
}

int64_t weight_groups(int64_t in, int64_t group_size)
{
    return group_size > 0 ? (in + group_size - 1) / group_size : 1;
}

int64_t weight_group(int64_t in, int64_t group_size)
{
    return group_size > 0 && group_size < in ? group_size : in;
}

int64_t kv_group(int64_t head_dim, int64_t group_size)
{
    return weight_group(head_dim, group_size);
}

enum err kv_rotate_check(const struct kv_spec *kv, int64_t head_dim)
{
    FAIL_IF(kv->rotate && !hadamard_fits(head_dim), ERR_SUPPORT,
            "kv.rotate: heads of %" PRId64
            " channels cannot be rotated: want a power of two up to %d; set kv.rotate to "
            "none",
            head_dim, HADAMARD_MAX);
    FAIL_IF((kv->rotate & ROTATE_K) && kv->key_stage == KEY_PRE_ROPE, ERR_SUPPORT,
            "kv.rotate turns keys after the rotary embedding, kv.key_stage: pre_rope "
            "quantizes them before it; set kv.rotate to v or none");
    return OK;
}

enum err qlinear_alloc(struct qlinear *q, int64_t out, int64_t in, struct lin_format format)
{
    struct qlinear r = {.out = out,
                        .in = in,
                        .groups = weight_groups(in, format.group_size),
                        .format = format};
    const size_t n = (size_t)(out * r.groups);
    TRY(mem_calloc(&r.scales, n, sizeof(*r.scales)));
    enum err err = mem_calloc(&r.zeros, n, sizeof(*r.zeros));
    if (err) {
        qlinear_free(&r);
        return err;
    }
    *q = r;
    return OK;
}

int64_t qlinear_group(const struct qlinear *q)
{
    return q->format.group_size > 0 ? q->format.group_size : q->in;
}

bool qlinear_fits(const struct qlinear *q, int64_t out, int64_t in,
                  struct lin_format format)
{
    return q->scales && q->out == out && q->in == in && q->format.bits == format.bits &&
           q->groups == weight_groups(in, format.group_size) &&
           q->format.group_size == format.group_size;
}

bool weight_chooses_codes(const struct weight_spec *w)
{
    return weight_quantizes(w) &&
           (w->method == WEIGHT_GPTQ || w->round == ROUND_LEARNED || w->refined);
}

enum err qlinear_alloc_codes(struct qlinear *q)
{
    const int64_t dims[] = {q->out, q->in};
    size_t n;
    TRY(size_product(&n, dims, 2, 1));
    return mem_alloc(&q->codes, n, sizeof(*q->codes));
}

struct values {
    float *w;
    const struct qlinear *q;
};

static void values_of_row(void *ctx, int64_t r, int thread)
{
    const struct values *j = ctx;
    const struct qlinear *q = j->q;
    const int64_t step = qlinear_group(q), end = (r + 1) * q->in;
    int64_t at = r * q->in;
    for (int64_t g = r * q->groups; g < (r + 1) * q->groups; g++) {
        const float h = f16_to_f32(q->scales[g]);
        const uint8_t z = q->zeros[g];
        for (const int64_t last = end - at < step ? end : at + step; at < last; at++)
            j->w[at] = quant_weight_value(q->codes[at], z, h);
    }
}

void qlinear_values(float *w, const struct qlinear *q, struct pool *pool)
{
    struct values j = {w, q};
    pool_run(pool, q->out, values_of_row, &j);
}

void qlinear_free(struct qlinear *q)
{
    mem_free(q->scales);
    mem_free(q->zeros);
    mem_free(q->codes);
    *q = (struct qlinear){0};
}

enum err block_quant_alloc(struct block_quant *b, int64_t n_channels)
{
    enum err err = OK;
    struct block_quant r = {.n_channels = n_channels};
    const size_t n = (size_t)n_channels;
    TRY_OUT(mem_alloc(&r.k_scale, n, sizeof(float)));
    TRY_OUT(mem_calloc(&r.k_shift, n, sizeof(float)));
    TRY_OUT(mem_alloc(&r.v_scale, n, sizeof(float)));
    TRY_OUT(mem_calloc(&r.v_shift, n, sizeof(float)));
    for (size_t i = 0; i < n; i++)
        r.k_scale[i] = r.v_scale[i] = 1;
    *b = r;
    return OK;
out:
    block_quant_free(&r);
    return err;
}

void block_quant_free(struct block_quant *b)
{
    for (int i = 0; i < N_LIN; i++)
        qlinear_free(&b->lin[i]);
    mem_free(b->k_scale);
    mem_free(b->k_shift);
    mem_free(b->v_scale);
    mem_free(b->v_shift);
    for (int i = 0; i < N_GAINS; i++)
        mem_free(b->gain[i]);
    *b = (struct block_quant){0};
}

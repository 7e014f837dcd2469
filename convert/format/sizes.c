/* SPDX-License-Identifier: MIT */
#include "convert/format/sizes.h"

#include "convert/format/bitpack.h"

/* --- weights ------------------------------------------------------------------------ */

uint64_t shape_linear_codes(int64_t out, int64_t in, struct lin_format f)
{
    return (uint64_t)out * (uint64_t)(f.bits >= 16 ? 2 * in : bitpack_bytes(in, f.bits));
}

uint64_t shape_linear_scales(int64_t out, int64_t in, struct lin_format f)
{
    const int64_t groups = weight_groups(in, f.group_size);
    if (f.bits >= 16)
        return 0;
    return (uint64_t)out * (uint64_t)(2 * groups + bitpack_bytes(groups, f.bits));
}

uint64_t shape_linear_bytes(int64_t out, int64_t in, struct lin_format f)
{
    return shape_linear_codes(out, in, f) + shape_linear_scales(out, in, f);
}

double shape_weight_bits(const struct arch *a, const struct weight_spec *w)
{
    uint64_t bytes = 0;
    for (int64_t i = 0; i < a->n_layers; i++)
        for (int l = 0; l < N_LIN; l++)
            bytes +=
                shape_linear_bytes(arch_out(a, l), arch_in(a, l), weight_format(w, i, l));
    return 8 * (double)bytes / ((double)arch_block_params(a) * (double)a->n_layers);
}

/* --- the cache ---------------------------------------------------------------------- */

int64_t kv_row_code_bytes(const struct arch *a, struct kv_format f)
{
    return f.bits >= 16 ? 2 * a->n_kv * a->head_dim
                        : a->n_kv * bitpack_bytes(a->head_dim, f.bits);
}

int64_t kv_row_bytes(const struct arch *a, struct kv_format f)
{
    const int64_t group = kv_group(a->head_dim, f.group_size);
    const int64_t pairs = f.bits >= 16 ? 0 : a->n_kv * ((a->head_dim + group - 1) / group);
    return kv_row_code_bytes(a, f) + 4 * pairs;
}

/* The same in one layer's cache. llama.cpp's q4_0 has a scale and no minimum, and FP8 neither. */
static int64_t layer_row_bytes(const struct arch *a, const struct kv_spec *kv,
                               int64_t layer, enum kv_side side)
{
    const struct kv_format f = kv_format(kv, layer, side);
    const int64_t codes = kv_row_code_bytes(a, f), pairs = kv_row_bytes(a, f) - codes;
    return codes + (kv->target == TARGET_FP8    ? 0
                    : kv->target == TARGET_Q4_0 ? pairs / 2
                                                : pairs);
}

int64_t kv_token_bytes(const struct arch *a, const struct kv_spec *kv)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < a->n_layers; i++)
        bytes += layer_row_bytes(a, kv, i, KV_K) + layer_row_bytes(a, kv, i, KV_V);
    return bytes;
}

static double row_bits(const struct arch *a, const struct kv_spec *kv, int64_t layer,
                       enum kv_side side)
{
    const struct kv_format f = kv_format(kv, layer, side);
    if (side == KV_K && kv->method == KV_CHANNEL && f.bits < 16)
        return (double)f.bits + 32.0 / (double)f.group_size;
    return 8.0 * (double)layer_row_bytes(a, kv, layer, side) /
           (double)(a->n_kv * a->head_dim);
}

double kv_mean_bits(const struct arch *a, const struct kv_spec *kv)
{
    double sum = 0;
    for (int64_t i = 0; i < a->n_layers; i++)
        sum += row_bits(a, kv, i, KV_K) + row_bits(a, kv, i, KV_V);
    return sum / (double)(2 * a->n_layers);
}

uint64_t kv_cache_bytes(const struct arch *a, const struct kv_spec *kv, int64_t batch,
                        int64_t tokens)
{
    return (uint64_t)batch * (uint64_t)tokens * (uint64_t)kv_token_bytes(a, kv);
}

/* --- inference ---------------------------------------------------------------------- */

/* Returns the codes' part of kv_token_bytes(). */
static int64_t token_code_bytes(const struct arch *a, const struct kv_spec *kv)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < a->n_layers; i++)
        bytes += kv_row_code_bytes(a, kv_format(kv, i, KV_K)) +
                 kv_row_code_bytes(a, kv_format(kv, i, KV_V));
    return bytes;
}

static void add_projections(struct memory_terms *t, const struct arch *a,
                            const struct weight_spec *w)
{
    for (int64_t i = 0; i < a->n_layers; i++)
        for (int l = 0; l < N_LIN; l++) {
            const struct lin_format f = weight_format(w, i, l);
            t->projections += shape_linear_codes(arch_out(a, l), arch_in(a, l), f);
            t->weight_scales += shape_linear_scales(arch_out(a, l), arch_in(a, l), f);
        }
}

struct memory_terms memory_terms_of(const struct arch *a, const struct weight_spec *w,
                                    const struct kv_spec *kv, int64_t batch, int64_t length)
{
    struct memory_terms t = {0};
    uint64_t gains = 0;
    for (int64_t i = 0; i < a->n_layers; i++)
        gains += (uint64_t)arch_gains(a, i);
    add_projections(&t, a, w);
    t.rest = (a->tied ? 1 : 2) * shape_linear_bytes(a->vocab, a->d_model, head_format(w)) +
             2 * gains;
    t.cache = (uint64_t)batch * (uint64_t)length * (uint64_t)token_code_bytes(a, kv);
    t.cache_scales = kv_cache_bytes(a, kv, batch, length) - t.cache;
    return t;
}

uint64_t memory_total(const struct memory_terms *t)
{
    return t->projections + t->weight_scales + t->rest + t->cache + t->cache_scales;
}

uint64_t memory_paper(const struct memory_terms *t)
{
    return t->projections + t->cache;
}

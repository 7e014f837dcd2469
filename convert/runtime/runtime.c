/* SPDX-License-Identifier: MIT
 *
 * The runtime's public calls: opening, processing tokens, reading the cache. */
#include "convert/runtime/runtime.h"

#include "convert/runtime/rt_priv.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <string.h>

/* --- opening ------------------------------------------------------------------------ */

/* Converts the weight of a norm to the gain at *at and advances it; NULL if the model has no such
 * norm. */
static const float *put(float **at, const struct host_mat *v, const struct arch *m)
{
    if (!v->data)
        return NULL;
    float *p = *at;
    host_to_f32(p, v->data, v->dtype, v->rows);
    for (int64_t i = 0; m->gain_plus_one && i < v->rows; i++)
        p[i] += 1;
    *at += v->rows;
    return p;
}

/* Converts a router to F32 at *at and advances it; NULL if the model has none. */
static const float *put_router(float **at, const struct host_mat *v)
{
    const int64_t n = v->rows * v->cols;
    if (!v->data)
        return NULL;
    float *p = *at;
    host_to_f32(p, v->data, v->dtype, n);
    *at += n;
    return p;
}

/* Weights of norms and routers in F32. */
static enum err open_vectors(struct runtime *r)
{
    const struct arch *m = r->arch;
    size_t n = 0;
    for (int64_t i = 0; i < m->n_layers; i++)
        n += (size_t)arch_gains(m, i) + (size_t)(m->n_experts * m->d_model);
    const struct host_mat last = artifact_final_norm(r->a);
    TRY(mem_calloc(&r->norms, (size_t)m->n_layers, sizeof(*r->norms)));
    TRY(mem_alloc(&r->vectors, n, sizeof(float)));
    float *at = r->vectors;
    for (int64_t i = 0; i < m->n_layers; i++) {
        const struct packed_block *b = artifact_block(r->a, i);
        for (int g = 0; g < N_BLOCK_GAINS; g++)
            r->norms[i].norm[g] = put(&at, &b->norm[g], m);
        r->norms[i].router = put_router(&at, &b->router);
    }
    r->final_norm = put(&at, &last, m);
    return OK;
}

static enum err open_rope(struct runtime *r)
{
    const size_t columns = (size_t)arch_rope_columns(r->arch);
    TRY(mem_alloc(&r->cos, (size_t)r->max, columns * sizeof(float)));
    TRY(mem_alloc(&r->sin, (size_t)r->max, columns * sizeof(float)));
    arch_rope_table(r->arch, 0, r->max, r->cos, r->sin);
    r->cache.cos = r->cos;
    r->cache.sin = r->sin;
    return OK;
}

bool runtime_rounds(void)
{
    return rt_kernels_best()->int16->faster;
}

static enum err open_parts(struct runtime *r, const struct runtime_settings *s)
{
    const struct weight_spec *w = artifact_weight_spec(r->a);
    struct kv_spec kv = *artifact_kv_spec(r->a);
    if (s->kv_bits == 16)
        kv_set_unquantized(&kv);
    if (weight_rounds_inputs(w) && s->act_bits != QUANT_BITS_NONE)
        r->act_bits = w->act_bits;
    TRY(pool_open(&r->pool, s->threads));
    TRY(rt_linear_open(&r->linear, r->pool, r->a));
    r->linear.int16 = s->act == DT_BF16 && runtime_rounds();
    if (s->act == DT_BF16 && !r->linear.int16)
        log_info(
            "the packed runtime computes in f32: this processor has no instructions that "
            "would make 16-bit products faster");
    TRY(rt_cache_open(&r->cache, r->a, r->kern, &kv, r->max));
    TRY(open_vectors(r));
    return open_rope(r);
}

enum err runtime_open(struct runtime **out, const struct artifact *a,
                      const struct runtime_settings *s)
{
    const struct kv_spec *own = artifact_kv_spec(a);
    struct runtime *r;
    FAIL_IF(own->target && s->kv_bits != 16, ERR_SUPPORT,
            "the artifact is for a cache of %s, which this program only simulates: give "
            "--kv-bits 16 for a cache in full precision, or `wkvq eval` without --decode",
            kv_target_name[own->target]);
    FAIL_IF(s->kv_bits && s->kv_bits != 16 && own->mixed, ERR_USAGE,
            "--kv-bits %d: the artifact's cache is mixed; give 16, or leave the option out",
            s->kv_bits);
    FAIL_IF(
        s->kv_bits && s->kv_bits != 16 && s->kv_bits != own->bits, ERR_USAGE,
        "--kv-bits %d: the artifact's cache has %d bits; give 16, or leave the option out",
        s->kv_bits, own->bits);
    TRY(arch_check_length(artifact_arch(a), s->max_tokens));
    TRY(mem_calloc(&r, 1, sizeof(*r)));
    r->a = a;
    r->arch = artifact_arch(a);
    r->kern = rt_kernels_best();
    r->max = s->max_tokens;
    const enum err err = open_parts(r, s);
    if (err) {
        runtime_close(&r);
        return err;
    }
    *out = r;
    return OK;
}

void runtime_close(struct runtime **pr)
{
    struct runtime *r = *pr;
    *pr = NULL;
    if (!r)
        return;
    rt_linear_close(&r->linear);
    rt_cache_close(&r->cache);
    rt_attn_close(&r->attn);
    rt_acts_free(&r->acts);
    pool_close(&r->pool);
    mem_free(r->norms);
    mem_free(r->vectors);
    mem_free(r->cos);
    mem_free(r->sin);
    mem_free(r);
}

/* --- use ---------------------------------------------------------------------------- */

void runtime_reset(struct runtime *r)
{
    r->length = 0;
    r->marked = 0;
}

enum err runtime_mark(struct runtime *r)
{
    TRY(rt_cache_mark(&r->cache));
    r->marked = r->length;
    return OK;
}

void runtime_rewind(struct runtime *r)
{
    if (r->marked)
        rt_cache_rewind(&r->cache);
    r->length = r->marked;
}

enum err runtime_forward(struct runtime *r, float *logits, bool all, const int32_t *ids,
                         int64_t n)
{
    FAIL_IF(n < 1, ERR_USAGE, "a chunk of %" PRId64 " tokens; want at least 1", n);
    FAIL_IF(n > r->max - r->length, ERR_USAGE,
            "the cache has room for %" PRId64 " tokens and holds %" PRId64 "; %" PRId64
            " more do not fit",
            r->max, r->length, n);
    TRY(rt_forward(r, ids, n));
    if (logits)
        rt_logits(r, logits, n, all ? n : 1);
    r->length += n;
    return OK;
}

void runtime_watch(struct runtime *r,
                   void (*fn)(void *ctx, int64_t layer, float *x, int64_t n), void *ctx)
{
    r->watch = fn;
    r->watch_ctx = ctx;
}

/* Copies all tokens of a layer; tile [d] is scratch. */
static void copy_tokens(const struct runtime *r, int64_t layer, enum kv_side side,
                        float *out, float *tile)
{
    const struct rt_cache *c = &r->cache;
    for (int64_t t = 0; t < r->length; t++)
        for (int64_t kh = 0; kh < c->K; kh++) {
            const float *row = rt_cache_full(c, layer, side, kh, t, r->length);
            if (!row)
                rt_cache_tile(c, (struct rt_span){layer, side, kh, t, 1}, tile, &row);
            memcpy(out + (t * c->K + kh) * c->d, row, (size_t)c->d * sizeof(float));
        }
}

enum err runtime_kv(const struct runtime *r, int64_t layer, float *k, float *v)
{
    float *tile;
    FAIL_IF(layer < 0 || layer >= r->arch->n_layers, ERR_SHAPE,
            "layer %" PRId64 " of a model of %" PRId64, layer, r->arch->n_layers);
    TRY(mem_alloc(&tile, (size_t)r->cache.d, sizeof(*tile)));
    if (k)
        copy_tokens(r, layer, KV_K, k, tile);
    if (v)
        copy_tokens(r, layer, KV_V, v, tile);
    mem_free(tile);
    return OK;
}

uint64_t runtime_kv_bytes(const struct runtime *r)
{
    return r->cache.bytes;
}

double runtime_kv_bits(const struct runtime *r)
{
    const struct rt_cache *c = &r->cache;
    return 8.0 * (double)c->bytes / (double)(c->layers * 2 * c->max * c->K * c->d);
}

/* SPDX-License-Identifier: MIT */
#include "convert/artifact/artifact_random.h"

#include "convert/artifact/reader_check.h"
#include "convert/format/bitpack.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "kernels/tensor/quant.h"

#include <math.h>
#include <string.h>

#define DEVIATION 0.02

/* One allocation, first measured and then handed out in parts. */
struct parts {
    uint8_t *memory; /* NULL: measuring */
    size_t used;
    struct rng rng;
};

/* Returns n bytes, word-aligned; NULL while measuring. */
static void *take(struct parts *p, int64_t n)
{
    void *at = p->memory ? p->memory + p->used : NULL;
    p->used += ((size_t)n + 7) / 8 * 8;
    return at;
}

static const uint8_t *random_bytes(struct parts *p, int64_t n)
{
    uint8_t *at = take(p, n);
    for (int64_t i = 0; at && i < (n + 7) / 8; i++) {
        const uint64_t word = rng_u64(&p->rng);
        memcpy(at + 8 * i, &word, sizeof(word));
    }
    return at;
}

/* Returns F16 numbers of both signs between 1/64 and 1/32. */
static struct host_mat random_f16(struct parts *p, int64_t rows, int64_t cols)
{
    uint16_t *at = take(p, rows * cols * 2);
    for (int64_t i = 0; at && i < rows * cols; i += 4) {
        const uint64_t word = (rng_u64(&p->rng) & 0x83ff83ff83ff83ff) | 0x2400240024002400;
        memcpy(at + i, &word, sizeof(word));
    }
    return (struct host_mat){at, DT_F16, rows, cols, "made up"};
}

static struct host_mat ones(struct parts *p, int64_t n)
{
    float *at = take(p, n * (int64_t)sizeof(float));
    for (int64_t i = 0; at && i < n; i++)
        at[i] = 1;
    return (struct host_mat){at, DT_F32, n, 1, "norm"};
}

/* Returns the standard deviation of code - zero, both uniform over 2^bits values. */
static double spread(int bits)
{
    return sqrt((pow(4, bits) - 1) / 6);
}

static const uint8_t *equal_scales(struct parts *p, int64_t n, struct lin_format f)
{
    const uint16_t h =
        quant_scale_round(f16_from_f32((float)(DEVIATION / spread(f.bits))), f.scale_bits);
    uint8_t *at = take(p, 2 * n);
    for (int64_t i = 0; at && i < n; i++) {
        at[2 * i] = (uint8_t)(h & 255);
        at[2 * i + 1] = (uint8_t)(h >> 8);
    }
    return at;
}

static struct packed_linear random_linear(struct parts *p, int64_t out, int64_t in,
                                          struct lin_format f)
{
    const int64_t groups = weight_groups(in, f.group_size);
    struct packed_linear l = {
        .out = out, .in = in, .groups = groups, .group_size = f.group_size, .bits = f.bits};
    l.qweight = random_bytes(p, out * bitpack_bytes(in, f.bits));
    l.scales = equal_scales(p, out * groups, f);
    l.zeros = random_bytes(p, out * bitpack_bytes(groups, f.bits));
    return l;
}

/* Embedding or head. */
static struct packed_linear random_end(struct parts *p, const struct arch *m,
                                       const struct weight_spec *w)
{
    const struct lin_format f = head_format(w);
    if (f.bits < 16)
        return random_linear(p, m->vocab, m->d_model, f);
    return (struct packed_linear){.out = m->vocab,
                                  .in = m->d_model,
                                  .groups = 1,
                                  .bits = 16,
                                  .w = random_f16(p, m->vocab, m->d_model)};
}

static void lay_out(struct artifact *a, struct parts *p)
{
    const struct arch *m = &a->arch;
    const int64_t channels = m->n_kv * m->head_dim;
    const float *one = ones(p, channels).data;
    const float *none = take(p, channels * (int64_t)sizeof(float)); /* zeros */
    for (int64_t i = 0; i < m->n_layers; i++) {
        struct packed_block b = {.k_scale = one, .k_shift = none};
        b.v_scale = one;
        b.v_shift = none;
        for (int l = 0; l < N_LIN; l++)
            b.lin[l] = random_linear(p, arch_out(m, l), arch_in(m, l),
                                     weight_format(&a->weights, i, l));
        if (m->n_experts)
            b.router = random_f16(p, m->n_experts, m->d_model);
        for (int g = 0; g < N_BLOCK_GAINS; g++) {
            const int64_t n = arch_gain(m, i, (enum norm_gain)g);
            if (n)
                b.norm[g] = ones(p, n);
        }
        a->block[i] = b;
    }
    a->final_norm = ones(p, m->d_model);
    a->embed = random_end(p, m, &a->weights);
    if (!m->tied)
        a->head = random_end(p, m, &a->weights);
}

enum err artifact_random(struct artifact **out, const struct arch *arch,
                         const struct weight_spec *w, const struct kv_spec *kv,
                         uint64_t seed)
{
    enum err err = OK;
    struct artifact *a = NULL;
    struct parts p = {0};
    FAIL_IF(!quant_bits_ok(w->bits) || w->mixed || kv->mixed, ERR_SUPPORT,
            "made-up weights of %d bits or of several formats", w->bits);
    TRY(mem_calloc(&a, 1, sizeof(*a)));
    a->arch = *arch;
    a->weights = *w;
    a->kv = *kv;
    TRY_OUT(mem_calloc(&a->manifest, 1, sizeof(*a->manifest)));
    TRY_OUT(mem_calloc(&a->block, (size_t)arch->n_layers, sizeof(*a->block)));
    TRY_OUT(mem_calloc(&a->unpacked, (size_t)arch->n_layers, sizeof(*a->unpacked)));
    lay_out(a, &p);
    TRY_OUT(mem_alloc(&a->memory, p.used, 1));
    mem_want_huge(a->memory, p.used);
    memset(a->memory, 0, p.used);
    p = (struct parts){.memory = a->memory};
    rng_seed(&p.rng, seed);
    lay_out(a, &p);
    *out = a;
    return OK;
out:
    artifact_close(&a);
    return err;
}

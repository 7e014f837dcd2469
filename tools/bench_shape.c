/* SPDX-License-Identifier: MIT */
#include "tools/bench_shape.h"

#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <string.h>
#include <time.h>

/* A product is repeated until this many seconds are over, at least MIN_RUNS times. */
#define RUN_SECONDS 0.2
#define MIN_RUNS 3

/* clang-format off */
static const struct arch shapes[] = {
    {.model_type = "llama", .n_layers = 30, .d_model = 576, .d_ff = 1536, .n_heads = 9,
     .n_kv = 3, .head_dim = 64, .vocab = 49152, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e5, .bos = -1, .dtype = DT_BF16, .tied = true},
    {.model_type = "llama", .n_layers = 32, .d_model = 4096, .d_ff = 11008, .n_heads = 32,
     .n_kv = 32, .head_dim = 128, .vocab = 32000, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e4, .bos = -1, .dtype = DT_BF16},
};
/* clang-format on */
static const char *const shape_name[] = {"smollm2-135m", "llama-2-7b"};

enum err bench_shape(struct arch *out, const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(shapes); i++)
        if (!strcmp(name, shape_name[i])) {
            *out = shapes[i];
            return OK;
        }
    FAIL(ERR_USAGE, "--shape %s: want smollm2-135m or llama-2-7b", name);
}

enum err bench_open(struct dev **out, enum dtype *act, const struct args *a)
{
    const int threads = a->threads > 0 ? (int)a->threads : 0;
    TRY(dev_open(out, &(struct dev_settings){"cpu", threads}));
    *act = dev_preferred_act(*out);
    if (!strcmp(a->compute, "f32"))
        *act = DT_F32;
    if (!strcmp(a->compute, "bf16"))
        *act = DT_BF16;
    return OK;
}

double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum err weights_block(void *ctx, int64_t i, struct block_src *out)
{
    const struct bench_weights *w = ctx;
    const uint16_t *at = w->memory;
    const int64_t D = w->arch.d_model;
    *out = (struct block_src){0};
    for (int l = 0; l < N_LIN; l++) {
        const int64_t rows = arch_out(&w->arch, l), cols = arch_in(&w->arch, l);
        out->lin[l] = (struct host_mat){at, DT_BF16, rows, cols, "weight"};
        at += rows * cols;
    }
    out->norm1 = out->norm2 = (struct host_mat){at, DT_BF16, D, 1, "norm"};
    return OK;
}

enum err bench_weights_open(struct bench_weights *w, const struct arch *a)
{
    const int64_t n = arch_block_params(a);
    struct rng rng;
    *w = (struct bench_weights){.arch = *a};
    TRY(mem_alloc(&w->memory, (size_t)(n + a->d_model), sizeof(uint16_t)));
    uint16_t *at = w->memory;
    rng_seed(&rng, 1);
    for (int64_t i = 0; i < n; i++)
        at[i] = bf16_from_f32(0.05f * (float)(rng_uniform(&rng) - 0.5));
    for (int64_t i = 0; i < a->d_model; i++)
        at[n + i] = bf16_from_f32(1);
    w->source = (struct model_source){.ctx = w, .block = weights_block};
    return OK;
}

void bench_weights_close(struct bench_weights *w)
{
    mem_free(w->memory);
    *w = (struct bench_weights){0};
}

enum err bench_tensor(struct tensor *t, struct dev *d, enum dtype type, int64_t rows,
                      int64_t cols)
{
    enum err err = OK;
    struct rng rng;
    float *host = NULL;
    void *p = NULL;
    TRY(mem_alloc(&host, (size_t)cols, sizeof(*host)));
    rng_seed(&rng, 2);
    for (int64_t c = 0; c < cols; c++)
        host[c] = (float)rng_normal(&rng);
    TRY_OUT(dev_alloc(d, &p, (size_t)(rows * cols) * dtype_bytes(type)));
    *t = tensor_2d(p, type, rows, cols);
    for (int64_t r = 0; r < rows; r++) {
        if (type == DT_F32)
            memcpy((float *)p + r * cols, host, (size_t)cols * sizeof(*host));
        else
            host_to_bf16((uint16_t *)p + r * cols, host, DT_F32, cols);
    }
out:
    mem_free(host);
    return err;
}

double bench_product_flops(const struct bench_product *p)
{
    return 2.0 * (double)p->m * (double)p->n * (double)p->k;
}

enum err bench_product_time(double *seconds, struct dev *d, const struct bench_product *p)
{
    const bool ta = p->kind == GEMM_TN, tb = p->kind == GEMM_NT;
    struct tensor a = {0}, b = {0}, c = {0};
    enum err err = OK;
    double best = 1e30;
    TRY_OUT(bench_tensor(&a, d, p->in, ta ? p->k : p->m, ta ? p->m : p->k));
    TRY_OUT(bench_tensor(&b, d, p->in, tb ? p->n : p->k, tb ? p->k : p->n));
    TRY_OUT(bench_tensor(&c, d, p->out, p->m, p->n));
    const double start = bench_now();
    for (int i = 0; i < MIN_RUNS || bench_now() - start < RUN_SECONDS; i++) {
        const double begin = bench_now();
        TRY_OUT(dev_gemm(d, p->kind, &c, &a, &b, false));
        TRY_OUT(dev_sync(d));
        const double took = bench_now() - begin;
        best = took < best ? took : best;
    }
    *seconds = best;
out:
    dev_free(d, a.data);
    dev_free(d, b.data);
    dev_free(d, c.data);
    return err;
}

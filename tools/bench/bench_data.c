/* SPDX-License-Identifier: MIT */
#include "tools/bench_shape.h"

#include "kernels/base/clock.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <stdlib.h>
#include <string.h>

/* Normal numbers are made once and repeated; the length is a prime, so that no two rows of
 * a matrix are alike. */
#define PATTERN 1048573
#define WEIGHT_SCALE 0.02f

/* clang-format off */
static const struct arch shapes[] = {
    {.model_type = "llama", .n_layers = 30, .d_model = 576, .d_ff = 1536, .n_heads = 9,
     .n_kv = 3, .head_dim = 64, .vocab = 49152, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e5, .bos = -1, .dtype = DT_BF16, .tied = true},
    {.model_type = "llama", .n_layers = 22, .d_model = 2048, .d_ff = 5632, .n_heads = 32,
     .n_kv = 4, .head_dim = 64, .vocab = 32000, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e4, .bos = -1, .dtype = DT_BF16},
    {.model_type = "llama", .n_layers = 32, .d_model = 4096, .d_ff = 11008, .n_heads = 32,
     .n_kv = 32, .head_dim = 128, .vocab = 32000, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e4, .bos = -1, .dtype = DT_BF16},
    {.model_type = "llama", .n_layers = 40, .d_model = 5120, .d_ff = 13824, .n_heads = 40,
     .n_kv = 40, .head_dim = 128, .vocab = 32000, .max_positions = 1 << 20,
     .norm_eps = 1e-5f, .rope_theta = 1e4, .bos = -1, .dtype = DT_BF16},
};
/* clang-format on */
static const char *const shape_name[] = {"smollm2-135m", "tinyllama-1.1b", "llama-2-7b",
                                         "llama-2-13b"};

static const int64_t shape_positions[] = {8192, 2048, 4096, 4096};
_Static_assert(ARRAY_LEN(shape_name) == ARRAY_LEN(shapes) &&
                   ARRAY_LEN(shape_positions) == ARRAY_LEN(shapes),
               "a shape has a name and positions");

static int find_shape(const char *name)
{
    for (int i = 0; i < (int)ARRAY_LEN(shapes); i++)
        if (!strcmp(name, shape_name[i]))
            return i;
    return -1;
}

enum err bench_shape(struct arch *out, const char *name)
{
    const int i = find_shape(name);
    FAIL_IF(i < 0, ERR_USAGE,
            "--shape %s: want smollm2-135m, tinyllama-1.1b, llama-2-7b or llama-2-13b",
            name);
    *out = shapes[i];
    return OK;
}

int64_t bench_shape_positions(const char *name)
{
    const int i = find_shape(name);
    return i < 0 ? 0 : shape_positions[i];
}

enum err bench_open(struct dev **out, enum dtype *act, const struct args *a)
{
    const int threads = a->threads > 0 ? (int)a->threads : 0;
    TRY(dev_open(out, &(struct dev_settings){a->device, threads}));
    *act = dev_preferred_act(*out);
    if (!strcmp(a->compute, "f32"))
        *act = DT_F32;
    if (!strcmp(a->compute, "bf16"))
        *act = DT_BF16;
    return OK;
}

static int ascending(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

double bench_median(double *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof(*values), ascending);
    return values[(n - 1) / 2];
}

/* n normal numbers of the type, or as many as the pattern has; release with mem_free. */
static enum err pattern(void **out, enum dtype type, int64_t n, uint64_t seed, float scale)
{
    struct rng rng;
    float *f = NULL;
    uint16_t *h = NULL;
    TRY(mem_alloc(&f, (size_t)n, sizeof(*f)));
    rng_seed(&rng, seed);
    for (int64_t i = 0; i < n; i++)
        f[i] = scale * (float)rng_normal(&rng);
    if (type == DT_F32) {
        *out = f;
        return OK;
    }
    const enum err err = mem_alloc(&h, (size_t)n, sizeof(*h));
    if (!err) {
        host_to_bf16(h, f, DT_F32, n);
        *out = h;
    }
    mem_free(f);
    return err;
}

static int64_t pattern_length(int64_t n)
{
    return n < PATTERN ? n : PATTERN;
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

size_t bench_weights_bytes(const struct arch *a)
{
    return (size_t)(arch_block_params(a) + a->d_model) * sizeof(uint16_t);
}

enum err bench_weights_open(struct bench_weights *w, const struct arch *a)
{
    const int64_t n = arch_block_params(a), step = pattern_length(n);
    void *normal = NULL;
    uint16_t *at = NULL;
    *w = (struct bench_weights){.arch = *a};
    TRY(mem_alloc(&w->memory, (size_t)(n + a->d_model), sizeof(uint16_t)));
    TRY(pattern(&normal, DT_BF16, step, 1, WEIGHT_SCALE));
    at = w->memory;
    for (int64_t i = 0; i < n; i += step)
        memcpy(at + i, normal, (size_t)(n - i < step ? n - i : step) * sizeof(*at));
    for (int64_t i = 0; i < a->d_model; i++)
        at[n + i] = bf16_from_f32(1);
    mem_free(normal);
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
    const int64_t n = rows * cols, step = pattern_length(n);
    const size_t unit = dtype_bytes(type);
    void *normal = NULL, *p = NULL;
    enum err err = OK;
    TRY(pattern(&normal, type, step, 2, 1));
    TRY_OUT(dev_alloc(d, &p, (size_t)n * unit));
    *t = tensor_2d(p, type, rows, cols); /* from here on the caller's to release */
    for (int64_t i = 0; i < n; i += step)
        TRY_OUT(dev_upload(d, (char *)p + (size_t)i * unit, normal,
                           (size_t)(n - i < step ? n - i : step) * unit));
    TRY_OUT(dev_sync(d));
out:
    mem_free(normal);
    return err;
}

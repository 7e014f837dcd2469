/* SPDX-License-Identifier: MIT */
#include "tools/bench/bench_data.h"

#include "kernels/base/clock.h"
#include "kernels/base/half.h"
#include "kernels/base/limits.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <stdlib.h>
#include <string.h>

/* Normal numbers are made once and repeated. The length is a prime, so that no two rows of
 * a matrix are equal. */
#define PATTERN 1048573
#define WEIGHT_SCALE 0.02f

enum err bench_open(struct dev **out, enum dtype *act, const char *device, int threads,
                    const char *compute)
{
    TRY(dev_open(out, &(struct dev_settings){device, threads > 0 ? threads : 0}));
    *act = dev_preferred_act(*out);
    if (!strcmp(compute, "f32"))
        *act = DT_F32;
    if (!strcmp(compute, "bf16"))
        *act = DT_BF16;
    return OK;
}

static enum err refuse_above(uint64_t need, uint64_t has, const char *kind,
                             const char *limit, const char *smaller)
{
    log_verbose("bench needs %.2f GB of %s, %.2f GB are available (limit: %s)",
                1e-9 * (double)need, kind, 1e-9 * (double)has, limit);
    FAIL_IF(has && need > has, ERR_USAGE,
            "%.1f GB of %s are needed, but only %.1f GB are available (limit: %s): give a "
            "smaller %s",
            1e-9 * (double)need, kind, 1e-9 * (double)has, limit, smaller);
    return OK;
}

enum err bench_fits(uint64_t *left, struct dev *d, uint64_t device_bytes,
                    uint64_t host_bytes, const char *smaller)
{
    uint64_t free_bytes, total;
    struct limit host;
    const bool own = dev_memory(d, &free_bytes, &total);
    limits_memory(&host, "");
    if (own) {
        device_bytes += DEV_UPLOAD_BYTES;
        TRY(refuse_above(device_bytes, free_bytes, "GPU memory", "the GPU", smaller));
    } else {
        host_bytes += device_bytes;
        free_bytes = host.amount;
        device_bytes = host_bytes;
    }
    TRY(refuse_above(host_bytes, host.amount, "memory", host.name, smaller));
    *left = free_bytes > device_bytes ? free_bytes - device_bytes : 0;
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

/* Makes n normal numbers of the type, or as many as the pattern has. Release *out with
 * mem_free. */
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
        out->lin[l] = (struct host_mat){at, BENCH_STORED, rows, cols, "weight"};
        at += rows * cols;
    }
    out->norm[GAIN_ATTENTION] = out->norm[GAIN_MLP] =
        (struct host_mat){at, DT_BF16, D, 1, "norm"};
    return OK;
}

size_t bench_weights_bytes(const struct arch *a)
{
    return (size_t)(arch_block_params(a) + a->d_model) * sizeof(uint16_t);
}

/* Makes n weights, BF16, and D ones after them. Release *out with mem_free. */
static enum err repeated_normal(void **out, int64_t n, int64_t D)
{
    const int64_t step = pattern_length(n);
    void *normal = NULL, *memory = NULL;
    TRY(mem_alloc(&memory, (size_t)(n + D), sizeof(uint16_t)));
    const enum err err = pattern(&normal, DT_BF16, step, 1, WEIGHT_SCALE);
    if (err) {
        mem_free(memory);
        return err;
    }
    uint16_t *at = memory;
    for (int64_t i = 0; i < n; i += step)
        memcpy(at + i, normal, (size_t)(n - i < step ? n - i : step) * sizeof(*at));
    for (int64_t i = 0; i < D; i++)
        at[n + i] = bf16_from_f32(1);
    mem_free(normal);
    *out = memory;
    return OK;
}

enum err bench_weights_open(struct bench_weights *w, const struct arch *a)
{
    *w = (struct bench_weights){.arch = *a};
    TRY(repeated_normal(&w->memory, arch_block_params(a), a->d_model));
    w->source = (struct model_source){.ctx = w, .block = weights_block};
    return OK;
}

static enum err weights_ends(void *ctx, struct host_mat *embed, struct host_mat *norm,
                             struct host_mat *head)
{
    const struct bench_weights *w = ctx;
    struct block_src block;
    TRY(weights_block(ctx, 0, &block));
    *embed =
        (struct host_mat){w->embedding, DT_BF16, w->arch.vocab, w->arch.d_model, "embed"};
    *head = *embed;
    *norm = block.norm[GAIN_ATTENTION];
    return OK;
}

enum err bench_weights_add_ends(struct bench_weights *w)
{
    const int64_t n = w->arch.vocab * w->arch.d_model;
    TRY(repeated_normal(&w->embedding, n, 0));
    w->source.ends = weights_ends;
    return OK;
}

void bench_weights_close(struct bench_weights *w)
{
    mem_free(w->embedding);
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
    *t = tensor_2d(p, type, rows, cols); /* owned by the caller from here on */
    for (int64_t i = 0; i < n; i += step)
        TRY_OUT(dev_upload(d, (char *)p + (size_t)i * unit, normal,
                           (size_t)(n - i < step ? n - i : step) * unit));
    TRY_OUT(dev_sync(d));
out:
    mem_free(normal);
    return err;
}

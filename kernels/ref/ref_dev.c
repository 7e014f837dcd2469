/* SPDX-License-Identifier: MIT */
#include "kernels/ref/ref.h"

#include "kernels/base/mem.h"

#include <stdio.h>

static void *ref_alloc(struct dev *d, size_t bytes)
{
    void *p = NULL;
    return mem_alloc(&p, bytes, 1) ? NULL : p;
}

static void ref_free(struct dev *d, void *p)
{
    mem_free(p);
}

static void ref_memcpy(struct dev *d, void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

static void ref_zero(struct dev *d, void *dst, size_t bytes)
{
    memset(dst, 0, bytes);
}

static void ref_sync(struct dev *d)
{
}

static void ref_copy(struct dev *d, const struct tensor *y, const struct tensor *x)
{
    const int64_t rows = tensor_n_rows(x), cols = tensor_width(x);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            ref_set(y, r * y->ld + c, (double)ref_get(x, r * x->ld + c));
}

static void ref_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                     const struct tensor *a, const struct tensor *b, bool accumulate)
{
    const bool ta = kind == GEMM_TN, tb = kind == GEMM_NT;
    const int64_t K = a->dim[!ta];
    for (int64_t m = 0; m < c->dim[0]; m++)
        for (int64_t n = 0; n < c->dim[1]; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++) {
                const double a_mk = (double)ref_get(a, ta ? k * a->ld + m : m * a->ld + k);
                const double b_kn = (double)ref_get(b, tb ? n * b->ld + k : k * b->ld + n);
                sum += a_mk * b_kn;
            }
            ref_put(c, m * c->ld + n, sum, accumulate);
        }
}

static void ref_bias(struct dev *d, const struct tensor *y, const struct tensor *b)
{
    for (int64_t r = 0; r < y->dim[0]; r++)
        for (int64_t c = 0; c < y->dim[1]; c++)
            ref_put(y, r * y->ld + c, (double)ref_get(b, c), true);
}

static void ref_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                    const struct tensor *b)
{
    for (int64_t r = 0; r < y->dim[0]; r++)
        for (int64_t c = 0; c < y->dim[1]; c++)
            ref_set(y, r * y->ld + c,
                    (double)ref_get(a, r * a->ld + c) + (double)ref_get(b, r * b->ld + c));
}

static void ref_scale(struct dev *d, const struct tensor *y, float factor)
{
    for (int64_t r = 0; r < y->dim[0]; r++)
        for (int64_t c = 0; c < y->dim[1]; c++)
            ref_set(y, r * y->ld + c, (double)ref_get(y, r * y->ld + c) * (double)factor);
}

void ref_fill(struct dev *d)
{
    d->ops = (struct dev_ops){
        .name = "ref",
        .alloc = ref_alloc,
        .free = ref_free,
        .upload = ref_memcpy,
        .download = ref_memcpy,
        .zero = ref_zero,
        .sync = ref_sync,
        .copy_in = ref_memcpy,
        .copy_out = ref_memcpy,
        .copy_wait = ref_sync,
        .copy_sync = ref_sync,
        .host_alloc = ref_alloc,
        .host_free = ref_free,
        .copy = ref_copy,
        .gemm = ref_gemm,
        .bias = ref_bias,
        .add = ref_add,
        .scale = ref_scale,
    };
    ref_fill_norm(&d->ops);
    ref_fill_attn(&d->ops);
    ref_fill_mlp(&d->ops);
    ref_fill_quant(&d->ops);
    ref_fill_channel(&d->ops);
    ref_fill_engine(&d->ops);
    ref_fill_train(&d->ops);
    ref_fill_refine(&d->ops);
    snprintf(d->about, sizeof(d->about), "reference: plain loops, f64 accumulation");
}

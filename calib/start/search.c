/* SPDX-License-Identifier: MIT */
#include "calib/start/search.h"

#include "calib/cost.h"
#include "calib/start/inputs.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/clip.h"

#include <math.h>
#include <string.h>

/* The first factor stands for 1, which has no finite logit. */
#define MOST 0.99f

static int64_t widest(const struct arch *a)
{
    int64_t n = 0;
    for (int l = 0; l < N_LIN; l++)
        n = arch_in(a, l) > n ? arch_in(a, l) : n;
    return n;
}

static int64_t largest(const struct arch *a)
{
    int64_t n = 0;
    for (int l = 0; l < N_LIN; l++)
        n = arch_in(a, l) * arch_out(a, l) > n ? arch_in(a, l) * arch_out(a, l) : n;
    return n;
}

/* Returns the columns of the moments of input i: each expert that reads it has its own. */
static int64_t columns_of(const struct arch *a, enum lin_input i)
{
    return input_columns(a, i) * input_parts(a, i);
}

int64_t search_columns(const struct arch *a)
{
    int64_t n = 0;
    for (int i = 0; i < N_INPUTS; i++)
        n += columns_of(a, i);
    return n;
}

size_t search_bytes(const struct arch *a, const struct calib_settings *s)
{
    if (!calib_searches_weights(s))
        return 0;
    /* The stage; during the search, one weight and its two logits per group. */
    return (size_t)(s->seqlen * widest(a)) * dtype_bytes(s->act) +
           (size_t)largest(a) * 2 * sizeof(float);
}

enum err search_open(struct search *k, struct dev *d, const struct arch *a,
                     const struct calib_settings *s, struct share *share)
{
    *k = (struct search){
        .dev = d, .arch = a, .s = s, .share = share, .columns = search_columns(a)};
    TRY(pool_open(&k->pool, dev_threads(d)));
    TRY(mem_calloc(&k->sample, (size_t)k->columns, sizeof(*k->sample)));
    TRY(mem_calloc(&k->sum, (size_t)k->columns, sizeof(*k->sum)));
    char *stage = NULL;
    TRY(mem_alloc(&stage, (size_t)(s->seqlen * widest(a)), dtype_bytes(s->act)));
    k->stage = stage;
    return OK;
}

void search_close(struct search *k)
{
    pool_close(&k->pool);
    mem_free(k->sample);
    mem_free(k->sum);
    mem_free(k->stage);
    *k = (struct search){0};
}

void search_begin(struct search *k)
{
    memset(k->sum, 0, (size_t)k->columns * sizeof(*k->sum));
}

/* Returns element i of the stage as F32. */
static float stage_at(const struct search *k, enum dtype t, int64_t i)
{
    const float *f = k->stage;
    const uint16_t *h = k->stage;
    return t == DT_BF16 ? bf16_to_f32(h[i]) : f[i];
}

/* moment [n] = sums of the squares of x [T,n], which may have padded rows. */
static enum err sum_squares(struct search *k, double *moment, const struct tensor *x)
{
    const int64_t T = x->dim[0], n = x->dim[1];
    const size_t row = (size_t)n * dtype_bytes(x->dtype);
    const int64_t pieces = x->ld == n ? 1 : T;
    for (int64_t i = 0; i < pieces; i++)
        TRY(dev_download(k->dev, (char *)k->stage + (size_t)i * row,
                         (const char *)x->data +
                             (size_t)(i * x->ld) * dtype_bytes(x->dtype),
                         (size_t)(T / pieces) * row));
    memset(moment, 0, (size_t)n * sizeof(*moment));
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < n; c++) {
            const double v = (double)stage_at(k, x->dtype, t * n + c);
            moment[c] += v * v;
        }
    return OK;
}

/* moment [parts][n] = the same of the rows of each part of input i. */
static enum err sum_input(struct search *k, double *moment, const struct block_acts *acts,
                          enum lin_input i)
{
    const int64_t n = input_columns(k->arch, i);
    struct tensor x;
    memset(moment, 0, (size_t)columns_of(k->arch, i) * sizeof(*moment));
    for (int64_t e = 0; e < input_parts(k->arch, i); e++)
        if (input_rows(&x, acts, k->arch, i, e))
            TRY(sum_squares(k, moment + e * n, &x));
    return OK;
}

enum err search_add(struct search *k, const struct block_acts *acts, int64_t i)
{
    double *moment = k->sample;
    for (int n = 0; n < N_INPUTS && share_own(k->share, i); n++) {
        TRY(sum_input(k, moment, acts, n));
        moment += columns_of(k->arch, n);
    }
    return share_add(k->share, k->sum, k->sample, k->columns, i, k->s->samples);
}

/* Returns the moments of input i, summed over samples. */
static double *moments_of(const struct search *k, enum lin_input i)
{
    double *moment = k->sum;
    for (int n = 0; n < (int)i; n++)
        moment += columns_of(k->arch, n);
    return moment;
}

/* One projection, whose rows the threads share. */
struct rows {
    const double *moment; /* [in], for each part_rows rows */
    int64_t part_rows;
    const float *w;
    float *a, *b;
    int64_t in, group, groups;
    struct lin_format format;
};

/* Returns the inverse of sigma: the parameter that gives the factor x. */
static float logit(float x)
{
    return logf(x / (1 - x));
}

static void search_row(void *ctx, int64_t r, int thread)
{
    const struct rows *j = ctx;
    for (int64_t g = 0; g < j->groups; g++) {
        const int64_t first = g * j->group, left = j->in - first;
        float gamma, beta;
        const struct clip_group group = {.w = j->w + r * j->in + first,
                                         .m = j->moment + r / j->part_rows * j->in + first,
                                         .n = left < j->group ? left : j->group,
                                         .format = j->format};
        clip_search(&gamma, &beta, &group, MOST);
        j->a[r * j->groups + g] = logit(gamma);
        j->b[r * j->groups + g] = logit(beta);
    }
}

/* Sets the logits of projection l, by way of host memory. */
static enum err search_lin(struct search *k, struct fakequant *f, int l)
{
    const struct tensor w = block_weights_lin(&f->master, k->arch, l);
    const int64_t n = tensor_count(&w), n_groups = tensor_count(&f->a[l]);
    float *host = NULL;
    enum err err = OK;
    TRY(mem_alloc(&host, (size_t)(n + 2 * n_groups), sizeof(*host)));
    struct rows j = {.format = f->format[l],
                     .moment = moments_of(k, input_of(l)),
                     .part_rows = w.dim[0] / arch_stacked(k->arch, l),
                     .w = host,
                     .a = host + n,
                     .b = host + n + n_groups,
                     .in = w.dim[1],
                     .groups = f->a[l].dim[1]};
    j.group = f->format[l].group_size ? f->format[l].group_size : j.in;
    const size_t bytes = (size_t)n_groups * sizeof(*host);
    TRY_OUT(dev_download_f32(k->dev, host, &w));
    pool_run(k->pool, w.dim[0], search_row, &j);
    TRY_OUT(dev_upload(k->dev, f->a[l].data, j.a, bytes));
    TRY_OUT(dev_upload(k->dev, f->b[l].data, j.b, bytes));
    err = dev_sync(k->dev);
out:
    mem_free(host);
    return err;
}

enum err search_finish(struct search *k, struct fakequant *f)
{
    for (int i = 0; i < N_INPUTS; i++) {
        const int64_t n = input_columns(k->arch, i), parts = input_parts(k->arch, i);
        for (int64_t e = 0; e < parts && parts > 1; e++)
            input_fill_unreached(moments_of(k, i) + e * n, n, 1);
    }
    for (int l = 0; l < N_LIN; l++)
        if (f->format[l].bits < 16)
            TRY(search_lin(k, f, l));
    return OK;
}

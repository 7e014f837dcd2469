/* SPDX-License-Identifier: MIT */
#include "calib/start/search.h"

#include "calib/cost.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/clip.h"

#include <math.h>
#include <string.h>

/* The first factor stands for 1, which has no finite logit. */
#define MOST 0.99f

/* q, k and v read one input, and gate and up another: four moments serve seven
 * projections. */
static const int input_of[N_LIN] = {
    [LIN_Q] = 0,    [LIN_K] = 0,  [LIN_V] = 0,   [LIN_O] = 1,
    [LIN_GATE] = 2, [LIN_UP] = 2, [LIN_DOWN] = 3};

static const int reader_of[SEARCH_INPUTS] = {LIN_Q, LIN_O, LIN_GATE, LIN_DOWN};

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
static int64_t columns_of(const struct arch *a, int i)
{
    return arch_in(a, reader_of[i]) * arch_stacked(a, reader_of[i]);
}

int64_t search_columns(const struct arch *a)
{
    int64_t n = 0;
    for (int i = 0; i < SEARCH_INPUTS; i++)
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

/* The same of the rows of each expert in x [T k,n]; moment [E][n]. */
static enum err sum_experts(struct search *k, double *moment, const struct block_acts *acts,
                            const struct tensor *x)
{
    const int64_t n = x->dim[1], *first = acts->experts.route.first;
    memset(moment, 0, (size_t)(k->arch->n_experts * n) * sizeof(*moment));
    for (int64_t e = 0; e < k->arch->n_experts; e++) {
        const int64_t rows = first[e + 1] - first[e];
        const struct tensor own = rows ? tensor_rows(*x, first[e], rows) : *x;
        if (rows)
            TRY(sum_squares(k, moment + e * n, &own));
    }
    return OK;
}

enum err search_add(struct search *k, const struct block_acts *acts, int64_t i)
{
    const struct tensor *const n2 = k->arch->n_experts ? &acts->experts.x : &acts->n2;
    const struct tensor *const x[SEARCH_INPUTS] = {&acts->n1, &acts->o, n2, &acts->m};
    double *moment = k->sample;
    for (int l = 0; l < SEARCH_INPUTS && share_own(k->share, i); l++) {
        TRY(arch_of_experts(k->arch, reader_of[l]) ? sum_experts(k, moment, acts, x[l])
                                                   : sum_squares(k, moment, x[l]));
        moment += columns_of(k->arch, l);
    }
    return share_add(k->share, k->sum, k->sample, k->columns, i, k->s->samples);
}

/* Returns the moments of the input of projection l, summed over samples. */
static double *moments_of(const struct search *k, int l)
{
    double *moment = k->sum;
    for (int i = 0; i < input_of[l]; i++)
        moment += columns_of(k->arch, i);
    return moment;
}

/* Sets the moments of experts that no token reached to 1: all their columns count alike. */
static void fill_unreached(struct search *k, int l)
{
    const int64_t n = arch_in(k->arch, l);
    double *moment = moments_of(k, l);
    for (int64_t e = 0; e < k->arch->n_experts; e++, moment += n) {
        bool reached = false;
        for (int64_t c = 0; c < n; c++)
            reached = reached || moment[c] > 0;
        for (int64_t c = 0; c < n && !reached; c++)
            moment[c] = 1;
    }
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
                     .moment = moments_of(k, l),
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
    for (int i = 0; i < SEARCH_INPUTS; i++)
        if (arch_of_experts(k->arch, reader_of[i]))
            fill_unreached(k, reader_of[i]);
    for (int l = 0; l < N_LIN; l++)
        if (f->format[l].bits < 16)
            TRY(search_lin(k, f, l));
    return OK;
}

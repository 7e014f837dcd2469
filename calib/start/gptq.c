/* SPDX-License-Identifier: MIT
 *
 * GPTQ on a block (Frantar et al., arXiv 2210.17323): the Hessian of each input, its factor,
 * and the projections that read it. The error of a projection's output over the calibration
 * set is sum |(W - W^) x|^2, a quadratic form in the error of each row with the matrix
 *
 *   H = 2 / samples sum x x^T
 *
 * for all rows alike. gptq_solve.c minimizes it greedily, column by column. Each expert of a
 * mixture has a Hessian of the tokens that reached it, or 1, which is rounding to nearest. */
#include "calib/start/gptq.h"

#include "calib/cost.h"
#include "calib/model/carve.h"
#include "kernels/base/mem.h"

#include <inttypes.h>

/* Largest dimensions of any projection, of one expert's where there are several, for buffers that
 * serve one at a time. */
struct extent {
    int64_t out, in, weight;
};

static struct extent extent_of(const struct arch *a)
{
    struct extent e = {0};
    for (int l = 0; l < N_LIN; l++) {
        const int64_t out = arch_out(a, l) / arch_stacked(a, l), in = arch_in(a, l);
        const int64_t wide = in > GPTQ_COLUMNS ? in : GPTQ_COLUMNS;
        e.out = out > e.out ? out : e.out;
        e.in = in > e.in ? in : e.in;
        e.weight = out * wide > e.weight ? out * wide : e.weight;
    }
    return e;
}

static void layout(struct gptq *g, struct carve *c, const struct arch *a)
{
    for (int i = 0; i < N_INPUTS; i++) {
        const int64_t n = input_columns(a, i);
        g->h[i] = carve_2d(c, DT_F32, input_parts(a, i) * n, n);
    }
    g->work.block = carve_2d(c, DT_F32, extent_of(a).out, GPTQ_COLUMNS);
}

size_t gptq_bytes(const struct arch *a, const struct calib_settings *s)
{
    struct gptq g = {0};
    struct carve c = {0};
    const struct extent e = extent_of(a);
    if (!calib_runs_gptq(s))
        return 0;
    layout(&g, &c, a);
    /* Codes of a block; a weight and ranges; h in F32 and in F64. */
    return c.used + (size_t)arch_block_params(a) + (size_t)(e.weight + 2 * e.out) * 4 +
           (size_t)(e.in * e.in) * 12;
}

/* Returns the rows of all quantized projections that read input i. */
static int64_t rows_reading(const struct arch *a, const struct calib_settings *s,
                            int64_t block, enum lin_input i)
{
    int64_t rows = 0;
    for (int l = 0; l < N_LIN; l++)
        if (input_of(l) == i && weight_format(&s->weights, block, l).bits < 16)
            rows += arch_out(a, l);
    return rows;
}

double gptq_flops(const struct arch *a, const struct calib_settings *s, int64_t block)
{
    const double T = (double)(s->samples * s->seqlen);
    double sum = 0;
    if (!calib_runs_gptq(s))
        return 0;
    for (int i = 0; i < N_INPUTS; i++) {
        const double n = (double)input_columns(a, i), parts = (double)input_parts(a, i);
        const double rows = (double)rows_reading(a, s, block, i);
        sum += 2 * n * n * T * (parts > 1 ? (double)a->n_active : 1) + rows * n * n;
        if (rows > 0)
            sum += parts * 2 / 3 * n * n * n;
    }
    return sum;
}

static enum err open_host(struct gptq *g)
{
    const struct extent e = extent_of(g->arch);
    const int64_t square[] = {e.in, e.in};
    size_t n;
    TRY(size_product(&n, square, 2, sizeof(*g->input.h)));
    TRY(mem_alloc(&g->input.h, n / sizeof(*g->input.h), sizeof(*g->input.h)));
    TRY(mem_alloc(&g->input.order, (size_t)e.in, sizeof(*g->input.order)));
    TRY(mem_alloc(&g->input.dead, (size_t)e.in, sizeof(*g->input.dead)));
    TRY(mem_alloc(&g->work.stage, (size_t)e.weight, sizeof(*g->work.stage)));
    return mem_alloc(&g->work.range, 2 * (size_t)e.out, sizeof(*g->work.range));
}

enum err gptq_open(struct gptq *g, struct dev *d, const struct arch *a,
                   const struct calib_settings *s)
{
    struct carve c = {0};
    *g = (struct gptq){.dev = d, .arch = a, .s = s, .work = {.dev = d}};
    TRY(pool_open(&g->pool, dev_threads(d)));
    g->work.pool = g->pool;
    layout(g, &c, a);
    TRY(dev_alloc(d, &g->memory, c.used));
    c = (struct carve){.base = g->memory};
    layout(g, &c, a);
    return open_host(g);
}

void gptq_close(struct gptq *g)
{
    if (g->dev)
        dev_free(g->dev, g->memory);
    pool_close(&g->pool);
    mem_free(g->input.h);
    mem_free(g->input.order);
    mem_free(g->input.dead);
    mem_free(g->work.stage);
    mem_free(g->work.range);
    *g = (struct gptq){0};
}

static size_t square_bytes(const struct tensor *h)
{
    return (size_t)tensor_count(h) * sizeof(float);
}

enum err gptq_begin(struct gptq *g)
{
    for (int i = 0; i < N_INPUTS; i++)
        TRY(dev_zero(g->dev, g->h[i].data, square_bytes(&g->h[i])));
    return OK;
}

/* H += x^T x of a sample [T,n], or of the rows of each expert, summed where the activations are;
 * the factor 2 / samples follows once at the end. */
static enum err add_products(struct gptq *g, const struct block_acts *acts,
                             enum lin_input i)
{
    const int64_t n = input_columns(g->arch, i);
    struct tensor x;
    for (int64_t e = 0; e < input_parts(g->arch, i); e++) {
        const struct tensor h = tensor_rows(g->h[i], e * n, n);
        if (input_rows(&x, acts, g->arch, i, e))
            TRY(dev_gemm(g->dev, GEMM_TN, &h, &x, &x, true));
    }
    return OK;
}

enum err gptq_add(struct gptq *g, const struct block_acts *acts)
{
    for (int i = 0; i < N_INPUTS; i++)
        TRY(add_products(g, acts, i));
    return OK;
}

/* Downloads H = 2 / samples sum x x^T as F64. */
static enum err download_hessian(struct gptq *g, const struct tensor *h)
{
    const int64_t n = h->dim[0];
    const double scale = 2 / (double)g->s->samples;
    float *sum = NULL;
    g->input.n = n;
    TRY(mem_alloc(&sum, (size_t)(n * n), sizeof(*sum)));
    const enum err err = dev_download(g->dev, sum, h->data, square_bytes(h));
    /* The triangles were computed by different tiles: the lower one is used for both. */
    for (int64_t i = 0; i < n && !err; i++)
        for (int64_t j = 0; j <= i; j++)
            g->input.h[i * n + j] = g->input.h[j * n + i] = scale * (double)sum[i * n + j];
    mem_free(sum);
    return err;
}

static enum err upload_factor(struct gptq *g, const struct tensor *h)
{
    const int64_t n = h->dim[0];
    float *u = NULL;
    TRY(mem_alloc(&u, (size_t)(n * n), sizeof(*u)));
    for (int64_t i = 0; i < n * n; i++)
        u[i] = (float)g->input.h[i];
    enum err err = dev_upload(g->dev, h->data, u, square_bytes(h));
    if (!err)
        err = dev_sync(g->dev);
    mem_free(u);
    g->work.u = *h;
    return err;
}

/* A projection in work: its codes, and the weight that GPTQ overwrites. */
struct target {
    int lin;
    struct qlinear q;
    struct tensor w;
};

/* The offsets' own memory holds a copy of the weight where GPTQ only starts them, under the
 * scales of the clipping. */
static enum err target_open(struct target *t, struct gptq *g, struct fakequant *f, int l)
{
    const struct tensor w = block_weights_lin(&f->master, g->arch, l);
    *t = (struct target){.lin = l, .w = w};
    TRY(qlinear_alloc(&t->q, arch_out(g->arch, l), arch_in(g->arch, l), f->format[l]));
    TRY(qlinear_alloc_codes(&t->q));
    if (!f->gptq_start)
        return OK;
    g->work.scaled = true;
    t->w = fakequant_offsets(f, l, false);
    TRY(fakequant_scales(f, &t->q, l));
    return dev_copy(g->dev, &t->w, &w);
}

/* Rows [first, first + n) of q, borrowed. */
static struct qlinear rows_of(const struct qlinear *q, int64_t first, int64_t n)
{
    struct qlinear part = *q;
    part.out = n;
    part.scales += first * q->groups;
    part.zeros += first * q->groups;
    part.codes += first * q->in;
    return part;
}

/* Chooses codes of the rows of expert e, or of all rows without experts. */
static enum err solve(struct gptq *g, const struct target *t, int64_t e)
{
    const int64_t n = t->q.out / arch_stacked(g->arch, t->lin);
    struct qlinear q = rows_of(&t->q, e * n, n);
    const struct tensor w = tensor_rows(t->w, e * n, n);
    return gptq_linear(&g->work, &q, &w, &g->input, &g->s->gptq);
}

/* Factors a Hessian; its factor replaces it in memory. That of an expert without tokens is 1, which
 * makes codes the nearest, and *unreached, which may be NULL, becomes true. */
static enum err factor(struct gptq *g, const struct tensor *h, bool experts,
                       bool *unreached)
{
    TRY(download_hessian(g, h));
    const int64_t n = g->input.n;
    const bool none = experts && input_fill_unreached(g->input.h, n, n + 1);
    if (none && unreached)
        *unreached = true;
    TRY(gptq_factor(&g->input, &g->s->gptq, dev_threads(g->dev)));
    return upload_factor(g, h);
}

/* Chooses the codes of n projections that read input i, each Hessian factored once. */
static enum err solve_all(struct gptq *g, const struct target *t, int n, int i,
                          bool *unreached)
{
    const int64_t in = g->h[i].dim[1], parts = g->h[i].dim[0] / in;
    for (int64_t e = 0; e < parts; e++) {
        const struct tensor h = tensor_rows(g->h[i], e * in, in);
        enum err err = factor(g, &h, parts > 1, unreached ? unreached + e : NULL);
        int k = 0;
        while (!err && k < n)
            err = solve(g, &t[k++], e);
        if (err)
            return err_add(err, "%s: ", arch_lin_module(g->arch, t[k ? k - 1 : 0].lin));
    }
    return OK;
}

/* The projections that read input i. */
static enum err finish_input(struct gptq *g, struct fakequant *f, enum lin_input i,
                             bool *unreached)
{
    struct target t[N_LIN];
    int n = 0;
    enum err err = OK;
    for (int l = 0; l < N_LIN && !err; l++)
        if (input_of(l) == i && f->format[l].bits < 16)
            err = target_open(&t[n++], g, f, l);
    if (!err && n)
        err = solve_all(g, t, n, i, unreached);
    for (int k = 0; k < n; k++) {
        if (!err)
            err = f->gptq_start ? fakequant_start_at(f, t[k].lin, &t[k].q)
                                : fakequant_fix(f, t[k].lin, &t[k].q);
        qlinear_free(&t[k].q);
    }
    return err;
}

enum err gptq_finish(struct gptq *g, struct fakequant *f, bool *unreached)
{
    if (f->gptq_start)
        TRY(fakequant_apply(f));
    for (int i = 0; i < N_INPUTS; i++)
        TRY(finish_input(g, f, i, unreached));
    return OK;
}

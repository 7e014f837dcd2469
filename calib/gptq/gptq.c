/* SPDX-License-Identifier: MIT
 *
 * GPTQ on a block (Frantar et al., arXiv 2210.17323): the Hessian of each input, its factor,
 * and the projections that read it. The error of a projection's output over the calibration
 * set is sum |(W - W^) x|^2, a quadratic form in the error of each row with the matrix
 *
 *   H = 2 / samples sum x x^T
 *
 * for all rows alike. gptq_solve.c minimizes it greedily, column by column. */
#include "calib/gptq/gptq.h"

#include "calib/model/carve.h"
#include "kernels/base/mem.h"

#include <inttypes.h>

/* q, k and v share an input and therefore a Hessian, and so do gate and up. */
static const int input_of[N_LIN] = {
    [LIN_Q] = 0,    [LIN_K] = 0,  [LIN_V] = 0,   [LIN_O] = 1,
    [LIN_GATE] = 2, [LIN_UP] = 2, [LIN_DOWN] = 3};

/* Largest dimensions of any projection, for buffers that serve one at a time. */
struct extent {
    int64_t out, in, weight;
};

static struct extent extent_of(const struct arch *a)
{
    struct extent e = {0};
    for (int l = 0; l < N_LIN; l++) {
        const int64_t out = arch_out(a, l), in = arch_in(a, l);
        const int64_t wide = in > GPTQ_COLUMNS ? in : GPTQ_COLUMNS;
        e.out = out > e.out ? out : e.out;
        e.in = in > e.in ? in : e.in;
        e.weight = out * wide > e.weight ? out * wide : e.weight;
    }
    return e;
}

static void layout(struct gptq *g, struct carve *c, const struct arch *a)
{
    for (int l = 0; l < N_LIN; l++)
        if (!l || input_of[l] != input_of[l - 1])
            g->h[input_of[l]] = carve_2d(c, DT_F32, arch_in(a, l), arch_in(a, l));
    g->work.block = carve_2d(c, DT_F32, extent_of(a).out, GPTQ_COLUMNS);
}

size_t gptq_bytes(const struct arch *a, const struct calib_settings *s)
{
    struct gptq g = {0};
    struct carve c = {0};
    const struct extent e = extent_of(a);
    if (!weight_quantizes(&s->weights) || s->weights.method != WEIGHT_GPTQ)
        return 0;
    layout(&g, &c, a);
    /* Codes of a block; a weight and ranges; h in F32 and in F64. */
    return c.used + (size_t)arch_block_params(a) + (size_t)(e.weight + 2 * e.out) * 4 +
           (size_t)(e.in * e.in) * 12;
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
    for (int i = 0; i < GPTQ_INPUTS; i++)
        TRY(dev_zero(g->dev, g->h[i].data, square_bytes(&g->h[i])));
    return OK;
}

/* H += x^T x of a sample [T,n], summed where the activations are; the factor 2 / samples
 * follows once at the end. */
enum err gptq_add(struct gptq *g, const struct block_acts *acts)
{
    const struct tensor *const x[GPTQ_INPUTS] = {&acts->n1, &acts->o, &acts->n2, &acts->m};
    for (int i = 0; i < GPTQ_INPUTS; i++)
        TRY(dev_gemm(g->dev, GEMM_TN, &g->h[i], x[i], x[i], true));
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

/* Starts the offsets at the codes of GPTQ under the scales of the clipping. Their own
 * memory holds the copy of the weight that GPTQ overwrites. */
static enum err start_offsets(struct gptq *g, struct fakequant *f, int l, struct qlinear *q)
{
    const struct tensor w = block_weights_lin(&f->master, g->arch, l);
    const struct tensor spent = fakequant_offsets(f, l, false);
    g->work.scaled = true;
    TRY(fakequant_scales(f, q, l));
    TRY(dev_copy(g->dev, &spent, &w));
    TRY(gptq_linear(&g->work, q, &spent, &g->input, &g->s->gptq));
    return fakequant_start_at(f, l, q);
}

static enum err solve(struct gptq *g, struct fakequant *f, int l)
{
    struct qlinear q = {0};
    const struct tensor w = block_weights_lin(&f->master, g->arch, l);
    TRY(qlinear_alloc(&q, arch_out(g->arch, l), arch_in(g->arch, l), f->format[l]));
    enum err err = qlinear_alloc_codes(&q);
    if (!err && f->gptq_start)
        err = start_offsets(g, f, l, &q);
    else if (!err)
        err = gptq_linear(&g->work, &q, &w, &g->input, &g->s->gptq);
    if (!err && !f->gptq_start)
        return fakequant_fix(f, l, &q);
    qlinear_free(&q);
    return err;
}

/* Projections come in the order of their inputs, so each Hessian is factored once. Its
 * factor replaces it in memory. */
enum err gptq_finish(struct gptq *g, struct fakequant *f)
{
    if (f->gptq_start)
        TRY(fakequant_apply(f));
    for (int l = 0, factored = -1; l < N_LIN; l++) {
        const struct tensor *h = &g->h[input_of[l]];
        enum err err = OK;
        if (f->format[l].bits >= 16)
            continue;
        if (input_of[l] != factored) {
            TRY(download_hessian(g, h));
            err = gptq_factor(&g->input, &g->s->gptq, dev_threads(g->dev));
            if (!err)
                err = upload_factor(g, h);
            factored = input_of[l];
        }
        if (!err)
            err = solve(g, f, l);
        if (err)
            return err_add(err, "%s: ", lin_module[l]);
    }
    return OK;
}

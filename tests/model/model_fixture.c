/* SPDX-License-Identifier: MIT */
#include "tests/model/model_fixture.h"

#include "kernels/base/half.h"
#include "kernels/base/mem.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

void must(enum err e)
{
    if (e)
        fail_msg("%s error at %s: %s", err_name(e), err_where(), err_text());
}

struct dev *open_dev(const char *name)
{
    struct dev *d = NULL;
    const struct dev_settings s = {.name = name, .threads = 2};
    must(dev_open(&d, &s));
    return d;
}

float *draw(struct rng *r, int64_t n, double scale, double shift)
{
    float *x = NULL;
    must(mem_alloc(&x, (size_t)n, sizeof(*x)));
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(rng_normal(r) * scale + shift);
    return x;
}

static struct host_mat draw_mat(struct fixture *f, struct rng *r, int64_t rows,
                                int64_t cols, double scale, double shift)
{
    float *data = draw(r, rows * cols, scale, shift);
    assert_true(f->n_memory < (int)ARRAY_LEN(f->memory));
    f->memory[f->n_memory++] = data;
    return (struct host_mat){.data = data, .dtype = DT_F32, .rows = rows, .cols = cols};
}

/* Gains from .. to - 1, those that the architecture has. */
static void draw_norms(struct fixture *f, struct rng *r, struct block_src *b, int from,
                       int to)
{
    for (int g = from; g < to; g++) {
        const int64_t n = arch_gain(&f->arch, 0, (enum norm_gain)g);
        if (n)
            b->norm[g] = draw_mat(f, r, n, 1, 0.2, 1);
    }
}

static void draw_block(struct fixture *f, struct rng *r, struct block_src *b)
{
    const struct arch *a = &f->arch;
    draw_norms(f, r, b, GAIN_ATTENTION, GAIN_Q);
    for (int l = 0; l < N_LIN; l++)
        b->lin[l] = draw_mat(f, r, arch_out(a, l), arch_in(a, l),
                             1 / sqrt((double)arch_in(a, l)), 0);
    for (int l = 0; l < N_LIN; l++)
        if (arch_has_bias(a, l))
            b->bias[l] = draw_mat(f, r, arch_out(a, l), 1, 0.3, 0);
    draw_norms(f, r, b, GAIN_Q, N_BLOCK_GAINS);
    if (a->n_experts)
        b->router =
            draw_mat(f, r, a->n_experts, a->d_model, 1.5 / sqrt((double)a->d_model), 0);
}

static enum err fixture_block(void *ctx, int64_t i, struct block_src *out)
{
    *out = ((struct fixture *)ctx)->blocks[i];
    return OK;
}

static enum err fixture_ends(void *ctx, struct host_mat *embed, struct host_mat *final_norm,
                             struct host_mat *head)
{
    const struct fixture *f = ctx;
    *embed = f->embed;
    *final_norm = f->final_norm;
    *head = f->head;
    return OK;
}

void fixture_open(struct fixture *f, struct arch a, uint64_t seed)
{
    *f = (struct fixture){.arch = a};
    must(arch_check(&a));
    struct rng r;
    rng_seed(&r, seed);
    must(mem_calloc(&f->blocks, (size_t)a.n_layers, sizeof(*f->blocks)));
    for (int64_t i = 0; i < a.n_layers; i++)
        draw_block(f, &r, &f->blocks[i]);
    f->embed = draw_mat(f, &r, a.vocab, a.d_model, 1, 0);
    f->final_norm = draw_mat(f, &r, a.d_model, 1, 0.2, 1);
    f->head = draw_mat(f, &r, a.vocab, a.d_model, 1 / sqrt((double)a.d_model), 0);
    f->source =
        (struct model_source){.ctx = f, .block = fixture_block, .ends = fixture_ends};
}

void fixture_close(struct fixture *f)
{
    for (int i = 0; i < f->n_memory; i++)
        mem_free(f->memory[i]);
    mem_free(f->blocks);
}

void *to_dev(struct dev *d, const float *host, int64_t n, enum dtype t)
{
    void *p = NULL, *bits = NULL;
    const size_t bytes = (size_t)n * dtype_bytes(t);
    must(dev_alloc(d, &p, bytes));
    if (t == DT_F32) {
        must(dev_upload(d, p, host, bytes));
        return p;
    }
    must(mem_alloc(&bits, (size_t)n, sizeof(uint16_t)));
    host_to_bf16(bits, host, DT_F32, n);
    must(dev_upload(d, p, bits, bytes));
    mem_free(bits);
    return p;
}

float *to_host(struct dev *d, const struct tensor *x)
{
    const int64_t n = tensor_count(x);
    const struct tensor flat = tensor_2d(x->data, x->dtype, 1, n);
    struct tensor wide = dev_2d(d, DT_F32, 1, n);
    float *host = NULL;
    must(mem_alloc(&host, (size_t)n, sizeof(*host)));
    must(dev_copy(d, &wide, &flat));
    must(dev_download(d, host, wide.data, (size_t)n * sizeof(*host)));
    dev_free(d, wide.data);
    return host;
}

struct tensor dev_2d(struct dev *d, enum dtype t, int64_t rows, int64_t cols)
{
    void *p = NULL;
    must(dev_alloc(d, &p, (size_t)(rows * cols) * dtype_bytes(t)));
    return tensor_2d(p, t, rows, cols);
}

double max_error(const float *x, const float *y, int64_t n)
{
    double worst = 0, top = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i]) || !isfinite(y[i]))
            return INFINITY;
        worst = fmax(worst, fabs((double)x[i] - (double)y[i]));
        top = fmax(top, fabs((double)y[i]));
    }
    return worst == 0 ? 0 : worst / top;
}

double norm_error(const float *x, const float *y, int64_t n)
{
    double diff = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i]) || !isfinite(y[i]))
            return INFINITY;
        diff += pow((double)x[i] - (double)y[i], 2);
        sum += pow((double)y[i], 2);
    }
    return diff == 0 ? 0 : sqrt(diff / sum);
}

void check_error(const char *what, double error, double bound)
{
    const bool pass = error <= bound;
    if (!pass)
        fail_msg("%s: error %.3g, want at most %.3g", what, error, bound);
}

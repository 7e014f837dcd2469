/* SPDX-License-Identifier: MIT */
#include "tools/bench/bench_gemm.h"

#include "calib/cost.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "tools/bench/bench_data.h"

struct pass {
    struct dev *dev;
    const struct arch *arch;
    int64_t T;
    enum dtype act;
    bool weight_grads;
    struct tensor a, b, c; /* Operand memory; each operand is as large as the largest. */
    struct bench_gemm sum;
};

enum part { LINEAR, ATTENTION };

static struct tensor view(const struct tensor *memory, enum dtype t, int64_t rows,
                          int64_t cols)
{
    return tensor_2d(memory->data, t, rows, cols);
}

/* Runs one product C [m,n] with inner dimension k and adds its figures to p->sum. */
static enum err product(struct pass *p, enum part part, enum gemm_kind kind, int64_t m,
                        int64_t n, int64_t k, enum dtype out)
{
    const bool ta = kind == GEMM_TN, tb = kind == GEMM_NT;
    const struct tensor a = view(&p->a, p->act, ta ? k : m, ta ? m : k);
    const struct tensor b = view(&p->b, p->act, tb ? n : k, tb ? k : n);
    const struct tensor c = view(&p->c, out, m, n);
    const double begin = clock_s();
    TRY(dev_gemm(p->dev, kind, &c, &a, &b, false));
    TRY(dev_sync(p->dev));
    const double took = clock_s() - begin;
    const double flops = 2 * (double)m * (double)n * (double)k;
    if (part == LINEAR) {
        p->sum.linear_s += took;
        p->sum.linear_flops += flops;
    } else {
        p->sum.attention_s += took;
        p->sum.attention_flops += flops;
    }
    return OK;
}

/* A weight matrix [out, in], as a block stores it. */
struct piece {
    int64_t out, in;
};

static struct piece qkv_of(const struct arch *a)
{
    return (struct piece){(a->n_heads + 2 * a->n_kv) * a->head_dim, a->d_model};
}

static struct piece o_of(const struct arch *a)
{
    return (struct piece){a->d_model, a->n_heads * a->head_dim};
}

static struct piece gate_up_of(const struct arch *a)
{
    return (struct piece){2 * a->d_ff, a->d_model};
}

static struct piece down_of(const struct arch *a)
{
    return (struct piece){a->d_model, a->d_ff};
}

static enum err forward(struct pass *p, struct piece w)
{
    return product(p, LINEAR, GEMM_NT, p->T, w.out, w.in, p->act);
}

static enum err input_grad(struct pass *p, struct piece w)
{
    return product(p, LINEAR, GEMM_NN, p->T, w.in, w.out, p->act);
}

static enum err weight_grad(struct pass *p, struct piece w)
{
    if (!p->weight_grads)
        return OK;
    return product(p, LINEAR, GEMM_TN, w.out, w.in, p->T, DT_F32);
}

static enum err attention_forward(struct pass *p)
{
    const int64_t T = p->T, d = p->arch->head_dim;
    for (int64_t h = 0; h < p->arch->n_heads; h++) {
        TRY(product(p, ATTENTION, GEMM_NT, T, T, d, p->act)); /* S */
        TRY(product(p, ATTENTION, GEMM_NN, T, d, T, p->act)); /* O */
    }
    return OK;
}

static enum err attention_backward(struct pass *p)
{
    const int64_t T = p->T, d = p->arch->head_dim;
    for (int64_t h = 0; h < p->arch->n_heads; h++) {
        TRY(product(p, ATTENTION, GEMM_NT, T, T, d, p->act)); /* S */
        TRY(product(p, ATTENTION, GEMM_NT, T, T, d, p->act)); /* dP */
        TRY(product(p, ATTENTION, GEMM_TN, T, d, T, p->act)); /* dV */
        TRY(product(p, ATTENTION, GEMM_NN, T, d, T, p->act)); /* dQ */
        TRY(product(p, ATTENTION, GEMM_TN, T, d, T, p->act)); /* dK */
    }
    return OK;
}

static enum err block_forward_products(struct pass *p)
{
    TRY(forward(p, qkv_of(p->arch)));
    TRY(attention_forward(p));
    TRY(forward(p, o_of(p->arch)));
    TRY(forward(p, gate_up_of(p->arch)));
    return forward(p, down_of(p->arch));
}

static enum err block_backward_products(struct pass *p)
{
    TRY(input_grad(p, down_of(p->arch)));
    TRY(input_grad(p, gate_up_of(p->arch)));
    TRY(input_grad(p, o_of(p->arch)));
    TRY(attention_backward(p));
    return input_grad(p, qkv_of(p->arch));
}

static enum err trained_backward_products(struct pass *p)
{
    TRY(weight_grad(p, down_of(p->arch)));
    TRY(input_grad(p, down_of(p->arch)));
    TRY(weight_grad(p, gate_up_of(p->arch)));
    TRY(input_grad(p, gate_up_of(p->arch)));
    TRY(weight_grad(p, o_of(p->arch)));
    TRY(input_grad(p, o_of(p->arch)));
    TRY(attention_backward(p));
    return weight_grad(p, qkv_of(p->arch));
}

static enum err run(struct pass *p, int64_t blocks)
{
    p->sum = (struct bench_gemm){0};
    for (int64_t i = 0; i <= blocks; i++)
        TRY(block_forward_products(p));
    for (int64_t i = 0; i < blocks; i++)
        TRY(block_backward_products(p));
    TRY(trained_backward_products(p));
    /* only the causal half */
    p->sum.attention_s /= 2;
    p->sum.attention_flops /= 2;
    return OK;
}

static int64_t larger(int64_t x, int64_t y)
{
    return x > y ? x : y;
}

/* Returns the rows and columns that hold any operand of any product. */
static struct piece room(const struct arch *a, int64_t T)
{
    const int64_t in = larger(a->d_model, larger(a->d_ff, o_of(a).in));
    const int64_t width = larger(qkv_of(a).out, gate_up_of(a).out);
    return (struct piece){larger(larger(in, width), T), larger(in, T)};
}

size_t bench_gemm_bytes(const struct arch *a, const struct calib_settings *s)
{
    const struct piece r = room(a, s->seqlen);
    const size_t n = (size_t)r.out * (size_t)r.in;
    return n * (2 * dtype_bytes(s->act) + sizeof(float));
}

static enum err measure(struct bench_gemm *out, struct pass *p, int64_t blocks,
                        int64_t passes)
{
    double *linear = NULL, *attention = NULL;
    enum err err = OK;
    TRY_OUT(mem_alloc(&linear, (size_t)passes, sizeof(*linear)));
    TRY_OUT(mem_alloc(&attention, (size_t)passes, sizeof(*attention)));
    TRY_OUT(run(p, blocks));
    for (int64_t i = 0; i < passes; i++) {
        TRY_OUT(run(p, blocks));
        linear[i] = p->sum.linear_s;
        attention[i] = p->sum.attention_s;
    }
    *out = p->sum;
    out->linear_s = bench_median(linear, passes);
    out->attention_s = bench_median(attention, passes);
out:
    mem_free(linear);
    mem_free(attention);
    return err;
}

enum err bench_gemm_step(struct bench_gemm *out, struct dev *d, const struct arch *a,
                         const struct calib_settings *s, int64_t passes)
{
    const struct piece r = room(a, s->seqlen);
    struct pass p = {.dev = d, .arch = a, .T = s->seqlen, .act = s->act};
    enum err err = OK;
    p.weight_grads = calib_learns_weights(s);
    TRY_OUT(bench_tensor(&p.a, d, s->act, r.out, r.in));
    TRY_OUT(bench_tensor(&p.b, d, s->act, r.out, r.in));
    TRY_OUT(bench_tensor(&p.c, d, DT_F32, r.out, r.in));
    TRY_OUT(measure(out, &p, s->crr_blocks, passes));
out:
    dev_free(d, p.a.data);
    dev_free(d, p.b.data);
    dev_free(d, p.c.data);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * The operands that all operations are measured on. */
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "tools/bench/bench_ops.h"

/* Rows of logits: as many as evaluation computes at a time, or fewer. */
#define LOGIT_ROWS 64

double bench_bytes(const struct tensor *t)
{
    return (double)tensor_count(t) * (double)dtype_bytes(t->dtype);
}

struct tensor bench_heads(const struct tensor *x, int64_t first, int64_t n, int64_t d)
{
    return tensor_heads(tensor_cols(*x, first * d, n * d), n);
}

/* Makes a tensor of normal numbers, or of zeros of a type that holds none. */
static enum err make(struct bench_ops *b, struct tensor *t, enum dtype type, int64_t rows,
                     int64_t cols)
{
    void *p = NULL;
    FAIL_IF(b->n_memory == (int)ARRAY_LEN(b->memory), ERR_MEMORY,
            "bench: more operands than room");
    if (type == DT_F32 || type == DT_BF16) {
        const enum err err = bench_tensor(t, b->dev, type, rows, cols);
        b->memory[b->n_memory++] = t->data;
        return err;
    }
    *t = tensor_2d(NULL, type, rows, cols);
    TRY(dev_alloc(b->dev, &p, (size_t)bench_bytes(t)));
    b->memory[b->n_memory++] = t->data = p;
    return dev_zero(b->dev, p, (size_t)bench_bytes(t));
}

/* Any rows of x for each row of y. */
static enum err choose_rows(struct bench_ops *b)
{
    const int64_t n = tensor_count(&b->index);
    struct rng rng;
    int32_t *row = NULL;
    TRY(mem_alloc(&row, (size_t)n, sizeof(*row)));
    rng_seed(&rng, 3);
    for (int64_t i = 0; i < n; i++)
        row[i] = (int32_t)rng_below(&rng, (uint64_t)b->T);
    const enum err err = dev_upload(b->dev, b->index.data, row, (size_t)n * sizeof(*row));
    mem_free(row);
    return err;
}

/* Gives the operands the shapes and values that the operations accept. */
static enum err arrange(struct bench_ops *b)
{
    const int64_t d = b->arch.head_dim;
    struct tensor *const kv[] = {&b->kq, &b->vq, &b->dkq, &b->dvq};
    for (size_t i = 0; i < ARRAY_LEN(kv); i++)
        *kv[i] = tensor_heads(*kv[i], b->arch.n_kv);
    b->o = tensor_heads(b->o, b->arch.n_heads);
    b->d_o = tensor_heads(b->d_o, b->arch.n_heads);
    TRY(choose_rows(b));
    /* a rotation by angle zero, which can be repeated */
    const struct tensor cos = tensor_1d(b->cos.data, DT_F32, b->T * d / 2);
    TRY(dev_zero(b->dev, b->cos.data, (size_t)bench_bytes(&b->cos)));
    TRY(dev_zero(b->dev, b->sin.data, (size_t)bench_bytes(&b->sin)));
    TRY(dev_exp(b->dev, &cos, &cos));
    /* second moments and smoothing factors are positive */
    TRY(dev_exp(b->dev, &b->moment, &b->moment));
    return dev_exp(b->dev, &b->ks, &b->ks);
}

struct operand {
    struct tensor *t;
    enum dtype type;
    int64_t rows, cols;
};

static enum err make_all(struct bench_ops *b, const struct operand *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        TRY(make(b, list[i].t, list[i].type, list[i].rows, list[i].cols));
    return OK;
}

static enum err make_weights(struct bench_ops *b)
{
    const int64_t D = b->arch.d_model, F = b->arch.d_ff;
    const int64_t G = weight_groups(D, BENCH_GROUP);
    const enum dtype act = b->act;
    const struct operand list[] = {
        {&b->w, DT_F32, 2 * F, D},
        {&b->stored, BENCH_STORED, 2 * F, D},
        {&b->dw, DT_F32, 2 * F, D},
        {&b->v, DT_F32, 2 * F, D},
        {&b->wq, act, 2 * F, D},
        {&b->wact, act, 2 * F, D},
        {&b->codes, DT_U8, 2 * F, (D + 1) / 2},
        {&b->offsets, DT_F16, 2 * F, D},
        {&b->scales, DT_F16, 2 * F, G},
        {&b->zeros, DT_U8, 2 * F, G},
        {&b->moved, DT_F16, 2 * F, G},
        {&b->a, DT_F32, 2 * F, G},
        {&b->b, DT_F32, 2 * F, G},
        {&b->da, DT_F32, 2 * F, G},
        {&b->db, DT_F32, 2 * F, G},
        {&b->moment, DT_F32, 2 * F, G},
    };
    return make_all(b, list, ARRAY_LEN(list));
}

/* Of attention and its cache. */
static enum err make_heads(struct bench_ops *b)
{
    const int64_t T = b->T, H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const enum dtype act = b->act;
    const struct operand list[] = {
        {&b->qkv, act, T, (H + 2 * K) * d},
        {&b->dqkv, act, T, (H + 2 * K) * d},
        {&b->kq, act, T, K * d},
        {&b->vq, act, T, K * d},
        {&b->dkq, act, T, K * d},
        {&b->dvq, act, T, K * d},
        {&b->o, act, T, H * d},
        {&b->d_o, act, T, H * d},
        {&b->lse, DT_F32, H, T},
        {&b->cos, DT_F32, T, d / 2},
        {&b->sin, DT_F32, T, d / 2},
        {&b->ks, DT_F32, 1, K * d},
        {&b->kd, DT_F32, 1, K * d},
        {&b->dks, DT_F32, 1, K * d},
        {&b->dkd, DT_F32, 1, K * d},
    };
    return make_all(b, list, ARRAY_LEN(list));
}

/* Of tokens: the residual, the MLP, logits. */
static enum err make_rows(struct bench_ops *b)
{
    const int64_t T = b->T, D = b->arch.d_model, F = b->arch.d_ff;
    const int64_t R = T < LOGIT_ROWS ? T : LOGIT_ROWS;
    const enum dtype act = b->act;
    const struct operand list[] = {
        {&b->x, DT_F32, T, D},
        {&b->h, DT_F32, T, D},
        {&b->y, act, T, D},
        {&b->dy, act, T, D},
        {&b->s, DT_F32, 1, T},
        {&b->gain, DT_F32, 1, D},
        {&b->dgain, DT_F32, 1, D},
        {&b->gu, act, T, 2 * F},
        {&b->dgu, act, T, 2 * F},
        {&b->m, act, T, F},
        {&b->dm, act, T, F},
        {&b->bias, DT_F32, 1, 2 * F},
        {&b->logits, act, R, b->arch.vocab},
        {&b->nll, DT_F32, 1, R},
        {&b->target, DT_I32, 1, R},
        {&b->student, DT_F32, R, b->arch.vocab},
        {&b->teacher, DT_F32, R, b->arch.vocab},
        {&b->index, DT_I32, T, BENCH_EXPERTS},
        {&b->share, DT_F32, T, BENCH_EXPERTS},
        {&b->dshare, DT_F32, T, BENCH_EXPERTS},
    };
    return make_all(b, list, ARRAY_LEN(list));
}

enum err bench_ops_open(struct bench_ops *b)
{
    TRY(make_rows(b));
    TRY(make_weights(b));
    TRY(make_heads(b));
    return arrange(b);
}

void bench_ops_close(struct bench_ops *b)
{
    for (int i = 0; i < b->n_memory; i++)
        dev_free(b->dev, b->memory[i]);
    b->n_memory = 0;
}

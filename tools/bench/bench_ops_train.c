/* SPDX-License-Identifier: MIT
 *
 * Losses and optimizers, and what refinement of a quantized model adds. */
#include "tools/bench/bench_ops.h"

#include "kernels/dev_refine.h"

static enum err run_loss(struct bench_ops *b)
{
    double loss;
    b->bytes = 2 * bench_bytes(&b->x) + bench_bytes(&b->dy);
    const struct loss_inputs in = {.y = &b->x, .t = &b->dy, .kind = LOSS_MAE, .weight = 1};
    return dev_loss(b->dev, &loss, &b->h, &in);
}

static enum err run_finite(struct bench_ops *b)
{
    bool finite;
    b->bytes = bench_bytes(&b->dw);
    return dev_all_finite(b->dev, &finite, &b->dw);
}

static enum err run_adamw(struct bench_ops *b)
{
    const struct adamw o = {1e-3f, 0.9f, 0.999f, 1e-8f, 0, 1};
    b->bytes = 7 * bench_bytes(&b->a);
    return dev_adamw(b->dev, &b->a, &b->da, &b->b, &b->moment, &o);
}

static enum err run_cross_entropy(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->logits);
    return dev_cross_entropy(b->dev, &b->nll, &b->logits, &b->target);
}

static enum err run_dequantize(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->codes) + bench_bytes(&b->scales) + bench_bytes(&b->zeros) +
               bench_bytes(&b->wq);
    return dev_dequantize(b->dev, &b->wq, &b->codes, &b->scales, &b->zeros, BENCH_GROUP);
}

static enum err run_scale_steps(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->moved) + bench_bytes(&b->scales) + bench_bytes(&b->a);
    return dev_scale_steps(b->dev, &b->moved, &b->scales, &b->a, 11);
}

static enum err run_code_step(struct bench_ops *b)
{
    b->bytes =
        2 * bench_bytes(&b->codes) + 2 * bench_bytes(&b->offsets) + bench_bytes(&b->dw);
    return dev_code_step(b->dev, &b->codes, &b->offsets, &b->dw, 4, 1e-3f);
}

static enum err run_group_dot(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->dw) + bench_bytes(&b->wact) + 2 * bench_bytes(&b->da);
    return dev_group_dot(b->dev, &b->da, &b->dw, &b->wact, BENCH_GROUP);
}

static enum err run_rmsnorm_gain_bwd(struct bench_ops *b)
{
    b->bytes = bench_bytes(&b->x) + bench_bytes(&b->dy);
    return dev_rmsnorm_gain_bwd(b->dev, &b->dgain, &b->dy, &b->x, &b->s);
}

/* Each run starts from what the one before left in both, which is finite. */
static enum err run_distill(struct bench_ops *b)
{
    double loss[2];
    b->bytes = 2 * bench_bytes(&b->student) + bench_bytes(&b->teacher);
    return dev_distill(b->dev, loss, &b->student, &b->teacher, &b->target, 1, 1);
}

const struct bench_op bench_ops_train[] = {
    {"loss", run_loss},
    {"adamw", run_adamw},
    {"all_finite", run_finite},
    {"cross_entropy", run_cross_entropy},
    {"dequantize", run_dequantize},
    {"scale_steps", run_scale_steps},
    {"code_step", run_code_step},
    {"group_dot", run_group_dot},
    {"rmsnorm_gain_bwd", run_rmsnorm_gain_bwd},
    {"distill", run_distill},
    {NULL, NULL},
};

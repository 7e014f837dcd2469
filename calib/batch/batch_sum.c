/* SPDX-License-Identifier: MIT */
#include "calib/batch/batch_sum.h"

void fakequant_gradients(const struct fakequant *f, const struct tensor *grad[FQ_SUMS])
{
    const struct block_grads *g = &f->grads;
    const struct tensor *const all[FQ_SUMS] = {&f->g, &g->dwqkv, &g->dwo, &g->dwgu,
                                               &g->dwdown};
    for (int i = 0; i < FQ_SUMS; i++)
        grad[i] = (i ? f->learn_round && all[i]->n_dims : f->n > 0) ? all[i] : NULL;
}

/* dev_add takes matrices. */
static struct tensor matrix(const struct tensor *x)
{
    return x->n_dims == 2 ? *x : tensor_2d(x->data, DT_F32, 1, tensor_count(x));
}

enum err fakequant_add_sample(struct fakequant *f, int64_t i, int64_t n)
{
    const struct tensor *grad[FQ_SUMS];
    fakequant_gradients(f, grad);
    for (int k = 0; k < FQ_SUMS && n > 1; k++) {
        if (!grad[k])
            continue;
        const struct tensor g = matrix(grad[k]), sum = matrix(&f->sum[k]);
        TRY(i ? dev_add(f->dev, i < n - 1 ? &sum : &g, &sum, &g)
              : dev_copy(f->dev, &sum, &g));
    }
    return OK;
}

/* SPDX-License-Identifier: MIT
 *
 * Gradients of a step, added up over its windows: on the device in one process, and by way of
 * the host among several (calib/batch/share.h). Both add in the order of the windows. */
#include "calib/refine/student_priv.h"

/* Scales, norms, smoothing and shift of a layer, and its stacked weights. */
#define PARTS_MAX (N_LIN + N_BLOCK_GAINS + 2 + 2 + 4)

/* The gradients of one window, and where their sums over the batch go. */
struct parts {
    struct tensor one[PARTS_MAX], sum[PARTS_MAX];
    int n;
    int64_t floats; /* of those in st->one */
};

/* Adds the part whose sum is x to the list, and returns its place in st->one. */
static struct tensor add_part(struct parts *p, const struct student *st,
                              const struct tensor *x)
{
    struct tensor one = *x;
    if (!x->data)
        return one;
    one.data = (float *)st->one.data + p->floats;
    p->floats += tensor_count(x);
    p->one[p->n] = one;
    p->sum[p->n++] = *x;
    return one;
}

/* The gradients of weights are needed for the codes alone. */
static void add_weights(struct parts *p, const struct student *st)
{
    const struct tensor *const one[] = {&st->dw.wqkv, &st->dw.wo, &st->dw.wgu,
                                        &st->dw.wdown};
    const struct tensor *const sum[] = {&st->dw_sum.wqkv, &st->dw_sum.wo, &st->dw_sum.wgu,
                                        &st->dw_sum.wdown};
    for (int i = 0; i < 4; i++) {
        p->one[p->n] = *one[i];
        p->sum[p->n++] = *sum[i];
    }
}

/* Lists the parts of a layer, or of the final norm. views: those in st->one. */
static void list_parts(struct parts *p, struct student_grads *views,
                       const struct student *st, int64_t layer)
{
    const struct student_layer *y = &st->layer[layer];
    *p = (struct parts){0};
    *views = (struct student_grads){0};
    if (layer == st->arch->n_layers) {
        views->dnorm[0] = add_part(p, st, &st->dfinal);
        return;
    }
    for (int l = 0; l < N_LIN; l++)
        views->du[l] = add_part(p, st, &y->lin[l].du);
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        views->dnorm[g] = add_part(p, st, &y->dnorm[g]);
    for (int i = 0; i < 2; i++) {
        views->dsmooth[i] = add_part(p, st, &y->dsmooth[i]);
        views->dshift[i] = add_part(p, st, &y->dshift[i]);
    }
    if (st->code_step > 0)
        add_weights(p, st);
}

int64_t student_gradients_most(const struct student *st)
{
    return tensor_count(&st->one) + (st->learns_codes ? arch_block_params(st->arch) : 0);
}

enum err student_begin_window(struct student *st, struct student_grads *one, int64_t layer)
{
    struct parts p;
    list_parts(&p, one, st, layer);
    return dev_zero(st->dev, st->one.data, (size_t)p.floats * sizeof(float));
}

static enum err add_to(struct dev *d, const struct tensor *sum, const struct tensor *one,
                       bool first)
{
    const int64_t n = tensor_count(one);
    const struct tensor y = tensor_2d(sum->data, DT_F32, 1, n);
    const struct tensor x = tensor_2d(one->data, DT_F32, 1, n);
    if (y.data == x.data)
        return OK;
    return first ? dev_copy(d, &y, &x) : dev_add(d, &y, &y, &x);
}

enum err student_end_window(struct student *st, int64_t layer, int64_t i)
{
    struct parts p;
    struct student_grads views;
    const struct tensor *one[PARTS_MAX];
    list_parts(&p, &views, st, layer);
    for (int k = 0; k < p.n; k++)
        one[k] = &p.one[k];
    if (st->share->ranks)
        return share_keep(st->share, st->dev, one, p.n, st->share->from + i);
    for (int k = 0; k < p.n; k++)
        TRY(add_to(st->dev, &p.sum[k], one[k], i == 0));
    return OK;
}

enum err student_sum_windows(struct student *st, int64_t layer)
{
    struct parts p;
    struct student_grads views;
    const struct tensor *sum[PARTS_MAX];
    if (!st->share->ranks)
        return OK;
    list_parts(&p, &views, st, layer);
    for (int k = 0; k < p.n; k++)
        sum[k] = &p.sum[k];
    return share_sum(st->share, st->dev, sum, p.n, st->share->batch);
}

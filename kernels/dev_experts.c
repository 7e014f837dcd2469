/* SPDX-License-Identifier: MIT
 *
 * The checks of kernels/dev_experts.h's contracts, then one table call each. */
#include "kernels/dev_experts.h"

#include "kernels/dev_begin.h"

/* index or weights [R,J]. */
static bool per_row(const struct tensor *x, enum dtype t, int64_t R, int64_t J)
{
    return is_matrix(x, t, R, J) && contiguous(x);
}

enum err dev_gather(struct dev *d, const struct tensor *y, const struct tensor *x,
                    const struct tensor *index, const struct tensor *weight)
{
    OP_BEGIN(gather, started);
    WANT(is_act(y) && is_act(x) && y->n_dims == 2 && x->n_dims == 2 &&
             x->dim[1] == y->dim[1] && y->data != x->data,
         "gather: want y act [R,C], x act [N,C], apart");
    const int64_t R = y->dim[0], J = index->dim[1];
    WANT(per_row(index, DT_I32, R, J), "gather: want index I32 [R,J]");
    WANT(!weight || per_row(weight, DT_F32, R, J), "gather: want weight F32 [R,J]");
    d->ops.gather(d, y, x, index, weight);
    OP_END(DEV_ELEMENTWISE, started);
}

enum err dev_gather_dot(struct dev *d, const struct tensor *dw, const struct tensor *dy,
                        const struct tensor *x, const struct tensor *index)
{
    OP_BEGIN(gather_dot, started);
    WANT(is_act(dy) && is_act(x) && dy->n_dims == 2 && x->n_dims == 2 &&
             x->dim[1] == dy->dim[1],
         "gather_dot: want dy act [R,C], x act [N,C]");
    const int64_t R = dy->dim[0], J = index->dim[1];
    WANT(per_row(index, DT_I32, R, J) && per_row(dw, DT_F32, R, J),
         "gather_dot: want index I32, dw F32 [R,J]");
    d->ops.gather_dot(d, dw, dy, x, index);
    OP_END(DEV_ELEMENTWISE, started);
}

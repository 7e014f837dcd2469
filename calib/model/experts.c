/* SPDX-License-Identifier: MIT
 *
 * The MLP of a mixture of experts. Tokens' rows are copied to the experts that the router chose,
 * so that each expert multiplies a matrix of its own rows, and what they return is added up with
 * the router's weights:
 *
 *   y[t] = sum_j weight[t,j] Wdown_e (act(Wgate_e n2[t]) * (Wup_e n2[t])),   e = expert[t,j]
 *
 * The choice is made on the host (route.h), which waits for the router's logits. */
#include "calib/model/block_scratch.h"
#include "calib/model/carve.h"
#include "kernels/dev_experts.h"

void experts_layout(struct expert_acts *e, struct carve *c, const struct arch *a, int64_t T,
                    enum dtype act)
{
    const int64_t R = T * a->n_active;
    if (!a->n_experts)
        return;
    e->x = carve_2d(c, act, R, a->d_model);
    e->y = carve_2d(c, act, R, a->d_model);
    e->logits = carve_2d(c, DT_F32, T, a->n_experts);
    e->dlogits = carve_2d(c, act, T, a->n_experts);
    e->slot = carve_2d(c, DT_I32, T, a->n_active);
    e->token = carve_2d(c, DT_I32, R, 1);
    e->weight = carve_2d(c, DT_F32, T, a->n_active);
    e->row_weight = carve_2d(c, DT_F32, R, 1);
}

/* The same with T tokens, of those for which it was laid out. */
static struct expert_acts of_tokens(const struct expert_acts *all, const struct arch *a,
                                    int64_t T)
{
    struct expert_acts e = *all;
    struct tensor *const by_token[] = {&e.logits, &e.dlogits, &e.slot, &e.weight};
    struct tensor *const by_row[] = {&e.x, &e.y, &e.token, &e.row_weight};
    for (size_t i = 0; i < ARRAY_LEN(by_token); i++)
        *by_token[i] = tensor_rows(*by_token[i], 0, T);
    for (size_t i = 0; i < ARRAY_LEN(by_row); i++)
        *by_row[i] = tensor_rows(*by_row[i], 0, T * a->n_active);
    return e;
}

static enum err upload(struct dev *d, const struct tensor *to, const void *from)
{
    return dev_upload(d, to->data, from, (size_t)tensor_count(to) * dtype_bytes(to->dtype));
}

static enum err download(struct dev *d, void *to, const struct tensor *from)
{
    return dev_download(d, to, from->data,
                        (size_t)tensor_count(from) * dtype_bytes(from->dtype));
}

/* Chooses the experts of the tokens of n2. */
static enum err choose(struct dev *d, struct expert_acts *e, const struct tensor *n2,
                       const struct block_weights *w)
{
    struct route *r = &e->route;
    TRY(dev_gemm(d, GEMM_NT, &e->logits, n2, &w->router, false));
    TRY(download(d, r->p, &e->logits));
    route_choose(r, n2->dim[0]);
    TRY(upload(d, &e->slot, r->slot));
    TRY(upload(d, &e->token, r->token));
    TRY(upload(d, &e->weight, r->weight));
    return upload(d, &e->row_weight, r->row_weight);
}

/* An expert's rows and weights. Those of gate and up lie F columns, or E F rows, apart. */
struct expert {
    int64_t n;                       /* rows; 0: no token chose it */
    struct tensor x, y, gate, up, m; /* [n,D] twice, [n,F] */
    struct tensor wgate, wup, wdown; /* [F,D] twice, [D,F] */
    struct tensor dgate, dup, ddown; /* of the weights; data NULL: not wanted */
};

static struct tensor rows_if(const struct tensor *x, int64_t first, int64_t n)
{
    return x && x->data ? tensor_rows(*x, first, n) : (struct tensor){0};
}

static struct expert expert_of(const struct block_acts *x, const struct expert_acts *e,
                               const struct arch *a, const struct block_weights *w,
                               const struct block_grads *g, int64_t i)
{
    const int64_t F = a->d_ff, D = a->d_model, up = a->n_experts * F;
    const int64_t first = e->route.first[i], n = e->route.first[i + 1] - first;
    struct expert p = {.n = n,
                       .wgate = tensor_rows(w->wgu, i * F, F),
                       .wup = tensor_rows(w->wgu, up + i * F, F),
                       .wdown = tensor_rows(w->wdown, i * D, D)};
    if (g) {
        p.dgate = rows_if(&g->dwgu, i * F, F);
        p.dup = rows_if(&g->dwgu, up + i * F, F);
        p.ddown = rows_if(&g->dwdown, i * D, D);
    }
    if (!n)
        return p;
    const struct tensor gu = tensor_rows(x->gu, first, n);
    p.x = tensor_rows(e->x, first, n);
    p.y = tensor_rows(e->y, first, n);
    p.gate = tensor_cols(gu, 0, F);
    p.up = tensor_cols(gu, F, F);
    p.m = tensor_rows(x->m, first, n);
    return p;
}

enum err experts_forward(struct block_acts *x, const struct arch *a,
                         const struct block_weights *w, const struct block_kv *kv,
                         const struct tensor *y)
{
    struct dev *d = x->dev;
    struct expert_acts e = of_tokens(&x->experts, a, x->T);
    TRY(choose(d, &e, &x->n2, w));
    TRY(dev_gather(d, &e.x, &x->n2, &e.token, NULL));
    for (int64_t i = 0; i < a->n_experts; i++) {
        const struct expert p = expert_of(x, &e, a, w, NULL, i);
        TRY(p.n ? dev_gemm(d, GEMM_NT, &p.gate, &p.x, &p.wgate, false) : OK);
        TRY(p.n ? dev_gemm(d, GEMM_NT, &p.up, &p.x, &p.wup, false) : OK);
    }
    TRY(dev_gate(d, a->gate, &x->m, &x->gu));
    TRY(quantize_input(d, kv, &x->m, &x->m));
    for (int64_t i = 0; i < a->n_experts; i++) {
        const struct expert p = expert_of(x, &e, a, w, NULL, i);
        TRY(p.n ? dev_gemm(d, GEMM_NT, &p.y, &p.m, &p.wdown, false) : OK);
    }
    return dev_gather(d, y, &e.y, &e.slot, &e.weight);
}

/* dw = dy^T x; 0 if no token reached the expert; nothing if it is not wanted. */
static enum err expert_grad(struct dev *d, const struct tensor *dw, int64_t n,
                            const struct tensor *dy, const struct tensor *x)
{
    if (!dw->data)
        return OK;
    return n ? dev_gemm(d, GEMM_TN, dw, dy, x, false)
             : dev_zero(d, dw->data, (size_t)tensor_count(dw) * sizeof(float));
}

/* From the gradient p->y of what expert i returned: dm and the gradient of Wdown. */
static enum err down_bwd(struct dev *d, const struct expert *p, const struct tensor *dm)
{
    TRY(expert_grad(d, &p->ddown, p->n, &p->y, &p->m));
    return p->n ? dev_gemm(d, GEMM_NN, dm, &p->y, &p->wdown, false) : OK;
}

/* From the gradients p->gate and p->up: dx and the gradients of Wgate and Wup. */
static enum err gate_up_bwd(struct dev *d, const struct expert *p, const struct tensor *dx)
{
    TRY(expert_grad(d, &p->dgate, p->n, &p->gate, &p->x));
    TRY(expert_grad(d, &p->dup, p->n, &p->up, &p->x));
    TRY(p->n ? dev_gemm(d, GEMM_NN, dx, &p->gate, &p->wgate, false) : OK);
    return p->n ? dev_gemm(d, GEMM_NN, dx, &p->up, &p->wup, true) : OK;
}

/* dn += what the router's weights add to the gradient of its input; dw [T,k] is theirs. */
static enum err router_bwd(struct dev *d, struct expert_acts *e,
                           const struct block_weights *w, const struct tensor *dn)
{
    TRY(download(d, e->route.grad, &e->weight));
    route_grads(&e->route, dn->dim[0]);
    TRY(upload(d, &e->logits, e->route.p));
    TRY(dev_copy(d, &e->dlogits, &e->logits));
    return dev_gemm(d, GEMM_NN, dn, &e->dlogits, &w->router, true);
}

enum err experts_bwd(struct block_acts *x, struct block_scratch *s, const struct arch *a,
                     const struct block_weights *w, const struct block_grads *g,
                     const struct tensor *dy)
{
    struct dev *d = x->dev;
    struct expert_acts e = of_tokens(&x->experts, a, x->T);
    /* The gradients of the weights take the place of the weights. */
    TRY(dev_gather_dot(d, &e.weight, dy, &e.y, &e.slot));
    TRY(dev_gather(d, &e.y, dy, &e.token, &e.row_weight));
    for (int64_t i = 0; i < a->n_experts; i++) {
        const struct expert p = expert_of(x, &e, a, w, g, i);
        const struct tensor dm = rows_if(&s->dm, e.route.first[i], p.n);
        TRY(down_bwd(d, &p, &dm));
    }
    TRY(dev_gate_bwd(d, a->gate, &x->gu, &s->dm, &x->gu));
    for (int64_t i = 0; i < a->n_experts; i++) {
        const struct expert p = expert_of(x, &e, a, w, g, i);
        const struct tensor dx = rows_if(&s->dx, e.route.first[i], p.n);
        TRY(gate_up_bwd(d, &p, &dx));
    }
    TRY(dev_gather(d, &s->dn, &s->dx, &e.slot, NULL));
    return router_bwd(d, &e, w, &s->dn);
}

/* SPDX-License-Identifier: MIT
 *
 * The MLP of a mixture of experts, from its formula:
 *
 *   p = softmax(Wrouter n2)   S = the k experts with the largest p, w_e = p_e or p_e / sum_S p
 *   y = sum_{e in S} w_e Wdown_e (silu(Wgate_e n2) * (Wup_e n2))
 *
 * Expert by expert, so that the weights of one are read once for all of its tokens. */
#include "convert/runtime/rt_priv.h"

#include <math.h>
#include <string.h>

/* p [E] = softmax(W x). */
static void probabilities(float *p, const float *w, const float *x, int64_t E, int64_t D)
{
    double max = -INFINITY, sum = 0;
    for (int64_t e = 0; e < E; e++) {
        double z = 0;
        for (int64_t c = 0; c < D; c++)
            z += (double)w[e * D + c] * (double)x[c];
        p[e] = (float)z;
        max = fmax(max, z);
    }
    for (int64_t e = 0; e < E; e++)
        sum += exp((double)p[e] - max);
    for (int64_t e = 0; e < E; e++)
        p[e] = (float)(exp((double)p[e] - max) / sum);
}

/* Returns true if fewer than k experts come before e: those that are more probable, and of equally
 * probable ones those with a lower number. */
static bool is_chosen(const float *p, int64_t e, int64_t E, int64_t k)
{
    int64_t before = 0;
    for (int64_t i = 0; i < E; i++)
        before += p[i] > p[e] || (p[i] == p[e] && i < e);
    return before < k;
}

struct router_job {
    struct runtime *r;
    const float *router, *x; /* [E][D], [n][D] */
};

/* share [E] of token t = the weights of its experts, 0 for the others. */
static void share_token(void *ctx, int64_t t, int thread)
{
    const struct router_job *j = ctx;
    const struct arch *m = j->r->arch;
    const struct rt_experts *x = &j->r->acts.experts;
    const int64_t E = m->n_experts, D = m->d_model;
    float *p = x->p + t * E, *share = x->share + t * E;
    double sum = 0;
    probabilities(p, j->router, j->x + t * D, E, D);
    for (int64_t e = 0; e < E; e++) {
        share[e] = is_chosen(p, e, E, m->n_active) ? p[e] : 0;
        sum += (double)share[e];
    }
    for (int64_t e = 0; e < E && m->norm_active; e++)
        share[e] = (float)((double)share[e] / sum);
}

/* Copies the rows of expert e's tokens from x; returns how many there are. */
static int64_t gather(const struct rt_experts *g, const float *x, int64_t e, int64_t n,
                      const struct arch *m)
{
    int64_t count = 0;
    for (int64_t t = 0; t < n; t++)
        if (g->share[t * m->n_experts + e] != 0) {
            memcpy(g->x + count * m->d_model, x + t * m->d_model,
                   (size_t)m->d_model * sizeof(*x));
            g->token[count++] = t;
        }
    return count;
}

/* sum += share y of expert e's tokens. */
static void scatter(const struct rt_experts *g, int64_t e, int64_t count,
                    const struct arch *m)
{
    for (int64_t i = 0; i < count; i++) {
        const int64_t t = g->token[i];
        const float share = g->share[t * m->n_experts + e];
        const float *y = g->y + i * m->d_model;
        float *sum = g->sum + t * m->d_model;
        for (int64_t c = 0; c < m->d_model; c++)
            sum[c] += share * y[c];
    }
}

static void run_expert(struct runtime *r, const struct packed_block *b, int64_t e,
                       int64_t count)
{
    const int64_t F = r->arch->d_ff, D = r->arch->d_model;
    struct rt_acts *a = &r->acts;
    const struct packed_linear gate = packed_linear_rows(&b->lin[LIN_GATE], e * F, F);
    const struct packed_linear up = packed_linear_rows(&b->lin[LIN_UP], e * F, F);
    const struct packed_linear down = packed_linear_rows(&b->lin[LIN_DOWN], e * D, D);
    const struct packed_linear *const first[] = {&gate, &up}, *const second[] = {&down};
    float *const wide[] = {a->gate, a->up}, *const back[] = {a->experts.y};
    r->linear.next = &down;
    rt_linear_run(&r->linear, wide, first, 2, a->experts.x, count);
    rt_gate(r, count);
    r->linear.next = NULL;
    rt_linear_run(&r->linear, back, second, 1, a->gate, count);
}

void rt_experts_run(struct runtime *r, int64_t layer, const float *x, int64_t n)
{
    const struct arch *m = r->arch;
    const struct rt_experts *g = &r->acts.experts;
    struct router_job route = {r, r->norms[layer].router, x};
    pool_run(n > 1 ? r->pool : NULL, n, share_token, &route);
    memset(g->sum, 0, (size_t)(n * m->d_model) * sizeof(*g->sum));
    for (int64_t e = 0; e < m->n_experts; e++) {
        const int64_t count = gather(g, x, e, n, m);
        if (!count)
            continue;
        run_expert(r, artifact_block(r->a, layer), e, count);
        scatter(g, e, count, m);
    }
    memcpy(r->acts.norm, g->sum, (size_t)(n * m->d_model) * sizeof(*g->sum));
}

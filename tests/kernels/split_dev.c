/* SPDX-License-Identifier: MIT
 *
 * Attention with past-only quantization, from an attention that knows nothing of it. This is the
 * definition of what kernels/cuda does with cuDNN, and the parity tests check its algebra. This
 * device, "split", is another one (SPLIT_OF in the environment: ref or cpu) whose attention is
 * replaced.
 *
 * With window w and s sinks, query i sees key j <= i - w quantized, unless j < s. Let kq' be kq
 * with its first s rows from k, and vq' likewise. Query i then attends to
 *
 *   rows 0 .. i - w of kq', vq'       the past: plain causal attention of q[w:] over kq'[:T - w]
 *   rows i - w + 1 .. i of k, v       the recent keys, element by element
 *
 * With o'_i and lse'_i of the past, and s_ij = scale q_i . k_j of the recent keys:
 *
 *   lse_i = log(exp(lse'_i) + sum_j exp(s_ij))
 *   o_i   = exp(lse'_i - lse_i) o'_i + sum_j exp(s_ij - lse_i) v_j
 *
 * Backward: P_ij = exp(s_ij - lse_i) and D_i = dout_i . o_i belong to the whole row. The plain
 * attention's backward computes both from the o and lse that it is given. With those of the whole
 * row, its dS_ij = P_ij (dP_ij - D_i) are right for the past, and so are its gradients. The recent
 * keys add dS_ij k_j scale to dq_i, dS_ij q_i scale to dk_j, and P_ij dout_i to dv_j. What the past
 * gives to the rows of the sinks belongs to dk and dv. */
#include "kernels/ref/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct dev_ops whole; /* of the other device */

struct split {
    const struct attn_inputs *in;
    int64_t T, H, K, d, w, past, sink; /* past = T - w: queries that have one */
    double scale;
};

/* In F32, as the roundings of BF16 would hide mistakes. */
static bool splits(const struct attn_inputs *in)
{
    return in->kq && in->q->dtype == DT_F32 && !in->reach && in->mask->chunk <= 1 &&
           in->mask->block <= 1;
}

static struct split split_of(const struct attn_inputs *in)
{
    struct split s = {.in = in,
                      .T = in->q->dim[0],
                      .H = in->q->dim[1],
                      .K = in->k->dim[1],
                      .d = in->q->dim[2],
                      .scale = (double)in->scale};
    s.w = in->mask->window < s.T ? in->mask->window : s.T;
    s.past = s.T - s.w;
    s.sink = in->mask->sink < s.past ? in->mask->sink : s.past;
    return s;
}

static void *need(size_t bytes)
{
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p)
        abort();
    return p;
}

/* The past's keys: the first rows of `exact`, then those of `quantized`. Its memory is the
 * caller's. */
static struct tensor past_keys(const struct split *s, const struct tensor *quantized,
                               const struct tensor *exact)
{
    const size_t bytes = (size_t)(s->past * s->K * s->d) * dtype_bytes(exact->dtype);
    struct tensor x = tensor_3d(need(bytes), exact->dtype, s->past, s->K, s->d);
    for (int64_t t = 0; t < s->past; t++) {
        const struct tensor *from = t < s->sink ? exact : quantized;
        for (int64_t c = 0; c < s->K * s->d; c++)
            ref_set(&x, t * x.ld + c, (double)ref_get(from, t * from->ld + c));
    }
    return x;
}

static int64_t at(const struct tensor *x, int64_t t, int64_t h)
{
    return t * x->ld + h * x->dim[2];
}

static double dot(const struct tensor *a, int64_t i, const struct tensor *b, int64_t j,
                  int64_t n)
{
    double sum = 0;
    for (int64_t c = 0; c < n; c++)
        sum += (double)ref_get(a, i + c) * (double)ref_get(b, j + c);
    return sum;
}

static double recent_score(const struct split *s, int64_t h, int64_t i, int64_t j)
{
    return s->scale * dot(s->in->q, at(s->in->q, i, h), s->in->k,
                          at(s->in->k, j, h / (s->H / s->K)), s->d);
}

static int64_t first_recent(const struct split *s, int64_t i)
{
    return i >= s->w ? i - s->w + 1 : 0;
}

static double total_lse(const struct split *s, int64_t h, int64_t i, double lse_past)
{
    double max = lse_past, sum = 0;
    for (int64_t j = first_recent(s, i); j <= i; j++)
        max = fmax(max, recent_score(s, h, i, j));
    sum = exp(lse_past - max);
    for (int64_t j = first_recent(s, i); j <= i; j++)
        sum += exp(recent_score(s, h, i, j) - max);
    return max + log(sum);
}

/* Adds the recent keys to row i of o, which has the past's. */
static void merge(const struct split *s, const struct tensor *o, int64_t h, int64_t i,
                  double lse_past, double lse)
{
    const struct tensor *v = s->in->v;
    for (int64_t c = 0; c < s->d; c++) {
        const int64_t to = at(o, i, h) + c;
        double sum = i < s->w ? 0 : exp(lse_past - lse) * (double)ref_get(o, to);
        for (int64_t j = first_recent(s, i); j <= i; j++)
            sum += exp(recent_score(s, h, i, j) - lse) *
                   (double)ref_get(v, at(v, j, h / (s->H / s->K)) + c);
        ref_set(o, to, sum);
    }
}

static void split_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                       const struct attn_inputs *in)
{
    if (!splits(in)) {
        whole.attn(d, o, lse, in);
        return;
    }
    const struct split s = split_of(in);
    struct tensor kq = past_keys(&s, in->kq, in->k), vq = past_keys(&s, in->vq, in->v);
    float *lse_past = need((size_t)(s.H * s.past) * sizeof(float)), *total = lse->data;
    if (s.past) {
        const struct tensor q = tensor_rows(*in->q, s.w, s.past),
                            o_past = tensor_rows(*o, s.w, s.past),
                            l = tensor_2d(lse_past, DT_F32, s.H, s.past);
        whole.attn(d, &o_past, &l,
                   &(struct attn_inputs){.q = &q, .k = &kq, .v = &vq, .scale = in->scale});
    }
    for (int64_t h = 0; h < s.H; h++)
        for (int64_t i = 0; i < s.T; i++) {
            const double l = i < s.w ? -INFINITY : (double)lse_past[h * s.past + i - s.w];
            const double all = total_lse(&s, h, i, l);
            merge(&s, o, h, i, l, all);
            total[h * s.T + i] = (float)all;
        }
    free(kq.data);
    free(vq.data);
    free(lse_past);
}

/* The arguments of the backward. */
struct split_grad {
    struct split s;
    const struct attn_grads *to;
    const struct tensor *dout, *o, *lse;
};

static void recent_pair(const struct split_grad *g, int64_t h, int64_t i, int64_t j,
                        double *P, double *dS)
{
    const struct split *s = &g->s;
    const int64_t dout_i = at(g->dout, i, h);
    *P = exp(recent_score(s, h, i, j) - (double)ref_get(g->lse, h * s->T + i));
    *dS = *P * (dot(g->dout, dout_i, s->in->v, at(s->in->v, j, h / (s->H / s->K)), s->d) -
                dot(g->dout, dout_i, g->o, at(g->o, i, h), s->d));
}

/* Adds the recent keys to dq_i, which has the past's if there is one. */
static void recent_query(const struct split_grad *g, int64_t h, int64_t i)
{
    const struct split *s = &g->s;
    const struct tensor *dq = g->to->dq, *k = s->in->k;
    for (int64_t c = 0; c < s->d; c++) {
        const int64_t to = at(dq, i, h) + c;
        double sum = i < s->w ? 0 : (double)ref_get(dq, to);
        for (int64_t j = first_recent(s, i); j <= i; j++) {
            double P, dS;
            recent_pair(g, h, i, j, &P, &dS);
            sum += s->scale * dS * (double)ref_get(k, at(k, j, h / (s->H / s->K)) + c);
        }
        ref_set(dq, to, sum);
    }
}

/* dk_j and dv_j from the queries that see key j as a recent one. Of the past, a sink's gradients
 * are added to them, and other rows' stay in dkq and dvq. */
static void recent_key(const struct split_grad *g, int64_t kv, int64_t j)
{
    const struct split *s = &g->s;
    const int64_t rep = s->H / s->K, end = j + s->w < s->T ? j + s->w : s->T;
    const struct tensor *q = s->in->q;
    for (int64_t c = 0; c < s->d; c++) {
        const int64_t past_k = at(g->to->dkq, j, kv) + c,
                      past_v = at(g->to->dvq, j, kv) + c;
        double dk = j < s->sink ? (double)ref_get(g->to->dkq, past_k) : 0;
        double dv = j < s->sink ? (double)ref_get(g->to->dvq, past_v) : 0;
        for (int64_t h = kv * rep; h < (kv + 1) * rep; h++)
            for (int64_t i = j; i < end; i++) {
                double P, dS;
                recent_pair(g, h, i, j, &P, &dS);
                dk += s->scale * dS * (double)ref_get(q, at(q, i, h) + c);
                dv += P * (double)ref_get(g->dout, at(g->dout, i, h) + c);
            }
        ref_set(g->to->dk, at(g->to->dk, j, kv) + c, dk);
        ref_set(g->to->dv, at(g->to->dv, j, kv) + c, dv);
        if (j < s->sink || j >= s->past) {
            ref_set(g->to->dkq, past_k, 0);
            ref_set(g->to->dvq, past_v, 0);
        }
    }
}

/* dq[w:], dkq[:T - w] and dvq[:T - w] from the past. */
static void past_grads(struct dev *d, const struct split_grad *g)
{
    const struct split *s = &g->s;
    struct tensor kq = past_keys(s, s->in->kq, s->in->k),
                  vq = past_keys(s, s->in->vq, s->in->v);
    float *lse = need((size_t)(s->H * s->past) * sizeof(float));
    for (int64_t h = 0; h < s->H; h++)
        for (int64_t i = 0; i < s->past; i++)
            lse[h * s->past + i] = ref_get(g->lse, h * s->T + s->w + i);
    const struct tensor q = tensor_rows(*s->in->q, s->w, s->past),
                        o = tensor_rows(*g->o, s->w, s->past),
                        dout = tensor_rows(*g->dout, s->w, s->past),
                        dq = tensor_rows(*g->to->dq, s->w, s->past),
                        dkq = tensor_rows(*g->to->dkq, 0, s->past),
                        dvq = tensor_rows(*g->to->dvq, 0, s->past),
                        l = tensor_2d(lse, DT_F32, s->H, s->past);
    whole.attn_bwd(
        d, &(struct attn_grads){.dq = &dq, .dk = &dkq, .dv = &dvq}, &dout, &o, &l,
        &(struct attn_inputs){.q = &q, .k = &kq, .v = &vq, .scale = s->in->scale});
    free(kq.data);
    free(vq.data);
    free(lse);
}

static void split_attn_bwd(struct dev *d, const struct attn_grads *grads,
                           const struct tensor *dout, const struct tensor *o,
                           const struct tensor *lse, const struct attn_inputs *in)
{
    if (!splits(in)) {
        whole.attn_bwd(d, grads, dout, o, lse, in);
        return;
    }
    const struct split_grad g = {split_of(in), grads, dout, o, lse};
    if (g.s.past)
        past_grads(d, &g);
    for (int64_t h = 0; h < g.s.H; h++)
        for (int64_t i = 0; i < g.s.T; i++)
            recent_query(&g, h, i);
    for (int64_t kv = 0; kv < g.s.K; kv++)
        for (int64_t j = 0; j < g.s.T; j++)
            recent_key(&g, kv, j);
}

static enum err split_fill(struct dev *d, int threads)
{
    const char *of = getenv("SPLIT_OF");
    if (of && !strcmp(of, "cpu"))
        TRY(cpu_fill(d, threads));
    whole = d->ops;
    d->ops.name = "split";
    d->ops.attn = split_attn;
    d->ops.attn_bwd = split_attn_bwd;
    return OK;
}

__attribute__((constructor)) static void register_split(void)
{
    dev_register("split", split_fill);
}

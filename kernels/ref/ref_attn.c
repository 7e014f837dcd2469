/* SPDX-License-Identifier: MIT
 *
 * Rotary embedding (Su et al. 2021) and causal attention with grouped heads, where each
 * pair of query and key is either in full precision or quantized. */
#include "kernels/ref/ref.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/hadamard.h"

#include <math.h>

/* Pair c of a head is (x[c], x[c + r/2]), as Hugging Face's checkpoints have it; the paper
 * pairs neighbours. As complex numbers, (x1 + i x2) exp(i angle) is the forward rotation,
 * and the inverse has the negative angle. */
static void ref_rope(struct dev *d, const struct tensor *x, const struct tensor *cos,
                     const struct tensor *sin, bool inverse)
{
    const int64_t H = x->dim[1], half = cos->dim[1];
    for (int64_t t = 0; t < x->dim[0]; t++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t c = 0; c < half; c++) {
                const int64_t at = t * x->ld + h * x->dim[2] + c;
                const double x1 = (double)ref_get(x, at),
                             x2 = (double)ref_get(x, at + half);
                const double cs = (double)ref_get(cos, t * cos->ld + c);
                const double sn =
                    (double)ref_get(sin, t * sin->ld + c) * (inverse ? -1 : 1);
                ref_set(x, at, x1 * cs - x2 * sn);
                ref_set(x, at + half, x2 * cs + x1 * sn);
            }
}

/* y = R x with R_ij = (-1)^popcount(i & j) / sqrt(n), by its definition. Fast versions need
 * n log n additions. R is symmetric and R R = 1, so this is its own backward. */
static void ref_hadamard(struct dev *d, const struct tensor *x)
{
    const int64_t H = x->dim[1], n = x->dim[2];
    double y[HADAMARD_MAX];
    for (int64_t t = 0; t < x->dim[0]; t++)
        for (int64_t h = 0; h < H; h++) {
            const int64_t at = t * x->ld + h * n;
            for (int64_t i = 0; i < n; i++) {
                y[i] = 0;
                for (int64_t j = 0; j < n; j++)
                    y[i] += (double)hadamard_sign(i, j) * (double)ref_get(x, at + j);
            }
            for (int64_t i = 0; i < n; i++)
                ref_set(x, at + i, y[i] / sqrt((double)n));
        }
}

/* The inputs of one attention and their sizes. */
struct attn {
    const struct attn_inputs *in;
    double scale;
    int64_t T, H, K, d;
};

static struct attn attn_of(const struct attn_inputs *in)
{
    return (struct attn){.in = in,
                         .scale = (double)in->scale,
                         .T = in->q->dim[0],
                         .H = in->q->dim[1],
                         .K = in->k->dim[1],
                         .d = in->q->dim[2]};
}

/* Start of head h of token t. */
static int64_t head_at(const struct tensor *x, int64_t t, int64_t h)
{
    return t * x->ld + h * x->dim[2];
}

static double dot(const struct tensor *a, int64_t a_at, const struct tensor *b,
                  int64_t b_at, int64_t n)
{
    double sum = 0;
    for (int64_t c = 0; c < n; c++)
        sum += (double)ref_get(a, a_at + c) * (double)ref_get(b, b_at + c);
    return sum;
}

/* True if query i sees the quantized form of key j (struct attn_mask). A block of tokens is
 * quantized all at once, when its last token is old enough. That token then stands for j.
 * The query's own chunk of a prefill stays in full precision. */
static bool is_quantized(const struct attn *a, int64_t i, int64_t j)
{
    const struct attn_mask *m = a->in->mask;
    if (!a->in->kq || j < m->sink)
        return false;
    if (m->block > 1)
        j = j / m->block * m->block + m->block - 1;
    return j <= i - m->window && (m->chunk <= 1 || j / m->chunk != i / m->chunk);
}

/* The first key that query i sees, and the end of the queries that see key j. */
static int64_t first_key(const struct attn *a, int64_t i)
{
    const int64_t reach = a->in->reach;
    return reach && i >= reach ? i - reach + 1 : 0;
}

static int64_t end_query(const struct attn *a, int64_t j)
{
    const int64_t reach = a->in->reach;
    return reach && reach < a->T - j ? j + reach : a->T;
}

/* S_ij = scale q_i . k'_j. Query head h reads kv head h / (H / K): neighbouring query heads
 * share one (Ainslie et al. 2023). */
static double score(const struct attn *a, int64_t h, int64_t i, int64_t j)
{
    const struct tensor *k = is_quantized(a, i, j) ? a->in->kq : a->in->k;
    return a->scale * dot(a->in->q, head_at(a->in->q, i, h), k,
                          head_at(k, j, h / (a->H / a->K)), a->d);
}

/* o and lse of query i of head h. S [i + 1] and acc [d] are working memory. Exponentials
 * are of S - max, so none overflows; o = (sum e v') / (sum e) and lse = max + log(sum
 * e). */
static void attend(const struct attn *a, const struct tensor *o, const struct tensor *lse,
                   int64_t h, int64_t i, double *S, double *acc)
{
    double max = -INFINITY, sum = 0;
    for (int64_t j = first_key(a, i); j <= i; j++) {
        S[j] = score(a, h, i, j);
        max = fmax(max, S[j]);
    }
    for (int64_t c = 0; c < a->d; c++)
        acc[c] = 0;
    for (int64_t j = first_key(a, i); j <= i; j++) {
        const struct tensor *v = is_quantized(a, i, j) ? a->in->vq : a->in->v;
        const int64_t v_j = head_at(v, j, h / (a->H / a->K));
        const double e = exp(S[j] - max);
        sum += e;
        for (int64_t c = 0; c < a->d; c++)
            acc[c] += e * (double)ref_get(v, v_j + c);
    }
    for (int64_t c = 0; c < a->d; c++)
        ref_set(o, head_at(o, i, h) + c, acc[c] / sum);
    ref_set(lse, h * a->T + i, max + log(sum));
}

static void ref_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                     const struct attn_inputs *in)
{
    const struct attn a = attn_of(in);
    double *S = NULL;
    if (mem_alloc(&S, (size_t)(a.T + a.d), sizeof(*S))) {
        dev_fail(d, ERR_MEMORY, "attn: no memory for %lld scores", (long long)a.T);
        return;
    }
    for (int64_t h = 0; h < a.H; h++)
        for (int64_t i = 0; i < a.T; i++)
            attend(&a, o, lse, h, i, S, S + a.T);
    mem_free(S);
}

/* The arguments of the backward. */
struct attn_grad {
    struct attn a;
    const struct tensor *dout, *o, *lse;
};

/* P_ij and dS_ij = P_ij (dP_ij - D_i), with dP_ij = dout_i . v'_j. Softmax's backward
 * subtracts sum_l P_il dP_il, which is dout_i . o_i = D_i because o_i = sum_l P_il v'_l
 * (Dao et al. 2022). P is computed again from S and lse, so the forward stores no T x T
 * matrix. */
static void pair_grad(const struct attn_grad *g, int64_t h, int64_t i, int64_t j,
                      double D_i, double *P, double *dS)
{
    const struct attn *a = &g->a;
    const struct tensor *v = is_quantized(a, i, j) ? a->in->vq : a->in->v;
    const double dP =
        dot(g->dout, head_at(g->dout, i, h), v, head_at(v, j, h / (a->H / a->K)), a->d);
    *P = exp(score(a, h, i, j) - (double)ref_get(g->lse, h * a->T + i));
    *dS = *P * (dP - D_i);
}

static double row_dot(const struct attn_grad *g, int64_t h, int64_t i)
{
    return dot(g->dout, head_at(g->dout, i, h), g->o, head_at(g->o, i, h), g->a.d);
}

/* dq_i = scale sum_j dS_ij k'_j */
static void query_grad(const struct attn_grad *g, const struct tensor *dq, int64_t h,
                       int64_t i, double *acc)
{
    const struct attn *a = &g->a;
    const double D_i = row_dot(g, h, i);
    for (int64_t c = 0; c < a->d; c++)
        acc[c] = 0;
    for (int64_t j = first_key(a, i); j <= i; j++) {
        double P, dS;
        pair_grad(g, h, i, j, D_i, &P, &dS);
        const struct tensor *k = is_quantized(a, i, j) ? a->in->kq : a->in->k;
        const int64_t k_j = head_at(k, j, h / (a->H / a->K));
        for (int64_t c = 0; c < a->d; c++)
            acc[c] += dS * (double)ref_get(k, k_j + c);
    }
    for (int64_t c = 0; c < a->d; c++)
        ref_set(dq, head_at(dq, i, h) + c, a->scale * acc[c]);
}

/* dk'_j = scale sum_i dS_ij q_i and dv'_j = sum_i P_ij dout_i, over the queries of all
 * heads that share kv head `kv`. Each pair contributes to the form of key j that query i
 * sees. acc [4][d] receives dk, dv, dkq, dvq. D [H][T] is dout_i . o_i. */
static void key_grad(const struct attn_grad *g, int64_t kv, int64_t j, const double *D,
                     double *acc)
{
    const struct attn *a = &g->a;
    const int64_t rep = a->H / a->K, d = a->d;
    for (int64_t c = 0; c < 4 * d; c++)
        acc[c] = 0;
    for (int64_t h = kv * rep; h < (kv + 1) * rep; h++)
        for (int64_t i = j; i < end_query(a, j); i++) {
            double P, dS;
            pair_grad(g, h, i, j, D[h * a->T + i], &P, &dS);
            double *dk = acc + (is_quantized(a, i, j) ? 2 * d : 0), *dv = dk + d;
            const int64_t q_i = head_at(a->in->q, i, h), do_i = head_at(g->dout, i, h);
            for (int64_t c = 0; c < d; c++) {
                dk[c] += a->scale * dS * (double)ref_get(a->in->q, q_i + c);
                dv[c] += P * (double)ref_get(g->dout, do_i + c);
            }
        }
}

static void put_head(const struct tensor *x, int64_t t, int64_t h, const double *from)
{
    for (int64_t c = 0; x && c < x->dim[2]; c++)
        ref_set(x, head_at(x, t, h) + c, from[c]);
}

/* dq is formed query by query, the other gradients key by key. Every sum is then in one
 * place and in one order, and nothing is added to from two loops. */
static void ref_attn_bwd(struct dev *d, const struct attn_grads *grads,
                         const struct tensor *dout, const struct tensor *o,
                         const struct tensor *lse, const struct attn_inputs *in)
{
    const struct attn_grad g = {attn_of(in), dout, o, lse};
    const int64_t T = g.a.T, H = g.a.H, n = g.a.d;
    double *D = NULL;
    if (mem_alloc(&D, (size_t)(H * T + 4 * n), sizeof(*D))) {
        dev_fail(d, ERR_MEMORY, "attn_bwd: no memory for %lld sums", (long long)(H * T));
        return;
    }
    double *acc = D + H * T;
    for (int64_t h = 0; h < H; h++)
        for (int64_t i = 0; i < T; i++) {
            D[h * T + i] = row_dot(&g, h, i);
            query_grad(&g, grads->dq, h, i, acc);
        }
    for (int64_t kv = 0; kv < g.a.K; kv++)
        for (int64_t j = 0; j < T; j++) {
            key_grad(&g, kv, j, D, acc);
            put_head(grads->dk, j, kv, acc);
            put_head(grads->dv, j, kv, acc + n);
            put_head(grads->dkq, j, kv, acc + 2 * n);
            put_head(grads->dvq, j, kv, acc + 3 * n);
        }
    mem_free(D);
}

void ref_fill_attn(struct dev_ops *o)
{
    o->rope = ref_rope;
    o->hadamard = ref_hadamard;
    o->attn = ref_attn;
    o->attn_bwd = ref_attn_bwd;
}

/* SPDX-License-Identifier: MIT
 *
 * Parts 3 and 4: the packed runtime, token by token, against the calibrator's simulation of
 * the same weights and cache. */
#include "convert/runtime/runtime.h"
#include "convert/runtime/verify_priv.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* --- the simulation ----------------------------------------------------------------- */

/* How the simulation quantizes; plain_cache leaves keys and values alone. */
struct simulation {
    struct verify *v;
    struct dev *dev;
    struct block_quant view; /* borrows everything from the block it is a view of */
    struct model_quant quant;
    struct model_run run;
    bool plain_cache;
};

/* From the source when there is one, so that the codes are calibration's and not the
 * artifact's; else the artifact's weights, unpacked. */
static enum err simulated_block(void *ctx, int64_t i, const struct block_quant **q)
{
    struct simulation *s = ctx;
    const struct block_quant *of;
    TRY(verify_block(s->v, i, &of));
    s->view = *of;
    if (!s->v->model)
        s->view.weights.bits = 16;
    if (s->plain_cache)
        s->view.kv.bits = 16;
    *q = &s->view;
    return OK;
}

static enum err open_simulation(struct simulation *s, struct verify *v)
{
    const struct dev_settings settings = {.name = "cpu", .threads = v->s->threads};
    *s = (struct simulation){.v = v};
    TRY(dev_open(&s->dev, &settings));
    s->quant = (struct model_quant){s, simulated_block};
    s->run = (struct model_run){
        .dev = s->dev,
        .arch = v->arch,
        .src = v->model ? hf_source(v->model) : artifact_source(v->a),
        .quant = &s->quant,
        .act = v->s->act,
        .chunk = 1,
    };
    return OK;
}

/* --- comparing logits --------------------------------------------------------------- */

static double log_sum_exp(const float *x, int64_t n)
{
    double top = -HUGE_VAL, sum = 0;
    for (int64_t i = 0; i < n; i++)
        top = (double)x[i] > top ? (double)x[i] : top;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i] - top);
    return top + log(sum);
}

struct comparison {
    double kl, diff, range; /* nats; largest difference, and the reference's range */
    bool same_top;
};

/* KL(want || have), both logits over n tokens. */
static struct comparison compare(const float *want, const float *have, int64_t n)
{
    const double lw = log_sum_exp(want, n), lh = log_sum_exp(have, n);
    struct comparison c = {.kl = 0};
    double lo = HUGE_VAL, hi = -HUGE_VAL;
    int64_t top_w = 0, top_h = 0;
    for (int64_t i = 0; i < n; i++) {
        const double w = (double)want[i], h = (double)have[i], d = fabs(w - h);
        c.kl += exp(w - lw) * ((w - lw) - (h - lh));
        c.diff = d <= c.diff ? c.diff : d; /* NaN is taken */
        lo = w < lo ? w : lo;
        hi = w > hi ? w : hi;
        top_w = want[i] > want[top_w] ? i : top_w;
        top_h = have[i] > have[top_h] ? i : top_h;
    }
    c.range = hi - lo;
    c.same_top = top_w == top_h;
    return c;
}

static enum err open_runtime(struct runtime **rt, const struct verify *v, int64_t tokens)
{
    const struct runtime_settings s = {.threads = v->s->threads, .max_tokens = tokens};
    return runtime_open(rt, v->a, &s);
}

/* The runtime's tokens one by one against want [n][V]. */
static enum err compare_decode(struct verify *v, struct runtime *rt, const float *want,
                               int64_t n)
{
    const int64_t V = v->arch->vocab;
    struct verify_report *r = v->r;
    float *have;
    TRY(mem_alloc(&have, (size_t)V, sizeof(*have)));
    enum err err = OK;
    r->worst_kl = -HUGE_VAL;
    for (int64_t t = 0; t < n && !err; t++) {
        err = runtime_forward(rt, have, false, v->s->ids + t, 1);
        const struct comparison c = compare(want + t * V, have, V);
        const double diff = c.diff / c.range;
        r->mean_kl += c.kl / (double)n;
        r->top1_agree += c.same_top;
        r->max_logit_diff = diff <= r->max_logit_diff ? r->max_logit_diff : diff;
        if (!(c.kl <= r->worst_kl)) {
            r->worst_kl = c.kl;
            r->worst_token = t;
        }
    }
    r->logit_tokens = n;
    mem_free(have);
    return err;
}

/* --- comparing keys and values ------------------------------------------------------ */

/* Cosine of head kh of tokens [from, to), each [C]; 1 where both are zero. */
static double cosine(const float *a, const float *b, int64_t from, int64_t to, int64_t C,
                     int64_t kh, int64_t d)
{
    double ab = 0, aa = 0, bb = 0;
    for (int64_t t = from; t < to; t++)
        for (int64_t c = kh * d; c < (kh + 1) * d; c++) {
            const double x = (double)a[t * C + c], y = (double)b[t * C + c];
            ab += x * y;
            aa += x * x;
            bb += y * y;
        }
    return aa == 0 && bb == 0 ? 1 : ab / sqrt(aa * bb);
}

/* The lowest cosine so far, and where. */
struct worst {
    double cosine;
    int64_t layer, head;
};

struct kv_compare {
    const struct verify *v;
    int64_t n, from, to;      /* tokens, and those of them that are packed */
    float *sim[2], *plain[2]; /* [layers][n][C]: K^ and V^, K and V */
    float *have[2];           /* [n][C] of one layer */
};

static void worst_head(struct worst *w, const struct kv_compare *c, const float *a,
                       const float *b, int64_t layer)
{
    const int64_t K = c->v->arch->n_kv, d = c->v->arch->head_dim;
    for (int64_t kh = 0; kh < K; kh++) {
        const double x = cosine(a, b, c->from, c->to, K * d, kh, d);
        if (!(x >= w->cosine))
            *w = (struct worst){x, layer, kh};
    }
}

static enum err compare_layers(struct kv_compare *c, struct runtime *rt,
                               struct worst quant[2], struct worst agree[2])
{
    const int64_t one = c->n * c->v->arch->n_kv * c->v->arch->head_dim;
    for (int64_t i = 0; i < c->v->arch->n_layers; i++) {
        TRY(runtime_kv(rt, i, c->have[0], c->have[1]));
        for (int w = 0; w < 2; w++) {
            worst_head(&quant[w], c, c->sim[w] + i * one, c->plain[w] + i * one, i);
            worst_head(&agree[w], c, c->sim[w] + i * one, c->have[w], i);
        }
    }
    return OK;
}

static enum err kv_room(struct kv_compare *c)
{
    const struct arch *a = c->v->arch;
    const int64_t dims[] = {a->n_layers, c->n, a->n_kv * a->head_dim};
    size_t all, one;
    TRY(size_product(&all, dims, 3, sizeof(float)));
    TRY(size_product(&one, dims + 1, 2, sizeof(float)));
    for (int w = 0; w < 2; w++) {
        TRY(mem_alloc(&c->sim[w], all, 1));
        TRY(mem_alloc(&c->plain[w], all, 1));
        TRY(mem_alloc(&c->have[w], one, 1));
    }
    return OK;
}

/* Tokens that the cache holds packed: behind the sink, before the window. */
static void packed_tokens(struct kv_compare *c, const struct kv_spec *kv)
{
    const int64_t recent = kv->bits < 16 && kv->past_only ? kv->window - 1 : 0;
    c->from = kv->bits < 16 ? kv->sink : 0;
    c->to = c->n - recent;
}

static enum err compare_kv(struct verify *v, struct simulation *s, struct runtime *rt,
                           int64_t n)
{
    enum err err = OK;
    struct verify_report *r = v->r;
    struct kv_compare c = {.v = v, .n = n};
    struct worst quant[2] = {{1, 0, 0}, {1, 0, 0}}, agree[2] = {{1, 0, 0}, {1, 0, 0}};
    packed_tokens(&c, artifact_kv_spec(v->a));
    TRY_OUT(kv_room(&c));
    TRY_OUT(model_kv(&s->run, v->s->ids, n, c.sim[0], c.sim[1]));
    s->plain_cache = true;
    TRY_OUT(model_kv(&s->run, v->s->ids, n, c.plain[0], c.plain[1]));
    s->plain_cache = false;
    TRY_OUT(compare_layers(&c, rt, quant, agree));
    r->worst_k_cosine = quant[0].cosine;
    r->worst_k_layer = quant[0].layer;
    r->worst_k_head = quant[0].head;
    r->worst_v_cosine = quant[1].cosine;
    r->worst_v_layer = quant[1].layer;
    r->worst_v_head = quant[1].head;
    r->agree_k_cosine = agree[0].cosine;
    r->agree_v_cosine = agree[1].cosine;
out:
    for (int w = 0; w < 2; w++) {
        mem_free(c.sim[w]);
        mem_free(c.plain[w]);
        mem_free(c.have[w]);
    }
    return err;
}

/* --- part 3 ------------------------------------------------------------------------- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The longest sequence that the model is run on here. */
static int64_t longest(const struct arch *a)
{
    const bool sliding = a->sliding_window > 0 && a->sliding_from < a->n_layers;
    return sliding ? least(a->max_positions, a->sliding_window) : a->max_positions;
}

static void judge_logits(struct verify *v)
{
    struct verify_report *r = v->r;
    const bool pass = r->mean_kl <= v->s->max_kl && r->agree_k_cosine >= v->s->min_cosine &&
                      r->agree_v_cosine >= v->s->min_cosine;
    r->logits = pass ? VERIFY_PASS : VERIFY_FAIL;
    if (!(r->mean_kl <= v->s->max_kl))
        verify_differs(v, "logits: KL of runtime and simulation is %.3g nats, allowed %.3g",
                       r->mean_kl, v->s->max_kl);
    if (!pass)
        verify_differs(v, "cache: cosine of runtime and simulation is %.6f (K), %.6f (V)",
                       r->agree_k_cosine, r->agree_v_cosine);
}

enum err verify_logits(struct verify *v)
{
    enum err err = OK;
    struct simulation s = {.v = v};
    struct runtime *rt = NULL;
    float *want = NULL;
    const int64_t n = least(least(v->s->logit_tokens, v->s->n_ids), longest(v->arch));
    if (n < 1)
        return OK;
    TRY_OUT(open_simulation(&s, v));
    TRY_OUT(mem_alloc(&want, (size_t)n, (size_t)v->arch->vocab * sizeof(*want)));
    TRY_OUT(model_logits(&s.run, v->s->ids, 1, n, want));
    TRY_OUT(open_runtime(&rt, v, n));
    TRY_OUT(compare_decode(v, rt, want, n));
    TRY_OUT(compare_kv(v, &s, rt, n));
    judge_logits(v);
out:
    mem_free(want);
    runtime_close(&rt);
    dev_close(&s.dev);
    return err;
}

/* --- part 4 ------------------------------------------------------------------------- */

/* Sum of the losses of one window by decode. */
static enum err decode_window(double *sum, struct runtime *rt, const int32_t *ids,
                              int64_t ctx, float *logits, int64_t V)
{
    runtime_reset(rt);
    for (int64_t t = 0; t + 1 < ctx; t++) {
        TRY(runtime_forward(rt, logits, false, ids + t, 1));
        *sum += log_sum_exp(logits, V) - (double)logits[ids[t + 1]];
    }
    return OK;
}

static enum err decode_windows(double *mean, struct verify *v, int64_t windows, int64_t ctx)
{
    enum err err = OK;
    struct runtime *rt = NULL;
    float *logits = NULL;
    double sum = 0;
    TRY_OUT(mem_alloc(&logits, (size_t)v->arch->vocab, sizeof(*logits)));
    TRY_OUT(open_runtime(&rt, v, ctx));
    for (int64_t w = 0; w < windows; w++)
        TRY_OUT(decode_window(&sum, rt, v->s->ids + w * ctx, ctx, logits, v->arch->vocab));
    *mean = sum / (double)(windows * (ctx - 1));
out:
    mem_free(logits);
    runtime_close(&rt);
    return err;
}

static enum err simulate_windows(double *mean, struct verify *v, int64_t windows,
                                 int64_t ctx)
{
    enum err err = OK;
    struct simulation s = {.v = v};
    float *nll = NULL;
    double sum = 0;
    const int64_t n = windows * (ctx - 1);
    TRY_OUT(open_simulation(&s, v));
    TRY_OUT(mem_alloc(&nll, (size_t)n, sizeof(*nll)));
    TRY_OUT(model_nll(&s.run, v->s->ids, windows, ctx, nll));
    for (int64_t i = 0; i < n; i++)
        sum += (double)nll[i];
    *mean = sum / (double)n;
out:
    mem_free(nll);
    dev_close(&s.dev);
    return err;
}

enum err verify_perplexity(struct verify *v)
{
    struct verify_report *r = v->r;
    const int64_t ctx = least(least(v->s->ctx, v->s->n_ids), longest(v->arch));
    if (ctx < 2)
        return OK;
    const int64_t windows = least(v->s->windows, v->s->n_ids / ctx);
    double simulated = 0, decoded = 0;
    TRY(simulate_windows(&simulated, v, windows, ctx));
    TRY(decode_windows(&decoded, v, windows, ctx));
    r->ppl_simulated = exp(simulated);
    r->ppl_runtime = exp(decoded);
    r->ppl_gap = fabs(r->ppl_runtime / r->ppl_simulated - 1);
    r->ppl_tokens = windows * (ctx - 1);
    r->perplexity = r->ppl_gap <= v->s->max_ppl_gap ? VERIFY_PASS : VERIFY_FAIL;
    if (r->perplexity == VERIFY_FAIL)
        verify_differs(v, "perplexity: %.4f by decode, %.4f simulated", r->ppl_runtime,
                       r->ppl_simulated);
    return OK;
}

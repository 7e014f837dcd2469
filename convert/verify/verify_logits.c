/* SPDX-License-Identifier: MIT
 *
 * Compares the packed runtime, decoding token by token, with the calibrator's simulation of
 * the same weights and cache.
 *
 * Quantizing a cache amplifies the last bit. Where a value lies between two codes, sums in
 * another order choose the other code; some thirty blocks later two correct programs differ
 * as much as quantization itself changes the model. Therefore every block of the runtime
 * starts from the simulation's hidden states, and a difference is the runtime's own:
 *
 *   simulation   x_0 -> block 0 -> x_1 -> block 1 -> x_2 ...
 *                 |                 |
 *   runtime      x_0 -> block 0  | x_1 -> block 1  | ...    each output against x_(i+1) */
#include "convert/runtime/runtime.h"
#include "convert/verify/verify_priv.h"
#include "kernels/base/log.h"
#include "kernels/base/logsumexp.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* --- the simulation ----------------------------------------------------------------- */

/* The simulation's run and how it quantizes. */
struct simulation {
    struct verify *v;
    struct dev *dev;
    struct block_quant view; /* of the current block: borrows all of its memory */
    struct model_quant quant;
    struct model_run run;
    bool plain_cache; /* keys and values stay in full precision */
};

/* With a source checkpoint its weights are quantized again, so that the codes are those of
 * calibration; without one, the artifact's weights are used as they are. */
static enum err simulated_block(void *ctx, int64_t i, const struct block_quant **q)
{
    struct simulation *s = ctx;
    const struct block_quant *of;
    TRY(verify_block(s->v, i, &of));
    s->view = *of;
    for (int l = 0; l < N_LIN && !s->v->model; l++)
        s->view.lin[l] = (struct qlinear){0};
    if (s->plain_cache)
        kv_set_unquantized(&s->view.kv);
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
        .src = v->model ? &v->ends.source : artifact_source(v->a),
        .quant = &s->quant,
        .act = v->s->act,
        .chunk = 1,
    };
    s->plain_cache = v->r->target;
    return OK;
}

/* Returns whether a figure, which is larger where it is worse, replaces the worst one so far. NaN
 * is the worst of all: it replaces every other figure, and stays. */
static bool is_worse(double x, double worst)
{
    return !isnan(worst) && !(x <= worst);
}

/* --- comparing logits --------------------------------------------------------------- */

struct comparison {
    double kl;          /* nats */
    double diff, range; /* largest difference, and range of the reference */
    bool same_top;
};

/* Compares two rows of n logits; the divergence is KL(want || have). */
static struct comparison compare(const float *want, const float *have, int64_t n)
{
    struct comparison c = {
        .kl = kl_divergence(want, log_sum_exp(want, n), have, log_sum_exp(have, n), n)};
    double lo = HUGE_VAL, hi = -HUGE_VAL;
    int64_t top_w = 0, top_h = 0;
    for (int64_t i = 0; i < n; i++) {
        const double w = (double)want[i], h = (double)have[i], d = fabs(w - h);
        c.diff = is_worse(d, c.diff) ? d : c.diff;
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
    const struct runtime_settings s = {.threads = v->s->threads,
                                       .max_tokens = tokens,
                                       .kv_bits = v->r->target ? 16 : 0,
                                       .act_bits = 16};
    return runtime_open(rt, v->a, &s);
}

/* Hidden states of the simulation, and the errors of the runtime's blocks. */
struct states {
    float *x;      /* [layers + 1][n][D] */
    double *error; /* [layers] sum over tokens */
    int64_t layers, n, D;
    int64_t t; /* token that the runtime processes */
};

static enum err states_open(struct states *s, const struct arch *a, int64_t n)
{
    const int64_t dims[] = {a->n_layers + 1, n, a->d_model};
    size_t bytes;
    *s = (struct states){.layers = a->n_layers, .n = n, .D = a->d_model};
    TRY(size_product(&bytes, dims, 3, sizeof(float)));
    TRY(mem_alloc(&s->x, bytes, 1));
    return mem_calloc(&s->error, (size_t)a->n_layers, sizeof(*s->error));
}

static void states_close(struct states *s)
{
    mem_free(s->x);
    mem_free(s->error);
}

static const float *state_at(const struct states *s, int64_t layer, int64_t t)
{
    return s->x + (layer * s->n + t) * s->D;
}

static void store_states(void *ctx, int64_t window, int64_t block, const float *x)
{
    struct states *s = ctx;
    memcpy(s->x + (block + 1) * s->n * s->D, x, (size_t)(s->n * s->D) * sizeof(*x));
}

/* Returns |x - out| / |out - in|: the error of a block relative to what it adds. */
static double block_error(const struct states *s, int64_t block, int64_t t, const float *x)
{
    const float *in = state_at(s, block, t), *out = state_at(s, block + 1, t);
    double miss = 0, adds = 0;
    for (int64_t i = 0; i < s->D; i++) {
        const double m = (double)x[i] - (double)out[i], a = (double)out[i] - (double)in[i];
        miss += m * m;
        adds += a * a;
    }
    return miss == 0 ? 0 : sqrt(miss / adds);
}

/* Called before every block: measures the output of the previous one, then replaces x by
 * the simulation's state. The output of the last block stays and goes to the head. */
static void watch(void *ctx, int64_t layer, float *x, int64_t n)
{
    struct states *s = ctx;
    if (layer > 0)
        s->error[layer - 1] += block_error(s, layer - 1, s->t, x) / (double)s->n;
    if (layer < s->layers)
        memcpy(x, state_at(s, layer, s->t), (size_t)s->D * sizeof(*x));
}

static void take_comparison(struct verify_report *r, const struct comparison *c, int64_t t,
                            int64_t n)
{
    const double diff = c->diff / c->range;
    r->mean_kl += c->kl / (double)n;
    r->top1_agree += c->same_top;
    r->max_logit_diff = is_worse(diff, r->max_logit_diff) ? diff : r->max_logit_diff;
    if (t == 0 || is_worse(c->kl, r->worst_kl)) {
        r->worst_kl = c->kl;
        r->worst_token = t;
    }
}

static void worst_block(struct verify_report *r, const struct states *s)
{
    for (int64_t i = 0; i < s->layers; i++)
        if (is_worse(s->error[i], r->worst_block_error)) {
            r->worst_block_error = s->error[i];
            r->worst_block = i;
        }
}

/* Decodes n tokens and compares their logits with want [n][V]. With s every block starts
 * from the simulation's state; s NULL: the runtime runs on its own. */
static enum err compare_decode(struct verify *v, struct runtime *rt, struct states *s,
                               const float *want, int64_t n)
{
    const int64_t V = v->arch->vocab;
    float *have;
    TRY(mem_alloc(&have, (size_t)V, sizeof(*have)));
    enum err err = OK;
    runtime_reset(rt);
    runtime_watch(rt, s ? watch : NULL, s);
    for (int64_t t = 0; t < n; t++) {
        if (s)
            s->t = t;
        err = runtime_forward(rt, have, false, v->s->ids + t, 1);
        if (err)
            break;
        const struct comparison c = compare(want + t * V, have, V);
        if (s) {
            take_comparison(v->r, &c, t, n);
        } else {
            v->r->free_kl += c.kl / (double)n;
            v->r->free_top1 += c.same_top;
        }
    }
    runtime_watch(rt, NULL, NULL);
    mem_free(have);
    return err;
}

/* --- comparing keys and values ------------------------------------------------------ */

/* Returns the cosine of head kh over tokens [from, to); 1 if both are zero. */
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

/* The lowest cosine so far, and its place. */
struct worst {
    double cosine;
    int64_t layer, head;
    int64_t low; /* heads below min_head_cosine */
};

struct kv_compare {
    const struct verify *v;
    int64_t n, from, to;      /* tokens; those in [from, to) are packed */
    float *sim[2], *plain[2]; /* [layers][n][C]: K^ and V^, K and V */
    float *have[2];           /* [n][C] of one layer */
};

static void worst_head(struct worst *w, const struct kv_compare *c, const float *a,
                       const float *b, int64_t layer)
{
    const int64_t K = c->v->arch->n_kv, d = c->v->arch->head_dim;
    for (int64_t kh = 0; kh < K; kh++) {
        const double x = cosine(a, b, c->from, c->to, K * d, kh, d);
        w->low += !(x >= c->v->s->min_head_cosine);
        if (is_worse(-x, -w->cosine))
            *w = (struct worst){x, layer, kh, w->low};
    }
}

static enum err compare_layers(struct kv_compare *c, struct runtime *rt,
                               struct worst quant[2], struct worst agree[2])
{
    const int64_t one = c->n * c->v->arch->n_kv * c->v->arch->head_dim;
    for (int64_t i = 0; i < c->v->arch->n_layers; i++) {
        TRY(runtime_kv(rt, i, c->have[0], c->have[1]));
        for (int w = 0; w < 2; w++) {
            struct worst here = {1, i, 0, 0};
            worst_head(&here, c, c->sim[w] + i * one, c->plain[w] + i * one, i);
            c->v->r->low_heads += here.low;
            if (is_worse(-here.cosine, -quant[w].cosine))
                quant[w] = here;
            if (c->v->s->layer_cosine[w])
                c->v->s->layer_cosine[w][i] = here.cosine;
            worst_head(&agree[w], c, (c->v->r->target ? c->plain : c->sim)[w] + i * one,
                       c->have[w], i);
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

/* Returns the tokens that a quantized cache keeps in full precision at both ends: *sink first ones
 * and those of the window. */
static int64_t kept_tokens(int64_t *sink, const struct kv_spec *kv)
{
    const bool packed = kv_quantizes(kv);
    *sink = packed ? kv->sink : 0;
    return *sink + (packed && kv->past_only ? kv->window - 1 : 0);
}

/* Finds the tokens that the cache holds packed: after the sink, before the window. There may be
 * none. */
static void packed_tokens(struct kv_compare *c, const struct kv_spec *kv)
{
    const int64_t kept = kept_tokens(&c->from, kv);
    const int64_t packed = c->n > kept ? c->n - kept : 0;
    c->to = c->from + packed;
}

/* What is reported when nothing was compared: not a figure. */
static void no_cosines(struct verify_report *r, double *const layer[2], int64_t n_layers)
{
    r->worst_k_cosine = r->worst_v_cosine = r->agree_k_cosine = r->agree_v_cosine = NAN;
    for (int w = 0; w < 2; w++)
        for (int64_t i = 0; layer[w] && i < n_layers; i++)
            layer[w][i] = NAN;
}

static enum err compare_kv(struct verify *v, struct simulation *s, struct runtime *rt,
                           int64_t n)
{
    enum err err = OK;
    struct verify_report *r = v->r;
    struct kv_compare c = {.v = v, .n = n};
    struct worst quant[2] = {{.cosine = 1}, {.cosine = 1}},
                 agree[2] = {{.cosine = 1}, {.cosine = 1}};
    packed_tokens(&c, artifact_kv_spec(v->a));
    r->cache_tokens = c.to - c.from;
    if (!r->cache_tokens) {
        no_cosines(r, v->s->layer_cosine, v->arch->n_layers);
        return OK;
    }
    TRY_OUT(kv_room(&c));
    s->plain_cache = false;
    TRY_OUT(model_kv(&s->run, v->s->ids, n, c.sim[0], c.sim[1]));
    s->plain_cache = true;
    TRY_OUT(model_kv(&s->run, v->s->ids, n, c.plain[0], c.plain[1]));
    s->plain_cache = v->r->target;
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

/* --- logits ------------------------------------------------------------------------- */

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void judge_logits(struct verify *v)
{
    struct verify_report *r = v->r;
    const bool blocks = r->worst_block_error <= v->s->max_block_error;
    const bool cache = !r->cache_tokens || (r->agree_k_cosine >= v->s->min_cosine &&
                                            r->agree_v_cosine >= v->s->min_cosine);
    const bool pass = blocks && r->mean_kl <= v->s->max_kl && cache;
    r->logits = pass ? VERIFY_PASS : VERIFY_FAIL;
    if (!blocks)
        verify_differs(v,
                       "block %" PRId64 ": runtime and simulation differ by %.3g of what "
                       "the block adds, allowed are %.3g",
                       r->worst_block, r->worst_block_error, v->s->max_block_error);
    if (!(r->mean_kl <= v->s->max_kl))
        verify_differs(v, "logits: KL of runtime and simulation is %.3g nats, allowed %.3g",
                       r->mean_kl, v->s->max_kl);
    if (!cache)
        verify_differs(v, "cache: cosine of runtime and simulation is %.6f (K), %.6f (V)",
                       r->agree_k_cosine, r->agree_v_cosine);
}

/* Warns about a cache that lost what it stores. Its runtime agrees with the simulation, so the
 * artifact has what the configuration says. */
static void warn_low_heads(const struct verify *v)
{
    const struct verify_report *r = v->r;
    const bool keys = is_worse(-r->worst_k_cosine, -r->worst_v_cosine);
    if (r->low_heads)
        log_warn(
            "the quantized cache of %" PRId64
            " head%s has a cosine to full precision below %g; the lowest is %.3f (%s of "
            "layer %" PRId64 ", head %" PRId64
            "): give the cache more bits, or look at these weights",
            r->low_heads, plural(r->low_heads), v->s->min_head_cosine,
            keys ? r->worst_k_cosine : r->worst_v_cosine, keys ? "keys" : "values",
            keys ? r->worst_k_layer : r->worst_v_layer,
            keys ? r->worst_k_head : r->worst_v_head);
}

/* Enough packed tokens for a comparison, and how much longer than asked the text may become for
 * them: states and logits of all tokens are in memory. */
#define PACKED_TOKENS 64
#define MOST_TIMES 4

/* Returns how many tokens to decode: the setting, or if the cache would pack none of them, so many
 * that it packs some, as far as text and model go. */
static int64_t tokens_to_decode(const struct verify *v)
{
    const struct kv_spec *kv = artifact_kv_spec(v->a);
    const int64_t asked = v->s->logit_tokens;
    int64_t sink;
    const int64_t kept = kept_tokens(&sink, kv);
    const int64_t want = kept + PACKED_TOKENS;
    const bool none = kv_quantizes(kv) && asked <= kept;
    const int64_t n = none && want <= MOST_TIMES * asked ? want : asked;
    return min_i64(min_i64(n, v->s->n_ids), v->arch->max_positions);
}

enum err verify_logits(struct verify *v)
{
    enum err err = OK;
    struct simulation s = {.v = v};
    struct states states = {0};
    struct runtime *rt = NULL;
    float *want = NULL;
    const int64_t n = tokens_to_decode(v);
    if (n < 1)
        return OK;
    TRY_OUT(open_simulation(&s, v));
    TRY_OUT(mem_alloc(&want, (size_t)n, (size_t)v->arch->vocab * sizeof(*want)));
    TRY_OUT(states_open(&states, v->arch, n));
    s.run.hidden = store_states;
    s.run.hidden_ctx = &states;
    TRY_OUT(model_logits(&s.run, v->s->ids, 1, n, want));
    s.run.hidden = NULL;
    TRY_OUT(open_runtime(&rt, v, n));
    TRY_OUT(compare_decode(v, rt, NULL, want, n));
    TRY_OUT(compare_decode(v, rt, &states, want, n));
    TRY_OUT(compare_kv(v, &s, rt, n));
    v->r->logit_tokens = n;
    worst_block(v->r, &states);
    judge_logits(v);
    warn_low_heads(v);
out:
    states_close(&states);
    mem_free(want);
    runtime_close(&rt);
    dev_close(&s.dev);
    return err;
}

/* --- perplexity --------------------------------------------------------------------- */

/* nll [ctx - 1] = losses of one window, decoded token by token. */
static enum err decode_window(float *nll, struct runtime *rt, const int32_t *ids,
                              int64_t ctx, float *logits, int64_t V)
{
    runtime_reset(rt);
    for (int64_t t = 0; t + 1 < ctx; t++) {
        TRY(runtime_forward(rt, logits, false, ids + t, 1));
        nll[t] = (float)(log_sum_exp(logits, V) - (double)logits[ids[t + 1]]);
    }
    return OK;
}

static enum err decode_windows(float *nll, struct verify *v, int64_t windows, int64_t ctx)
{
    enum err err = OK;
    struct runtime *rt = NULL;
    float *logits = NULL;
    TRY_OUT(mem_alloc(&logits, (size_t)v->arch->vocab, sizeof(*logits)));
    TRY_OUT(open_runtime(&rt, v, ctx));
    for (int64_t w = 0; w < windows; w++)
        TRY_OUT(decode_window(nll + w * (ctx - 1), rt, v->s->ids + w * ctx, ctx, logits,
                              v->arch->vocab));
out:
    mem_free(logits);
    runtime_close(&rt);
    return err;
}

static enum err simulate_windows(float *nll, struct verify *v, int64_t windows, int64_t ctx)
{
    struct simulation s = {.v = v};
    enum err err = open_simulation(&s, v);
    if (!err)
        err = model_nll(&s.run, v->s->ids, windows, ctx, nll);
    dev_close(&s.dev);
    return err;
}

/* Flipped codes move single losses either way, while a mistake moves their mean. So the gap
 * is judged beyond the noise of the paired differences. */
static void judge_perplexity(struct verify *v, const float *simulated, const float *decoded,
                             int64_t n)
{
    struct verify_report *r = v->r;
    double mean_s = 0, mean_d = 0, square = 0;
    for (int64_t i = 0; i < n; i++) {
        mean_s += (double)simulated[i] / (double)n;
        mean_d += (double)decoded[i] / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)decoded[i] - (double)simulated[i] - (mean_d - mean_s);
        square += d * d;
    }
    r->ppl_simulated = exp(mean_s);
    r->ppl_runtime = exp(mean_d);
    r->ppl_gap = fabs(exp(mean_d - mean_s) - 1);
    r->ppl_gap_stderr = sqrt(square / (double)n / (double)n);
    r->ppl_tokens = n;
    const bool pass = r->ppl_gap <= v->s->max_ppl_gap + 3 * r->ppl_gap_stderr;
    r->perplexity = pass ? VERIFY_PASS : VERIFY_FAIL;
    if (!pass)
        verify_differs(v, "perplexity: %.4f by decode, %.4f simulated", r->ppl_runtime,
                       r->ppl_simulated);
}

enum err verify_perplexity(struct verify *v)
{
    enum err err = OK;
    float *simulated = NULL, *decoded = NULL;
    const int64_t ctx = min_i64(min_i64(v->s->ctx, v->s->n_ids), v->arch->max_positions);
    if (ctx < 2)
        return OK;
    const int64_t windows = min_i64(v->s->windows, v->s->n_ids / ctx);
    const int64_t n = windows * (ctx - 1);
    TRY_OUT(mem_alloc(&simulated, (size_t)n, sizeof(*simulated)));
    TRY_OUT(mem_alloc(&decoded, (size_t)n, sizeof(*decoded)));
    TRY_OUT(simulate_windows(simulated, v, windows, ctx));
    TRY_OUT(decode_windows(decoded, v, windows, ctx));
    judge_perplexity(v, simulated, decoded, n);
out:
    mem_free(simulated);
    mem_free(decoded);
    return err;
}

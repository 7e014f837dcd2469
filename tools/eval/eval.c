/* SPDX-License-Identifier: MIT */
#include "tools/eval/eval.h"

#include "convert/format/sizes.h"
#include "convert/runtime/runtime.h"
#include "data/batch.h"
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/logsumexp.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/eval/eval_sim.h"
#include "tools/eval/statistics.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

double eval_nll(const float *logits, int64_t vocab, int32_t target)
{
    return log_sum_exp(logits, vocab) - (double)logits[target];
}

void eval_reduce(struct eval_result *out, const double *window_nll, int64_t n)
{
    const struct estimate nll = estimate_mean(window_nll, n);
    out->nll = nll.mean;
    out->nll_stderr = nll.stderr_;
    out->ppl = exp(nll.mean);
    out->ppl_stderr = out->ppl * out->nll_stderr;
    out->windows = n;
}

int64_t eval_targets(const struct eval *e)
{
    return e->ctx - 1 - e->first;
}

static double mean_weight_bits(const struct weight_spec *w, const struct arch *a)
{
    double sum = 0;
    for (int64_t i = 0; i < a->n_layers; i++)
        for (int l = 0; l < N_LIN; l++)
            sum += weight_format(w, i, l).bits * (double)(arch_out(a, l) * arch_in(a, l));
    return sum / (double)(arch_block_params(a) * a->n_layers);
}

static double mean_code_bits(const struct kv_spec *kv, int64_t n_layers)
{
    double sum = 0;
    for (int64_t i = 0; i < n_layers; i++)
        sum += kv_format(kv, i, KV_K).bits + kv_format(kv, i, KV_V).bits;
    return sum / (double)(2 * n_layers);
}

/* Writes the formats in effect. */
static void formats(struct weight_spec *w, struct kv_spec *kv, const struct eval *e)
{
    const struct kv_spec unquantized = {.bits = QUANT_BITS_NONE};
    *w = (struct weight_spec){.bits = QUANT_BITS_NONE};
    *kv = unquantized;
    if (e->artifact) {
        *w = *artifact_weight_spec(e->artifact);
        *kv = *artifact_kv_spec(e->artifact);
    } else if (e->rtn || e->state) {
        const struct recipe *r = e->state ? state_recipe(e->state) : &e->job->recipe;
        *w = recipe_weight_spec(r);
        *kv = recipe_kv_spec(r);
    }
    if (eval_target(e))
        *kv = kv_target_spec(eval_target(e));
    if (e->kv_bits)
        *kv = unquantized;
}

void eval_bits(double *weights, double *kv, const struct eval *e)
{
    struct weight_spec w;
    struct kv_spec cache;
    struct artifact_sizes sizes;
    formats(&w, &cache, e);
    *weights = shape_weight_bits(&e->job->arch, &w);
    *kv = kv_mean_bits(&e->job->arch, &cache);
    if (!e->artifact || e->unquantized)
        return;
    artifact_measure(&sizes, e->artifact);
    *weights = sizes.weight_bits;
}

enum kv_target eval_target(const struct eval *e)
{
    if (e->kv_bits || e->unquantized || !(e->artifact || e->state || e->rtn))
        return TARGET_WKVQ;
    if (e->job->recipe.target)
        return (enum kv_target)e->job->recipe.target;
    if (e->artifact)
        return artifact_kv_spec(e->artifact)->target;
    return e->state ? (enum kv_target)state_recipe(e->state)->target : TARGET_WKVQ;
}

const char *eval_compute(const struct eval *e)
{
    enum dtype act = e->job->settings.act;
    if (e->decode)
        act = runtime_rounds() ? recipe_runtime_act(&e->job->recipe) : DT_F32;
    return act == DT_BF16 ? "bf16" : "f32";
}

int eval_act_bits(const struct eval *e)
{
    const struct recipe *r = e->state ? state_recipe(e->state) : &e->job->recipe;
    const struct weight_spec *w = e->artifact ? artifact_weight_spec(e->artifact) : NULL;
    if (w && weight_rounds_inputs(w))
        return w->act_bits;
    return e->decode ? QUANT_BITS_NONE : (int)r->activation_bits;
}

enum err eval_check_inputs(const struct eval *e)
{
    const struct weight_spec *w = artifact_weight_spec(e->artifact);
    const int asked = (int)e->job->recipe.activation_bits;
    FAIL_IF(weight_rounds_inputs(w) && asked < 16 && asked != w->act_bits, ERR_USAGE,
            "%s: activations.bits is %d, but the artifact's is %d; leave the setting out",
            e->job->model_dir, asked, w->act_bits);
    return OK;
}

enum err eval_set_identity(json_t *o, const struct eval *e)
{
    json_t *root = NULL;
    if (!e->artifact || e->unquantized)
        return OK;
    const char *text = artifact_manifest(e->artifact);
    TRY(json_parse(&root, text, strlen(text), "manifest.json"));
    json_object_set(o, "manifest_crc32", json_object_get(root, "manifest_crc32"));
    json_decref(root);
    return OK;
}

json_t *eval_text_names(const struct job *j)
{
    json_t *list = json_array();
    for (int i = 0; i < j->recipe.data.n; i++)
        json_array_append_new(list, json_string(file_base_name(j->recipe.data.path[i])));
    return list;
}

const char *eval_bits_text(const struct eval *e)
{
    static char text[64];
    struct weight_spec w;
    struct kv_spec cache;
    const int act = eval_act_bits(e);
    formats(&w, &cache, e);
    const double weights = mean_weight_bits(&w, &e->job->arch);
    const double kv = mean_code_bits(&cache, e->job->arch.n_layers);
    if (act < 16)
        snprintf(text, sizeof(text), "W%.3gA%dKV%.3g", weights, act, kv);
    else
        snprintf(text, sizeof(text), "W%.3gKV%.3g", weights, kv);
    return text;
}

const char *eval_method(const struct eval *e)
{
    if (e->unquantized)
        return "full precision";
    if (e->decode)
        return "packed runtime";
    if (e->rtn || e->state || e->artifact)
        return "simulation";
    return eval_act_bits(e) < 16 ? "simulation" : "full precision";
}

/* --- simulation --------------------------------------------------------------------- */

static double window_mean(const float *nll, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)nll[i];
    return sum / (double)n;
}

/* Converts shares of one batch of windows to shares of all. */
struct batch_progress {
    struct progress *p;
    double first, scale;
};

static void batch_share(void *ctx, double share)
{
    const struct batch_progress *b = ctx;
    progress_share(b->p, b->first + b->scale * share);
}

static enum err simulate_batches(const struct eval *e, struct model_run r, double *mean,
                                 float *nll, int64_t batch)
{
    struct batch_progress share = {.p = e->job->progress};
    r.progress = batch_share;
    r.progress_ctx = &share;
    for (int64_t w = 0; w < e->windows; w += batch) {
        const int64_t n = w + batch < e->windows ? batch : e->windows - w;
        share.first = (double)w / (double)e->windows;
        share.scale = (double)n / (double)e->windows;
        TRY(model_nll(&r, e->job->ids.id + w * e->ctx, n, e->ctx, nll));
        for (int64_t i = 0; i < n; i++)
            mean[w + i] = window_mean(nll + i * (e->ctx - 1) + e->first, eval_targets(e));
    }
    return OK;
}

static enum err simulate(struct eval *e, double *mean)
{
    struct eval_sim sim;
    float *nll = NULL;
    const int64_t fit = eval_sim_windows(e, e->ctx);
    const int64_t batch = fit < e->windows ? fit : e->windows;
    TRY(mem_alloc(&nll, (size_t)(batch * e->ctx), sizeof(*nll)));
    enum err err = eval_sim_open(&sim, e);
    if (!err)
        err = simulate_batches(e, sim.run, mean, nll, batch);
    eval_sim_close(&sim);
    mem_free(nll);
    return err;
}

/* --- the packed runtime ------------------------------------------------------------- */

static enum err decode_window(double *mean, struct runtime *rt, const struct eval *e,
                              const int32_t *ids, float *logits)
{
    const int64_t V = e->job->arch.vocab;
    double sum = 0;
    runtime_reset(rt);
    for (int64_t t = 0; t < e->ctx; t += e->chunk) {
        const int64_t n = t + e->chunk < e->ctx ? e->chunk : e->ctx - t;
        TRY(runtime_forward(rt, logits, true, ids + t, n));
        for (int64_t i = 0; i < n && t + i + 1 < e->ctx; i++)
            sum += t + i < e->first ? 0 : eval_nll(logits + i * V, V, ids[t + i + 1]);
    }
    *mean = sum / (double)eval_targets(e);
    return OK;
}

static enum err decode(struct eval *e, double *mean)
{
    enum err err = OK;
    struct runtime *rt = NULL;
    float *logits = NULL;
    const struct runtime_settings s = {.threads = (int)e->job->recipe.threads,
                                       .max_tokens = e->ctx,
                                       .kv_bits = e->kv_bits,
                                       .act = recipe_runtime_act(&e->job->recipe)};
    TRY(mem_alloc(&logits, (size_t)(e->chunk * e->job->arch.vocab), sizeof(*logits)));
    TRY_OUT(runtime_open(&rt, e->artifact, &s));
    for (int64_t w = 0; w < e->windows; w++) {
        TRY_OUT(decode_window(&mean[w], rt, e, e->job->ids.id + w * e->ctx, logits));
        progress_share(e->job->progress, (double)(w + 1) / (double)e->windows);
    }
out:
    runtime_close(&rt);
    mem_free(logits);
    return err;
}

/* ------------------------------------------------------------------------------------ */

/* Returns how many tokens of keys are quantized together in a layer. */
static int64_t tokens_of_block(const struct kv_spec *kv, int64_t layer)
{
    const struct kv_format f = kv_format(kv, layer, KV_K);
    if (kv->target)
        return kv_target_residual(kv->target);
    return kv->method == KV_CHANNEL && f.bits < 16 ? f.group_size : 1;
}

/* The first token behind the sinks is the first to be quantized, when its block is complete and
 * has left the window and the chunk of the query. */
int64_t eval_cache_from(const struct eval *e, int64_t chunk)
{
    struct weight_spec w;
    struct kv_spec kv;
    int64_t least = 0;
    formats(&w, &kv, e);
    for (int64_t i = 0; i < e->job->arch.n_layers; i++) {
        if (!kv_quantizes_layer(&kv, i))
            continue;
        const int64_t block = tokens_of_block(&kv, i);
        const int64_t last = (kv.sink / block + 1) * block - 1;
        int64_t query = last + (kv.past_only ? kv.window : 0);
        if (kv.past_only && chunk > 1 && query < (last / chunk + 1) * chunk)
            query = (last / chunk + 1) * chunk;
        least = !least || query + 1 < least ? query + 1 : least;
    }
    return least;
}

/* Warns once if a window is too short for its cache. */
static void warn_of_cache(struct eval *e)
{
    const enum kv_target target = eval_target(e);
    const char *who = e->who ? e->who : "";
    const bool by_length = e->ctx - 1 < eval_cache_from(e, 1);
    if (e->told || e->ctx - 1 >= eval_cache_from(e, e->chunk))
        return;
    e->told = true;
    if (by_length)
        log_warn("%s--ctx %" PRId64
                 ": the cache%s%s keeps so many tokens in full precision, so nothing of it "
                 "is quantized",
                 who, e->ctx, target ? " of " : "", target ? kv_target_name[target] : "");
    else
        log_warn("%s--chunk %" PRId64
                 ": the tokens of a chunk see each other in full precision, so nothing of "
                 "the cache is quantized in windows of --ctx %" PRId64,
                 who, e->chunk, e->ctx);
}

enum err eval_count_windows(struct eval *e)
{
    const int64_t all = batch_windows((int64_t)e->job->ids.n, e->ctx);
    FAIL_IF(all < 1, ERR_USAGE,
            "the text has %zu token%s, fewer than one window of --ctx %" PRId64
            "; give more "
            "text or a smaller --ctx",
            e->job->ids.n, plural((int64_t)e->job->ids.n), e->ctx);
    if (e->windows > all)
        log_warn("--windows %" PRId64 ": the text has %" PRId64, e->windows, all);
    if (e->windows == 0 || e->windows > all)
        e->windows = all;
    if (e->chunk > e->ctx)
        e->chunk = e->ctx;
    warn_of_cache(e);
    return OK;
}

enum err eval_ppl(struct eval_result *out, struct eval *e)
{
    double *mean = NULL;
    struct eval_result r = {.nll = 0};
    const double start = clock_s();
    TRY(mem_calloc(&mean, (size_t)e->windows, sizeof(*mean)));
    progress_phase(e->job->progress, "perplexity");
    const enum err err = e->decode ? decode(e, mean) : simulate(e, mean);
    progress_end(e->job->progress);
    if (!err) {
        eval_reduce(&r, mean, e->windows);
        r.tokens = e->windows * eval_targets(e);
        r.seconds = clock_s() - start;
        *out = r;
        if (e->window_nll)
            memcpy(e->window_nll, mean, (size_t)e->windows * sizeof(*mean));
    }
    mem_free(mean);
    TRY(err);
    FAIL_IF(
        !isfinite(r.nll), ERR_FORMAT,
        "%s: the mean loss is %g, so a weight of a block is not finite, which `wkvq convert` "
        "names, or activations are beyond the range of run.compute",
        e->job->model_dir, r.nll);
    FAIL_IF(
        !isfinite(r.ppl), ERR_NUMERIC,
        "%s: the mean loss is %.6g nats per token, whose perplexity is beyond the largest "
        "number, so the model predicts nothing; check its last norm and its head",
        e->job->model_dir, r.nll);
    return OK;
}

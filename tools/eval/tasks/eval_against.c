/* SPDX-License-Identifier: MIT */
#include "convert/format/artifact_names.h"
#include "data/json.h"
#include "kernels/base/plural.h"
#include "tools/eval/eval_compare.h"
#include "tools/eval/tasks/eval_tasks.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* --- the second model --------------------------------------------------------------- */

/* Opens the second model. It shares the first one's device and reads the same text with its
 * own tokenizer. */
static enum err open_second(struct eval *b, const struct eval *a)
{
    struct job *j = b->job;
    bool artifact;
    *j = (struct job){.options = a->job->options,
                      .model_dir = a->settings->against,
                      .dev = a->job->dev,
                      .settings = a->job->settings,
                      .progress = a->job->progress};
    recipe_init(&j->recipe); /* the first job said what its layers end */
    TRY(recipe_apply(&j->recipe, &a->settings->recipe));
    TRY(artifact_is(&artifact, j->model_dir));
    if (artifact) {
        TRY(artifact_open(&b->artifact, j->model_dir, ARTIFACT_CHECK | ARTIFACT_LOAD));
        j->arch = *artifact_arch(b->artifact);
        TRY(eval_check_inputs(b));
        b->decode = a->decode;
        b->kv_bits = a->kv_bits;
    } else {
        j->recipe.activation_bits = 16; /* a checkpoint is compared in full precision */
        TRY(job_open_model(j));
    }
    TRY(arch_check_length(&j->arch, a->ctx));
    TRY(job_read_text(j));
    FAIL_IF(j->ids.n != a->job->ids.n || j->ids_crc != a->job->ids_crc, ERR_MISMATCH,
            "%s tokenizes the text differently from %s, so their predictions cannot be "
            "compared",
            j->model_dir, a->job->model_dir);
    return OK;
}

static void close_second(struct eval *b)
{
    b->job->dev = NULL; /* device and text belong to the first job */
    b->job->progress = NULL;
    artifact_close(&b->artifact);
    job_close(b->job);
}

/* --- the result --------------------------------------------------------------------- */

static json_t *estimate_json(struct estimate x)
{
    return json_pack("{s:f, s:o}", "mean", x.mean, "stderr", json_finite(x.stderr_));
}

static json_t *side_json(const struct eval *e, struct estimate nll)
{
    double weight_bits, kv_bits;
    eval_bits(&weight_bits, &kv_bits, e);
    json_t *o =
        json_pack("{s:s, s:s, s:f, s:f, s:i, s:f, s:o, s:o}", "model", e->job->model_dir,
                  "method", eval_method(e), "weight_bits", weight_bits, "kv_bits", kv_bits,
                  "activation_bits", eval_act_bits(e), "nll", nll.mean, "nll_stderr",
                  json_finite(nll.stderr_), "ppl", json_finite(exp(nll.mean)));
    if (o && eval_target(e))
        json_object_set_new(o, "kv_target", json_string(kv_target_name[eval_target(e)]));
    return o;
}

/* Adds the identities of both sides; o may be NULL, which json_print() reports. */
static enum err set_identities(json_t *o, const struct eval *a, const struct eval *b)
{
    TRY(eval_set_identity(json_object_get(o, "model"), a));
    return eval_set_identity(json_object_get(o, "against"), b);
}

static enum err print_json(const struct eval *a, const struct eval *b,
                           const struct compare_result *r)
{
    char crc[16];
    snprintf(crc, sizeof(crc), "%08" PRIx32, a->job->ids_crc);
    json_t *o = json_pack(
        "{s:s, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:s, s:o, s:s, s:f}",
        "task", "ppl", "model", side_json(a, r->nll[0]), "against", side_json(b, r->nll[1]),
        "difference", estimate_json(r->difference), "kl", estimate_json(r->kl), "top1",
        estimate_json(r->top1), "tokens", (json_int_t)r->tokens, "windows",
        (json_int_t)r->windows, "ctx", (json_int_t)a->ctx, "chunk", (json_int_t)a->chunk,
        "text_tokens", (json_int_t)a->job->ids.n, "text_crc32", crc, "texts",
        eval_text_names(a->job), "score", a->settings->score, "seconds", r->seconds);
    enum err err = set_identities(o, a, b);
    if (!err)
        err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static void print_estimate(const char *name, struct estimate x, double unit, int digits,
                           const char *what)
{
    printf("%-11s %.*f", name, digits, unit * x.mean);
    if (isfinite(x.stderr_))
        printf(" +- %.*f", digits, unit * x.stderr_);
    printf(" %s\n", what);
}

static void print_side(const char *name, const struct eval *e, struct estimate nll)
{
    printf("%-11s %.4f (%.6f nats), %s by %s: %s\n", name, exp(nll.mean), nll.mean,
           eval_bits_text(e), eval_method(e), e->job->model_dir);
}

static void print_text(const struct eval *a, const struct eval *b,
                       const struct compare_result *r)
{
    print_side("perplexity", a, r->nll[0]);
    print_side("against", b, r->nll[1]);
    print_estimate("difference", r->difference, 1, 6, "nats per token");
    printf("%-11s %+.3f %% of perplexity\n", "", 100 * expm1(r->difference.mean));
    print_estimate("divergence", r->kl, 1, 6, "nats, KL(against || model)");
    print_estimate("agreement", r->top1, 100, 3, "% have the same most likely next token");
    printf("text        %" PRId64 " window%s of %" PRId64 ", %" PRId64
           " target%s%s; +- standard error over windows\n",
           r->windows, plural(r->windows), a->ctx, r->tokens, plural(r->tokens),
           a->first ? " in their second halves" : "");
    printf("time        %.1f s\n", r->seconds);
}

enum err eval_against(struct eval *a)
{
    struct job job = {0};
    struct eval b = {.job = &job, .settings = a->settings, .ctx = a->ctx};
    struct compare_result r;
    enum err err = open_second(&b, a);
    if (err)
        err = err_add(err, "--against: ");
    if (!err)
        err = eval_compare(&r, a, &b);
    if (!err && a->settings->json)
        err = print_json(a, &b, &r);
    else if (!err)
        print_text(a, &b, &r);
    close_second(&b);
    return err;
}

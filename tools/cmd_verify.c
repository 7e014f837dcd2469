/* SPDX-License-Identifier: MIT */
#include "convert/runtime/verify.h"
#include "kernels/base/log.h"
#include "tools/commands.h"
#include "tools/job.h"
#include "tools/state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Verification:"},
    {OPT_TEXT, .name = "against", .arg = "MODEL_DIR", .offset = offsetof(struct args, against),
     .help = "Checkpoint that the artifact was made from: every weight is compared with it, bit "
             "for bit (default: none, part 2 is skipped)"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Calibration that the scales came from (default: none, the artifact's own scales "
             "are taken for right)"},
    {OPT_INT, .name = "logit-tokens", .arg = "N", .offset = offsetof(struct args, logit_tokens),
     .value = "256", .lo = 1, .hi = 1 << 20,
     .help = "Tokens of part 3: decoded one by one, logits and cache compared"},
    {OPT_INT, 'w', "windows", "N", offsetof(struct args, windows), "1", 1, 1 << 20,
     .help = "Windows of part 4: perplexity by decode beside the simulation's"},
    {OPT_INT, .name = "ctx", .arg = "N", .offset = offsetof(struct args, ctx), .value = "512",
     .lo = 2, .hi = 1 << 24, .help = "Tokens of such a window"},
    {OPT_REAL, .name = "max-kl", .arg = "NATS", .offset = offsetof(struct args, max_kl),
     .value = "0.001", .lo = 1e-12, .hi = 100,
     .help = "Largest mean divergence of the runtime's logits from the simulation's"},
    {OPT_REAL, .name = "max-gap", .arg = "SHARE", .offset = offsetof(struct args, max_gap),
     .value = "0.005", .lo = 1e-12, .hi = 100,
     .help = "Largest relative gap of the two perplexities, beyond three standard errors"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

static const char *outcome_text(enum verify_outcome o)
{
    return o == VERIFY_PASS ? "pass" : o == VERIFY_FAIL ? "FAIL" : "skipped";
}

/* --- the report --------------------------------------------------------------------- */

/* null for a figure of a part that was skipped; JSON has no NaN either. */
static json_t *number(enum verify_outcome part, double x)
{
    return part != VERIFY_SKIP && isfinite(x) ? json_real(x) : json_null();
}

static json_t *parts_json(const struct verify_report *r)
{
    return json_pack("{s:s, s:s, s:s, s:s}", "structure", outcome_text(r->structure),
                     "weights", outcome_text(r->weights), "logits", outcome_text(r->logits),
                     "perplexity", outcome_text(r->perplexity));
}

static json_t *cosines_json(const struct verify_report *r)
{
    return json_pack(
        "{s:o, s:I, s:I, s:o, s:I, s:I, s:o, s:o}", "worst_k_cosine",
        number(r->logits, r->worst_k_cosine), "worst_k_layer", (json_int_t)r->worst_k_layer,
        "worst_k_head", (json_int_t)r->worst_k_head, "worst_v_cosine",
        number(r->logits, r->worst_v_cosine), "worst_v_layer", (json_int_t)r->worst_v_layer,
        "worst_v_head", (json_int_t)r->worst_v_head, "agree_k_cosine",
        number(r->logits, r->agree_k_cosine), "agree_v_cosine",
        number(r->logits, r->agree_v_cosine));
}

static json_t *report_json(const char *artifact, const struct verify_report *r)
{
    json_t *o = json_pack(
        "{s:s, s:b, s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:I, s:o}",
        "artifact", artifact, "passed", r->passed, "parts", parts_json(r),
        "first_difference", r->first_difference, "tensors", (json_int_t)r->n_tensors,
        "linears", (json_int_t)r->n_linears, "weights_compared",
        (json_int_t)r->weights_compared, "weights_differing",
        (json_int_t)r->weights_differing, "logit_tokens", (json_int_t)r->logit_tokens,
        "top1_agree", (json_int_t)r->top1_agree, "mean_kl", number(r->logits, r->mean_kl),
        "worst_kl", number(r->logits, r->worst_kl), "worst_token",
        (json_int_t)r->worst_token, "max_logit_diff", number(r->logits, r->max_logit_diff));
    json_t *more = json_pack(
        "{s:o, s:I, s:o, s:I, s:o, s:o, s:o, s:o, s:I, s:f, s:f, s:I}", "worst_block_error",
        number(r->logits, r->worst_block_error), "worst_block", (json_int_t)r->worst_block,
        "free_kl", number(r->logits, r->free_kl), "free_top1", (json_int_t)r->free_top1,
        "ppl_gap_stderr", number(r->perplexity, r->ppl_gap_stderr), "ppl_simulated",
        number(r->perplexity, r->ppl_simulated), "ppl_runtime",
        number(r->perplexity, r->ppl_runtime), "ppl_gap", number(r->perplexity, r->ppl_gap),
        "ppl_tokens", (json_int_t)r->ppl_tokens, "weight_bits", r->weight_bits, "kv_bits",
        r->kv_bits, "bytes", (json_int_t)r->total_bytes);
    json_t *cosines = cosines_json(r);
    if (o && more && cosines) {
        json_object_update(o, more);
        json_object_update(o, cosines);
    }
    json_decref(more);
    json_decref(cosines);
    return o;
}

static enum err print_json(const char *artifact, const struct verify_report *r)
{
    json_t *o = report_json(artifact, r);
    FAIL_IF(!o, ERR_MEMORY, "out of memory for the report");
    json_dumpf(o, stdout, JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(o);
    return OK;
}

static void print_weights(const struct verify_report *r, const struct args *a)
{
    if (r->weights == VERIFY_SKIP)
        printf("weights     skipped%s\n",
               a->against ? "" : ": --against names the checkpoint");
    else
        printf("weights     %s: %" PRId64 " of %" PRId64 " values differ from the %s\n",
               outcome_text(r->weights), r->weights_differing, r->weights_compared,
               a->state ? "calibration's" : "source's under the scales");
}

static void print_logits(const struct verify_report *r, const struct args *a)
{
    if (r->logits == VERIFY_SKIP) {
        printf("logits      skipped%s\n", a->data.n ? "" : ": --data names a text");
        return;
    }
    printf("logits      %s: %" PRId64
           " tokens one by one, every block from the simulation's states\n",
           outcome_text(r->logits), r->logit_tokens);
    printf("            KL %.3g nats in the mean, %.3g at worst (token %" PRId64
           "), first choice same for %" PRId64 "\n",
           r->mean_kl, r->worst_kl, r->worst_token, r->top1_agree);
    printf(
        "            largest difference %.2g of the logits' range; a block's %.2g of what "
        "it adds (block %" PRId64 ")\n",
        r->max_logit_diff, r->worst_block_error, r->worst_block);
    printf("            left alone: KL %.3g, first choice same for %" PRId64
           " (codes flipped by rounding add up)\n",
           r->free_kl, r->free_top1);
    printf(
        "cache       runtime and simulation: cosine %.6f (K), %.6f (V) in the worst head\n",
        r->agree_k_cosine, r->agree_v_cosine);
    printf("            quantized and full precision: %.5f (K, layer %" PRId64
           " head %" PRId64 "), %.5f (V, layer %" PRId64 " head %" PRId64 ")\n",
           r->worst_k_cosine, r->worst_k_layer, r->worst_k_head, r->worst_v_cosine,
           r->worst_v_layer, r->worst_v_head);
}

static void print_perplexity(const struct verify_report *r, const struct args *a)
{
    if (r->perplexity == VERIFY_SKIP) {
        printf("perplexity  skipped%s\n", a->data.n ? "" : ": --data names a text");
        return;
    }
    printf("perplexity  %s: %.4f by decode of the packed bytes, %.4f simulated, gap %.2g%% "
           "+- %.2g%%, %" PRId64 " tokens\n",
           outcome_text(r->perplexity), r->ppl_runtime, r->ppl_simulated, 100 * r->ppl_gap,
           100 * r->ppl_gap_stderr, r->ppl_tokens);
}

static void print_text(const struct verify_report *r, const struct args *a)
{
    printf("structure   %s: files, crc, shapes, finite values", outcome_text(r->structure));
    if (r->n_linears)
        printf("; %" PRId64 " tensors, %" PRId64 " projections", r->n_tensors,
               r->n_linears);
    printf("\n");
    print_weights(r, a);
    print_logits(r, a);
    print_perplexity(r, a);
    if (r->total_bytes)
        printf("size        %.2f MB, %.3f bits a weight, %.3f bits a cache element\n",
               1e-6 * (double)r->total_bytes, r->weight_bits, r->kv_bits);
    if (r->first_difference[0])
        printf("first       %s\n", r->first_difference);
    printf("verdict     %s\n", r->passed ? "passed" : "FAILED");
}

/* ------------------------------------------------------------------------------------ */

/* Text by the artifact's own tokenizer. */
static enum err read_text(struct job *j)
{
    struct artifact *art = NULL;
    if (!j->recipe.data.n)
        return OK;
    TRY(artifact_open(&art, j->model_dir, false));
    j->arch = *artifact_arch(art);
    artifact_close(&art);
    return job_read_text(j);
}

static enum err open_state(struct state **s, const struct args *a)
{
    struct artifact *art = NULL;
    if (!a->state)
        return OK;
    TRY(artifact_open(&art, a->pos.item[0], false));
    const enum err err = state_open_read(s, a->state, artifact_arch(art));
    artifact_close(&art);
    TRY(err);
    FAIL_IF(state_done(*s) < state_blocks(*s), ERR_USAGE,
            "%s: %" PRId64 " of %" PRId64
            " blocks are calibrated; let `wkvq calibrate` finish",
            a->state, state_done(*s), state_blocks(*s));
    return OK;
}

static enum err verify(struct verify_report *r, const struct job *j, struct state *s)
{
    const struct args *a = j->args;
    const struct verify_settings settings = {
        .against = a->against,
        .state = s ? state_source(s) : NULL,
        .ids = j->ids.n ? j->ids.id : NULL,
        .n_ids = (int64_t)j->ids.n,
        .logit_tokens = a->logit_tokens,
        .windows = a->windows,
        .ctx = a->ctx,
        .max_kl = a->max_kl,
        .max_ppl_gap = a->max_gap,
        .act = DT_F32,
        .threads = (int)j->recipe.threads,
    };
    log_verbose("verifying %s", j->model_dir);
    return verify_run(r, j->model_dir, &settings);
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    struct verify_report r;
    TRY_OUT(job_open(&j, a, a->pos.item[0]));
    TRY_OUT(read_text(&j));
    TRY_OUT(open_state(&s, a));
    TRY_OUT(verify(&r, &j, s));
    if (a->json)
        TRY_OUT(print_json(a->pos.item[0], &r));
    else
        print_text(&r, a);
    if (!r.passed)
        err = err_set(ERR_VERIFY, __FILE__, __LINE__, "%s: verification failed: %s",
                      a->pos.item[0], r.first_difference);
out:
    state_close(&s);
    job_close(&j);
    return err;
}

const struct command cmd_verify = {
    .name = "verify",
    .operands = "ARTIFACT",
    .summary = "Prove that an artifact does what calibration promised",
    .details =
        "Four parts: 1. files, checksums, finite values; 2. every packed weight against "
        "the "
        "checkpoint, bit for bit (--against); 3. the packed runtime's logits and cache, "
        "token "
        "by token, against the simulation (--data); 4. its perplexity beside the "
        "simulation's. Exit status 3 when a part fails.\n\n"
        "  wkvq verify SmolLM2-135M-w4kv4 --against SmolLM2-135M --data wiki.test.raw\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .run = run,
};

/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/verify_report.h"

#include "data/json.h"
#include "kernels/base/plural.h"

#include <inttypes.h>
#include <stdio.h>

static const char *outcome_text(enum verify_outcome o)
{
    return o == VERIFY_PASS ? "pass" : o == VERIFY_FAIL ? "FAIL" : "skipped";
}

/* Returns null for a figure of a skipped part. */
static json_t *number(enum verify_outcome part, double x)
{
    return part == VERIFY_SKIP ? json_null() : json_finite(x);
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
        "{s:I, s:I, s:o, s:I, s:I, s:o, s:I, s:I, s:o, s:o}", "cache_tokens",
        (json_int_t)r->cache_tokens, "low_heads", (json_int_t)r->low_heads,
        "worst_k_cosine", number(r->logits, r->worst_k_cosine), "worst_k_layer",
        (json_int_t)r->worst_k_layer, "worst_k_head", (json_int_t)r->worst_k_head,
        "worst_v_cosine", number(r->logits, r->worst_v_cosine), "worst_v_layer",
        (json_int_t)r->worst_v_layer, "worst_v_head", (json_int_t)r->worst_v_head,
        "agree_k_cosine", number(r->logits, r->agree_k_cosine), "agree_v_cosine",
        number(r->logits, r->agree_v_cosine));
}

json_t *verify_report_json(const char *artifact, const struct verify_report *r)
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
        "{s:o, s:I, s:o, s:I, s:o, s:o, s:o, s:o, s:I, s:f, s:f, s:I, s:I}",
        "worst_block_error", number(r->logits, r->worst_block_error), "worst_block",
        (json_int_t)r->worst_block, "free_kl", number(r->logits, r->free_kl), "free_top1",
        (json_int_t)r->free_top1, "ppl_gap_stderr",
        number(r->perplexity, r->ppl_gap_stderr), "ppl_simulated",
        number(r->perplexity, r->ppl_simulated), "ppl_runtime",
        number(r->perplexity, r->ppl_runtime), "ppl_gap", number(r->perplexity, r->ppl_gap),
        "ppl_tokens", (json_int_t)r->ppl_tokens, "weight_bits", r->weight_bits, "kv_bits",
        r->kv_bits, "bytes", (json_int_t)r->total_bytes, "weights_unchecked",
        (json_int_t)r->weights_unchecked);
    if (more && r->target)
        json_object_set_new(more, "kv_target", json_string(kv_target_name[r->target]));
    if (more && r->inputs_left)
        json_object_set_new(more, "activations_rounded", json_false());
    json_t *cosines = cosines_json(r);
    if (o && more && cosines) {
        json_object_update(o, more);
        json_object_update(o, cosines);
    }
    json_decref(more);
    json_decref(cosines);
    return o;
}

static void print_weights(const struct verify_report *r, bool against, bool state)
{
    if (r->weights == VERIFY_SKIP && r->weights_compared)
        printf("weights     skipped: --against names the checkpoint; %" PRId64
               " values without it (scales, zeros, cache) are the calibration's\n",
               r->weights_compared);
    else if (r->weights == VERIFY_SKIP)
        printf("weights     skipped%s\n",
               against ? "" : ": --against names the checkpoint");
    else
        printf("weights     %s: %" PRId64 " of %" PRId64 " values differ from the %s\n",
               outcome_text(r->weights), r->weights_differing, r->weights_compared,
               state ? "calibration's" : "source's under the scales");
    if (r->weights_unchecked)
        printf("            %" PRId64
               " values not compared: calibration chose them, and only its state has "
               "them; name it with --state\n",
               r->weights_unchecked);
}

static void print_cache(const struct verify_report *r)
{
    if (!r->cache_tokens) {
        printf(
            "cache       not checked: none of these tokens is packed, as kv.sink and kv.window "
            "keep them in full precision; a longer --logit-tokens reaches packed ones\n");
        return;
    }
    printf(
        "cache       runtime and simulation: cosine %.6f (K), %.6f (V) in the worst head, over "
        "%" PRId64 " token%s\n",
        r->agree_k_cosine, r->agree_v_cosine, r->cache_tokens, plural(r->cache_tokens));
    if (r->target)
        printf(
            "            both ran without quantizing it: this program simulates the cache of "
            "%s, but has none\n",
            kv_target_name[r->target]);
    printf("            quantized and full precision: %.5f (K, layer %" PRId64
           " head %" PRId64 "), %.5f (V, layer %" PRId64 " head %" PRId64 ")\n",
           r->worst_k_cosine, r->worst_k_layer, r->worst_k_head, r->worst_v_cosine,
           r->worst_v_layer, r->worst_v_head);
}

static void print_logits(const struct verify_report *r, bool data)
{
    if (r->logits == VERIFY_SKIP) {
        printf("logits      skipped%s\n", data ? "" : ": --data names a text");
        return;
    }
    printf("logits      %s: %" PRId64 " token%s one by one, every block starting from the "
           "simulation's states\n",
           outcome_text(r->logits), r->logit_tokens, plural(r->logit_tokens));
    printf("            KL %.3g nats on average, %.3g at worst (token %" PRId64 "), same "
           "top token for %" PRId64 "\n",
           r->mean_kl, r->worst_kl, r->worst_token, r->top1_agree);
    printf(
        "            largest difference %.2g of the logits' range; %.2g of a block's own "
        "contribution (block %" PRId64 ")\n",
        r->max_logit_diff, r->worst_block_error, r->worst_block);
    printf("            free-running: KL %.3g, same top token for %" PRId64 " (codes "
           "flipped by rounding add up)\n",
           r->free_kl, r->free_top1);
    print_cache(r);
    if (r->inputs_left)
        printf(
            "activations both ran without rounding them: codes flipped in one projection "
            "would hide errors of the next\n");
}

static void print_perplexity(const struct verify_report *r, bool data)
{
    if (r->perplexity == VERIFY_SKIP) {
        printf("perplexity  skipped%s\n", data ? "" : ": --data names a text");
        return;
    }
    printf("perplexity  %s: %.4f by decode of the packed bytes, %.4f simulated, gap %.2g%% "
           "+- %.2g%%, %" PRId64 " token%s\n",
           outcome_text(r->perplexity), r->ppl_runtime, r->ppl_simulated, 100 * r->ppl_gap,
           100 * r->ppl_gap_stderr, r->ppl_tokens, plural(r->ppl_tokens));
}

void verify_report_print(const struct verify_report *r, bool against, bool state, bool data)
{
    printf("structure   %s: files, crc, shapes, finite values", outcome_text(r->structure));
    if (r->n_linears)
        printf("; %" PRId64 " tensors, %" PRId64 " projections", r->n_tensors,
               r->n_linears);
    printf("\n");
    print_weights(r, against, state);
    print_logits(r, data);
    print_perplexity(r, data);
    if (r->total_bytes)
        printf("size        %.2f MB, %.3f bits per weight, %.3f bits per cache element\n",
               1e-6 * (double)r->total_bytes, r->weight_bits, r->kv_bits);
    if (r->first_difference[0])
        printf("first       %s\n", r->first_difference);
    printf("verdict     %s\n", r->passed ? "passed" : "FAILED");
}

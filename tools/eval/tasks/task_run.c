/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/task_run.h"

#include "data/json.h"
#include "kernels/base/bytes.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/cli/opt.h"
#include "tools/cli/stop.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the run ------------------------------------------------------------------------ */

static enum err model_crc(uint32_t *crc, const struct eval *e)
{
    if (e->job->model)
        return hf_identity(crc, e->job->model, true);
    const char *manifest = artifact_manifest(e->artifact);
    *crc = bytes_crc32(0, manifest, strlen(manifest));
    return OK;
}

/* Adds the keys by which a checkpoint is rounded, as one number. A head of 16 bits has no keys. */
static enum err add_rounding(uint32_t *crc, const struct recipe *r)
{
    static const char *const part[] = {"weights", "kv", "activations", "head"};
    json_t *all;
    enum err err = OK;
    TRY(recipe_json(&all, r, true));
    for (size_t i = 0; i < ARRAY_LEN(part) && !err; i++) {
        const json_t *keys = json_object_get(all, part[i]);
        if (!keys)
            continue;
        char *text = json_text(keys, 0);
        if (!text)
            err = err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory for the run");
        else
            *crc = bytes_crc32(*crc, text, strlen(text));
        free(text);
    }
    json_decref(all);
    return err;
}

/* Writes what quantizes a checkpoint, as in " rounded by 5e6f7a8b"; "" for others. */
static enum err quantized_by(char *out, size_t n, const struct eval *e)
{
    char mark[STATE_MARK];
    uint32_t crc = 0;
    *out = '\0';
    if (e->state) {
        state_mark(mark, e->state);
        snprintf(out, n, " of state %s", mark);
    } else if (e->rtn) {
        TRY(add_rounding(&crc, &e->job->recipe));
        snprintf(out, n, " by settings %08" PRIx32, crc);
    }
    return OK;
}

static void chunk_text(char *out, size_t n, const struct eval *e)
{
    if (e->chunk)
        snprintf(out, n, "chunk %" PRId64, e->chunk);
    else
        snprintf(out, n, "prefill, then chunk 1");
}

/* Writes ", cache of NAME", as all engines' caches of 4 bits are W4KV4; "" for one of wkvq. */
static void cache_text(char *out, size_t n, const struct eval *e)
{
    *out = '\0';
    if (eval_target(e))
        snprintf(out, n, ", cache of %s", kv_target_name[eval_target(e)]);
}

enum err task_run_text(char **out, const struct eval *e, uint32_t ends)
{
    char text[512], by[64], chunk[48], cache[48], limit[48] = "all questions", end[32] = "";
    uint32_t crc;
    TRY(model_crc(&crc, e));
    TRY(quantized_by(by, sizeof(by), e));
    chunk_text(chunk, sizeof(chunk), e);
    cache_text(cache, sizeof(cache), e);
    if (e->settings->limit)
        snprintf(limit, sizeof(limit), "limit %" PRId64, e->settings->limit);
    if (ends)
        snprintf(end, sizeof(end), ", ends %08" PRIx32, ends);
    snprintf(text, sizeof(text),
             "model %08" PRIx32 ", %s by %s%s in %s%s, ctx %" PRId64 ", %s, bos %s, %s%s",
             crc, eval_bits_text(e), eval_method(e), by, eval_compute(e), cache, e->ctx,
             chunk, opt_choice_name(CHOICES_BOS, e->job->recipe.bos), limit, end);
    return mem_strdup(out, text);
}

enum err task_has_bos(bool *yes, const struct eval *e)
{
    struct token_ids ids = {0};
    const struct tokenizer *t = e->job->tokenizer;
    TRY(tokenizer_encode(&ids, t, "a", 1, (enum bos_rule)e->job->recipe.bos));
    *yes = ids.n && ids.id[0] == tokenizer_bos(t);
    token_ids_free(&ids);
    return OK;
}

/* --- results ------------------------------------------------------------------------ */

/* The packed runtime reads what it scores or answers token by token, and in chunks what stands
 * before. The simulation reads all in chunks. */
static void protocol_text(char *out, size_t n, const struct eval *e)
{
    if (e->decode && e->chunk > 1)
        snprintf(out, n, "context in chunks of %" PRId64 ", then chunk 1", e->chunk);
    else
        chunk_text(out, n, e);
}

void task_print_model(const struct eval *e, const char *name, bool bos)
{
    char chunk[80], cache[48];
    protocol_text(chunk, sizeof(chunk), e);
    cache_text(cache, sizeof(cache), e);
    printf("%s%s by %s%s, %s, %s\n", name, eval_bits_text(e), eval_method(e), cache, chunk,
           bos ? "BOS in front" : "no BOS");
}

enum err task_add_model(json_t *o, const struct eval *e, bool bos)
{
    double weight_bits, kv_bits;
    eval_bits(&weight_bits, &kv_bits, e);
    json_t *model =
        json_pack("{s:s, s:s, s:f, s:f, s:i, s:I, s:I, s:s, s:b}", "model",
                  e->job->model_dir, "method", eval_method(e), "weight_bits", weight_bits,
                  "kv_bits", kv_bits, "activation_bits", eval_act_bits(e), "ctx",
                  (json_int_t)e->ctx, "chunk", (json_int_t)e->chunk, "bos",
                  opt_choice_name(CHOICES_BOS, e->job->recipe.bos), "bos_in_text", bos);
    if (model && eval_target(e))
        json_object_set_new(model, "kv_target",
                            json_string(kv_target_name[eval_target(e)]));
    const int failed = !model || json_object_update_missing(o, model);
    json_decref(model);
    FAIL_IF(failed, ERR_MEMORY, "out of memory for the result");
    return OK;
}

enum err task_refuse_twins(const char *option, const char *path, const char *name,
                           const char *other)
{
    FAIL_IF(
        !strcmp(name, other), ERR_USAGE,
        "--%s %s: an earlier file holds questions of %s as well; give one file for each "
        "set",
        option, path, name);
    return OK;
}

void task_warn_cache(const struct eval *e, const char *path, int64_t few, int64_t n,
                     int64_t from)
{
    if (few)
        log_warn("%s%s: of %" PRId64 " question%s, %" PRId64 " %s shorter than %" PRId64
                 " tokens, so nothing of their cache is quantized",
                 e->who ? e->who : "", path, n, plural(n), few, few == 1 ? "is" : "are",
                 from + 1);
}

void task_progress_add(struct task_progress *t, double tokens)
{
    t->done += tokens;
    progress_share(t->p, t->total > 0 ? t->done / t->total : 1);
}

enum err task_check_stop(void)
{
    FAIL_IF(stop_asked(NULL), ERR_STOPPED, "interrupted");
    return OK;
}

void task_average_add(struct estimate *mean, struct estimate set, int64_t n)
{
    mean->mean += set.mean / (double)n;
    mean->stderr_ = hypot(mean->stderr_, set.stderr_ / (double)n);
}

/* SPDX-License-Identifier: MIT */
#include "convert/artifact/artifact_plain.h"
#include "convert/format/artifact_names.h"
#include "data/json.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/cli/choices.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/eval/eval.h"
#include "tools/eval/tasks/eval_tasks.h"
#include "tools/pipeline/stages.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Evaluation:"},
    {OPT_TEXT, .name = "task", .arg = "TASK", .offset = offsetof(struct args, task),
     .value = "ppl", .choices = "ppl|zeroshot|longbench",
     .help = "Measurement: ppl, perplexity; zeroshot, multiple choice on --data files of "
             "PIQA, ARC, HellaSwag, WinoGrande; longbench, answers of the packed runtime "
             "on --data files of LongBench (a checkpoint answers in full precision)"},
    {OPT_INT, .name = "limit", .arg = "N", .offset = offsetof(struct args, limit),
     .value = "0", .lo = 0, .hi = 1 << 30,
     .help = "Use N questions of each file, taken evenly from the whole file; 0 = all"},
    {OPT_LIST, .name = "labels", .arg = "FILE", .offset = offsetof(struct args, labels),
     .help = "File of right answers, one number per line, for a --data file without them "
             "(PIQA's dev.jsonl)"},
    {OPT_TEXT, .name = "against", .arg = "MODEL", .offset = offsetof(struct args, against),
     .help = "Compare with this checkpoint or artifact, window by window (ppl): "
             "difference, KL divergence, agreement; --simulate and --state apply to the "
             "first model only"},
    {OPT_TEXT, .name = "prompts", .arg = "FILE", .offset = offsetof(struct args, prompts),
     .help = "LongBench's dataset2prompt.json"},
    {OPT_TEXT, .name = "max-gen", .arg = "FILE", .offset = offsetof(struct args, max_gen),
     .help = "LongBench's dataset2maxlen.json"},
    {OPT_LIST, .name = "predictions", .arg = "FILE",
     .offset = offsetof(struct args, predictions),
     .help = "Score the answers in FILE instead of a model's: JSON lines with pred and "
             "answers, as LongBench's eval.py reads them; repeatable"},
    {OPT_TEXT, 'o', "output", "FILE", offsetof(struct args, out),
     .help = "Write one line of JSON per question as soon as it is answered; the same "
             "command continues a file that a killed run left. longbench: a directory "
             "(DIR/) gets one file per set, as eval.py reads them"},
    {OPT_INT, 'w', "windows", "N", offsetof(struct args, windows), "0", 0, 1 << 30,
     .help = "Use the first N windows of the text; 0 = all"},
    {OPT_INT, .name = "ctx", .arg = "N", .offset = offsetof(struct args, ctx), .value = "2048",
     .lo = 2, .hi = 1 << 24,
     .help = "Tokens per window; windows do not overlap. Longer inputs lose their beginning "
             "(zeroshot) or their middle (longbench)"},
    {OPT_TEXT, .name = "score", .arg = "WHICH", .offset = offsetof(struct args, score),
     .value = "all", .choices = "all|second-half",
     .help = "second-half: score a window's predictions from token CTX/2 on, as "
             "llama-perplexity does (ppl)"},
    {OPT_INT, .name = "chunk", .arg = "N", .offset = offsetof(struct args, chunk), .value = "0",
     .lo = 0, .hi = 1 << 24,
     .help = "Tokens processed at a time; the cache of all earlier tokens is quantized: 1 "
             "is decode, CTX is one prefill. 0: 1 for perplexity and simulation; for "
             "tasks on the packed runtime the whole context at once, then 1. These read the "
             "context in chunks of N, then token by token"},
    {OPT_INT, .name = "kv-bits", .arg = "BITS", .offset = offsetof(struct args, kv_bits),
     .value = "0", .lo = 0, .hi = 16,
     .help = "16 leaves the cache in full precision; 0 follows the artifact or the "
             "configuration"},
    {OPT_FLAG, .name = "decode", .offset = offsetof(struct args, decode),
     .help = "Run the artifact's packed runtime, chunk by chunk, instead of the simulation"},
    {OPT_TEXT, .name = "simulate", .arg = "HOW", .offset = offsetof(struct args, simulate),
     .value = "none", .choices = "none|rtn",
     .help = "rtn: round a checkpoint's weights and cache to nearest as weights.* and "
             "kv.* say, without writing an artifact. Without it, such keys are refused"},
    {OPT_TEXT, .name = "state", .arg = "STATE", .offset = offsetof(struct args, state),
     .help = "Evaluate a checkpoint under this calibration's scales (default: none)"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

/* Refuses options that only a task has. */
static enum err check_ppl(const struct args *a)
{
    FAIL_IF(a->limit || a->out, ERR_USAGE,
            "--%s is for --task zeroshot and longbench; use --windows to limit a text",
            a->limit ? "limit" : "output");
    FAIL_IF(strcmp(a->score, "all") && a->ctx < 3, ERR_USAGE,
            "--score second-half: a window of %" PRId64 " tokens has none; want 3", a->ctx);
    return OK;
}

/* Refuses options that only perplexity has. */
static enum err check_questions(const struct args *a)
{
    FAIL_IF(strcmp(a->score, "all"), ERR_USAGE, "--score is for --task ppl");
    FAIL_IF(a->against, ERR_USAGE,
            "--against is for --task ppl; -o stores each question's result");
    FAIL_IF(a->windows, ERR_USAGE,
            "--windows is for --task ppl; use --limit to limit questions");
    FAIL_IF(a->join || a->text_field, ERR_USAGE,
            "--%s is for --task ppl; questions are JSON lines with fields of their own",
            a->join ? "join" : "text-field");
    return OK;
}

/* Refuses options that belong to another task. */
static enum err check_task(const struct args *a)
{
    const bool ppl = !strcmp(a->task, "ppl"), longbench = !strcmp(a->task, "longbench");
    TRY(ppl ? check_ppl(a) : check_questions(a));
    FAIL_IF((ppl || longbench) && a->labels.n, ERR_USAGE,
            "--labels is for --task zeroshot");
    FAIL_IF(!longbench && (a->prompts || a->max_gen), ERR_USAGE,
            "--%s is for --task longbench", a->prompts ? "prompts" : "max-gen");
    FAIL_IF(!ppl && !a->data.n, ERR_USAGE,
            longbench
                ? "no questions: give LongBench's files, as in --data qasper.jsonl "
                  "--data lcc.jsonl"
                : "no questions: give the data sets' files, as in --data dev.jsonl "
                  "--labels dev-labels.lst (PIQA) or --data ARC-Challenge-Test.jsonl");
    return OK;
}

static enum err check_options(const struct args *a, bool is_artifact)
{
    FAIL_IF(a->kv_bits && a->kv_bits != 16, ERR_USAGE,
            "--kv-bits %" PRId64 ": want 16, or 0 to follow the artifact; other widths are "
            "set by kv.bits of the configuration",
            a->kv_bits);
    FAIL_IF(a->decode && !is_artifact, ERR_USAGE,
            "--decode: %s is a checkpoint, but the packed runtime needs an artifact; make "
            "one with `wkvq convert`",
            a->pos.item[0]);
    const bool rtn = !strcmp(a->simulate, "rtn");
    FAIL_IF(!strcmp(a->task, "longbench") && (rtn || a->state), ERR_USAGE,
            "--%s is a simulation, but answers need the packed runtime; make an artifact "
            "with `wkvq convert`, or leave it out for full precision",
            rtn ? "simulate" : "state");
    FAIL_IF(is_artifact && (rtn || a->state), ERR_USAGE,
            "--%s: %s is an artifact, which is quantized already; name its checkpoint",
            rtn ? "simulate" : "state", a->pos.item[0]);
    FAIL_IF(rtn && a->state, ERR_USAGE, "--simulate and --state exclude each other");
    return OK;
}

/* Refuses settings that the packed runtime does not follow. In a comparison with a
 * checkpoint, the device runs the checkpoint. */
static enum err check_runtime(const struct job *j, const struct args *a)
{
    bool both = true;
    TRY(recipe_check_packed(&j->recipe));
    FAIL_IF(j->recipe.target, ERR_SUPPORT,
            a->decode
                ? "kv.target is %s, whose cache is simulated: leave out --decode"
                : "kv.target is %s, whose cache is simulated, but LongBench's answers "
                  "need the packed runtime; leave the key out",
            kv_target_name[j->recipe.target]);
    if (a->against)
        TRY(artifact_is(&both, a->against));
    return both ? recipe_check_cpu(&j->recipe, a->decode ? "--decode" : "--task longbench")
                : OK;
}

/* A state of given weights belongs to a checkpoint that another tool quantized. */
static enum err expect_given(struct job *j, const char *state_dir)
{
    struct state *s = NULL;
    TRY(state_open_read(&s, state_dir, NULL));
    if (state_recipe(s)->weight_method == WEIGHT_GIVEN) {
        j->options.weights_from = j->model_dir;
        j->options.source = state_dir;
    }
    state_close(&s);
    return OK;
}

/* Refuses keys of the quantization that this evaluation would ignore. */
static enum err check_keys(const struct eval *e, const struct args *a)
{
    const struct recipe_input in = command_recipe_input(a);
    const bool simulated = !e->decode;
    const struct recipe_fixed state = {
        .recipe = e->state ? state_recipe(e->state) : NULL,
        .name = a->state,
        .takes_target = true,
        .advice = "leave the key out, or give --simulate rtn instead of --state"};
    const struct recipe_fixed plain = {
        .name = a->pos.item[0],
        .rounds_inputs = simulated,
        .takes_target = simulated && a->against, /* of the second model */
        .advice = simulated
                      ? "add --simulate rtn to round it by this key, or leave the key out"
                      : "make an artifact with `wkvq convert`, or leave the key out"};
    if (e->rtn)
        return OK;
    if (e->artifact && !e->unquantized)
        return command_check_artifact(a, e->artifact, simulated);
    return recipe_check_fixed(e->state ? &state : &plain, &in);
}

static enum err open_model(struct eval *e, const struct args *a)
{
    struct job *j = e->job;
    bool is_artifact;
    TRY(artifact_is(&is_artifact, j->model_dir));
    TRY(check_options(a, is_artifact));
    e->rtn = !strcmp(a->simulate, "rtn");
    if (e->decode)
        TRY(check_runtime(j, a));
    if (is_artifact) {
        /* Refuses damaged weights, whose result would look valid. */
        TRY(artifact_open(&e->artifact, j->model_dir, ARTIFACT_CHECK | ARTIFACT_LOAD));
        j->arch = *artifact_arch(e->artifact);
        TRY(eval_check_inputs(e));
    } else {
        if (a->state)
            TRY(expect_given(j, a->state));
        TRY(job_open_model(j));
        e->unquantized = e->decode;
        if (e->unquantized)
            TRY(artifact_plain(&e->artifact, j->model));
    }
    if (a->state) {
        TRY(state_open_read(&e->state, a->state, &j->arch));
        TRY(stage_check_checkpoint(e->state, j));
    }
    TRY(check_keys(e, a));
    const struct kv_spec cache = kv_target_spec((enum kv_target)j->recipe.target);
    if (j->recipe.target)
        TRY(kv_target_check(&cache, j->arch.head_dim));
    const enum err err = arch_check_length(&j->arch, a->ctx);
    return err ? err_add(err, "--ctx: ") : OK;
}

static enum err print_json(const struct eval *e, const struct eval_result *r)
{
    const struct job *j = e->job;
    char crc[16], bos_rule[16], join[16];
    double weight_bits, kv_bits;
    const bool bos = j->ids.n && j->ids.id[0] == tokenizer_bos(j->tokenizer);
    eval_bits(&weight_bits, &kv_bits, e);
    snprintf(crc, sizeof(crc), "%08" PRIx32, j->ids_crc);
    snprintf(bos_rule, sizeof(bos_rule), "%s", opt_choice_name(CHOICES_BOS, j->recipe.bos));
    snprintf(join, sizeof(join), "%s", opt_choice_name(CHOICES_JOIN, j->recipe.join));
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:f, s:f, s:o, s:I, s:I, s:I, s:I, s:I, s:s, s:b, s:s, s:I, s:s, "
        "s:o, s:f, s:f, s:i, s:s, s:f, s:o, s:s}",
        "task", "ppl", "model", j->model_dir, "method", eval_method(e), "ppl", r->ppl,
        "nll", r->nll, "stderr", json_finite(r->ppl_stderr), "tokens",
        (json_int_t)r->tokens, "windows", (json_int_t)r->windows, "ctx", (json_int_t)e->ctx,
        "stride", (json_int_t)e->ctx, "chunk", (json_int_t)e->chunk, "bos", bos_rule,
        "bos_in_text", bos, "join", join, "text_tokens", (json_int_t)j->ids.n, "text_crc32",
        crc, "texts", eval_text_names(j), "weight_bits", weight_bits, "kv_bits", kv_bits,
        "activation_bits", eval_act_bits(e), "compute", eval_compute(e), "seconds",
        r->seconds, "window_nll", json_reals(e->window_nll, r->windows), "score",
        e->settings->score);
    if (o && eval_target(e))
        json_object_set_new(o, "kv_target", json_string(kv_target_name[eval_target(e)]));
    enum err err = eval_set_identity(o, e);
    if (!err)
        err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static enum err print_result(const struct eval *e, const struct eval_result *r)
{
    if (e->settings->json)
        return print_json(e, r);
    printf("perplexity  %.4f", r->ppl);
    if (isfinite(r->ppl_stderr))
        printf(" +- %.4f", r->ppl_stderr);
    printf("  (%.6f nats)\n", r->nll);
    printf("text        %" PRId64 " window%s of %" PRId64 ", %" PRId64
           " target%s%s, no overlap, "
           "%s\n",
           r->windows, plural(r->windows), e->ctx, r->tokens, plural(r->tokens),
           e->first ? " in their second halves" : "",
           e->job->ids.n && e->job->ids.id[0] == tokenizer_bos(e->job->tokenizer)
               ? "BOS in front"
               : "no BOS");
    printf("model       %s by %s, chunk %" PRId64 "\n", eval_bits_text(e), eval_method(e),
           e->chunk);
    if (eval_target(e))
        printf("cache       that of %s, simulated\n", kv_target_name[eval_target(e)]);
    printf("time        %.1f s\n", r->seconds);
    return OK;
}

static enum err measure_ppl(struct eval *e)
{
    struct eval_result r;
    if (e->settings->against)
        return eval_against(e);
    TRY(eval_count_windows(e));
    TRY(mem_calloc(&e->window_nll, (size_t)e->windows, sizeof(*e->window_nll)));
    enum err err = eval_ppl(&r, e);
    if (!err)
        err = print_result(e, &r);
    mem_free(e->window_nll);
    return err;
}

/* Nothing is answered, so of what a model is asked, and how, all options are refused. */
static enum err check_predictions(const struct args *a)
{
    static const struct opt *const refused[] = {options, opt_data, opt_recipe};
    FAIL_IF(strcmp(a->task, "longbench"), ERR_USAGE,
            "--predictions is for --task longbench");
    FAIL_IF(
        a->pos.n, ERR_USAGE,
        "--predictions scores the answers in its files as they are: leave out the model");
    for (size_t i = 0; i < ARRAY_LEN(refused); i++)
        for (const struct opt *o = refused[i]; o->help; o++)
            FAIL_IF(opt_is_given(a, o) && strcmp(o->name, "task") &&
                        strcmp(o->name, "predictions"),
                    ERR_USAGE,
                    "--predictions scores the answers in its files as they are: leave out "
                    "--%s",
                    o->name);
    return OK;
}

static enum err score_predictions(const struct args *a)
{
    TRY(check_predictions(a));
    return eval_predictions(a->predictions.item, a->predictions.n, a->json);
}

/* Tokens that are processed at a time; 0: the whole context, then token by token, as the packed
 * runtime answers questions. A chunk as long as any context is the same. */
static int64_t chunk_of(const struct args *a, bool packed_task)
{
    if (packed_task)
        return a->chunk < a->ctx ? a->chunk : 0;
    return a->chunk ? a->chunk : 1;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct job j = {0};
    const bool ppl = !strcmp(a->task, "ppl"), longbench = !strcmp(a->task, "longbench");
    const bool packed_task = longbench || (!ppl && a->decode);
    const struct eval_settings settings = {.json = a->json,
                                           .limit = a->limit,
                                           .labels = a->labels.item,
                                           .n_labels = a->labels.n,
                                           .prompts = a->prompts,
                                           .max_gen = a->max_gen,
                                           .out = a->out,
                                           .score = a->score,
                                           .against = a->against,
                                           .recipe = command_recipe_input(a)};
    struct eval e = {.job = &j,
                     .settings = &settings,
                     .kv_bits = (int)a->kv_bits,
                     .windows = a->windows,
                     .ctx = a->ctx,
                     .first = strcmp(a->score, "all") ? a->ctx / 2 : 0,
                     .chunk = chunk_of(a, packed_task),
                     .decode = a->decode || longbench};
    if (a->predictions.n)
        return score_predictions(a);
    FAIL_IF(!a->pos.n, ERR_USAGE, "missing argument: want MODEL_OR_ARTIFACT");
    TRY(check_task(a));
    TRY_OUT(command_job_open(&j, a, a->pos.item[0]));
    if (ppl)
        TRY_OUT(job_check_text(&j, "perplexity"));
    TRY_OUT(job_refuse_shares(&j, "evaluation"));
    TRY_OUT(open_model(&e, a));
    if (ppl)
        TRY_OUT(job_read_text(&j));
    /* Uses f32 unless a type is configured, so that results are comparable with others. */
    if (j.recipe.compute == COMPUTE_AUTO)
        j.recipe.compute = COMPUTE_F32;
    if (!e.decode || a->against)
        TRY_OUT(job_open_device(&j));
    TRY_OUT(ppl ? measure_ppl(&e) : longbench ? eval_longbench(&e) : eval_choices(&e));
out:
    artifact_close(&e.artifact);
    state_close(&e.state);
    job_close(&j);
    return err;
}

const struct command cmd_eval = {
    .name = "eval",
    .operands = "MODEL_OR_ARTIFACT",
    .summary = "Perplexity or tasks of a checkpoint or an artifact",
    .details =
        "The text is tokenized once and cut into windows of --ctx tokens without overlap, "
        "as in the literature. In each window the first n-1 tokens predict the last n-1. "
        "With a quantized cache, --chunk 1 is decode: every token sees its past "
        "quantized. run.compute: auto means f32 here. With bf16, the packed runtime rounds "
        "the activations of a chunk to 16 bits where that is faster. Questions (zeroshot, "
        "longbench) are read from the data sets' own JSON lines.\n\n"
        "  wkvq eval SmolLM2-135M --data wiki.test.raw --windows 12\n"
        "  wkvq eval SmolLM2-135M --data wiki.test.raw \\\n"
        "      --simulate rtn --set weights.bits=3\n"
        "  wkvq eval SmolLM2-135M-w4kv4 --data wiki.test.raw --windows 2 --decode\n"
        "  wkvq eval SmolLM2-135M-w4kv4 --task zeroshot --limit 500 -o answers.jsonl \\\n"
        "      --data piqa/dev.jsonl --labels piqa/dev-labels.lst \\\n"
        "      --data ARC-Challenge-Test.jsonl --data hellaswag_val.jsonl\n"
        "  wkvq eval SmolLM2-135M-w4kv4 --task longbench --ctx 1900 -o pred/ \\\n"
        "      --data qasper.jsonl --data lcc.jsonl \\\n"
        "      --prompts dataset2prompt.json --max-gen dataset2maxlen.json\n"
        "  wkvq eval --task longbench --predictions pred/qasper.jsonl\n",
    .groups = groups,
    .min_pos = 0, /* --predictions has no model */
    .max_pos = 1,
    .model = 1,
    .run = run,
};

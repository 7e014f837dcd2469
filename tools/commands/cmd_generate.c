/* SPDX-License-Identifier: MIT */
#include "convert/artifact/artifact_plain.h"
#include "convert/format/artifact_names.h"
#include "convert/runtime/runtime.h"
#include "data/json.h"
#include "data/tokenizer/tok_text.h"
#include "data/tokenizer/tokenizer.h"
#include "data/unpack.h"
#include "kernels/base/clock.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/cli/stop.h"
#include "tools/cli/stop_text.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/recipe/recipe.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Generation:"},
    {OPT_TEXT, 'p', "prompt", "TEXT", offsetof(struct args, prompt),
     .help = "Text to continue; - reads it from standard input, without its last line end "
             "(default: none, this or --prompt-file is required)"},
    {OPT_TEXT, .name = "prompt-file", .arg = "FILE", .offset = offsetof(struct args, prompt_file),
     .help = "File with the text to continue, without its last line end; also compressed"},
    {OPT_INT, 'n', "n-tokens", "N", offsetof(struct args, n_tokens), "64", 1, 1 << 20,
     .help = "Maximum number of new tokens; an end-of-text token ends earlier"},
    {OPT_REAL, .name = "temperature", .arg = "T", .offset = offsetof(struct args, temperature),
     .value = "0", .lo = 0, .hi = 100,
     .help = "0 takes the most likely token each time"},
    {OPT_INT, .name = "top-k", .arg = "K", .offset = offsetof(struct args, top_k),
     .value = "0", .lo = 0, .hi = 1 << 30,
     .help = "Sample from the K most likely tokens; 0 = all"},
    {OPT_REAL, .name = "top-p", .arg = "P", .offset = offsetof(struct args, top_p),
     .value = "1", .lo = 0, .hi = 1,
     .help = "Sample from the most likely tokens with total probability P"},
    {OPT_INT, .name = "seed", .arg = "N", .offset = offsetof(struct args, seed),
     .value = "0", .lo = 0, .hi = 9e15, .help = "Seed of the draws"},
    {OPT_LIST, .name = "stop", .arg = "TEXT", .offset = offsetof(struct args, stop),
     .help = "Stop before this text, which is not printed; repeatable"},
    {OPT_INT, .name = "chunk", .arg = "N", .offset = offsetof(struct args, chunk),
     .value = "128", .lo = 1, .hi = 1 << 20,
     .help = "Tokens of the prompt processed at a time; the cache of all earlier tokens "
             "is quantized"},
    {OPT_INT, .name = "kv-bits", .arg = "BITS", .offset = offsetof(struct args, kv_bits),
     .value = "0", .lo = 0, .hi = 16,
     .help = "16 leaves the cache in full precision; 0 follows the artifact"},
    {OPT_FLAG, .name = "no-check", .offset = offsetof(struct args, no_check),
     .help = "Start sooner, without comparing the checksums of the weights; text of damaged "
             "weights can look valid"},
    {OPT_FLAG, .name = "stats", .offset = offsetof(struct args, stats),
     .help = "Print the size of the cache on stderr at the end"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options, opt_recipe, opt_report, NULL};

#define PROMPT_LIMIT ((size_t)16 << 20) /* bytes */

struct generation {
    const struct args *a;
    struct recipe recipe;
    struct hf_model *model; /* a checkpoint, of which the artifact is a view; NULL: none */
    struct artifact *artifact;
    struct tokenizer *tokenizer;
    struct unpacked file; /* that the prompt was read from */
    const char *text_in;  /* [bytes_in] the prompt */
    size_t bytes_in;
    struct token_ids prompt;
    struct runtime *rt;
    float *logits; /* [V] */
    int32_t *ids;  /* [n_tokens] generated ids */
    int64_t n;
    /* of ids, decoded as a whole, since a token's text depends on earlier ones */
    char *text;
    size_t bytes;
    size_t shown;    /* settled bytes of text, printed on stdout unless --json */
    bool unread;     /* nobody reads them any more */
    const char *end; /* reason of the end */
    /* clock, in seconds: prompt given, first token and last token shown */
    double start, first, last;
    double prompt_s;
};

/* The most likely token does not depend on how others would be drawn. */
static void warn_of_greedy(const struct args *a)
{
    const char *name = a->top_k       ? "top-k"
                       : a->top_p < 1 ? "top-p"
                       : a->seed      ? "seed"
                                      : NULL;
    if (name && !(a->temperature > 0))
        log_warn(
            "--%s has no effect at temperature 0, which takes the most likely token; give "
            "--temperature T as well",
            name);
}

static enum err check_text(const char *text, size_t n, const char *from)
{
    FAIL_IF(!utf8_valid(text, n), ERR_FORMAT,
            "%s: is not UTF-8; convert it, as with iconv -f WINDOWS-1252 -t UTF-8", from);
    return OK;
}

/* The line end that closes a file is not part of a sentence to continue. */
static enum err read_prompt_file(struct generation *g, const char *path)
{
    TRY(unpack_open(&g->file, path, PROMPT_LIMIT));
    const char *text = g->file.data ? g->file.data : "";
    size_t n = g->file.bytes;
    n -= n && text[n - 1] == '\n';
    n -= n && text[n - 1] == '\r';
    TRY(check_text(text, n, unpack_shown(path)));
    FAIL_IF(!n, ERR_USAGE, "%s: is empty; give a text to continue", unpack_shown(path));
    g->text_in = text;
    g->bytes_in = n;
    return OK;
}

static enum err take_prompt(struct generation *g)
{
    const struct args *a = g->a;
    FAIL_IF(a->prompt && a->prompt_file, ERR_USAGE,
            "--prompt and --prompt-file: give one of them");
    if (a->prompt_file)
        return read_prompt_file(g, a->prompt_file);
    FAIL_IF(!a->prompt || !*a->prompt, ERR_USAGE,
            "no prompt: give -p TEXT, -p - for standard input, or --prompt-file FILE");
    if (!strcmp(a->prompt, "-"))
        return read_prompt_file(g, "-");
    g->text_in = a->prompt;
    g->bytes_in = strlen(a->prompt);
    return check_text(g->text_in, g->bytes_in, "--prompt");
}

/* Refuses keys of the quantization, of which full precision has none. */
static enum err check_full(const struct args *a)
{
    const struct recipe_input in = command_recipe_input(a);
    const struct recipe_fixed plain = {
        .name = a->pos.item[0],
        .advice = "make an artifact with `wkvq convert`, or leave the key out"};
    FAIL_IF(
        a->kv_bits && a->kv_bits != 16, ERR_USAGE,
        "--kv-bits %d: %s is a checkpoint in full precision, and so is its cache; leave "
        "the option out",
        (int)a->kv_bits, a->pos.item[0]);
    return recipe_check_fixed(&plain, &in);
}

/* Opens an artifact, or a checkpoint as one of 16 bits. */
static enum err open_weights(struct generation *g)
{
    const struct args *a = g->a;
    const char *dir = a->pos.item[0];
    bool packed;
    TRY(artifact_is(&packed, dir));
    if (!packed) {
        TRY(check_full(a));
        TRY(hf_open(&g->model, dir));
        return artifact_plain(&g->artifact, g->model);
    }
    TRY(artifact_open(&g->artifact, dir,
                      a->no_check ? ARTIFACT_LOAD : ARTIFACT_CHECK | ARTIFACT_LOAD));
    return command_check_artifact(a, g->artifact, false);
}

static enum err open_runtime(struct generation *g)
{
    const struct args *a = g->a;
    const struct runtime_settings s = {.threads = (int)g->recipe.threads,
                                       .max_tokens = (int64_t)g->prompt.n + a->n_tokens,
                                       .kv_bits = (int)a->kv_bits,
                                       .act = recipe_runtime_act(&g->recipe)};
    enum err err = arch_check_length(artifact_arch(g->artifact), s.max_tokens);
    if (err)
        return err_add(err, "prompt and --n-tokens: ");
    err = runtime_open(&g->rt, g->artifact, &s);
    return err == ERR_MEMORY ? err_add(err, "prompt and --n-tokens: ") : err;
}

static enum err open_generation(struct generation *g)
{
    const struct args *a = g->a;
    for (int i = 0; i < a->stop.n; i++)
        FAIL_IF(!*a->stop.item[i], ERR_USAGE, "--stop: want a text, not an empty one");
    TRY(take_prompt(g));
    warn_of_greedy(a);
    TRY(command_recipe(&g->recipe, a));
    TRY(recipe_check_packed(&g->recipe));
    TRY(recipe_check_cpu(&g->recipe, "the packed runtime"));
    TRY(open_weights(g));
    TRY(tokenizer_open(&g->tokenizer, a->pos.item[0]));
    TRY(tokenizer_encode(&g->prompt, g->tokenizer, g->text_in, g->bytes_in, BOS_AUTO));
    FAIL_IF(g->prompt.n == 0, ERR_USAGE, "the prompt has no tokens");
    TRY(open_runtime(g));
    TRY(mem_alloc(&g->ids, (size_t)a->n_tokens, sizeof(*g->ids)));
    return mem_alloc(&g->logits, (size_t)artifact_arch(g->artifact)->vocab,
                     sizeof(*g->logits));
}

static void close_generation(struct generation *g)
{
    mem_free(g->logits);
    mem_free(g->ids);
    mem_free(g->text);
    runtime_close(&g->rt);
    token_ids_free(&g->prompt);
    tokenizer_close(&g->tokenizer);
    artifact_close(&g->artifact);
    hf_close(&g->model);
    unpack_close(&g->file);
    recipe_free(&g->recipe);
}

static enum err read_prompt(struct generation *g)
{
    const int64_t n = (int64_t)g->prompt.n, chunk = g->a->chunk;
    g->start = clock_s();
    for (int64_t t = 0; t < n; t += chunk)
        TRY(runtime_forward(g->rt, n - t > chunk ? NULL : g->logits, false,
                            g->prompt.id + t, n - t < chunk ? n - t : chunk));
    g->prompt_s = clock_s() - g->start;
    return OK;
}

/* Prints the text up to a byte. If nobody reads it any more, generation ends. */
static enum err print(struct generation *g, size_t end)
{
    fwrite(g->text + g->shown, 1, end - g->shown, stdout);
    if (!fflush(stdout))
        return OK;
    g->unread = stop_output_closed();
    FAIL_IF(!g->unread, ERR_IO, "cannot write to standard output: %s", strerror(errno));
    return OK;
}

/* Decodes the ids, prints settled text, and returns whether a stop string was found. With
 * `last` all text is settled. */
static enum err show(bool *stopped, struct generation *g, bool last)
{
    const struct text_list *stop = &g->a->stop;
    mem_free(g->text);
    g->text = NULL;
    TRY(tokenizer_decode(&g->text, &g->bytes, g->tokenizer, g->ids, (size_t)g->n, false));
    size_t end = last ? g->bytes : stop_text_settled(g->text, g->bytes);
    *stopped = stop_text_find(&end, g->text, end, g->shown, stop);
    if (*stopped)
        g->bytes = end;
    else if (!last)
        end = stop_text_safe(g->text, end, stop);
    if (end > g->shown && !g->a->json)
        TRY(print(g, end));
    *stopped = *stopped || g->unread;
    g->shown = end > g->shown ? end : g->shown;
    return OK;
}

static bool ends_text(const struct generation *g, int32_t id)
{
    const struct arch *a = artifact_arch(g->artifact);
    for (int64_t i = 0; i < a->n_eos; i++)
        if (a->eos[i] == id)
            return true;
    return tokenizer_ends(g->tokenizer, id);
}

/* Generates one token. *done is set when it ends the text. */
static enum err next_token(bool *done, struct generation *g, const struct sampler *s,
                           struct rng *rng)
{
    int32_t id;
    TRY(runtime_sample(&id, s, rng, g->logits, artifact_arch(g->artifact)->vocab));
    if (ends_text(g, id)) {
        g->end = "eos";
        *done = true;
        return OK;
    }
    g->ids[g->n++] = id;
    TRY(show(done, g, false));
    g->last = clock_s();
    if (g->n == 1)
        g->first = g->last;
    if (*done)
        g->end = "stop";
    else if (g->n < g->a->n_tokens)
        TRY(runtime_forward(g->rt, g->logits, false, &id, 1));
    else
        *done = true;
    return OK;
}

static enum err generate(struct generation *g)
{
    const struct args *a = g->a;
    const struct sampler s = {(float)a->temperature, (float)a->top_p, a->top_k,
                              (uint64_t)a->seed};
    struct rng rng;
    bool done = false, stopped = false;
    rng_seed(&rng, s.seed);
    g->end = "length";
    TRY(read_prompt(g));
    while (!done)
        TRY(next_token(&done, g, &s, &rng));
    if (strcmp(g->end, "stop"))
        TRY(show(&stopped, g, true));
    if (stopped)
        g->end = "stop";
    return OK;
}

/* Returns the tokens per second after the first; 0: there were none. */
static double token_rate(const struct generation *g)
{
    return g->n > 1 ? (double)(g->n - 1) / (g->last - g->first) : 0;
}

static enum err print_json(const struct generation *g)
{
    json_t *ids = json_array();
    for (int64_t i = 0; i < g->n; i++)
        json_array_append_new(ids, json_integer(g->ids[i]));
    json_t *o = json_pack(
        "{s:s%, s:s%, s:s, s:o, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:f}", "prompt",
        g->text_in, g->bytes_in, "text", g->text ? g->text : "", g->bytes, "finish_reason",
        g->end, "ids", ids, "prompt_tokens", (json_int_t)g->prompt.n, "tokens",
        (json_int_t)g->n, "prompt_seconds", g->prompt_s, "seconds",
        g->n ? g->last - g->start - g->prompt_s : 0, "first_token_seconds",
        g->n ? g->first - g->start : 0, "tokens_per_second", token_rate(g), "kv_bytes",
        (json_int_t)runtime_kv_bytes(g->rt), "kv_bits", runtime_kv_bits(g->rt));
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static void say_speed(const struct generation *g)
{
    if (g->n)
        log_info("%zu token%s of prompt, the first token after %.3f s; %" PRId64
                 " token%s, "
                 "%.1f per second after the first",
                 g->prompt.n, plural((int64_t)g->prompt.n), g->first - g->start, g->n,
                 plural(g->n), token_rate(g));
    if (g->a->stats)
        fprintf(stderr, "cache %.2f MB, %.3f bits per element\n",
                1e-6 * (double)runtime_kv_bytes(g->rt), runtime_kv_bits(g->rt));
}

static enum err finish(const struct generation *g)
{
    if (g->a->json)
        return print_json(g);
    if (g->unread) /* main() sets the status */
        return OK;
    printf("\n");
    fflush(stdout);
    say_speed(g);
    return OK;
}

static enum err run(struct args *a)
{
    struct generation g = {.a = a};
    enum err err = open_generation(&g);
    if (!err)
        err = generate(&g);
    if (!err)
        err = finish(&g);
    close_generation(&g);
    return err;
}

const struct command cmd_generate = {
    .name = "generate",
    .operands = "MODEL_OR_ARTIFACT",
    .summary = "Generate text with the packed runtime, greedy or sampled",
    .details =
        "An artifact runs from its codes, a checkpoint in full precision. The generated text "
        "goes to stdout as it is produced. At the end, stderr gets the "
        "time to the first token and the tokens per second. Prompt and --n-tokens "
        "together must fit the model's context. With run.compute bf16, activations of the "
        "prompt are rounded to 16 bits where that is faster; auto means f32 here.\n\n"
        "  wkvq generate SmolLM2-135M-w4kv4 -p 'The capital of France is'\n"
        "  wkvq generate SmolLM2-135M-w4kv4 -p 'Once' --temperature 0.8 --top-p 0.95\n"
        "  wkvq generate SmolLM2-135M -p - -n 20 <prompt.txt\n"
        "  wkvq generate SmolLM2-135M-w4kv4 -p 'Q: Why?' --stop 'Q:' --stop $'\\n\\n'\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .model = 1,
    .run = run,
};

/* SPDX-License-Identifier: MIT
 *
 * LongBench with the packed runtime. The prompt is one chunk (or several), then the most
 * likely token is taken each time. */
#include "convert/runtime/runtime.h"
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/cli/opt.h"
#include "tools/eval/eval_compare.h"
#include "tools/eval/tasks/eval_tasks.h"
#include "tools/eval/tasks/longbench.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct bench {
    struct eval *e;
    struct longbench_config config;
    struct file_writer *lines; /* NULL: no output file */
    json_t *sets;
    struct longbench_set set; /* the current question */
    struct runtime *rt;
    float *logits;  /* [V] */
    int32_t *ids;   /* [max_gen] */
    double *scores; /* [n] */
};

/* --- one answer --------------------------------------------------------------------- */

static bool ends_text(const struct eval *e, int32_t id)
{
    const struct arch *a = &e->job->arch;
    for (int64_t i = 0; i < a->n_eos; i++)
        if (a->eos[i] == id)
            return true;
    return tokenizer_ends(e->job->tokenizer, id);
}

static enum err read_prompt(struct bench *b, const struct token_ids *p)
{
    const int64_t n = (int64_t)p->n, chunk = b->e->chunk ? b->e->chunk : n;
    runtime_reset(b->rt);
    for (int64_t t = 0; t < n; t += chunk)
        TRY(runtime_forward(b->rt, b->logits, false, p->id + t,
                            n - t < chunk ? n - t : chunk));
    return OK;
}

static enum err generate(int64_t *n, struct bench *b, const struct token_ids *prompt)
{
    const struct sampler greedy = {.temperature = 0, .top_p = 1};
    struct rng rng;
    rng_seed(&rng, 0);
    TRY(read_prompt(b, prompt));
    for (*n = 0; *n < b->set.max_gen; ++*n) {
        int32_t id;
        TRY(runtime_sample(&id, &greedy, &rng, b->logits, b->e->job->arch.vocab));
        if (ends_text(b->e, id))
            break;
        b->ids[*n] = id;
        if (*n + 1 < b->set.max_gen)
            TRY(runtime_forward(b->rt, b->logits, false, &id, 1));
    }
    return OK;
}

static enum err write_line(struct bench *b, int64_t i, const char *text, size_t n)
{
    const struct longbench_item *item = &b->set.item[i];
    json_t *o = json_pack("{s:s, s:I, s:f, s:s%, s:O, s:I, s:b}", "set", b->set.task->name,
                          "question", (json_int_t)i, "score", b->scores[i], "pred", text, n,
                          "answers", item->answers, "prompt_tokens",
                          (json_int_t)item->prompt.n, "cut", item->cut);
    char *line = o ? json_text(o, JSON_REAL_PRECISION(9)) : NULL;
    json_decref(o);
    FAIL_IF(!line, ERR_MEMORY, "question %" PRId64 ": its answer cannot be written", i + 1);
    const enum err err = file_printf(b->lines, "%s\n", line);
    free(line);
    return err;
}

static enum err answer(struct bench *b, int64_t i)
{
    char *text = NULL;
    size_t bytes;
    int64_t n;
    TRY(generate(&n, b, &b->set.item[i].prompt));
    TRY(tokenizer_decode(&text, &bytes, b->e->job->tokenizer, b->ids, (size_t)n, false));
    enum err err = longbench_score(&b->scores[i], b->set.task, (struct span){text, bytes},
                                   b->set.item[i].answers);
    if (!err && b->lines)
        err = write_line(b, i, text, bytes);
    mem_free(text);
    return err;
}

/* --- one file ----------------------------------------------------------------------- */

static enum err set_open(struct bench *b, const char *path)
{
    const struct job *j = b->e->job;
    struct runtime_settings s = {.threads = (int)j->recipe.threads,
                                 .kv_bits = b->e->kv_bits};
    TRY(longbench_load(&b->set, path, &b->config, j->tokenizer,
                       (enum bos_rule)j->recipe.bos, b->e->ctx, b->e->settings->limit));
    for (int64_t i = 0; i < b->set.n; i++)
        if (s.max_tokens < (int64_t)b->set.item[i].prompt.n)
            s.max_tokens = (int64_t)b->set.item[i].prompt.n;
    s.max_tokens += b->set.max_gen;
    TRY(mem_alloc(&b->ids, (size_t)b->set.max_gen, sizeof(*b->ids)));
    TRY(mem_alloc(&b->scores, (size_t)b->set.n, sizeof(*b->scores)));
    const enum err err = runtime_open(&b->rt, b->e->artifact, &s);
    return err ? err_add(err, "--ctx and --max-gen: ") : OK;
}

static void set_close(struct bench *b)
{
    runtime_close(&b->rt);
    mem_free(b->ids);
    mem_free(b->scores);
    longbench_free(&b->set);
    b->ids = NULL;
    b->scores = NULL;
}

static enum err report(struct bench *b, const char *path, double seconds)
{
    const struct estimate score = estimate_mean(b->scores, b->set.n);
    int64_t cut = 0;
    for (int64_t i = 0; i < b->set.n; i++)
        cut += b->set.item[i].cut;
    if (!b->e->settings->json) {
        printf("%-15s %6.2f", b->set.task->name, 100 * score.mean);
        if (isfinite(score.stderr_))
            printf(" +- %.2f", 100 * score.stderr_);
        printf("  %" PRId64 " questions, %" PRId64 " cut in the middle  %.1f s  %s\n",
               b->set.n, cut, seconds, file_base_name(path));
        fflush(stdout);
        return OK;
    }
    json_t *o = json_pack(
        "{s:s, s:s, s:I, s:f, s:o, s:I, s:I, s:f}", "set", b->set.task->name, "file", path,
        "n", (json_int_t)b->set.n, "score", 100 * score.mean, "stderr",
        isfinite(score.stderr_) ? json_real(100 * score.stderr_) : json_null(), "cut",
        (json_int_t)cut, "max_gen", (json_int_t)b->set.max_gen, "seconds", seconds);
    FAIL_IF(!o || json_array_append_new(b->sets, o), ERR_MEMORY,
            "out of memory for the result");
    return OK;
}

static enum err measure(struct bench *b, const char *path)
{
    const double start = clock_s();
    enum err err = set_open(b, path);
    if (!err)
        progress_phase(b->e->job->progress, b->set.task->name);
    for (int64_t i = 0; !err && i < b->set.n; i++) {
        err = answer(b, i);
        if (err)
            err = err_add(err, "%s: question %" PRId64 ": ", path, i + 1);
        progress_share(b->e->job->progress, (double)(i + 1) / (double)b->set.n);
    }
    progress_end(b->e->job->progress);
    if (!err)
        err = report(b, path, clock_s() - start);
    set_close(b);
    return err;
}

/* --- all ---------------------------------------------------------------------------- */

static enum err print_all(const struct bench *b)
{
    const struct eval *e = b->e;
    double weight_bits, kv_bits;
    eval_bits(&weight_bits, &kv_bits, e);
    if (!e->settings->json) {
        printf("model           W%.3gKV%.3g by %s, greedy\n", weight_bits, kv_bits,
               eval_method(e));
        return OK;
    }
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:o, s:o, s:I, s:I, s:O}", "task", "longbench", "model",
                  e->job->model_dir, "method", eval_method(e), "weight_bits",
                  eval_bits_json(weight_bits), "kv_bits", eval_bits_json(kv_bits), "ctx",
                  (json_int_t)e->ctx, "chunk", (json_int_t)e->chunk, "sets", b->sets);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static enum err measure_all(struct bench *b)
{
    const struct job *j = b->e->job;
    TRY(longbench_config_open(&b->config, b->e->settings->prompts,
                              b->e->settings->max_gen));
    TRY(tokenizer_open(&b->e->job->tokenizer, j->model_dir));
    TRY(mem_alloc(&b->logits, (size_t)j->arch.vocab, sizeof(*b->logits)));
    if (b->e->settings->out)
        TRY(file_writer_open(&b->lines, b->e->settings->out));
    for (int i = 0; i < j->recipe.data.n; i++)
        TRY(measure(b, j->recipe.data.path[i]));
    return b->lines ? file_writer_commit(&b->lines) : OK;
}

enum err eval_longbench(struct eval *e)
{
    struct bench b = {.e = e, .sets = json_array()};
    enum err err = measure_all(&b);
    if (!err)
        err = print_all(&b);
    file_writer_abort(&b.lines);
    longbench_config_close(&b.config);
    mem_free(b.logits);
    json_decref(b.sets);
    return err;
}

/* SPDX-License-Identifier: MIT
 *
 * LongBench with the packed runtime. The prompt is one chunk (or several), then the most
 * likely token is taken each time. */
#include "convert/runtime/runtime.h"
#include "kernels/base/bytes.h"
#include "kernels/base/clock.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/cli/stop.h"
#include "tools/eval/tasks/eval_tasks.h"
#include "tools/eval/tasks/longbench.h"
#include "tools/eval/tasks/longbench_report.h"
#include "tools/eval/tasks/task_lines.h"
#include "tools/eval/tasks/task_run.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The questions of one file. */
struct part {
    struct longbench_set set;
    double *score;            /* [set.n] */
    bool *done;               /* [set.n] */
    struct task_lines *lines; /* of this file, or of all files */
    int64_t line;             /* number of question 0 in it */
    char *path;               /* of lines, if -o is a directory */
};

struct bench {
    struct eval *e;
    struct longbench_config config;
    struct part *part;        /* [n], one for each file */
    struct task_lines *lines; /* of all files; NULL if -o is a directory */
    char *run;                /* name of the run in lines */
    int n;
    bool bos;
    struct task_progress progress;
    struct longbench_report report;
    struct runtime *rt; /* of the current file */
    float *logits;      /* [V] */
    int32_t *ids;       /* [max_gen] */
};

/* --- one answer --------------------------------------------------------------------- */

static enum err read_prompt(struct bench *b, const struct token_ids *p)
{
    const int64_t n = (int64_t)p->n, chunk = b->e->chunk ? b->e->chunk : n;
    runtime_reset(b->rt);
    for (int64_t t = 0; t < n; t += chunk) {
        const int64_t step = n - t < chunk ? n - t : chunk;
        TRY(runtime_forward(b->rt, b->logits, false, p->id + t, step));
        task_progress_add(&b->progress, (double)step);
    }
    return OK;
}

static enum err generate(int64_t *n, struct bench *b, const struct token_ids *prompt,
                         int64_t most)
{
    const struct sampler greedy = {.temperature = 0, .top_p = 1};
    struct rng rng;
    rng_seed(&rng, 0);
    TRY(read_prompt(b, prompt));
    for (*n = 0; *n < most; ++*n) {
        int32_t id;
        TRY(runtime_sample(&id, &greedy, &rng, b->logits, b->e->job->arch.vocab));
        if (longbench_ends(&b->e->job->arch, b->e->job->tokenizer, id))
            break;
        b->ids[*n] = id;
        if (*n + 1 < most)
            TRY(runtime_forward(b->rt, b->logits, false, &id, 1));
        task_progress_add(&b->progress, 1);
    }
    task_progress_add(&b->progress, (double)(most - *n));
    return OK;
}

/* Makes a line. Its first four fields are what the benchmark's eval.py reads. */
static json_t *line_json(const struct part *p, int64_t i, const char *text, size_t n)
{
    const struct longbench_item *item = &p->set.item[i];
    return json_pack("{s:s%, s:O, s:O, s:O, s:s, s:I, s:f, s:I, s:b}", "pred", text, n,
                     "answers", item->answers, "all_classes", item->classes, "length",
                     item->length, "set", p->set.task->name, "question",
                     (json_int_t)item->row, "score", p->score[i], "prompt_tokens",
                     (json_int_t)item->prompt.n, "cut", item->cut);
}

static enum err answer(struct bench *b, struct part *p, int64_t i)
{
    char *text = NULL;
    size_t bytes;
    int64_t n;
    TRY(generate(&n, b, &p->set.item[i].prompt, p->set.max_gen));
    TRY(tokenizer_decode(&text, &bytes, b->e->job->tokenizer, b->ids, (size_t)n, false));
    enum err err = longbench_score(&p->score[i], p->set.task, (struct span){text, bytes},
                                   p->set.item[i].answers);
    if (!err)
        err = task_lines_put(p->lines, p->line + i, line_json(p, i, text, bytes));
    mem_free(text);
    return err;
}

/* --- the output --------------------------------------------------------------------- */

/* Returns the CRC-32 of what is asked and how it is scored: the prompt's ids as 32-bit
 * little-endian numbers, then the largest number of tokens of the answer and the reference
 * answers as text. */
static enum err item_crc(uint32_t *crc, const struct longbench_set *s, int64_t i)
{
    const struct longbench_item *item = &s->item[i];
    char *answers = json_text(item->answers, 0), most[32];
    FAIL_IF(!answers, ERR_MEMORY, "out of memory for the output");
    snprintf(most, sizeof(most), "%" PRId64, s->max_gen);
    *crc = 0;
    for (size_t t = 0; t < item->prompt.n; t++) {
        const uint32_t id = (uint32_t)item->prompt.id[t];
        const uint8_t le[4] = {(uint8_t)id, (uint8_t)(id >> 8), (uint8_t)(id >> 16),
                               (uint8_t)(id >> 24)};
        *crc = bytes_crc32(*crc, le, sizeof(le));
    }
    *crc = bytes_crc32(*crc, most, strlen(most));
    *crc = bytes_crc32(*crc, answers, strlen(answers));
    free(answers);
    return OK;
}

enum err eval_longbench_crc(uint32_t *crc, const struct longbench_set *set)
{
    *crc = 0;
    for (int64_t i = 0; i < set->n; i++) {
        uint32_t one;
        TRY(item_crc(&one, set, i));
        const uint8_t le[4] = {(uint8_t)one, (uint8_t)(one >> 8), (uint8_t)(one >> 16),
                               (uint8_t)(one >> 24)};
        *crc = bytes_crc32(*crc, le, sizeof(le));
    }
    return OK;
}

/* Scores the answer in a line of an earlier run. */
static enum err take_line(struct part *p, int64_t i, const json_t *line)
{
    char where[96];
    struct span pred;
    snprintf(where, sizeof(where), "-o: question %" PRId64 " of %s", p->set.item[i].row,
             p->set.task->name);
    TRY(longbench_pred(&pred, line, where));
    p->done[i] = true;
    return longbench_score(&p->score[i], p->set.task, pred, p->set.item[i].answers);
}

static enum err expect(struct part *p)
{
    p->line = task_lines_count(p->lines);
    for (int64_t i = 0; i < p->set.n; i++) {
        const json_t *line;
        uint32_t crc = 0;
        TRY(item_crc(&crc, &p->set, i));
        TRY(task_lines_expect(&line, p->lines, p->set.task->name, p->set.item[i].row, crc));
        if (line)
            TRY(take_line(p, i, line));
    }
    return OK;
}

/* Opens DIR/SET.jsonl, where the benchmark's eval.py looks for the answers of a set. */
static enum err open_in_directory(struct bench *b, struct part *p, const char *dir)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.jsonl", p->set.task->name);
    TRY(file_join(&p->path, dir, name));
    TRY(task_lines_open(&p->lines, p->path, b->run, 9));
    TRY(expect(p));
    return task_lines_check(p->lines);
}

static enum err open_directory(struct bench *b, const char *dir)
{
    TRY(file_make_dir(dir));
    for (int i = 0; i < b->n; i++)
        TRY(open_in_directory(b, &b->part[i], dir));
    stop_keeps(dir);
    return OK;
}

static enum err open_lines(struct bench *b)
{
    const char *out = b->e->settings->out;
    const struct job *j = b->e->job;
    if (out)
        TRY(task_run_text(&b->run, b->e, longbench_ends_crc(&j->arch, j->tokenizer)));
    if (out && (file_is_dir(out) || (*out && out[strlen(out) - 1] == '/')))
        return open_directory(b, out);
    TRY(task_lines_open(&b->lines, out, b->run ? b->run : "", 9));
    for (int i = 0; i < b->n; i++) {
        b->part[i].lines = b->lines;
        TRY(expect(&b->part[i]));
    }
    return task_lines_check(b->lines);
}

static enum err finish_lines(struct bench *b)
{
    if (b->lines)
        return task_lines_finish(b->lines);
    for (int i = 0; i < b->n; i++)
        TRY(task_lines_finish(b->part[i].lines));
    return OK;
}

/* --- one file ----------------------------------------------------------------------- */

static int64_t left(const struct part *p)
{
    int64_t n = 0;
    for (int64_t i = 0; i < p->set.n; i++)
        n += !p->done[i];
    return n;
}

/* Counts an answer as long as it may become; one that ends before is then done at once. */
static double tokens_left(const struct part *p)
{
    double n = 0;
    for (int64_t i = 0; i < p->set.n; i++)
        n += p->done[i] ? 0 : (double)((int64_t)p->set.item[i].prompt.n + p->set.max_gen);
    return n;
}

/* The prompt is one chunk, and each token of the answer but the last is read by itself. */
static void warn_of_cache(const struct bench *b, const struct part *p, const char *path)
{
    const int64_t from = eval_cache_from(b->e, 1);
    int64_t few = 0;
    for (int64_t i = 0; i < p->set.n; i++)
        few += (int64_t)p->set.item[i].prompt.n + p->set.max_gen - 1 < from;
    task_warn_cache(b->e, path, few, p->set.n, from);
}

static enum err open_runtime(struct bench *b, const struct part *p)
{
    struct runtime_settings s = {.threads = (int)b->e->job->recipe.threads,
                                 .kv_bits = b->e->kv_bits,
                                 .act = recipe_runtime_act(&b->e->job->recipe)};
    for (int64_t i = 0; i < p->set.n; i++)
        if (s.max_tokens < (int64_t)p->set.item[i].prompt.n)
            s.max_tokens = (int64_t)p->set.item[i].prompt.n;
    s.max_tokens += p->set.max_gen;
    TRY(mem_alloc(&b->ids, (size_t)p->set.max_gen, sizeof(*b->ids)));
    enum err err = arch_check_length(artifact_arch(b->e->artifact), s.max_tokens);
    if (err)
        return err_add(err, "--ctx and --max-gen: ");
    err = runtime_open(&b->rt, b->e->artifact, &s);
    return err == ERR_MEMORY ? err_add(err, "--ctx and --max-gen: ") : err;
}

static enum err answer_all(struct bench *b, struct part *p, const char *path)
{
    enum err err = left(p) ? open_runtime(b, p) : OK;
    for (int64_t i = 0; i < p->set.n && !err; i++) {
        if (p->done[i])
            continue;
        TRY_OUT(task_check_stop());
        err = answer(b, p, i);
        if (err)
            err = err_add(err, "%s: question %" PRId64 ": ", path, p->set.item[i].row + 1);
    }
    if (!err)
        warn_of_cache(b, p, path);
out:
    runtime_close(&b->rt);
    mem_free(b->ids);
    b->ids = NULL;
    return err;
}

static enum err measure(struct bench *b, struct part *p, const char *path)
{
    const double start = clock_s();
    struct longbench_figures f = {.task = p->set.task,
                                  .file = path,
                                  .n = p->set.n,
                                  .rows = p->set.rows,
                                  .max_gen = p->set.max_gen};
    TRY(answer_all(b, p, path));
    progress_end(b->progress.p);
    f.score = estimate_mean(p->score, p->set.n);
    for (int64_t i = 0; i < p->set.n; i++)
        f.cut += p->set.item[i].cut;
    f.seconds = clock_s() - start;
    return longbench_report_add(&b->report, &f);
}

/* --- all ---------------------------------------------------------------------------- */

static enum err load(struct bench *b, struct part *p, const char *path)
{
    const struct job *j = b->e->job;
    TRY(longbench_load(&p->set, path, &b->config, j->tokenizer,
                       (enum bos_rule)j->recipe.bos, b->e->ctx, b->e->settings->limit));
    for (const struct part *other = b->part; other < p; other++)
        TRY(task_refuse_twins("data", path, p->set.task->name, other->set.task->name));
    TRY(mem_calloc(&p->score, (size_t)p->set.n, sizeof(*p->score)));
    return mem_calloc(&p->done, (size_t)p->set.n, sizeof(*p->done));
}

/* Loads all files first, so that a mistake in the last one is found before the work. */
static enum err load_all(struct bench *b)
{
    const struct eval_settings *s = b->e->settings;
    struct job *j = b->e->job;
    TRY(longbench_config_open(&b->config, s->prompts, s->max_gen));
    TRY(tokenizer_open(&j->tokenizer, j->model_dir));
    TRY(task_has_bos(&b->bos, b->e));
    TRY(mem_calloc(&b->part, (size_t)b->n, sizeof(*b->part)));
    for (int i = 0; i < b->n; i++)
        TRY(load(b, &b->part[i], j->recipe.data.path[i]));
    TRY(mem_alloc(&b->logits, (size_t)j->arch.vocab, sizeof(*b->logits)));
    return longbench_report_open(&b->report, b->n, s->json);
}

static enum err measure_all(struct bench *b)
{
    TRY(load_all(b));
    TRY(open_lines(b));
    for (int i = 0; i < b->n; i++)
        b->progress.total += tokens_left(&b->part[i]);
    b->progress.p = b->e->job->progress;
    progress_phase(b->progress.p, "longbench");
    task_progress_add(&b->progress, 0);
    for (int i = 0; i < b->n; i++)
        TRY(measure(b, &b->part[i], b->e->job->recipe.data.path[i]));
    return finish_lines(b);
}

static void close_bench(struct bench *b)
{
    for (int i = 0; b->part && i < b->n; i++) {
        struct part *p = &b->part[i];
        if (p->lines != b->lines)
            task_lines_close(&p->lines);
        longbench_free(&p->set);
        mem_free(p->score);
        mem_free(p->done);
        mem_free(p->path);
    }
    task_lines_close(&b->lines);
    longbench_report_close(&b->report);
    longbench_config_close(&b->config);
    mem_free(b->part);
    mem_free(b->run);
    mem_free(b->logits);
}

enum err eval_longbench(struct eval *e)
{
    struct bench b = {.e = e, .n = e->job->recipe.data.n};
    enum err err = measure_all(&b);
    if (!err)
        err = longbench_report_print(&b.report, e, b.bos);
    close_bench(&b);
    return err;
}

enum err eval_longbench_set(double *score, struct eval *e, const struct longbench_set *set,
                            const char *path, const struct task_kept *kept)
{
    struct part p = {.set = *set, .score = score};
    struct bench b = {.e = e, .part = &p, .n = 1, .progress = {.p = e->job->progress}};
    enum err err = OK;
    TRY(task_lines_open_kept(&b.lines, kept, 9));
    p.lines = b.lines;
    TRY_OUT(mem_calloc(&p.done, (size_t)set->n, sizeof(*p.done)));
    TRY_OUT(mem_alloc(&b.logits, (size_t)e->job->arch.vocab, sizeof(*b.logits)));
    TRY_OUT(expect(&p));
    TRY_OUT(task_lines_check(p.lines));
    b.progress.total = tokens_left(&p);
    TRY_OUT(answer_all(&b, &p, path));
out:
    progress_end(e->job->progress);
    task_lines_close(&b.lines);
    mem_free(p.done);
    mem_free(b.logits);
    return err;
}

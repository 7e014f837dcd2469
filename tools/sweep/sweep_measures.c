/* SPDX-License-Identifier: MIT
 *
 * Which measures are asked of a cell, and whether a result has them. */
#include "tools/sweep/sweep_measures.h"

#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/opt.h"

#include <ctype.h>
#include <inttypes.h>
#include <string.h>

#define NAME_MAX_BYTES 32

/* --- options ------------------------------------------------------------------------ */

/* Returns the bytes of NAME in "NAME=FILE"; 0: not of this form. */
static size_t name_bytes(const char *text)
{
    size_t n = 0;
    while (isalnum((unsigned char)text[n]) || (text[n] && strchr("-_.", text[n])))
        n++;
    return text[n] == '=' && text[n + 1] && n <= NAME_MAX_BYTES ? n : 0;
}

static enum err check_texts(const struct sweep_settings *own)
{
    for (int i = 0; i < own->n_eval_texts; i++) {
        const char *text = own->eval_texts[i];
        const size_t n = name_bytes(text);
        FAIL_IF(
            !n, ERR_USAGE,
            "--eval-text %s: want NAME=FILE, as in PTB=ptb.test.txt; a name has at most "
            "%d letters, digits, '-', '_' and '.'",
            text, NAME_MAX_BYTES);
        for (int k = 0; k < i; k++)
            FAIL_IF(!strncmp(own->eval_texts[k], text, n + 1), ERR_USAGE,
                    "--eval-text %s: another text has this name", text);
    }
    return OK;
}

enum err sweep_measures_open(struct sweep *s)
{
    const struct sweep_settings *own = &s->settings;
    TRY(check_texts(own));
    FAIL_IF(own->eval_join && !own->n_eval_texts, ERR_USAGE,
            "--eval-join is for --eval-text");
    FAIL_IF(own->n_labels && !own->n_zeroshot, ERR_USAGE, "--labels is for --zeroshot");
    FAIL_IF((own->prompts || own->max_gen) && !own->n_longbench, ERR_USAGE,
            "--%s is for --longbench", own->prompts ? "prompts" : "max-gen");
    FAIL_IF((own->limit || own->task_ctx) && !own->n_zeroshot && !own->n_longbench,
            ERR_USAGE, "--%s is for --zeroshot and --longbench",
            own->limit ? "limit" : "task-ctx");
    if (!own->task_ctx)
        s->settings.task_ctx = s->eval_ctx;
    const enum err err = arch_check_length(&s->arch, s->settings.task_ctx);
    return err ? err_add(err, "--task-ctx: ") : OK;
}

static void free_questions(struct sweep_questions *q, const struct sweep_settings *own)
{
    for (int i = 0; q->zeroshot && i < own->n_zeroshot; i++)
        zeroshot_free(&q->zeroshot[i]);
    for (int i = 0; q->longbench && i < own->n_longbench; i++)
        longbench_free(&q->longbench[i]);
    mem_free(q->zeroshot);
    mem_free(q->labels);
    mem_free(q->longbench);
}

void sweep_measures_close(struct sweep *s)
{
    for (int i = 0; i < s->n_questions; i++)
        free_questions(&s->questions[i], &s->settings);
    mem_free(s->questions);
}

/* --- questions ---------------------------------------------------------------------- */

static enum err load_zeroshot(struct sweep_questions *q, const struct sweep *s,
                              const struct eval *e)
{
    const struct sweep_settings *own = &s->settings;
    struct label_files labels = {.path = own->labels, .n = own->n_labels};
    TRY(mem_calloc(&q->zeroshot, (size_t)own->n_zeroshot, sizeof(*q->zeroshot)));
    TRY(mem_calloc(&q->labels, (size_t)own->n_zeroshot, sizeof(*q->labels)));
    for (int i = 0; i < own->n_zeroshot; i++) {
        const int used = labels.used;
        TRY(zeroshot_load(&q->zeroshot[i], e, own->zeroshot[i], &labels));
        q->labels[i] = labels.used > used ? used : -1;
        zeroshot_warn_cut(&q->zeroshot[i], "--task-ctx", own->task_ctx);
        for (int k = 0; k < i; k++)
            TRY(task_refuse_twins("zeroshot", own->zeroshot[i], q->zeroshot[i].set.name,
                                  q->zeroshot[k].set.name));
    }
    FAIL_IF(labels.used < labels.n, ERR_USAGE,
            "--labels %s: no file of --zeroshot is left that lacks labels; give one for "
            "each such file, in their order",
            labels.path[labels.used]);
    return OK;
}

/* The prompt and the answer must fit the model; a set's questions differ in length. */
static enum err check_lengths(const struct longbench_set *set, const struct arch *a,
                              const char *path)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < set->n; i++)
        if ((int64_t)set->item[i].prompt.n > longest)
            longest = (int64_t)set->item[i].prompt.n;
    const enum err err = arch_check_length(a, longest + set->max_gen);
    return err ? err_add(err, "--task-ctx and --max-gen: %s: ", path) : OK;
}

static enum err load_longbench_with(struct sweep_questions *q, const struct sweep *s,
                                    const struct longbench_config *config)
{
    const struct sweep_settings *own = &s->settings;
    TRY(mem_calloc(&q->longbench, (size_t)own->n_longbench, sizeof(*q->longbench)));
    for (int i = 0; i < own->n_longbench; i++) {
        struct longbench_set *set = &q->longbench[i];
        TRY(longbench_load(set, own->longbench[i], config, s->tokenizer,
                           (enum bos_rule)q->bos, own->task_ctx, own->limit));
        TRY(check_lengths(set, &s->arch, own->longbench[i]));
        for (int k = 0; k < i; k++)
            TRY(task_refuse_twins("longbench", own->longbench[i], set->task->name,
                                  q->longbench[k].task->name));
    }
    return OK;
}

static enum err load_longbench(struct sweep_questions *q, const struct sweep *s)
{
    struct longbench_config config;
    enum err err = longbench_config_open(&config, s->settings.prompts, s->settings.max_gen);
    if (!err)
        err = load_longbench_with(q, s, &config);
    longbench_config_close(&config);
    return err;
}

static enum err load_questions(struct sweep_questions *q, const struct sweep *s)
{
    const struct eval_settings settings = {.limit = s->settings.limit};
    struct job j = {.model_dir = s->model_dir, .arch = s->arch, .tokenizer = s->tokenizer};
    const struct eval e = {.job = &j, .settings = &settings, .ctx = s->settings.task_ctx};
    j.recipe.bos = q->bos;
    TRY(s->settings.n_zeroshot ? load_zeroshot(q, s, &e) : OK);
    return s->settings.n_longbench ? load_longbench(q, s) : OK;
}

/* *out = the index of the questions with this rule, which are loaded once. */
static enum err find_questions(int *out, struct sweep *s, int bos)
{
    const size_t n = (size_t)s->n_questions;
    for (*out = 0; *out < s->n_questions; ++*out)
        if (s->questions[*out].bos == bos)
            return OK;
    TRY(mem_resize(&s->questions, n, n + 1, sizeof(*s->questions)));
    s->questions[n] = (struct sweep_questions){.bos = bos};
    s->n_questions++;
    return load_questions(&s->questions[n], s);
}

/* --- what is asked ------------------------------------------------------------------ */

/* Takes identity, which may be NULL after a failed allocation. */
static enum err ask(struct sweep_run *run, struct sweep_asked asked)
{
    const size_t n = (size_t)run->n_asked;
    FAIL_IF(!asked.identity, ERR_MEMORY, "out of memory for a measure");
    const enum err err = mem_resize(&run->asked, n, n + 1, sizeof(*run->asked));
    if (err)
        json_decref(asked.identity);
    else
        run->asked[run->n_asked++] = asked;
    return err;
}

static enum err ask_text(struct sweep *s, struct sweep_run *run, int i)
{
    const char *text = s->settings.eval_texts[i];
    const size_t name = name_bytes(text);
    char *path = (char *)(uintptr_t)(text + name + 1), crc[16];
    const struct recipe_files files = {.path = &path, .n = 1};
    struct sweep_asked asked = {.kind = SWEEP_TEXT, .index = i};
    struct recipe r = run->recipe; /* borrows from run->recipe, so it is never freed */
    if (s->settings.eval_join)
        r.join = opt_choice(CHOICES_JOIN, s->settings.eval_join);
    TRY(sweep_find_text(&asked.from, s, &files, &r));
    TRY(sweep_check_text(s, asked.from, path));
    const struct texts *t = &s->text[asked.from].texts;
    snprintf(crc, sizeof(crc), "%08" PRIx32, t->crc);
    asked.identity =
        json_pack("{s:s, s:s%, s:s, s:I, s:I, s:I}", "task", "ppl", "name", text, name,
                  "crc32", crc, "tokens", (json_int_t)t->ids.n, "windows",
                  (json_int_t)s->eval_windows, "ctx", (json_int_t)s->eval_ctx);
    return ask(run, asked);
}

static json_t *task_identity(const char *task, const char *name, uint32_t crc,
                             const struct sweep *s)
{
    char text[16];
    snprintf(text, sizeof(text), "%08" PRIx32, crc);
    return json_pack("{s:s, s:s, s:s, s:I}", "task", task, "name", name, "crc32", text,
                     "ctx", (json_int_t)s->settings.task_ctx);
}

/* The ids of the tokenizer's files that end an answer stand for themselves, as the model's checksum
 * leaves them out. */
static json_t *longbench_identity(const char *name, uint32_t crc, const struct sweep *s)
{
    char text[16];
    const uint32_t ends = longbench_ends_crc(&s->arch, s->tokenizer);
    json_t *o = task_identity("longbench", name, crc, s);
    snprintf(text, sizeof(text), "%08" PRIx32, ends);
    if (ends)
        json_object_set_new(o, "ends", json_string(text));
    return o;
}

static enum err ask_questions(struct sweep *s, struct sweep_run *run, int from)
{
    const struct sweep_questions *q = &s->questions[from];
    const struct recipe *r = &run->recipe;
    const enum sweep_way way = sweep_way(r);
    const bool answers = (way == SWEEP_PACKED && !r->target) ||
                         (way == SWEEP_PLAIN && r->activation_bits == 16);
    for (int i = 0; i < s->settings.n_zeroshot; i++)
        TRY(ask(run,
                (struct sweep_asked){SWEEP_ZEROSHOT, i, from,
                                     task_identity("zeroshot", q->zeroshot[i].set.name,
                                                   zeroshot_crc(&q->zeroshot[i]), s)}));
    for (int i = 0; answers && i < s->settings.n_longbench; i++) {
        uint32_t crc;
        TRY(eval_longbench_crc(&crc, &q->longbench[i]));
        TRY(ask(run, (struct sweep_asked){
                         SWEEP_LONGBENCH, i, from,
                         longbench_identity(q->longbench[i].task->name, crc, s)}));
    }
    if (!answers && s->settings.n_longbench)
        log_warn("cell '%s' has no figures of LongBench: its answers need the packed "
                 "runtime, which lacks what it rounds",
                 s->plan.cell[run - s->run].name);
    return OK;
}

enum err sweep_measures_ask(struct sweep *s, struct sweep_run *run)
{
    int from;
    for (int i = 0; i < s->settings.n_eval_texts; i++)
        TRY(ask_text(s, run, i));
    if (!s->settings.n_zeroshot && !s->settings.n_longbench)
        return OK;
    TRY(find_questions(&from, s, run->recipe.bos));
    return ask_questions(s, run, from);
}

void sweep_measures_forget(struct sweep_run *run)
{
    for (int i = 0; i < run->n_asked; i++)
        json_decref(run->asked[i].identity);
    mem_free(run->asked);
}

/* --- what a result has -------------------------------------------------------------- */

bool sweep_measures_has(const json_t *row, const struct sweep_run *run, int i)
{
    size_t k;
    const json_t *list = json_object_get(row, "measures"), *m;
    json_array_foreach(list, k, m) if (json_equal(json_object_get(m, "identity"),
                                                  run->asked[i].identity)) return true;
    return false;
}

int sweep_measures_count(const json_t *row, const struct sweep_run *run)
{
    int n = 0;
    for (int i = 0; i < run->n_asked; i++)
        n += sweep_measures_has(row, run, i);
    return n;
}

static bool same_measure(const json_t *a, const json_t *b)
{
    return json_equal(json_object_get(a, "task"), json_object_get(b, "task")) &&
           json_equal(json_object_get(a, "name"), json_object_get(b, "name"));
}

/* Returns the place of the measure that this one replaces, or that of the end. */
static size_t place_of(const json_t *list, const json_t *measure)
{
    size_t i = 0;
    while (i < json_array_size(list) && !same_measure(json_array_get(list, i), measure))
        i++;
    return i;
}

enum err sweep_measures_add(json_t *row, json_t *measure, const char *command)
{
    json_t *list = json_object_get(row, "measures");
    if (!list) {
        list = json_array();
        json_object_set_new(row, "measures", list);
    }
    const size_t i = place_of(list, measure);
    const json_t *old = json_array_get(list, i);
    const enum err err = sweep_command_replace(
        row, json_string_value(json_object_get(old, "command")), command);
    const int failed =
        json_object_set_new(measure, "command", json_string(command)) ||
        (old ? json_array_set(list, i, measure) : json_array_append(list, measure));
    json_decref(measure);
    FAIL_IF(!err && failed, ERR_MEMORY, "out of memory for the result");
    return err;
}

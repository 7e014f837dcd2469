/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/longbench.h"

#include "data/tokenizer/tok_text.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/eval/tasks/task_rows.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

#define CONFIG_LIMIT (1 << 20)

static const struct longbench_task tasks[] = {
    {"2wikimqa", "F1", score_f1, false},      {"hotpotqa", "F1", score_f1, false},
    {"lcc", "similarity", score_code, false}, {"multifieldqa_en", "F1", score_f1, false},
    {"qasper", "F1", score_f1, false},        {"triviaqa", "F1", score_f1, true},
};

const struct longbench_task *longbench_find(const char *name, size_t n)
{
    for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
        if (strlen(tasks[i].name) == n && !memcmp(tasks[i].name, name, n))
            return &tasks[i];
    return NULL;
}

/* --- the benchmark's own files ------------------------------------------------------ */

static enum err load_object(json_t **out, const char *path)
{
    TRY(json_load_file_lenient(out, path, CONFIG_LIMIT, JSON_REPEATS_LAST));
    if (json_is_object(*out))
        return OK;
    json_decref(*out);
    *out = NULL;
    FAIL(ERR_FORMAT, "%s: want an object with a member for each data set", path);
}

enum err longbench_config_open(struct longbench_config *c, const char *prompts,
                               const char *max_gen)
{
    *c = (struct longbench_config){.prompts_path = prompts, .max_gen_path = max_gen};
    FAIL_IF(!prompts || !max_gen, ERR_USAGE,
            "--task longbench needs the benchmark's own files: --prompts "
            "dataset2prompt.json --max-gen dataset2maxlen.json");
    TRY(load_object(&c->prompts, prompts));
    return load_object(&c->max_gen, max_gen);
}

void longbench_config_close(struct longbench_config *c)
{
    json_decref(c->prompts);
    json_decref(c->max_gen);
    *c = (struct longbench_config){0};
}

/* --- prompts ------------------------------------------------------------------------ */

/* Appends the text of the field "{name}" at f and moves f past it. */
static enum err add_field(struct text *t, const char **f, const json_t *row,
                          const char *where)
{
    char name[64];
    const char *text, *begin = *f + 1;
    const size_t n = strcspn(begin, "{}");
    FAIL_IF(begin[n] != '}' || n == 0 || n >= sizeof(name), ERR_FORMAT,
            "prompt for %s: a brace without {name}, at \"%.20s\"", where, *f);
    memcpy(name, begin, n);
    name[n] = 0;
    TRY(json_need_string(&text, row, name, where));
    *f = begin + n + 1;
    return text_add(t, text, strlen(text));
}

static enum err fill(struct text *t, const char *f, const json_t *row, const char *where)
{
    while (*f) {
        const size_t plain = strcspn(f, "{}");
        TRY(text_add(t, f, plain));
        f += plain;
        if (*f && f[0] == f[1]) {
            TRY(text_add(t, f, 1));
            f += 2;
        } else if (*f) {
            TRY(add_field(t, &f, row, where));
        }
    }
    return text_add(t, "", 1);
}

enum err longbench_prompt(char **out, const char *format, const json_t *row,
                          const char *where)
{
    struct text t = {0};
    const enum err err = fill(&t, format, row, where);
    if (err)
        text_free(&t);
    else
        *out = t.p;
    return err;
}

/* Appends the texts of the first and of the last ctx / 2 tokens. */
static enum err both_ends(struct text *out, const struct tokenizer *t,
                          const struct token_ids *ids, int64_t ctx)
{
    const size_t half = (size_t)ctx / 2;
    const int32_t *const from[] = {ids->id, ids->id + ids->n - half};
    for (int i = 0; i < 2; i++) {
        char *text = NULL;
        size_t n;
        TRY(tokenizer_decode(&text, &n, t, from[i], half, false));
        const enum err err = text_add(out, text, n);
        mem_free(text);
        TRY(err);
    }
    return OK;
}

/* Tokenizes a prompt. A long one loses its middle, and the rest is tokenized again as text,
 * as in the benchmark. */
static enum err encode(struct longbench_item *item, const struct tokenizer *t,
                       const char *prompt, enum bos_rule bos, int64_t ctx)
{
    struct text ends = {0};
    TRY(tokenizer_encode(&item->prompt, t, prompt, strlen(prompt), bos));
    item->cut = (int64_t)item->prompt.n > ctx;
    if (!item->cut)
        return OK;
    enum err err = both_ends(&ends, t, &item->prompt, ctx);
    token_ids_free(&item->prompt);
    item->prompt = (struct token_ids){0};
    if (!err)
        err = tokenizer_encode(&item->prompt, t, ends.p, ends.n, bos);
    text_free(&ends);
    return err;
}

/* --- files -------------------------------------------------------------------------- */

/* Returns the length of a file's name without the ends of its format and of its compression. */
static size_t plain_length(const char *name)
{
    static const char *const ends[] = {".jsonl", ".ndjson", ".json", ".txt", ".gz", ".xz",
                                       ".zst",   ".bz2",    ".zip",  ".tar", ".tgz"};
    size_t n = strlen(name), before;
    do {
        before = n;
        for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
            const size_t k = strlen(ends[i]);
            if (n > k && !strncasecmp(name + n - k, ends[i], k))
                n -= k;
        }
    } while (n < before);
    return n;
}

enum err longbench_row_task(const struct longbench_task **out, const json_t *row,
                            const char *name, const char *where)
{
    TRY(json_get_string(&name, row, "set", where));
    TRY(json_get_string(&name, row, "dataset", where));
    *out = longbench_find(name, plain_length(name));
    if (*out)
        return OK;
    FAIL(ERR_SUPPORT,
         "%s: data set \"%s\" is not supported; of LongBench there are 2wikimqa, "
         "hotpotqa, lcc, multifieldqa_en, qasper and triviaqa",
         where, name);
}

enum err longbench_answers(json_t **out, const json_t *row, const char *where)
{
    json_t *list;
    TRY(json_get_array(&list, row, "answers", where));
    FAIL_IF(!json_array_size(list), ERR_FORMAT, "%s: no answers", where);
    for (size_t i = 0; i < json_array_size(list); i++)
        FAIL_IF(!json_is_string(json_array_get(list, i)), ERR_FORMAT,
                "%s: answers: %s in it, want strings", where,
                json_kind(json_array_get(list, i)));
    *out = list;
    return OK;
}

enum err longbench_pred(struct span *out, const json_t *row, const char *where)
{
    const json_t *pred = json_object_get(row, "pred");
    FAIL_IF(!json_is_string(pred), ERR_FORMAT, "%s: pred is %s, want a string", where,
            json_kind(pred));
    *out = (struct span){json_string_value(pred), json_string_length(pred)};
    return OK;
}

/* Returns a reference to a member, or null. */
static json_t *member(const json_t *row, const char *key)
{
    json_t *value = json_object_get(row, key);
    return value ? json_incref(value) : json_null();
}

struct loading {
    struct longbench_set set;
    const struct longbench_config *config;
    const struct tokenizer *tokenizer;
    enum bos_rule bos;
    int64_t ctx;
    const char *format;
};

static enum err first_row(struct loading *l, const json_t *row, const struct task_rows *r)
{
    const struct longbench_config *c = l->config;
    TRY(longbench_row_task(&l->set.task, row, file_base_name(r->f.path), r->f.where));
    const char *name = l->set.task->name;
    TRY(json_need_string(&l->format, c->prompts, name, c->prompts_path));
    TRY(json_need_int(&l->set.max_gen, c->max_gen, name, 1, 1 << 20, c->max_gen_path));
    l->set.rows = r->rows;
    return mem_calloc(&l->set.item, (size_t)r->taken, sizeof(*l->set.item));
}

/* Refuses a template that leaves out what a question is about. Rows of a set without questions
 * (lcc) have an empty input. */
static enum err check_template(const struct loading *l, const json_t *row)
{
    const char *input = json_string_value(json_object_get(row, "input"));
    FAIL_IF(!strstr(l->format, "{context}"), ERR_FORMAT,
            "%s: %s: the prompt has no {context}, so the model would not see the text",
            l->config->prompts_path, l->set.task->name);
    FAIL_IF(input && *input && !strstr(l->format, "{input}"), ERR_FORMAT,
            "%s: %s: the prompt has no {input}, so the model would not see the question",
            l->config->prompts_path, l->set.task->name);
    return OK;
}

static enum err add_row(struct loading *l, const json_t *row, const struct task_rows *r)
{
    const struct longbench_task *task;
    const char *where = r->f.where;
    char *prompt;
    if (!l->set.task)
        TRY(first_row(l, row, r));
    TRY(longbench_row_task(&task, row, file_base_name(r->f.path), where));
    FAIL_IF(task != l->set.task, ERR_FORMAT,
            "%s: the data set is %s, but earlier lines "
            "have %s",
            where, task->name, l->set.task->name);
    struct longbench_item *item = &l->set.item[l->set.n];
    l->set.n++;
    item->row = r->row;
    TRY(longbench_answers(&item->answers, row, where));
    json_incref(item->answers);
    item->classes = member(row, "all_classes");
    item->length = member(row, "length");
    TRY(longbench_prompt(&prompt, l->format, row, where));
    const enum err err = encode(item, l->tokenizer, prompt, l->bos, l->ctx);
    mem_free(prompt);
    TRY(err);
    FAIL_IF(!item->prompt.n, ERR_FORMAT, "%s: its prompt has no tokens", where);
    return check_template(l, row);
}

static enum err load_rows(struct loading *l, struct task_rows *r)
{
    for (json_t *row;;) {
        TRY(task_rows_next(&row, r));
        if (!row)
            return OK;
        const enum err err = add_row(l, row, r);
        json_decref(row);
        TRY(err);
    }
}

enum err longbench_load(struct longbench_set *out, const char *path,
                        const struct longbench_config *c, const struct tokenizer *t,
                        enum bos_rule bos, int64_t ctx, int64_t limit)
{
    struct loading l = {.config = c, .tokenizer = t, .bos = bos, .ctx = ctx};
    struct task_rows r;
    enum err err = task_rows_open(&r, path, limit);
    if (!err)
        err = load_rows(&l, &r);
    task_rows_close(&r);
    if (err)
        longbench_free(&l.set);
    else
        *out = l.set;
    return err;
}

void longbench_free(struct longbench_set *s)
{
    for (int64_t i = 0; i < s->n; i++) {
        token_ids_free(&s->item[i].prompt);
        json_decref(s->item[i].answers);
        json_decref(s->item[i].classes);
        json_decref(s->item[i].length);
    }
    mem_free(s->item);
    *s = (struct longbench_set){0};
}

/* --- scores ------------------------------------------------------------------------- */

enum err longbench_score(double *out, const struct longbench_task *task, struct span answer,
                         const json_t *answers)
{
    double best = 0;
    if (task->first_line)
        answer = score_first_line(answer);
    for (size_t i = 0; i < json_array_size(answers); i++) {
        const json_t *want = json_array_get(answers, i);
        double score;
        TRY(task->score(&score, answer,
                        (struct span){json_string_value(want), json_string_length(want)}));
        best = score > best ? score : best;
    }
    *out = best;
    return OK;
}

/* --- where an answer ends ----------------------------------------------------------- */

static bool is_eos(const struct arch *a, int32_t id)
{
    for (int64_t i = 0; i < a->n_eos; i++)
        if (a->eos[i] == id)
            return true;
    return false;
}

bool longbench_ends(const struct arch *a, const struct tokenizer *t, int32_t id)
{
    return is_eos(a, id) || tokenizer_ends(t, id);
}

uint32_t longbench_ends_crc(const struct arch *a, const struct tokenizer *t)
{
    uint32_t crc = 0;
    for (int32_t id = 0; id < a->vocab; id++)
        if (tokenizer_ends(t, id) && !is_eos(a, id)) {
            uint8_t bytes[4];
            for (int i = 0; i < 4; i++)
                bytes[i] = (uint8_t)((uint32_t)id >> 8 * i);
            crc = bytes_crc32(crc, bytes, sizeof(bytes));
        }
    return crc;
}

/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/choice.h"

#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/eval/tasks/choice_text.h"
#include "tools/eval/tasks/task_rows.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MOST_CHOICES 64
#define NO_LABEL INT64_C(-1)

/* --- pieces ------------------------------------------------------------------------- */

static enum err add_choice(struct question *q, const char *context, const char *choice,
                           const char *continuation)
{
    struct choice *c = &q->choice[q->n];
    *c = (struct choice){.chars = choice_chars(choice)};
    q->n++;
    TRY(choice_join(&c->context, (const char *const[]){context, NULL}));
    return choice_join(&c->continuation, (const char *const[]){" ", continuation, NULL});
}

/* Reads an index that some releases write as a number and others as text. */
static enum err need_index(int64_t *out, const json_t *row, const char *key, int64_t lo,
                           int64_t hi, const char *where)
{
    const json_t *v = json_object_get(row, key);
    int64_t i = lo - 1;
    if (json_is_string(v)) {
        const char *s = json_string_value(v);
        char *end;
        FAIL_IF(!*s, ERR_FORMAT,
                "%s: %s is empty: a test split without answers; use the validation split",
                where, key);
        i = strtoll(s, &end, 10);
        i = *end ? lo - 1 : i;
    } else {
        TRY(json_need_int(&i, row, key, INT64_MIN, INT64_MAX, where));
    }
    FAIL_IF(i < lo || i > hi, ERR_FORMAT,
            "%s: %s is not one of %" PRId64 " to %" PRId64
            ": a test split without answers? Use the validation split",
            where, key, lo, hi);
    *out = i;
    return OK;
}

/* Returns item i of a list, for which what is a word; borrowed. */
static enum err need_text(const char **out, const json_t *list, size_t i, const char *what,
                          const char *where)
{
    const json_t *v = json_array_get(list, i);
    *out = json_string_value(v);
    FAIL_IF(!*out, ERR_FORMAT, "%s: %s %zu is not a string", where, what, i);
    FAIL_IF(strlen(*out) != json_string_length(v), ERR_FORMAT,
            "%s: %s %zu holds a NUL character", where, what, i);
    return OK;
}

/* Writes "Question: STEM
 * Answer:" before each of n choices. */
static enum err add_answers(struct question *q, const char *stem, const char *const *choice,
                            int n)
{
    char *context;
    TRY(choice_join(&context,
                    (const char *const[]){"Question: ", stem, "\nAnswer:", NULL}));
    enum err err = OK;
    for (int i = 0; i < n && !err; i++)
        err = add_choice(q, context, choice[i], choice[i]);
    mem_free(context);
    return err;
}

/* --- data sets ------------------------------------------------------------------------ */

static enum err piqa(struct question *q, const json_t *row, int64_t label,
                     const char *where)
{
    const char *goal, *sol[2];
    TRY(json_need_string(&goal, row, "goal", where));
    TRY(json_need_string(&sol[0], row, "sol1", where));
    TRY(json_need_string(&sol[1], row, "sol2", where));
    if (label == NO_LABEL) {
        FAIL_IF(!json_object_get(row, "label"), ERR_FORMAT,
                "%s: no label; PIQA keeps them in a file of their own: give it as --labels",
                where);
        TRY(need_index(&label, row, "label", 0, 1, where));
    }
    FAIL_IF(label > 1, ERR_FORMAT, "%s: its label is %" PRId64 ", want 0 or 1", where,
            label);
    q->gold = (int)label;
    return add_answers(q, goal, sol, 2);
}

/* A question of ARC, from either of its two layouts. Strings are borrowed from the row. */
struct arc {
    const char *stem, *text[MOST_CHOICES], *label[MOST_CHOICES];
    int n;
};

/* question: {stem, choices: [{text, label}]}, as AI2 publishes it. */
static enum err arc_nested(struct arc *a, const json_t *question, const char *where)
{
    json_t *list;
    TRY(json_need_string(&a->stem, question, "stem", where));
    TRY(json_get_array(&list, question, "choices", where));
    FAIL_IF(!list || json_array_size(list) > MOST_CHOICES, ERR_FORMAT,
            "%s: question.choices is missing or longer than %d", where, MOST_CHOICES);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *c = json_array_get(list, i);
        FAIL_IF(!json_is_object(c), ERR_FORMAT,
                "%s: question.choices: %s in it, want objects", where, json_kind(c));
        TRY(json_need_string(&a->text[i], c, "text", where));
        TRY(json_need_string(&a->label[i], c, "label", where));
        a->n++;
    }
    return OK;
}

static enum err strings(const char **out, const json_t *list, int n, const char *where)
{
    for (int i = 0; i < n; i++)
        TRY(need_text(&out[i], list, (size_t)i, "choice", where));
    return OK;
}

/* question: text, choices: {text: [...], label: [...]}, as Hugging Face has it. */
static enum err arc_flat(struct arc *a, const json_t *row, const char *where)
{
    json_t *choices, *text = NULL, *label = NULL;
    TRY(json_need_string(&a->stem, row, "question", where));
    TRY(json_get_object(&choices, row, "choices", where));
    if (choices) {
        TRY(json_get_array(&text, choices, "text", where));
        TRY(json_get_array(&label, choices, "label", where));
    }
    const size_t n = json_array_size(text);
    FAIL_IF(n < 1 || n > MOST_CHOICES || n != json_array_size(label), ERR_FORMAT,
            "%s: choices.text and choices.label are not two lists of the same length",
            where);
    a->n = (int)n;
    TRY(strings(a->text, text, a->n, where));
    return strings(a->label, label, a->n, where);
}

static enum err arc(struct question *q, const json_t *row, int64_t label, const char *where)
{
    const json_t *question = json_object_get(row, "question");
    struct arc a = {0};
    const char *key;
    (void)label;
    TRY(json_is_object(question) ? arc_nested(&a, question, where)
                                 : arc_flat(&a, row, where));
    TRY(json_need_string(&key, row, "answerKey", where));
    for (q->gold = 0; q->gold < a.n; q->gold++)
        if (!strcmp(a.label[q->gold], key))
            return add_answers(q, a.stem, a.text, a.n);
    FAIL(ERR_FORMAT, "%s: answerKey \"%s\" is no choice's label", where, key);
}

static enum err hellaswag_choices(struct question *q, const char *context,
                                  const json_t *endings, const char *where)
{
    for (size_t i = 0; i < json_array_size(endings); i++) {
        const char *text;
        char *clean;
        TRY(need_text(&text, endings, i, "ending", where));
        TRY(choice_hellaswag(&clean, text));
        const enum err err = add_choice(q, context, clean, clean);
        mem_free(clean);
        TRY(err);
    }
    return OK;
}

static enum err hellaswag(struct question *q, const json_t *row, int64_t label,
                          const char *where)
{
    enum err err = OK;
    const char *activity, *a, *b = "";
    char *second = NULL, *whole = NULL, *context = NULL;
    json_t *endings;
    TRY(json_need_string(&activity, row, "activity_label", where));
    TRY(json_need_string(&a, row, "ctx_a", where));
    TRY(json_get_string(&b, row, "ctx_b", where));
    TRY(json_get_array(&endings, row, "endings", where));
    const size_t n = json_array_size(endings);
    FAIL_IF(n < 1 || n > MOST_CHOICES, ERR_FORMAT, "%s: %zu endings", where, n);
    TRY(need_index(&label, row, "label", 0, (int64_t)n - 1, where));
    q->gold = (int)label;
    TRY_OUT(choice_capitalize(&second, b));
    TRY_OUT(
        choice_join(&whole, (const char *const[]){activity, ": ", a, " ", second, NULL}));
    TRY_OUT(choice_hellaswag(&context, whole));
    TRY_OUT(hellaswag_choices(q, context, endings, where));
out:
    mem_free(second);
    mem_free(whole);
    mem_free(context);
    return err;
}

/* Scores what follows the blank, the same text for both options; each option is part of its
 * context. */
static enum err winogrande(struct question *q, const json_t *row, int64_t label,
                           const char *where)
{
    enum err err = OK;
    const char *sentence, *option[2];
    char *head = NULL, *tail = NULL, *context;
    TRY(json_need_string(&sentence, row, "sentence", where));
    TRY(json_need_string(&option[0], row, "option1", where));
    TRY(json_need_string(&option[1], row, "option2", where));
    TRY(need_index(&label, row, "answer", 1, 2, where));
    q->gold = (int)label - 1;
    const char *blank = strchr(sentence, '_');
    FAIL_IF(!blank, ERR_FORMAT, "%s: no _ in the sentence", where);
    TRY_OUT(choice_cut(&head, sentence, (size_t)(blank - sentence)));
    TRY_OUT(choice_strip(&tail, blank + 1));
    for (int i = 0; i < 2; i++) {
        TRY_OUT(choice_join(&context, (const char *const[]){head, option[i], NULL}));
        err = add_choice(q, context, option[i], tail);
        mem_free(context);
        TRY_OUT(err);
    }
out:
    mem_free(head);
    mem_free(tail);
    return err;
}

/* --- files -------------------------------------------------------------------------- */

static const struct source {
    const char *name, *key[2]; /* fields that identify a data set */
    const char *label;         /* field that may be in a file of its own */
    bool normalized;
    enum err (*read)(struct question *q, const json_t *row, int64_t label,
                     const char *where);
} sources[] = {
    {"piqa", {"sol1", "goal"}, "label", true, piqa},
    {"arc", {"answerKey", "question"}, NULL, true, arc},
    {"hellaswag", {"endings", "ctx_a"}, NULL, true, hellaswag},
    {"winogrande", {"option1", "sentence"}, NULL, false, winogrande},
};

static enum err recognize(const struct source **out, const json_t *row, const char *where)
{
    for (size_t i = 0; i < ARRAY_LEN(sources); i++)
        if (json_object_get(row, sources[i].key[0]) &&
            json_object_get(row, sources[i].key[1])) {
            *out = &sources[i];
            return OK;
        }
    FAIL(ERR_SUPPORT,
         "%s: not a question of PIQA (goal, sol1, sol2), ARC (question, answerKey), "
         "HellaSwag (ctx_a, endings) or WinoGrande (sentence, option1)",
         where);
}

/* Returns the part of path from the folder on that holds the file. */
static const char *last_two_parts(const char *path)
{
    const char *at = file_base_name(path);
    for (at -= at > path; at > path && at[-1] != '/';)
        at--;
    return at;
}

/* ARC's two sets have the same fields, so the name of the file or of its folder tells. */
static const char *arc_name(const char *path)
{
    const char *name = last_two_parts(path);
    if (strcasestr(name, "easy"))
        return "arc_easy";
    if (strcasestr(name, "challenge"))
        return "arc_challenge";
    log_warn(
        "%s: its name does not say whether it is ARC-Easy or ARC-Challenge; the result "
        "is called arc",
        path);
    return "arc";
}

/* Labels of one file of questions. */
struct labels {
    const char *path; /* NULL: the rows have them */
    int64_t *item;    /* owned */
    int64_t n;
};

static enum err parse_labels(struct labels *l, const char *at)
{
    int64_t room = 0;
    for (char *end;; at = end) {
        const int64_t v = strtoll(at, &end, 10);
        const char *rest = end == at ? at + strspn(at, " \t\r\n") : "";
        if (end == at && !*rest)
            return OK;
        FAIL_IF(end == at || v < 0, ERR_FORMAT,
                "%s: label %" PRId64 " is not a number from 0 on; want one number a line",
                l->path, l->n + 1);
        if (l->n == room) {
            room = room ? 2 * room : 256;
            TRY(mem_resize(&l->item, (size_t)l->n, (size_t)room, sizeof(*l->item)));
        }
        l->item[l->n++] = v;
    }
}

static enum err read_labels(struct labels *l, const char *path)
{
    char *text;
    size_t n;
    l->path = path;
    TRY(file_read_all(&text, &n, path, 64 << 20));
    const enum err err = parse_labels(l, text);
    mem_free(text);
    return err;
}

/* Takes the next file of labels if the first row has none. */
static enum err find_labels(struct labels *l, struct label_files *files,
                            const struct source *source, const json_t *row,
                            const struct task_rows *rows)
{
    if (!source->label || json_object_get(row, source->label) || files->used == files->n)
        return OK;
    const enum err err = read_labels(l, files->path[files->used]);
    if (err)
        return err_add(err, "--labels: ");
    files->used++;
    FAIL_IF(l->n != rows->rows, ERR_MISMATCH,
            "%s has %" PRId64 " label%s, but %s has %" PRId64 " question%s: they do not "
            "belong together",
            l->path, l->n, plural(l->n), rows->f.path, rows->rows, plural(rows->rows));
    return OK;
}

static enum err add_row(struct question_set *s, const struct source *source,
                        const json_t *row, int64_t label, const struct task_rows *rows)
{
    struct question *q = &s->item[s->n];
    *q = (struct question){.row = rows->row};
    TRY(mem_alloc(&q->choice, MOST_CHOICES, sizeof(*q->choice)));
    s->n++;
    return source->read(q, row, label, rows->f.where);
}

struct loading {
    struct question_set set;
    const struct source *source;
    struct label_files *files;
    struct labels labels;
};

static enum err first_row(struct loading *l, const json_t *row, const struct task_rows *r)
{
    TRY(recognize(&l->source, row, r->f.where));
    TRY(find_labels(&l->labels, l->files, l->source, row, r));
    l->set.name = l->source->read == arc ? arc_name(r->f.path) : l->source->name;
    l->set.normalized = l->source->normalized;
    l->set.rows = r->rows;
    return mem_alloc(&l->set.item, (size_t)r->taken, sizeof(*l->set.item));
}

static enum err load_rows(struct loading *l, struct task_rows *r)
{
    for (json_t *row;;) {
        TRY(task_rows_next(&row, r));
        if (!row)
            return OK;
        enum err err = l->source ? OK : first_row(l, row, r);
        if (!err)
            err = add_row(&l->set, l->source, row,
                          l->labels.path ? l->labels.item[r->row] : NO_LABEL, r);
        json_decref(row);
        TRY(err);
    }
}

enum err question_set_load(struct question_set *out, const char *path,
                           struct label_files *labels, int64_t limit)
{
    struct loading l = {.files = labels};
    struct task_rows r;
    enum err err = task_rows_open(&r, path, limit);
    if (!err)
        err = load_rows(&l, &r);
    task_rows_close(&r);
    mem_free(l.labels.item);
    if (err)
        question_set_free(&l.set);
    else
        *out = l.set;
    return err;
}

void question_set_free(struct question_set *s)
{
    for (int64_t i = 0; i < s->n; i++) {
        for (int c = 0; c < s->item[i].n; c++) {
            mem_free(s->item[i].choice[c].context);
            mem_free(s->item[i].choice[c].continuation);
        }
        mem_free(s->item[i].choice);
    }
    mem_free(s->item);
    *s = (struct question_set){0};
}

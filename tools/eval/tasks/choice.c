/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/choice.h"

#include "data/jsonl.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/eval/tasks/choice_text.h"

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

/* Checks and stores what ARC's two layouts have in common. */
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
    for (int i = 0; i < n; i++) {
        out[i] = json_string_value(json_array_get(list, (size_t)i));
        FAIL_IF(!out[i], ERR_FORMAT, "%s: choice %d is not a string", where, i);
    }
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
        const char *text = json_string_value(json_array_get(endings, i));
        char *clean;
        FAIL_IF(!text, ERR_FORMAT, "%s: ending %zu is not a string", where, i);
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
    bool normalized;
    enum err (*read)(struct question *q, const json_t *row, int64_t label,
                     const char *where);
} sources[] = {
    {"piqa", {"sol1", "goal"}, true, piqa},
    {"arc", {"answerKey", "question"}, true, arc},
    {"hellaswag", {"endings", "ctx_a"}, true, hellaswag},
    {"winogrande", {"option1", "sentence"}, false, winogrande},
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

/* Reads the labels of a file in order. */
struct labels {
    const char *path;
    char *text, *at;
    int64_t line;
};

static enum err labels_open(struct labels *l, const char *path)
{
    size_t n;
    *l = (struct labels){.path = path};
    if (path)
        TRY(file_read_all(&l->text, &n, path, 64 << 20));
    l->at = l->text;
    return OK;
}

static enum err next_label(int64_t *out, struct labels *l)
{
    char *end;
    *out = NO_LABEL;
    if (!l->path)
        return OK;
    const int64_t v = strtoll(l->at, &end, 10);
    FAIL_IF(end == l->at || v < 0, ERR_FORMAT,
            "%s: no label for question %" PRId64 "; want one number a line, one a question",
            l->path, l->line + 1);
    l->at = end;
    l->line++;
    *out = v;
    return OK;
}

static enum err grow(struct question_set *s, int64_t *room)
{
    if (s->n < *room)
        return OK;
    const int64_t more = *room ? 2 * *room : 256;
    TRY(mem_resize(&s->item, (size_t)*room, (size_t)more, sizeof(*s->item)));
    *room = more;
    return OK;
}

static enum err add_row(struct question_set *s, const struct source *source,
                        const json_t *row, int64_t label, const char *where)
{
    struct question *q = &s->item[s->n];
    *q = (struct question){0};
    TRY(mem_alloc(&q->choice, MOST_CHOICES, sizeof(*q->choice)));
    s->n++;
    return source->read(q, row, label, where);
}

static enum err load_rows(struct question_set *s, struct jsonl *f, struct labels *labels,
                          int64_t limit)
{
    const struct source *source = NULL;
    json_t *row = NULL;
    enum err err = OK;
    int64_t room = 0;
    while (!err && (limit == 0 || s->n < limit)) {
        int64_t label = NO_LABEL;
        TRY(jsonl_next(&row, f));
        if (!row)
            break;
        if (!source)
            err = recognize(&source, row, f->where);
        if (!err)
            err = next_label(&label, labels);
        if (!err)
            err = grow(s, &room);
        if (!err)
            err = add_row(s, source, row, label, f->where);
        json_decref(row);
    }
    TRY(err);
    FAIL_IF(!s->n, ERR_FORMAT, "%s: no question in it", f->path);
    s->name = source->name;
    s->normalized = source->normalized;
    return OK;
}

enum err question_set_load(struct question_set *out, const char *path, const char *labels,
                           int64_t limit)
{
    struct question_set s = {0};
    struct labels l;
    struct jsonl f = {0};
    enum err err = labels_open(&l, labels);
    if (!err)
        err = jsonl_open(&f, path);
    if (!err)
        err = load_rows(&s, &f, &l, limit);
    jsonl_close(&f);
    mem_free(l.text);
    if (err)
        question_set_free(&s);
    else
        *out = s;
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
